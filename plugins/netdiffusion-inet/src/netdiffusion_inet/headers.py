"""
Read and write header fields of many packets at once, by name, and leave packets whose lengths and checksums fit.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture.dissect import Dissection, dissect, uint
from netdiffusion_core.interfaces import Record, forget
from netdiffusion_core.model import ICMP, ICMPV6, LINK_ETHERNET, LINK_RAW, TCP, UDP, Traffic

from .checksum import checksum_offsets, differ, ipv4_checksums, transport_checksums
from .known import Known
from .rules import RULES

Array = NDArray[Any]

MTU = 1500  # RFC 894

_PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "icmpv6": ICMPV6}
_VERSIONS = {"ipv4": 4, "ipv6": 6}
_SHAPE = ("ipv4.tl", "ipv6.len", "ipv4.mf_foff")  # what the transport's checksum depends on

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
    A traffic while one rule set changes it: fields are written in place, `finish` makes a traffic of it.

    Whatever is written is told to `record`, and nothing is written in the name of a rule that is `off`, except lengths
    and checksums of packets that another rule changed.

    data            uint8[bytes]   the packets' bytes, copied before they are first written
    from_initiator  bool[packets]  replace it, never write into it
    timestamps      int64[packets] replace it, never write into it
    flows           FlowTable      replace it
    """

    def __init__(
        self, traffic: Traffic, off: Set[str] = frozenset(), record: Record = forget, checksums: tuple[str, ...] = ()
    ) -> None:
        """
        checksums  headers whose checksums are judged in packets that nothing else was changed in
        """
        self.traffic = traffic
        self.headers = headers_of(traffic)
        self.data = traffic.data
        self.from_initiator, self.timestamps, self.flows = traffic.from_initiator, traffic.timestamps, traffic.flows
        self.off = off
        self.record = record
        self._checksums = checksums
        self._wire_lengths = traffic.wire_lengths
        self._ip_changed, self._transport_changed = np.zeros((2, len(traffic)), bool)

    def get(self, field: str, packets: Array) -> NDArray[np.int64]:
        """
        Return a field of these packets, which must have its header: int64[packets].
        """
        at, size, shift, mask = self._place(field, packets)
        return uint(self.data, at, size) >> shift & mask

    def put(self, rule: str, field: str, packets: Array, values: Array | int) -> None:
        """
        Write a field of these packets, as this rule wants it.
        """
        if rule in self.off or not len(packets):
            return
        at, size, shift, mask = self._place(field, packets)
        word = uint(self.data, at, size)
        old, new = word >> shift & mask, np.full(len(packets), values) & mask
        i = np.flatnonzero(old != new)
        if not len(i):
            return
        self._write(at[i], size, word[i] & ~(mask << shift) | new[i] << shift)
        if field.startswith("ip"):
            self._ip_changed[packets[i]] = True
        if field in _SHAPE or not field.startswith("ip"):
            self._transport_changed[packets[i]] = True
        self.record(rule, field, packets[i], old[i], new[i])

    def _write(self, at: Array, size: int, values: Array) -> None:
        if not self.data.flags.writeable:
            self.data = self.data.copy()
        for i in range(size):
            self.data[at + i] = values >> 8 * (size - 1 - i) & 0xFF

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
        options = np.zeros((len(packets), 40), np.uint8)
        width = int(sizes.max(initial=0))
        inside = np.arange(width) < sizes[:, None]
        options[:, :width][inside] = self.data[(at[:, None] + np.arange(width))[inside]]
        return options, sizes

    def put_options(self, rule: str, header: str, packets: Array, options: Array) -> None:
        """
        Write options, word by word; how many bytes they have does not change.
        """
        if rule in self.off or not len(packets):
            return
        at, old = self._options(header, packets)[0], self.options(header, packets)[0].view(">u4")
        new = np.ascontiguousarray(options).view(">u4")
        for k in np.flatnonzero((old != new).any(0)).tolist():
            i = np.flatnonzero(old[:, k] != new[:, k])
            self._write(at[i] + 4 * k, 4, new[i, k].astype(np.int64))
            self.record(rule, f"{header}.opt.{k}", packets[i], old[i, k], new[i, k])
            (self._transport_changed if header == "tcp" else self._ip_changed)[packets[i]] = True

    def _options(self, header: str, packets: Array) -> tuple[Array, Array]:
        h = self.headers
        if header == "ipv4":
            return h.ip_offsets[packets] + 20, h.ip_header_lengths[packets] - 20
        return h.transport_offsets[packets] + 20, h.transport_header_lengths[packets] - 20

    def turn(self, rule: str, packets: Array) -> None:
        """
        Make these packets go the other way: exchange MAC addresses (Ethernet), IP addresses, and ports (TCP, UDP). No
        checksum minds.
        """
        if rule in self.off or not len(packets):
            return
        h, forth = self.headers, self.from_initiator[packets]
        self.record(rule, "trace.direction", packets, forth, ~forth)
        self.from_initiator = self.from_initiator.copy()
        self.from_initiator[packets] = ~forth
        ethernet = packets[self.traffic.link_types[packets] == LINK_ETHERNET]
        self._swap(self.traffic.starts[ethernet], 6)
        for version, at, size in ((4, 12, 4), (6, 8, 16)):
            self._swap(h.ip_offsets[packets[h.ip_versions[packets] == version]] + at, size)
        with_ports = np.isin(h.protocols[packets], (TCP, UDP)) & (h.transport_offsets[packets] >= 0)
        self._swap(h.transport_offsets[packets[with_ports]], 2)

    def _swap(self, at: Array, size: int) -> None:
        if not self.data.flags.writeable:
            self.data = self.data.copy()
        left = at[:, None] + np.arange(size)
        self.data[left], self.data[left + size] = self.data[left + size], self.data[left]

    def cut(self, rule: str, packets: Array, payload_lengths: Array) -> None:
        """
        Shorten the payload of these packets to so many bytes, in the length fields and on the wire; what lies behind
        the IP packet goes too. `finish` takes the bytes out.
        """
        h = self.headers
        shorter = payload_lengths < h.payload_lengths[packets]
        i, new = packets[shorter], payload_lengths[shorter]
        if rule in self.off or not len(i):
            return
        removed = h.payload_lengths[i] - new
        self.record(rule, "payload", i, h.payload_lengths[i], new, 8 * removed)
        self.put_lengths(rule, i, h.ip_lengths[i] - removed)
        udp = i[h.protocols[i] == UDP]
        self.put(rule, "udp.len", udp, 8 + self.headers.payload_lengths[udp])
        self._wire_lengths = np.array(self._wire_lengths)
        self._wire_lengths[i] = h.link_lengths[i] + self.headers.ip_lengths[i]

    def put_lengths(self, rule: str, packets: Array, ip_lengths: Array) -> None:
        """
        Write the length of IP packets, headers included: int64[n].
        """
        if rule in self.off or not len(packets):
            return
        h = self.headers
        for version, field, less in ((4, "ipv4.tl", 0), (6, "ipv6.len", 40)):
            mine = h.ip_versions[packets] == version
            self.put(rule, field, packets[mine], ip_lengths[mine] - less)
        lengths, payload_lengths = h.ip_lengths.copy(), h.payload_lengths.copy()
        lengths[packets] = ip_lengths
        rest = ip_lengths - h.ip_header_lengths[packets] - h.transport_header_lengths[packets]
        payload_lengths[packets] = np.where(h.transport_offsets[packets] >= 0, np.maximum(rest, 0), 0)
        self.headers = attrs.evolve(h, ip_lengths=lengths, payload_lengths=payload_lengths)

    def reread(self) -> None:
        """
        Find the headers again, after fragments were written.
        """
        self.headers = dissect(attrs.evolve(self.traffic, data=self.data))

    def judgeable(self, name: str) -> NDArray[np.bool_]:
        """
        Return bool[packets]: the packet has the header ``tcp``, ``udp``, ``icmp`` or ``icmpv6``, and all that the
        checksum there covers was captured.
        """
        h = self.headers
        return has(h, name) & (h.ip_offsets + h.ip_lengths <= self.traffic.ends)

    def wrong_ipv4_checksums(self, chosen: Array | bool = True) -> tuple[Array, Array, Array]:
        """
        Return ``(packets, at, checksums)``: where the checksum of the IPv4 header does not fit, where it stands and
        what it must be.

        chosen  bool[packets]: whom to ask
        """
        h, data = self.headers, self.data
        i = np.flatnonzero(has(h, "ipv4") & chosen)
        at, expected = h.ip_offsets[i] + 10, ipv4_checksums(data, h.ip_offsets[i], h.ip_header_lengths[i])
        wrong = differ(uint(data, at, 2), expected)
        return i[wrong], at[wrong], expected[wrong]

    def wrong_checksums(self, chosen: Array) -> tuple[Array, Array, Array]:
        """
        Return the same of TCP, UDP, ICMP and ICMPv6. Bytes that were not captured count as zeros.
        """
        h, data = self.headers, self.data
        i = np.flatnonzero(chosen & (h.transport_offsets >= 0) & ~h.fragments)
        if not len(i):
            return i, i, i
        at, expected = checksum_offsets(h, i), transport_checksums(data, self.traffic.ends, h, i)
        found = uint(data, at, 2)
        without = (found == 0) & (h.protocols[i] == UDP)  # RFC 768; not over IPv6: RFC 8200 section 8.1
        wrong = np.where(without, h.ip_versions[i] == 6, differ(found, expected))
        return i[wrong], at[wrong], expected[wrong]

    def _seal(self, name: str, packets: Array, at: Array, checksums: Array) -> None:
        if len(packets):
            rule = RULES[f"{name}.checksum"]
            self.record(rule.id, rule.field, packets, uint(self.data, at, 2), checksums)
            self._write(at, 2, checksums)

    def _seal_all(self) -> None:
        """
        Write checksums that fit into packets that were changed, and into those whose checksums are to be judged.
        """
        judged = [name for name in self._checksums if f"{name}.checksum" not in self.off]
        wrong = self.wrong_ipv4_checksums(True if "ipv4" in judged else self._ip_changed)
        self._seal("ipv4", *wrong)
        chosen = self._transport_changed
        for name in judged:
            if name in _PROTOCOLS:
                chosen = chosen | self.judgeable(name)
        i, at, expected = self.wrong_checksums(chosen)
        for name in _PROTOCOLS if len(i) else ():
            mine = has(self.headers, name)[i]
            self._seal(name, i[mine], at[mine], expected[mine])

    def finish(self) -> Traffic:
        """
        Return the traffic with what was written, the same object if nothing was. A packet that was changed gets
        checksums that fit; one that was not stays as it is, to the byte.
        """
        self._seal_all()
        given = self.traffic
        changes = {
            name: value
            for name in ("data", "from_initiator", "timestamps", "flows")
            if (value := getattr(self, name)) is not getattr(given, name)
        }
        if not changes:
            return given
        captured = np.minimum(given.captured_lengths, self._wire_lengths)
        traffic = attrs.evolve(given, captured_lengths=captured, wire_lengths=self._wire_lengths, **changes).packed()
        headers, moved = self.headers, traffic.starts - given.starts
        if moved.any():
            at = {name: getattr(headers, name) for name in ("ip_offsets", "transport_offsets")}
            headers = attrs.evolve(headers, **{k: np.where(v >= 0, v + moved, -1) for k, v in at.items()})
        HEADERS.put(traffic, headers)
        return traffic


def headers_of(traffic: Traffic) -> Dissection:
    """
    Return `dissect` of this traffic, which is done once.
    """
    return HEADERS.get(traffic) or HEADERS.put(traffic, dissect(traffic))


HEADERS: Known[Dissection] = Known()


def has(headers: Dissection, name: str) -> NDArray[np.bool_]:
    """
    Return bool[packets]: whose header ``ipv4`` or ``ipv6`` is there, or named: ``tcp``, ``udp``, ``icmp``, ``icmpv6``.
    """
    if name in _VERSIONS:
        return np.equal(headers.ip_versions, _VERSIONS[name])
    return np.equal(headers.protocols, _PROTOCOLS[name])


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


def malformed_transport(traffic: Traffic, headers: Dissection, protocol: int) -> NDArray[np.int64]:
    """
    Return the packets that name this protocol and have no whole header of it, although the whole IP packet was
    captured.
    """
    named = (headers.protocols == protocol) & (headers.fragment_offsets == 0)
    whole = headers.ip_offsets + headers.ip_lengths <= traffic.ends
    return np.flatnonzero(named & whole & (headers.transport_offsets < 0))


def oversized(headers: Dissection, version: int) -> tuple[Array, Array]:
    """
    Return ``(packets, payload lengths)``: UDP and ICMP of this IP version beyond an Ethernet frame, and what fits.
    """
    long = (headers.ip_versions == version) & (headers.ip_lengths > MTU) & (headers.payload_lengths > 0)
    i = np.flatnonzero(long & (headers.protocols != TCP))
    return i, np.maximum(headers.payload_lengths[i] - (headers.ip_lengths[i] - MTU), 0)
