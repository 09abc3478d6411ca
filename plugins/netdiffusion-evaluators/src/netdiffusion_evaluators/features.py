"""
What evaluators see of a flow: header bits less artefacts, or flow statistics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture.dissect import dissect
from netdiffusion_core.context import Context
from netdiffusion_core.errors import ConfigError
from netdiffusion_core.interfaces import Encoder
from netdiffusion_core.model import MISSING, TCP, Encoded, Layout, Traffic

from .memory import once

Array = NDArray[Any]

_OF_FLOW = "counts from a random number that each host or connection draws anew"
_CHECKSUM = "follows from the other bytes, some of which are not in the layout (addresses, payload)"
_PORT = "one of the two is ephemeral; the responder's port is a feature of its own"
_TIME = "bits of a number of microseconds; the flow statistics and the evaluator timing see the number"

ARTEFACT_FIELDS = {
    "ipv4.id": _OF_FLOW,
    "ipv4.cksum": _CHECKSUM,
    "ipv6.fl": _OF_FLOW,
    "tcp.sprt": _PORT,
    "tcp.dprt": _PORT,
    "tcp.seq": _OF_FLOW,
    "tcp.ackn": _OF_FLOW,
    "tcp.cksum": _CHECKSUM,
    "udp.sport": _PORT,
    "udp.dport": _PORT,
    "udp.cksum": _CHECKSUM,
    "icmp.cksum": _CHECKSUM,
    "icmp.roh": "identifier and sequence number of an echo",
    "trace.iat_us": _TIME,
    "trace.padding": "tells the link layer of the capture, not the traffic",
}
"""
Fields that say which host, connection or capture a packet belongs to but nothing of its kind, each with the reason. A
classifier that saw them would learn the captures by heart: it would tell even real traffic from real traffic.
"""

ARTEFACT_TCP_OPTIONS = {
    5: "SACK: sequence numbers (RFC 2018)",
    8: "Timestamps: a clock with a random offset (RFC 7323)",
}
"""TCP options whose values are artefacts too; that the option is there, and where, is kept."""

FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")  # RFC 9293 section 3.1, least significant bit first

_CHUNK_PACKETS = 16_384
_COLUMNS = 256


@attrs.frozen(eq=False)
class Features:
    """
    names   one a column
    fields  what each column tells of: a header field as in `Layout`, or the statistic itself
    parts   number[flows, some columns] each, one beside the other: bits are kept as they are, a byte each
    """

    names: tuple[str, ...]
    fields: tuple[str, ...]
    parts: tuple[Array, ...]

    def of(self, flows: Array, columns: Array | None = None) -> NDArray[np.float32]:
        """
        Return the features of these flows, all or these columns of them in rising order: float32[flows, columns].
        """
        if columns is None:
            return np.concatenate([part[flows] for part in self.parts], axis=1, dtype=np.float32)
        ends = np.cumsum([part.shape[1] for part in self.parts])
        chosen = np.split(columns, np.searchsorted(columns, ends[:-1]))
        offsets = np.append(0, ends[:-1])
        pieces = [p[np.ix_(flows, own - o)] for p, own, o in zip(self.parts, chosen, offsets, strict=True)]
        return np.concatenate(pieces, axis=1, dtype=np.float32)

    @property
    def values(self) -> NDArray[np.float32]:
        """
        float32[flows, columns]: those of all flows.
        """
        return self.of(np.arange(len(self.parts[0])))


def stacked(chosen: Sequence[tuple[Features, Array]]) -> Features:
    """
    Return these flows of each, one side below the other.
    """
    sides = zip(*([part[flows] for part in features.parts] for features, flows in chosen), strict=True)
    return attrs.evolve(chosen[0][0], parts=tuple(np.concatenate(parts) for parts in sides))


@attrs.frozen(eq=False, kw_only=True)
class Packets:
    """
    The packets of all flows, flow by flow and by time.

    starts          int64[flows+1]    flow i has the packets ``starts[i]`` to ``starts[i + 1]``
    flow            int64[packets]
    position        int64[packets]    0 for a flow's first packet
    sizes           int64[packets]    bytes of the IP packet: Ethernet padding and link layer do not count
    from_initiator  bool[packets]
    gaps_s          float64[packets]  inter-arrival time: seconds since the flow's previous packet, 0 for the first
    flags           int64[packets]    TCP flags, 0 where there is no TCP header
    """

    starts: Array
    flow: Array
    position: Array
    sizes: Array
    from_initiator: Array
    gaps_s: Array
    flags: Array


def require_encoder(context: Context, evaluator: str) -> Encoder:
    """
    Return the run's encoder. Raises ConfigError when there is none.
    """
    if context.encoder is None:
        raise ConfigError(f"Evaluator {evaluator!r} looks at header bits and needs an encoder; pass --encoder nprint.")
    return context.encoder


def packets(traffic: Traffic) -> Packets:
    """
    Return sizes, directions, times and TCP flags of the packets that belong to flows.
    """
    return once(traffic, "packets", lambda: _packets(traffic))


def _packets(traffic: Traffic) -> Packets:
    headers = dissect(traffic)
    order, starts = traffic.by_flow()
    flow = traffic.flow_of[order].astype(np.int64)
    position = np.arange(len(order)) - starts[flow]
    at = headers.transport_offsets[order]
    is_tcp = (headers.protocols[order] == TCP) & (at >= 0)
    flags = np.zeros(len(order), np.int64)
    flags[is_tcp] = traffic.data[at[is_tcp] + 13]
    gaps_ns = np.diff(traffic.timestamps[order], prepend=0)
    return Packets(
        starts=starts,
        flow=flow,
        position=position,
        sizes=np.where(headers.ip_versions > 0, headers.ip_lengths, traffic.wire_lengths)[order],
        from_initiator=traffic.from_initiator[order],
        gaps_s=np.where(position > 0, gaps_ns / 1e9, 0.0),
        flags=flags,
    )


def per_flow(ufunc: np.ufunc, values: Array, starts: Array, empty: float = 0, dtype: Any = None) -> Array:
    """
    Reduce ``values[starts[i]:starts[i + 1]]`` for every flow i; `empty` stands where a flow has no packet.
    """
    filled = np.diff(starts) > 0
    result = np.full((len(filled), *values.shape[1:]), empty, dtype or values.dtype)
    if filled.any():
        values = values.astype(result.dtype, copy=False)  # four times as fast as to let reduceat convert
        result[filled] = ufunc.reduceat(values, starts[:-1][filled])
    return result


def in_chunks(traffic: Traffic, encoder: Encoder) -> Iterator[Encoded]:
    """
    Encode all flows, a few at a time, so that a large capture needs no more memory than a small one. Without a flow
    there is one chunk without rows.
    """
    for part in in_parts(traffic):
        yield encoder.encode(part)


def in_parts(traffic: Traffic) -> Iterator[Traffic]:
    """
    Yield all flows, a few at a time; the packets of a flow stay in their order. Without a flow there is one part.
    """
    order = np.argsort(traffic.flow_of, kind="stable")
    starts = np.searchsorted(traffic.flow_of[order], np.arange(len(traffic.flows) + 1))
    chunk = (starts[1:] - starts[0]) // _CHUNK_PACKETS
    bounds = np.flatnonzero(np.diff(chunk, prepend=-1, append=-1)) if len(chunk) else np.zeros(2, int)
    for first, last in pairwise(bounds.tolist()):
        part = traffic.select_packets(order[starts[first] : starts[last]])
        flows = traffic.flows.select(np.arange(first, last))
        yield attrs.evolve(part, flow_of=part.flow_of - first, flows=flows)


def fingerprints(traffic: Traffic, encoder: Encoder) -> NDArray[np.str_]:
    """
    Return each flow's SHA-256 over all its bits, artefacts and times too: two flows that share it are one flow, stored
    twice or copied by a generator. str[flows].
    """

    def compute() -> NDArray[np.str_]:
        return np.array([digest for e in in_chunks(traffic, encoder) for digest in digests(e.rows, e.starts)], np.str_)

    return once(traffic, ("fingerprints", encoder), compute)


def digests(rows: Array, starts: Array) -> list[str]:
    """
    Return the SHA-256 of each flow's rows.
    """
    return [hashlib.sha256(rows[a:b].tobytes()).hexdigest() for a, b in pairwise(starts)]


# --- bits -------------------------------------------------------------------------------------------------------


def kept_columns(layout: Layout) -> NDArray[np.int64]:
    """
    Return the columns that are no artefacts.
    """
    spans = layout.spans()
    artefacts = [np.arange(layout.width)[spans[name]] for name in ARTEFACT_FIELDS if name in spans]
    return np.setdiff1d(np.arange(layout.width), np.concatenate([[], *artefacts]))


def header_bits(encoded: Encoded) -> NDArray[np.int8]:
    """
    Return the `kept_columns`: int8[packets, columns]. The values of `ARTEFACT_TCP_OPTIONS` are set to 0.
    """
    rows = encoded.rows
    if "tcp.opt" in (spans := encoded.layout.spans()):
        options = rows[:, spans["tcp.opt"]]
        present = options[:, ::8] != MISSING
        i = np.flatnonzero(present[:, 0])
        artefact = _artefact_option_bytes(np.packbits(options[i] == 1, axis=1), present[i]) & present[i]
        rows = rows.copy()
        rows[i, spans["tcp.opt"]] *= ~np.repeat(artefact, 8, axis=1)
    return rows[:, kept_columns(encoded.layout)]


def _artefact_option_bytes(options: Array, present: Array) -> NDArray[np.bool_]:
    """
    Mark the value bytes of artefact options: bool[packets, bytes]. One step of the loop takes the next option of all
    packets (RFC 9293 section 3.1: kind, length with both, value; kinds 0 and 1 are one byte).
    """
    n, size = options.shape
    change = np.zeros((n, size + 1), np.int8)  # +1 where artefact bytes begin, -1 behind them
    i, at = np.arange(n), np.zeros(n, np.int64)
    while len(i):
        kind = options[i, at]
        length = np.where(kind == 1, 1, options[i, np.minimum(at + 1, size - 1)]).astype(np.int64)
        valid = (kind == 1) | ((kind > 1) & (length >= 2) & (at + length <= size))
        marked = valid & np.isin(kind, tuple(ARTEFACT_TCP_OPTIONS))
        change[i[marked], at[marked] + 2] += 1
        change[i[marked], at[marked] + length[marked]] -= 1
        at = at + length
        i, at = i[valid & (at < size)], at[valid & (at < size)]
        i, at = i[present[i, at]], at[present[i, at]]
    return np.cumsum(change[:, :-1], axis=1) > 0


def varies(values: Array) -> Array:
    """
    Mark the columns that are not constant: bool[columns].
    """
    return np.asarray((values != values[:1]).any(axis=0))


def telling(*parts: Array) -> NDArray[np.int64]:
    """
    Return the columns that vary, one of those that are equal, of values that stand side by side. Of ten thousand bits
    some hundreds are left: where a header is absent, all its bits are. Forests that choose among all of them seldom
    meet the telling ones.
    """
    first: dict[bytes, int] = {}  # of each column's digest: a sorted copy would take twice the memory of all values
    offset = 0
    for part in parts:
        for start in range(0, part.shape[1], _COLUMNS):
            columns = np.ascontiguousarray(part[:, start : start + _COLUMNS].T, np.float32)
            for i in np.flatnonzero((columns != columns[:, :1]).any(axis=1)).tolist():
                first.setdefault(hashlib.blake2b(columns[i].data, digest_size=16).digest(), offset + start + i)
        offset += part.shape[1]
    return np.array([*first.values()], np.int64)


def first_packets(bits: Array, starts: Array, count: int) -> NDArray[np.int8]:
    """
    Return the first `count` packets of each flow side by side, `MISSING` where a flow is shorter:
    int8[flows, count, columns].
    """
    lengths = np.diff(starts)
    flow = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(bits)) - starts[flow]
    result = np.full((len(lengths), count, bits.shape[1]), MISSING, np.int8)
    early = position < count
    result[flow[early], position[early]] = bits[early]
    return result


def bit_features(traffic: Traffic, encoder: Encoder, first: int = 10) -> Features:
    """
    Return the header bits of the first packets of each flow, for each column the share of packets in which it is 1 and
    in which it is absent, and the bits of the responder's port.
    """
    return once(traffic, ("bit features", encoder, first), lambda: _bit_features(traffic, encoder, first))


def _bit_features(traffic: Traffic, encoder: Encoder, first: int) -> Features:
    kept = kept_columns(encoder.layout)
    columns = np.array(encoder.layout.columns)[kept]
    fields = np.repeat([name for name, _ in encoder.layout.fields], [bits for _, bits in encoder.layout.fields])[kept]
    bits_of = [np.empty((0, len(columns) * first), np.int8)]
    shares_of = [np.empty((0, len(columns) * 2), np.float32)]
    for encoded in in_chunks(traffic, encoder):
        bits, starts = header_bits(encoded), encoded.starts
        lengths = np.maximum(np.diff(starts), 1)[:, None]
        ones, absent = (per_flow(np.add, bits == v, starts, dtype=np.int32) / lengths for v in (1, MISSING))
        early = first_packets(bits, starts, first).reshape(len(encoded), first * bits.shape[1])
        bits_of.append(early)
        shares_of.append(np.concatenate([ones, absent], axis=1, dtype=np.float32))
    names = [f"{column} of packet {p}" for p in range(1, first + 1) for column in columns]
    names += [f"share of packets with {column} 1" for column in columns]
    names += [f"share of packets without {column}" for column in columns]
    ports = np.unpackbits(traffic.flows.responder_ports.astype(">u2")[:, None].view(np.uint8), axis=1)
    names += [f"responder port bit {bit}" for bit in range(16)]
    return Features(
        tuple(names),
        (*np.tile(fields, first + 2).tolist(), *["responder port"] * 16),
        (np.concatenate(bits_of), np.concatenate(shares_of), ports),
    )


# --- statistics -------------------------------------------------------------------------------------------------


def flow_statistics(traffic: Traffic, first: int = 10) -> Features:
    """
    Return what a flow exporter would tell: packets, bytes, sizes and gaps each way, duration, direction changes, TCP
    flags, responder's port and protocol; and size and gap of each of the first packets.
    """
    return once(traffic, ("flow statistics", first), lambda: _flow_statistics(traffic, first))


def _flow_statistics(traffic: Traffic, first: int) -> Features:
    p = packets(traffic)
    everyone, later = np.ones(len(p.flow), bool), p.position > 0
    columns: dict[str, Array] = {
        "responder port": traffic.flows.responder_ports,
        "IP protocol": traffic.flows.protocols,
        "duration (s)": per_flow(np.add, p.gaps_s, p.starts),
        "direction changes": per_flow(
            np.add, later & np.diff(p.from_initiator, prepend=False), p.starts, dtype=np.int64
        ),
    }
    for who, mask in (("both", everyone), ("initiator", p.from_initiator), ("responder", ~p.from_initiator)):
        columns[f"packets from {who}"] = per_flow(np.add, mask, p.starts, dtype=np.int64)
        columns[f"bytes from {who}"] = per_flow(np.add, mask * p.sizes, p.starts)
        columns |= _moments(f"size from {who} (bytes)", p.sizes, mask, p)
    columns |= _moments("inter-arrival time (s)", p.gaps_s, later, p)
    for bit, flag in enumerate(FLAGS):
        columns[f"{flag} flags"] = per_flow(np.add, p.flags >> bit & 1, p.starts)
    early = p.position < first
    at = p.flow[early], p.position[early]
    signed, gaps = np.zeros((2, len(traffic.flows), first))
    signed[at] = np.where(p.from_initiator, p.sizes, -p.sizes)[early]
    gaps[at] = p.gaps_s[early]
    columns |= {f"signed size of packet {i + 1} (bytes)": signed[:, i] for i in range(first)}
    columns |= {f"inter-arrival time of packet {i + 1} (s)": gaps[:, i] for i in range(1, first)}
    names = tuple(columns)
    return Features(names, names, (np.stack(list(columns.values()), axis=1).astype(np.float32),))


def _moments(name: str, values: Array, mask: Array, p: Packets) -> dict[str, Array]:
    """
    Return mean, standard deviation, least and greatest of the masked packets of each flow; 0 where there is none.
    """
    count = per_flow(np.add, mask, p.starts, dtype=np.int64)
    some = np.maximum(count, 1)
    mean = per_flow(np.add, mask * values, p.starts) / some
    deviation = np.sqrt(per_flow(np.add, mask * (values - mean[p.flow]) ** 2, p.starts) / some)
    least = per_flow(np.minimum, np.where(mask, values, np.inf), p.starts)
    greatest = per_flow(np.maximum, np.where(mask, values, -np.inf), p.starts)
    return {
        f"mean {name}": mean,
        f"standard deviation of {name}": deviation,
        f"least {name}": np.where(count, least, 0),
        f"greatest {name}": np.where(count, greatest, 0),
    }


# --- what classifiers see ---------------------------------------------------------------------------------------


@attrs.frozen
class View:
    """
    prefix  of the names of figures
    title   in sentences
    see     ``see(traffic, encoder, first_packets)``
    """

    prefix: str
    title: str
    see: Callable[[Traffic, Encoder, int], Features]


VIEWS = (
    View("", "header bits", bit_features),
    View("statistics_", "flow statistics", lambda traffic, encoder, first: flow_statistics(traffic, first)),
)


@attrs.frozen(kw_only=True)
class ClassifierOptions:
    """
    Options of evaluators that train random forests.
    """

    trees: int = attrs.field(
        default=100,
        validator=[attrs.validators.instance_of(int), attrs.validators.ge(1)],
        metadata={"help": "trees of each random forest"},
    )
    first_packets: int = attrs.field(
        default=10,
        validator=[attrs.validators.instance_of(int), attrs.validators.ge(1)],
        metadata={"help": "packets of a flow that a classifier sees one by one"},
    )
    max_flows: int = attrs.field(
        default=250,
        validator=[attrs.validators.instance_of(int), attrs.validators.ge(2)],
        metadata={"help": "flows of a class and side that classifiers see, drawn at random"},
    )
