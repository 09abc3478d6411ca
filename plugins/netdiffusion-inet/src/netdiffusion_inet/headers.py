"""
Read and write header fields of many packets at once, by name, and leave packets whose lengths and checksums fit.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture.dissect import Dissection, dissect, uint
from netdiffusion_core.errors import did_you_mean
from netdiffusion_core.interfaces import Record, forget
from netdiffusion_core.model import ICMP, ICMPV6, LINK_ETHERNET, LINK_RAW, TCP, UDP, Traffic

from .checksum import checksum_offsets, ipv4_sums, transport_sums
from .known import Known
from .rules import RULES

Array = NDArray[Any]

MTU = 1500  # RFC 894

_PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "icmpv6": ICMPV6}
_VERSIONS = {"ipv4": 4, "ipv6": 6}
_IP, _TRANSPORT = 0, 1
_SHAPE = ("ipv4.tl", "ipv6.len", "ipv4.mf_foff")  # what the transport's checksum depends on

# name: (first bit, bits) in its header, as in the figures of RFC 791, 8200, 9293, 768, 792
FIELDS = {
    "ipv4.ver": (0, 4), "ipv4.hl": (4, 4), "ipv4.tos": (8, 8), "ipv4.tl": (16, 16), "ipv4.id": (32, 16),
    "ipv4.flags": (48, 3), "ipv4.rbit": (48, 1), "ipv4.dfbit": (49, 1), "ipv4.mf_foff": (50, 14), "ipv4.ttl": (64, 8),
    "ipv4.proto": (72, 8), "ipv4.cksum": (80, 16),
    "ipv6.tc": (4, 8), "ipv6.fl": (12, 20), "ipv6.len": (32, 16), "ipv6.nh": (48, 8), "ipv6.hl": (56, 8),
    "tcp.sprt": (0, 16), "tcp.dprt": (16, 16), "tcp.seq": (32, 32), "tcp.ackn": (64, 32), "tcp.res": (100, 3),
    "tcp.flags": (104, 8), "tcp.wsize": (112, 16), "tcp.cksum": (128, 16), "tcp.urp": (144, 16),
    "udp.sport": (0, 16), "udp.dport": (16, 16), "udp.len": (32, 16), "udp.cksum": (48, 16),
    "icmp.type": (0, 8), "icmp.code": (8, 8), "icmp.cksum": (16, 16), "icmp.id": (32, 16), "icmp.seq": (48, 16),
}  # fmt: skip


class Draft:
    """
    A traffic while one rule set changes it: fields are written in place, `finish` makes a traffic of it.

        draft = Draft(own_bytes(traffic), self.off, record)
        draft.put("mine.ttl", "ipv4.ttl", packets, 64)
        return draft.finish()

    Whatever is written is told to `record`, and nothing is written in the name of a rule that is `off`, except lengths
    and checksums of packets that another rule changed.

    traffic         Traffic         what was given
    headers         Dissection      where the headers are
    data            uint8[bytes]    the packets' bytes, copied before they are first written
    from_initiator  bool[packets]   replace it, never write into it
    timestamps      int64[packets]  replace it, never write into it
    wire_lengths    int32[packets]  replace it, never write into it
    flows           FlowTable       replace it
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
        self._views: dict[int, Array] = {}
        self.from_initiator, self.timestamps, self.flows = traffic.from_initiator, traffic.timestamps, traffic.flows
        self.wire_lengths = traffic.wire_lengths
        self.off = off
        self.record = record
        self._checksums = checksums
        self._changed = np.zeros((2, len(traffic)), bool)  # in the IP header, in what the transport checksum covers
        self._sums = _SUMS.get(traffic, _no_sums).copy()

    def get(self, field: str, packets: Array) -> NDArray[np.int64]:
        """
        Return a field of these packets, which must have its header: int64[packets].
        """
        at, size, shift, mask = self._place(field, packets)
        return self._words(size)[at].astype(np.int64) >> shift & mask

    def put(self, rule: str, field: str, packets: Array, values: Array | int) -> None:
        """
        Write a field of these packets, as this rule wants it.
        """
        if rule in self.off or not len(packets):
            return
        at, size, shift, mask = self._place(field, packets)
        word = self._words(size)[at].astype(np.int64)
        old, new = word >> shift & mask, np.full(len(packets), values) & mask
        i = np.flatnonzero(old != new)
        if not len(i):
            return
        packets, old, new = packets[i], old[i], new[i]
        more = new - old << shift
        self._write(at[i], size, word[i] + more)
        odd = (sum(FIELDS[field]) + 7) // 8 & 1  # it ends in the high byte of a word
        self._note(_IP if field.startswith("ip") else _TRANSPORT, packets, more << 8 * odd)
        if field in _SHAPE:
            self._note(_TRANSPORT, packets, np.nan)
        self.record(rule, field, packets, old, new)

    def _note(self, header: int, packets: Array, more: Array | float) -> None:
        """
        Note that so much more was written into what the checksum of this header covers.
        """
        sums, self._changed[header][packets] = self._sums[header], True
        sums[packets] += more

    def _words(self, size: int) -> Array:
        """
        Return a view of the bytes as big-endian words of so many bytes, one at every byte.
        """
        if size not in self._views:
            n = max(len(self.data) - size + 1, 0)
            self._views[size] = np.ndarray(n, f">u{size}", self.data, strides=(1,))
        return self._views[size]

    def _own(self) -> None:
        if not self.data.flags.writeable:
            self.data = self.data.copy()
            self._views.clear()

    def _write(self, at: Array, size: int, values: Array) -> None:
        self._own()
        self._words(size)[at] = values

    def _place(self, field: str, packets: Array) -> tuple[Array, int, int, int]:
        if field not in FIELDS:
            raise ValueError(f"there is no field {field!r} to read or write.{did_you_mean(field, list(FIELDS))}")
        first, bits = FIELDS[field]
        is_ip = field.startswith("ip")
        base = (self.headers.ip_offsets if is_ip else self.headers.transport_offsets)[packets]
        start, end = first // 8, (first + bits + 7) // 8
        start -= end - start == 3  # there is no word of three bytes
        return base + start, end - start, 8 * end - first - bits, (1 << bits) - 1

    def options(self, header: str, packets: Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """
        Return ``(options, sizes)`` of the headers ``ipv4`` or ``tcp`` of these packets: uint8[n, the longest, at least
        4], filled up with zeros, and their bytes.
        """
        at, sizes = self._options(header, packets)
        column = np.arange(sizes.max(initial=4))
        options = np.zeros((len(packets), len(column)), np.uint8)
        inside = column < sizes[:, None]
        options[inside] = self.data[(at[:, None] + column)[inside]]
        return options, sizes

    def put_options(self, rule: str, header: str, packets: Array, options: Array) -> None:
        """
        Write options, word by word; how many bytes they have does not change.
        """
        if rule in self.off or not len(packets):
            return
        at, old = self._options(header, packets)[0], self.options(header, packets)[0].view(">u4").astype(np.int64)
        new = np.ascontiguousarray(options).view(">u4")[:, : old.shape[1]].astype(np.int64)
        for k in np.flatnonzero((old != new).any(0)).tolist():
            i = np.flatnonzero(old[:, k] != new[:, k])
            self._write(at[i] + 4 * k, 4, new[i, k])
            self._note(_TRANSPORT if header == "tcp" else _IP, packets[i], new[i, k] - old[i, k])
            self.record(rule, f"{header}.opt.{k}", packets[i], old[i, k], new[i, k])

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
        self._own()
        left = at[:, None] + np.arange(size)
        self.data[left], self.data[left + size] = self.data[left + size], self.data[left]

    def cut(self, rule: str, packets: Array, payload_lengths: Array) -> None:
        """
        Shorten the payload of these packets to so many bytes, in the length fields and on the wire; what lies behind
        the IP packet goes too. `finish` leaves them out.
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
        self.wire_lengths = np.array(self.wire_lengths)
        self.wire_lengths[i] = h.link_lengths[i] + self.headers.ip_lengths[i]

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

    def wrong_ipv4_checksums(self, chosen: Array | bool = True) -> tuple[Array, Array, Array, Array]:
        """
        Return ``(packets, at, before, after)``: where the checksum of the IPv4 header does not fit, where it stands,
        what it is and what it must be.

        chosen  bool[packets]: whom to ask
        """
        h = self.headers
        i = np.flatnonzero(has(h, "ipv4") & chosen)
        excess = self._excess(_IP, i, lambda new: ipv4_sums(self.data, h, new))
        i, excess = i[excess > 0], excess[excess > 0]
        at = h.ip_offsets[i] + 10
        before = uint(self.data, at, 2)
        return i, at, before, (before - excess) % 0xFFFF

    def wrong_checksums(self, chosen: Array) -> tuple[Array, Array, Array, Array]:
        """
        Return the same of TCP, UDP, ICMP and ICMPv6. Bytes that were not captured count as zeros.
        """
        h = self.headers
        i = np.flatnonzero(chosen & (h.transport_offsets >= 0) & ~h.fragments)
        excess = self._excess(_TRANSPORT, i, lambda new: transport_sums(self.data, self.traffic.ends, h, new))
        at = checksum_offsets(h, i)
        before, is_udp = uint(self.data, at, 2), h.protocols[i] == UDP
        after = (before - excess) % 0xFFFF
        after[is_udp & (after == 0)] = 0xFFFF  # RFC 768: 0 means no checksum; not over IPv6: RFC 8200 section 8.1
        wrong = np.where(is_udp & (before == 0), h.ip_versions[i] == 6, excess > 0)
        for k in np.flatnonzero((h.protocols[i] == ICMP) & (after == 0)):  # one in 65,535
            begin = int(h.transport_offsets[i[k]])
            end = min(int(h.ip_offsets[i[k]] + h.ip_lengths[i[k]]), int(self.traffic.ends[i[k]]))
            if not self.data[begin : at[k]].any() and not self.data[at[k] + 2 : end].any():
                after[k], wrong[k] = (
                    0xFFFF,
                    before[k] != 0xFFFF,
                )  # RFC 1071: the complement of a sum of nothing but zeros
        return i[wrong], at[wrong], before[wrong], after[wrong]

    def _excess(self, header: int, packets: Array, add_up: Callable[[Array], Array]) -> NDArray[np.int64]:
        """
        Return by how much the checksums of these packets are too large, modulo 0xFFFF; add up only what is not known.
        """
        sums = self._sums[header]
        new = packets[np.isnan(sums[packets])]
        if len(new):
            sums[new] = add_up(new)
        return sums[packets].astype(np.int64) % 0xFFFF

    def _seal(self, header: int, name: str, packets: Array, at: Array, before: Array, after: Array) -> None:
        if len(packets):
            rule = RULES[f"{name}.checksum"]
            self.record(rule.id, rule.field, packets, before, after)
            self._write(at, 2, after)
            self._sums[header][packets] = 0

    def _seal_all(self) -> None:
        """
        Write checksums that fit into packets that were changed, and into those whose checksums are to be judged.
        """
        judged = [name for name in self._checksums if f"{name}.checksum" not in self.off]
        wrong = self.wrong_ipv4_checksums(True if "ipv4" in judged else self._changed[_IP])
        self._seal(_IP, "ipv4", *wrong)
        chosen = self._changed[_TRANSPORT]
        for name in judged:
            if name in _PROTOCOLS:
                chosen = chosen | self.judgeable(name)
        wrong = self.wrong_checksums(chosen)
        protocols = self.headers.protocols[wrong[0]]
        for name, number in _PROTOCOLS.items():
            if (mine := protocols == number).any():
                self._seal(_TRANSPORT, name, *(column[mine] for column in wrong))

    def finish(self) -> Traffic:
        """
        Return the traffic with what was written, the same object if nothing was. A packet that was changed gets
        checksums that fit; one that was not stays as it is, to the byte.
        """
        self._seal_all()
        given = self.traffic
        changes = {
            name: value
            for name in ("data", "from_initiator", "timestamps", "flows", "wire_lengths")
            if (value := getattr(self, name)) is not getattr(given, name)
        }
        if not changes:
            return given
        cut = "wire_lengths" in changes
        if cut:
            changes["captured_lengths"] = np.minimum(given.captured_lengths, self.wire_lengths)
        traffic = attrs.evolve(given, **changes)
        _HEADERS.put(traffic, self.headers)
        _SUMS.put(traffic, self._sums)
        return own_bytes(traffic) if cut else traffic


def headers_of(traffic: Traffic) -> Dissection:
    """
    Return `dissect` of this traffic, which is done once.
    """
    return _HEADERS.get(traffic, dissect)


def own_bytes(traffic: Traffic) -> Traffic:
    """
    Return the traffic, packed where packets share bytes or most bytes belong to none: a copy of them can be written to.
    """
    apart = (traffic.starts[1:] >= traffic.ends[:-1]).all()
    if apart and len(traffic.data) <= 2 * traffic.captured_lengths.sum():
        return traffic
    moved = traffic.packed()
    headers, by = headers_of(traffic), moved.starts - traffic.starts
    at = {name: getattr(headers, name) for name in ("ip_offsets", "transport_offsets")}
    _HEADERS.put(moved, attrs.evolve(headers, **{k: np.where(v >= 0, v + by, -1) for k, v in at.items()}))
    _SUMS.put(moved, _SUMS.get(traffic, _no_sums))
    return moved


def _no_sums(traffic: Traffic) -> NDArray[np.float64]:
    return np.full((2, len(traffic)), np.nan)


_HEADERS: Known[Dissection] = Known()
_SUMS: Known[NDArray[np.float64]] = Known()
"""Of every packet the sums that the checksums of IPv4 and transport header cover, NaN where not added up yet."""


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
