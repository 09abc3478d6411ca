"""
The data that flows through the pipeline: frozen, columnar, numpy only.

A million packets are a few arrays here, not a million objects. Arrays are made read-only, so a stage that wants
to change one must copy it first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from mmap import MADV_DONTNEED, mmap
from types import MappingProxyType
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from .columns import grouped, pieces, spooled, taken

MISSING = -1
"""The value of a bit whose header is absent from the packet (nPrint's fill value)."""

LINK_ETHERNET = 1
LINK_RAW = 101

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58


def _array(dtype: Any) -> Any:
    """
    Declare a read-only array field of this dtype. Inputs of another dtype are converted, never aliased writeable.
    """

    def convert(value: Any) -> NDArray[Any]:
        array = np.asarray(value, dtype=dtype)
        view = array.view()
        view.setflags(write=False)
        return view

    return attrs.field(converter=convert, eq=attrs.cmp_using(eq=np.array_equal), repr=lambda a: f"{a.dtype}{a.shape}")


@attrs.frozen(kw_only=True, unsafe_hash=False)
class FlowTable:
    """
    One row a flow. A flow is bidirectional; its initiator is the sender of its first packet, of the SYN where there
    is one.

    labels               str[flows]
    splits               str[flows]        ``train``, ``test`` or ``""`` where the data does not say
    ip_versions          uint8[flows]      4 or 6
    protocols            uint8[flows]      IP protocol number of the transport
    initiator_addresses  uint8[flows, 16]  network order; IPv4 in the first four bytes, the rest zero
    responder_addresses  uint8[flows, 16]
    initiator_ports      uint16[flows]     ICMP: the identifier for an echo, else 0
    responder_ports      uint16[flows]     ICMP: 0
    sources              str[flows]        the capture file that the flow came from, ``""`` for a synthetic one
    """

    labels: NDArray[np.str_] = _array(np.str_)
    splits: NDArray[np.str_] = _array(np.str_)
    ip_versions: NDArray[np.uint8] = _array(np.uint8)
    protocols: NDArray[np.uint8] = _array(np.uint8)
    initiator_addresses: NDArray[np.uint8] = _array(np.uint8)
    responder_addresses: NDArray[np.uint8] = _array(np.uint8)
    initiator_ports: NDArray[np.uint16] = _array(np.uint16)
    responder_ports: NDArray[np.uint16] = _array(np.uint16)
    sources: NDArray[np.str_] = _array(np.str_)

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, flows: NDArray[Any] | slice) -> FlowTable:
        """
        Return the table of these flows (indices, a mask or a slice), in the order given.
        """
        return FlowTable(**{f.name: getattr(self, f.name)[flows] for f in attrs.fields(FlowTable)})


@attrs.frozen(kw_only=True, unsafe_hash=False)
class Traffic:
    """
    Packets as they were captured, and the flows that they belong to.

    Selecting packets copies none of their bytes: parts of one capture share its `data`.

    data              uint8[bytes]     where the packets lie, link layer included, perhaps with other bytes between
                                       them; a mapped file where a capture is large
    starts            int64[packets]   packet i is ``data[starts[i]:ends[i]]``
    captured_lengths  int32[packets]   bytes of each packet that the capture holds
    wire_lengths      int32[packets]   bytes on the wire, at least the captured length
    timestamps        int64[packets]   nanoseconds since 1970
    link_types        uint16[packets]  LINKTYPE_ numbers (tcpdump.org/linktypes.html)
    flow_of           int32[packets]   row of `flows`, -1 for a packet of no flow (ARP)
    from_initiator    bool[packets]    who sent it; False where flow_of is -1
    flows             FlowTable
    """

    data: NDArray[np.uint8] = _array(np.uint8)
    starts: NDArray[np.int64] = _array(np.int64)
    captured_lengths: NDArray[np.int32] = _array(np.int32)
    timestamps: NDArray[np.int64] = _array(np.int64)
    wire_lengths: NDArray[np.int32] = _array(np.int32)
    link_types: NDArray[np.uint16] = _array(np.uint16)
    flow_of: NDArray[np.int32] = _array(np.int32)
    from_initiator: NDArray[np.bool_] = _array(np.bool_)
    flows: FlowTable

    def __len__(self) -> int:
        return len(self.timestamps)

    @property
    def ends(self) -> NDArray[np.int64]:
        """
        int64[packets]: where each packet ends in `data`.
        """
        return self.starts + self.captured_lengths

    def packet(self, index: int) -> bytes:
        """
        Return the captured bytes of one packet.
        """
        return self.data[self.starts[index] :][: self.captured_lengths[index]].tobytes()

    def by_flow(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """
        Return ``(order, starts)``: the packets of flow i, by time, are ``order[starts[i]:starts[i + 1]]``.
        """
        return grouped(self.flow_of, len(self.flows), self.timestamps)

    def select_packets(self, packets: NDArray[Any] | slice) -> Traffic:
        """
        Return the traffic of these packets (int indices or a slice), in the order given; the flow table stays as it is.
        """
        columns: dict[str, Any] = {name: taken(getattr(self, name), packets) for name in _PACKET_COLUMNS}
        return attrs.evolve(self, **columns)

    def packed(self) -> Traffic:
        """
        Return the same packets with `data` of their own: one behind the other, nothing between them.
        """
        ends = np.cumsum(self.captured_lengths, dtype=np.int64)
        starts = ends - self.captured_lengths
        total = int(ends[-1]) if len(self) else 0
        if total == len(self.data) and np.array_equal(starts, self.starts):
            return self
        data = np.empty(total, np.uint8)
        source = self.data.data
        for part in self.chunks():  # one copy a packet: an index a byte would take sixteen times the memory
            bounds = zip(self.starts[part].tolist(), self.ends[part].tolist(), strict=True)
            data[starts[part][0] : ends[part][-1]] = np.frombuffer(b"".join([source[a:b] for a, b in bounds]), np.uint8)
        return attrs.evolve(self, data=data, starts=starts)

    def chunks(self, packets: int = 1 << 15) -> Iterator[slice]:
        """
        Cut the packets into slices to be worked on one after the other, so that temporaries stay small. The pages of a
        mapped file that one slice read are let go before the next.
        """
        mapped: Any = self.data
        while isinstance(mapped, np.ndarray | memoryview):
            mapped = mapped.base if isinstance(mapped, np.ndarray) else mapped.obj
        stop = 0
        while (start := stop) < len(self):
            stop = min(start + packets, len(self))
            if not isinstance(mapped, mmap):
                yield slice(start, stop)
                continue
            octets = np.cumsum(self.captured_lengths[start:stop], dtype=np.int64)
            stop = start + max(1, int(np.searchsorted(octets, _MAPPED_BYTES_A_CHUNK)))
            yield slice(start, stop)
            mapped.madvise(MADV_DONTNEED)

    def select_flows(self, flows: NDArray[Any]) -> Traffic:
        """
        Return the packets of these flows only (indices or a mask), the flows renumbered in the order given.
        """
        chosen = np.flatnonzero(flows) if np.asarray(flows).dtype == np.bool_ else np.asarray(flows, np.int64)
        rank = np.full(len(self.flows) + 1, -1, np.int32)  # the last entry serves flow_of == -1
        rank[chosen] = np.arange(len(chosen))
        mine = (p.start + np.flatnonzero(rank[self.flow_of[p]] >= 0) for p in pieces(len(self)))
        part = self.select_packets(spooled(np.int64, mine))
        return attrs.evolve(part, flow_of=taken(rank, part.flow_of), flows=self.flows.select(chosen))


_MAPPED_BYTES_A_CHUNK = 1 << 26
_PACKET_COLUMNS = (
    "starts", "captured_lengths", "wire_lengths", "timestamps", "link_types", "flow_of", "from_initiator",
)  # fmt: skip


def concatenate(parts: Sequence[Traffic]) -> Traffic:
    """
    Join traffics one behind the other: packets in the order given, flows renumbered.
    """
    flow_base = np.cumsum([0] + [len(p.flows) for p in parts])
    byte_base = np.cumsum([0] + [len(p.data) for p in parts])
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in ("data", *_PACKET_COLUMNS)}
    joined |= {
        "starts": np.concatenate([p.starts + b for p, b in zip(parts, byte_base, strict=False)]),
        "flow_of": np.concatenate(
            [np.where(p.flow_of < 0, -1, p.flow_of + b) for p, b in zip(parts, flow_base, strict=False)]
        ),
    }
    return Traffic(
        **joined,
        flows=FlowTable(
            **{f.name: np.concatenate([getattr(p.flows, f.name) for p in parts]) for f in attrs.fields(FlowTable)}
        ),
    )


@cache
def _spans(fields: tuple[tuple[str, int], ...]) -> Mapping[str, slice]:
    spans: dict[str, slice] = {}
    start = 0
    for name, bits in fields:
        header = name.split(".")[0]
        first = spans[header].start if header in spans else start
        spans[header] = slice(first, start + bits)
        spans[name] = slice(start, start + bits)
        start += bits
    return MappingProxyType(spans)


@attrs.frozen(kw_only=True)
class Layout:
    """
    What the columns of an encoded packet mean. Nobody hard-codes a column number: ask `span`.

    name, version  a model folder records both and refuses others
    fields         (name, bits) in column order; a name is ``header.field``, such as ``tcp.wsize``
    """

    name: str
    version: int
    fields: tuple[tuple[str, int], ...]

    @property
    def width(self) -> int:
        """
        The number of columns, one a bit.
        """
        return sum(bits for _, bits in self.fields)

    @property
    def headers(self) -> tuple[str, ...]:
        """
        The headers in column order, such as ``("ipv4", "ipv6", "tcp", "udp", "icmp", "trace")``.
        """
        return tuple(dict.fromkeys(name.split(".")[0] for name, _ in self.fields))

    @property
    def columns(self) -> tuple[str, ...]:
        """
        nPrint's column names: ``tcp_wsize_0`` is the most significant bit of ``tcp.wsize``.
        """
        return tuple(f"{name.replace('.', '_')}_{bit}" for name, bits in self.fields for bit in range(bits))

    def spans(self) -> Mapping[str, slice]:
        """
        Return the columns of every header and every field by name.
        """
        return _spans(self.fields)

    def span(self, name: str) -> slice:
        """
        Return the columns of one header (``tcp``) or field (``tcp.wsize``); KeyError when there is none.
        """
        return self.spans()[name]

    def has(self, header: str) -> bool:
        """
        Tell whether the layout carries this header.
        """
        return header in self.headers


@attrs.frozen(kw_only=True, unsafe_hash=False)
class Encoded:
    """
    Flows as rows of bits, the form that models learn.

    rows         int8[packets, layout.width]  1, 0, or `MISSING` where the header is absent
    starts       int64[flows+1]               flow i is ``rows[starts[i]:starts[i + 1]]``
    labels       str[flows]
    start_times  int64[flows]                 nanoseconds since 1970 of each flow's first packet; 0 where unknown
    layout       Layout
    """

    rows: NDArray[np.int8] = _array(np.int8)
    starts: NDArray[np.int64] = _array(np.int64)
    labels: NDArray[np.str_] = _array(np.str_)
    start_times: NDArray[np.int64] = _array(np.int64)
    layout: Layout

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """
        int64[flows]: packets of each flow.
        """
        return np.diff(self.starts)

    @property
    def flow_of(self) -> NDArray[np.int64]:
        """
        int64[packets]: the flow of each row.
        """
        return np.repeat(np.arange(len(self)), self.lengths)

    def flow(self, index: int) -> NDArray[np.int8]:
        """
        Return the rows of one flow.
        """
        return self.rows[self.starts[index] : self.starts[index + 1]]

    def select(self, flows: NDArray[Any]) -> Encoded:
        """
        Return these flows only (indices or a mask), in the order given.
        """
        chosen = np.flatnonzero(flows) if np.asarray(flows).dtype == np.bool_ else np.asarray(flows, np.int64)
        lengths = self.lengths[chosen]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        gather = np.repeat(self.starts[:-1][chosen] - starts[:-1], lengths) + np.arange(starts[-1])
        return attrs.evolve(
            self,
            rows=self.rows[gather],
            starts=starts,
            labels=self.labels[chosen],
            start_times=self.start_times[chosen],
        )

    def bits(self, field: str) -> NDArray[np.int8]:
        """
        Return the columns of one header or field: int8[packets, bits].
        """
        return self.rows[:, self.layout.span(field)]

    def values(self, field: str) -> NDArray[np.int64]:
        """
        Return one field of at most 62 bits as numbers, most significant bit first: int64[packets], -1 where absent.
        """
        return numbers(self.bits(field))

    def digest(self) -> str:
        """
        Return the SHA-256 of rows, starts and labels.
        """
        digest = hashlib.sha256(repr((self.layout.name, self.layout.version, self.labels.tolist())).encode())
        digest.update(np.ascontiguousarray(self.starts).data)
        digest.update(np.ascontiguousarray(self.rows).data)
        return digest.hexdigest()


def numbers(bits: NDArray[np.int8]) -> NDArray[np.int64]:
    """
    Read int8[n, at most 62 bits] as numbers, most significant bit first: int64[n], -1 where a bit is missing.
    """
    weights = 1 << np.arange(bits.shape[1], dtype=np.int64)[::-1]
    exact = np.float64 if len(weights) <= 53 else np.int64  # a product of floats takes half the time
    values, missing = (bits @ weights.astype(exact)).astype(np.int64), bits == MISSING
    return np.where(any_of_row(missing), -1, values) if missing.any() else values


def any_of_row(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """
    Return ``mask.any(1)``, as a product of booleans: of short rows it takes a fifth of the time.
    """
    return mask @ np.ones(mask.shape[1], bool)


@attrs.frozen
class Rule:
    """
    One thing that a rule set knows.

    id          ``tcp.checksum``: the rule set's name, a dot, the rule's
    field       the header field that is wrong when the rule is broken, such as ``tcp.cksum``
    severity    ``error``: a receiver would drop or misread the packet; ``warning``: unusual, but legal
    summary     what must hold
    source      where that is written: ``RFC 9293 section 3.1``
    repairable  whether `RuleSet.repair` mends it
    """

    id: str
    field: str
    severity: Literal["error", "warning"]
    summary: str
    source: str
    repairable: bool = True

    def broken(self, traffic: Traffic, packets: NDArray[Any]) -> Iterator[Violation]:
        """
        Yield a violation for each of these packets (int indices).
        """
        for packet in np.sort(packets).tolist():
            yield Violation(
                rule=self.id,
                flow=int(traffic.flow_of[packet]),
                packet=packet,
                field=self.field,
                message=f"does not hold: {self.summary} ({self.source})",
                severity=self.severity,
                repairable=self.repairable,
            )


@attrs.frozen(kw_only=True, unsafe_hash=False)
class Repair:
    """
    One field that one rule changed, in all packets where it did so in one step.

    rule           id of the rule; ``tcp.bits`` for what `RuleSet.constrain` of ``tcp`` changed
    field          ``tcp.wsize``; of a field beyond 62 bits one 32-bit word, such as ``tcp.opt.3``
    flows          int64[n]  row of the flow table, -1 for a packet of no flow
    packets        int64[n]  0 for the first packet of the flow
    before, after  int64[n]  the field's values; -1: it was not there
    bits           int64[n]  how many bits of the field differ
    """

    rule: str
    field: str
    flows: NDArray[np.int64] = _array(np.int64)
    packets: NDArray[np.int64] = _array(np.int64)
    before: NDArray[np.int64] = _array(np.int64)
    after: NDArray[np.int64] = _array(np.int64)
    bits: NDArray[np.int64] = _array(np.int64)

    def __len__(self) -> int:
        return len(self.packets)


@attrs.frozen(kw_only=True)
class Violation:
    """
    One place where traffic breaks a protocol rule.

    rule        id such as ``tcp.checksum``
    flow        row of the flow table, -1 for a packet of no flow
    packet      index into the traffic's packets, None when the whole flow is meant
    field       the header field, such as ``tcp.cksum``
    severity    ``error``: a receiver would drop or misread it; ``warning``: unusual, but legal
    repairable  whether `RuleSet.repair` mends it
    """

    rule: str
    flow: int
    packet: int | None
    field: str
    message: str
    severity: Literal["error", "warning"] = "error"
    repairable: bool = True


@attrs.frozen(kw_only=True)
class Score:
    """
    One figure of an evaluator.

    name          ``utility.accuracy``: the evaluator's name, a dot, the figure's name
    value         the figure for the synthetic traffic; NaN when it could not be measured (`detail` says why)
    goal          which way is better; ``none``: information only
    lower, upper  the bounds of any possible value
    floor         the same figure for real against real traffic: what a perfect generator would get
    summary       one plain sentence: what was measured
    detail        JSON-able extra: per class, per field, histograms; ``spread``, the standard deviation over repeats of
                  the measurement, is shown beside the value
    """

    name: str
    value: float
    goal: Literal["minimize", "maximize", "none"]
    lower: float
    upper: float
    floor: float | None = None
    summary: str = ""
    detail: Mapping[str, Any] = attrs.field(factory=dict)


def _names(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@attrs.frozen(kw_only=True)
class SampleRequest:
    """
    What a backend is asked to generate.

    labels       one class name a flow wanted, in order
    max_packets  no flow may be longer
    seed         flow i depends on (seed, i) and the model only, not on the batch size
    """

    labels: tuple[str, ...] = attrs.field(converter=_names)
    max_packets: int
    seed: int


def counts_by_label(labels: Iterable[str]) -> dict[str, int]:
    """
    Count flows a label, sorted by name.
    """
    names, counts = np.unique(np.asarray(list(labels), np.str_), return_counts=True)
    return {str(n): int(c) for n, c in zip(names, counts, strict=True)}
