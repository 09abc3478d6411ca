"""
Read and write header fields of many packets at once, by name, and leave packets whose lengths and checksums fit.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture.dissect import Dissection, dissect, uint
from netdiffusion_core.model import LINK_ETHERNET, LINK_RAW, TCP, UDP, Traffic

from .checksum import checksum_offsets, ipv4_checksums, transport_checksums

Array = NDArray[Any]

_NO_PACKETS = np.zeros(0, np.int64)

# name: (first bit, bits) in its header, as in the figures of RFC 791, 8200, 9293, 768, 792
FIELDS = {
    "ipv4.ver": (0, 4), "ipv4.hl": (4, 4), "ipv4.tl": (16, 16), "ipv4.id": (32, 16), "ipv4.flags": (48, 3),
    "ipv4.rbit": (48, 1), "ipv4.dfbit": (49, 1), "ipv4.mf_foff": (50, 14), "ipv4.ttl": (64, 8), "ipv4.proto": (72, 8),
    "ipv4.cksum": (80, 16),
    "ipv6.len": (32, 16), "ipv6.nh": (48, 8), "ipv6.hl": (56, 8),
    "tcp.sprt": (0, 16), "tcp.dprt": (16, 16), "tcp.seq": (32, 32), "tcp.ackn": (64, 32), "tcp.res": (100, 3),
    "tcp.flags": (104, 8), "tcp.wsize": (112, 16), "tcp.cksum": (128, 16), "tcp.urp": (144, 16),
    "udp.sport": (0, 16), "udp.dport": (16, 16), "udp.len": (32, 16), "udp.cksum": (48, 16),
    "icmp.type": (0, 8), "icmp.code": (8, 8), "icmp.cksum": (16, 16), "icmp.id": (32, 16), "icmp.seq": (48, 16),
}  # fmt: skip


class Draft:
    """
    A traffic while it is being changed: fields are written in place, `finish` makes a traffic of it.
    """

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic.packed()
        self.headers = dissect(self.traffic)
        self.data = self.traffic.data.copy()
        self._ip_changed, self._transport_changed = np.zeros((2, len(traffic)), bool)

    def get(self, field: str, packets: Array) -> NDArray[np.int64]:
        """
        Return a field of these packets, which must have its header: int64[packets].
        """
        at, size, shift, mask = self._place(field, packets)
        return uint(self.data, at, size) >> shift & mask

    def put(self, field: str, packets: Array, values: Array | int) -> None:
        """
        Write a field of these packets.
        """
        at, size, shift, mask = self._place(field, packets)
        old = uint(self.data, at, size)
        new = old & ~(mask << shift) | (np.asarray(values, np.int64) & mask) << shift
        for i in range(size):
            self.data[at + i] = new >> 8 * (size - 1 - i) & 0xFF
        self._mark(packets[old != new], not field.startswith("ip"))

    def _mark(self, packets: Array, transport: bool) -> None:
        (self._transport_changed if transport else self._ip_changed)[packets] = True

    def _place(self, field: str, packets: Array) -> tuple[Array, int, int, int]:
        first, bits = FIELDS[field]
        is_ip = field.startswith("ip")
        base = (self.headers.ip_offsets if is_ip else self.headers.transport_offsets)[packets]
        size = (first % 8 + bits + 7) // 8
        return base + first // 8, size, 8 * size - first % 8 - bits, (1 << bits) - 1

    def options(self, header: str, packets: Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """
        Return ``(options, sizes)`` of the headers ``ipv4`` or ``tcp`` of these packets: uint8[n, 40], filled up with
        zeros, and their bytes.
        """
        at, sizes = self._options(header, packets)
        inside = np.arange(40) < sizes[:, None]
        return np.where(inside, self.data[np.where(inside, at[:, None] + np.arange(40), 0)], 0).astype(np.uint8), sizes

    def put_options(self, header: str, packets: Array, options: Array) -> None:
        """
        Write options; how many bytes they have does not change.
        """
        old, sizes = self.options(header, packets)
        changed = (old != options).any(1)
        at, sizes = self._options(header, packets[changed])
        inside = np.arange(40) < sizes[:, None]
        self.data[(at[:, None] + np.arange(40))[inside]] = options[changed][inside]
        self._mark(packets[changed], header == "tcp")

    def _options(self, header: str, packets: Array) -> tuple[Array, Array]:
        h = self.headers
        if header == "ipv4":
            return h.ip_offsets[packets] + 20, h.ip_header_lengths[packets] - 20
        return h.transport_offsets[packets] + 20, h.transport_header_lengths[packets] - 20

    def turn(self, packets: Array) -> None:
        """
        Make these packets go the other way: exchange MAC addresses (Ethernet), IP addresses, and ports (TCP, UDP). No
        checksum minds.
        """
        h = self.headers
        ethernet = packets[self.traffic.link_types[packets] == LINK_ETHERNET]
        self._swap(self.traffic.starts[ethernet], 6)
        for version, at, size in ((4, 12, 4), (6, 8, 16)):
            self._swap(h.ip_offsets[packets[h.ip_versions[packets] == version]] + at, size)
        with_ports = np.isin(h.protocols[packets], (TCP, UDP)) & (h.transport_offsets[packets] >= 0)
        self._swap(h.transport_offsets[packets[with_ports]], 2)

    def _swap(self, at: Array, size: int) -> None:
        left = at[:, None] + np.arange(size)
        self.data[left], self.data[left + size] = self.data[left + size], self.data[left]

    def finish(
        self,
        seal: Array = _NO_PACKETS,
        seal_ip: Array = _NO_PACKETS,
        payload_lengths: Array | None = None,
        **changes: Any,
    ) -> Traffic:
        """
        Return the traffic with what was written. A packet that was changed gets lengths and checksums that fit; one
        that was not stays as it is, to the byte.

        seal             int64[k]: packets whose transport checksum is to be written although nothing else was
        seal_ip          int64[k]: the same for the IPv4 header checksum
        payload_lengths  int64[packets]: cut payloads to so many bytes; what lies behind the IP packet goes too
        changes          other fields of the traffic to replace
        """
        traffic, h, data = self.traffic, self.headers, self.data
        transport_changed = self._transport_changed.copy()
        transport_changed[seal] = True
        ip_changed = self._ip_changed.copy()
        ip_changed[seal_ip] = True
        if payload_lengths is not None and (payload_lengths < h.payload_lengths).any():
            shorter = np.flatnonzero(payload_lengths < h.payload_lengths)
            ip_changed[shorter] = transport_changed[shorter] = True
            traffic, data, h = self._cut(shorter, payload_lengths[shorter])

        i = np.flatnonzero(transport_changed & (h.transport_offsets >= 0) & ~h.fragments)
        at = checksum_offsets(h, i)
        omitted = (h.protocols[i] == UDP) & (h.ip_versions[i] == 4) & (uint(data, at, 2) == 0)  # RFC 768: no checksum
        i, at = i[~omitted], at[~omitted]
        _write_words(data, at, transport_checksums(data, traffic, h, i))
        i = np.flatnonzero(ip_changed & (h.ip_versions == 4))
        _write_words(data, h.ip_offsets[i] + 10, ipv4_checksums(data, h.ip_offsets[i], h.ip_header_lengths[i]))
        return attrs.evolve(traffic, data=data, **changes)

    def _cut(self, packets: Array, payload_lengths: Array) -> tuple[Traffic, Array, Dissection]:
        """
        Shorten the payload of these packets: their bytes, wire lengths and length fields.
        """
        traffic, h = self.traffic, self.headers
        removed = h.payload_lengths[packets] - payload_lengths
        ip_lengths = h.ip_lengths[packets] - removed
        is4 = h.ip_versions[packets] == 4
        self.put("ipv4.tl", packets[is4], ip_lengths[is4])
        self.put("ipv6.len", packets[~is4], ip_lengths[~is4] - 40)
        udp = h.protocols[packets] == UDP
        self.put("udp.len", packets[udp], 8 + payload_lengths[udp])
        wire = np.array(traffic.wire_lengths)
        wire[packets] = h.link_lengths[packets] + ip_lengths
        captured = np.minimum(traffic.captured_lengths, wire)
        runs = np.column_stack([captured, traffic.captured_lengths - captured]).ravel()
        data = self.data[np.repeat(np.arange(len(runs)) % 2 == 0, runs)]
        traffic = attrs.evolve(
            traffic, data=data, starts=np.cumsum(captured) - captured, captured_lengths=captured, wire_lengths=wire
        )
        return traffic, data, dissect(traffic)


def _write_words(data: Array, at: Array, values: Array) -> None:
    data[at] = values >> 8
    data[at + 1] = values & 0xFF


def malformed(traffic: Traffic, headers: Dissection, version: int) -> NDArray[np.int64]:
    """
    Return the packets that the link layer (Ethernet or raw IP) calls IP of this version and that have no such header,
    although enough of them was captured.
    """
    start, captured = traffic.starts, traffic.captured_lengths
    smallest = 20 if version == 4 else 40
    unread = headers.ip_versions == 0
    i = np.flatnonzero(unread & (traffic.link_types == LINK_ETHERNET) & (captured >= 14 + smallest))
    ethernet = i[uint(traffic.data, start[i] + 12, 2) == (0x0800 if version == 4 else 0x86DD)]
    i = np.flatnonzero(unread & (traffic.link_types == LINK_RAW) & (captured >= smallest))
    raw = i[(traffic.data[start[i]] >> 4 == version) | (version == 4) & (traffic.data[start[i]] >> 4 != 6)]
    return np.concatenate([ethernet, raw])


def malformed_transport(traffic: Traffic, headers: Dissection, protocols: tuple[int, ...]) -> NDArray[np.int64]:
    """
    Return the packets that name one of these protocols and have no whole header of it, although the whole IP packet
    was captured.
    """
    named = np.isin(headers.protocols, protocols) & (headers.fragment_offsets == 0)
    whole = headers.ip_offsets + headers.ip_lengths <= traffic.ends
    return np.flatnonzero(named & whole & (headers.transport_offsets < 0))
