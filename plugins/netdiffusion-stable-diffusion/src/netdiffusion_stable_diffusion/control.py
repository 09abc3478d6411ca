"""
Control images: the structure that steers a flow.

``control=class`` draws it from what was learned of the class, a Markov chain over kinds of packets: `Structure`.
``control=exemplar`` follows the Canny map of one training flow, as the paper does (section 3.2): `Exemplars`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.context import Context
from netdiffusion_core.model import Encoded, Layout, numbers

from .autoencoder import TIME
from .diffusion import heights, places, services
from .images import ColourCodec, PacketCodec

Codec = PacketCodec | ColourCodec
Plan = tuple[str, int, str]
"""What is drawn of a flow before its packets: class, number of packets, service."""

Start = tuple[str, int, str]
"""Where a flow's chain begins: class, height, service."""

FEWEST = 8
"""With fewer flows of one height a class's chain would repeat them: rare heights have one chain together."""

SIZES_AN_OCTAVE = 4
EXEMPLARS = 8
END = 0
DIRECTION = "trace.direction"

_HEADERS = ("ipv4", "ipv6", "tcp", "udp", "icmp")
_KIND_FIELDS = ("tcp.doff", "tcp.fin", "tcp.syn", "tcp.rst", "tcp.psh", "tcp.ackf", "icmp.type", "trace.direction")


def plans(data: Encoded, longest: int) -> list[Plan]:
    """
    Return what each flow is like, cut to the longest height.
    """
    return list(zip(data.labels.tolist(), np.minimum(data.lengths, longest).tolist(), services(data), strict=True))


def count_plans(found: Sequence[Plan]) -> dict[str, dict[Plan, int]]:
    """
    Count the plans of each class.
    """
    counted: dict[str, dict[Plan, int]] = {}
    for plan, count in sorted(Counter(found).items()):
        counted.setdefault(plan[0], {})[plan] = count
    return counted


def starts(found: Sequence[Plan], codec: Codec) -> list[Start]:
    """
    Return where the chain of each plan begins.
    """
    height = heights(np.array([packets for _, packets, _ in found]), codec.shortest).tolist()
    return [(label, h, service) for (label, _, service), h in zip(found, height, strict=True)]


def edge_rows(data: Encoded, codec: Codec, longest: int, context: Context) -> NDArray[np.uint8]:
    """
    Return each packet's row of its flow's Canny map: uint8[packets, features], 0 beyond the longest height.
    """
    edges: NDArray[np.uint8] | None = None
    with context.progress("draw control maps", len(data)) as advance:
        for start, flow in ((data.starts[i], data.flow(i)[:longest]) for i in range(len(data))):
            rows = codec.edges(flow)
            if edges is None:
                edges = np.zeros((len(data.rows), rows.shape[1]), np.uint8)
            edges[start : start + len(rows)] = rows
            advance()
    assert edges is not None  # there is no training set without a flow
    return edges


def senders_last(
    rows: NDArray[np.int8], flow: NDArray[np.int64], layout: Layout, among: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """
    Return which packet, of those among which it is to be, its sender sent last before it in the same flow:
    int64[packets], -1 for none. Packets are in flow order; a layout without direction tells of one sender a flow.
    """
    key, spans = 2 * flow, layout.spans()
    if DIRECTION in spans:
        key = key + (rows[:, spans[DIRECTION].start] == 1)
    order = np.argsort(key, kind="stable")
    begins = np.flatnonzero(np.diff(key[order], prepend=-1))
    first = np.repeat(begins, np.diff(np.append(begins, len(order))))
    counts = np.ones(len(order), bool) if among is None else among[order]
    before = np.append(-1, np.maximum.accumulate(np.where(counts, np.arange(len(order)), -1)))[:-1]
    last = np.empty(len(order), np.int64)
    last[order] = np.where(before >= first, order[before], -1)
    return last


def sequence_space(rows: NDArray[np.int8], layout: Layout) -> NDArray[np.int64]:
    """
    Return how many sequence numbers packets take: data, SYN and FIN (RFC 9293 section 3.4), int64[packets]. 0 where
    there is no TCP over IPv4.
    """
    spans = layout.spans()
    if not {"ipv4.tl", "ipv4.hl", "tcp.doff", "tcp.syn", "tcp.fin"} <= set(spans):
        return np.zeros(len(rows), np.int64)
    total, ip_words, tcp_words, syn, fin = (
        numbers(rows[:, spans[name]]) for name in ("ipv4.tl", "ipv4.hl", "tcp.doff", "tcp.syn", "tcp.fin")
    )
    there = (total >= 0) & (ip_words >= 0) & (tcp_words >= 0) & (syn >= 0) & (fin >= 0)
    return np.where(there, np.maximum(total - 4 * (ip_words + tcp_words), 0) + syn + fin, 0)


def sent_again(data: Encoded) -> NDArray[np.bool_]:
    """
    Tell which packets are retransmissions: TCP segments that take the sequence numbers which their sender's last one
    with any took.
    """
    taken = sequence_space(data.rows, data.layout)
    last = senders_last(data.rows, data.flow_of, data.layout, taken > 0)
    if "tcp.seq" not in data.layout.spans():
        return np.zeros(len(last), bool)
    sequence = numbers(data.rows[:, data.layout.span("tcp.seq")])
    again: NDArray[np.bool_] = (last >= 0) & (taken > 0) & (taken == taken[last]) & (sequence == sequence[last])
    return again


def send_again(rows: NDArray[np.int8], again: NDArray[np.bool_], layout: Layout) -> NDArray[np.int8]:
    """
    Return flows, int8[flows, packets, columns], in which these packets (bool[flows, packets]) are those that their
    senders sent last, but for the time.
    """
    flat, again = rows.reshape(-1, rows.shape[-1]), again.reshape(-1)
    flow = np.repeat(np.arange(len(rows)), rows.shape[1])
    last = senders_last(flat, flow, layout, ~again & (sequence_space(flat, layout) > 0))
    packets = np.flatnonzero(again & (last >= 0))
    columns = np.ones(flat.shape[1], bool)
    if TIME in layout.spans():
        columns[layout.spans()[TIME]] = False
    flat = flat.copy()
    flat[np.ix_(packets, columns)] = flat[np.ix_(last[packets], columns)]
    return flat.reshape(rows.shape)


def packet_kinds(data: Encoded) -> NDArray[np.int64]:
    """
    Number the kinds of packets: headers, TCP flags and header length, ICMP type, direction, order of size, whether they
    are sent again, and how far the connection is closed.
    """
    spans, parts = data.layout.spans(), [sent_again(data).astype(np.int64), *_closed(data)]
    for name in (*_HEADERS, *_KIND_FIELDS):
        if name in spans:
            columns = data.rows[:, spans[name]]
            parts += list((columns[:, :1] >= 0 if name in _HEADERS else columns + 1).T)
    for name in ("ipv4.tl", "ipv6.len"):
        if name in spans:
            size = (data.rows[:, spans[name]] == 1) @ (1 << np.arange(15, -1, -1))
            parts.append((SIZES_AN_OCTAVE * np.log2(np.maximum(size, 1))).astype(np.int64))
    return _number(*parts)


def _closed(data: Encoded) -> list[NDArray[np.int64]]:
    """
    Return how many FIN (at most one) of each side, and how many RST (at most two), came before each packet.
    """
    spans, found = data.layout.spans(), []
    if {"tcp.fin", "tcp.rst", DIRECTION} <= set(spans):
        fin, rst, back = (data.rows[:, spans[name].start] == 1 for name in ("tcp.fin", "tcp.rst", DIRECTION))
        for flag, most in ((fin & ~back, 1), (fin & back, 1), (rst, 2)):
            before = np.cumsum(flag) - flag
            found.append(np.minimum(before - np.repeat(before[data.starts[:-1]], data.lengths), most))
    return found


def _number(*parts: NDArray[Any]) -> NDArray[np.int64]:
    """
    Number the combinations of small non-negative numbers from 0, in their order.
    """
    key = np.zeros(len(parts[0]), np.int64)
    for part in parts:
        key = np.unique(key * (int(part.max(initial=0)) + 1) + part, return_inverse=True)[1]
    return key


@attrs.frozen(kw_only=True, eq=False)
class Structure:
    """
    A Markov chain of the second order: what kind of packet follows two others in flows of a class and height.

    A state stands for the last two kinds, and is drawn as the mean row of Canny maps where these kinds meet. State 0 is
    the flow's end; behind the states with edges there is one for each start.

    edges    uint8[states, features]  0 to 255, as Canny maps are
    origin   int32[steps]    a step leads from this state, sorted
    target   int32[steps]    to this one
    chance   float64[steps]  in that share of cases
    again    bool[states]    packets in this state are sent again
    start    state of each start
    """

    edges: NDArray[np.uint8]
    origin: NDArray[np.int32]
    target: NDArray[np.int32]
    chance: NDArray[np.float64]
    again: NDArray[np.bool_]
    start: dict[Start, int]

    def draw(
        self, begin: Sequence[Start], lengths: Sequence[int], height: int, rngs: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """
        Return the states of new flows, int64[flows, height], one for each start and random stream: paths of the chain
        that end behind so many packets.
        """
        uniform = np.stack([rng.random(height) for rng in rngs])
        left = np.array(lengths)
        state = np.array([self.start[b] for b in begin])
        known = self.reachable(state)
        ahead, place = self.ahead(int(left.max()), known), np.searchsorted(known, self.target)
        first = np.searchsorted(self.origin, np.arange(self.origin[-1] + 2))
        states = np.zeros((len(state), height), np.int64)
        on = np.arange(len(state))
        for packet in range(height):
            fan = first[state[on] + 1] - first[state[on]]
            step = np.repeat(first[state[on]] - np.cumsum(fan) + fan, fan) + np.arange(fan.sum())
            total = np.cumsum(self.chance[step] * ahead[np.repeat(left[on], fan), place[step]])
            stop = np.cumsum(fan)
            low, high = np.append(0, total)[stop - fan], total[stop - 1]
            drawn = np.searchsorted(total, low + uniform[on, packet] * (high - low), side="right")
            state[on] = states[on, packet] = self.target[step[np.clip(drawn, stop - fan, stop - 1)]]
            left[on] -= 1
            on = on[left[on] > 0]
            if not len(on):
                break
        return states

    def reachable(self, begin: NDArray[np.int64]) -> NDArray[np.int64]:
        """
        Return the states that paths from these states come to, sorted; no step leads to a start.
        """
        found, more = np.zeros((2, int(self.origin[-1]) + 1), bool)
        more[begin] = True
        while (more != found).any():
            found = more.copy()
            more[self.target[found[self.origin]]] = True
        return np.flatnonzero(found[: len(self.edges)])

    def ahead(self, longest: int, states: NDArray[np.int64]) -> NDArray[np.float64]:
        """
        Return how likely a flow ends after exactly so many packets, its present one the first of them: float64[longest
        + 1, states], each row up to a factor, which keeps numbers from vanishing.

        states  those that are `reachable` from some
        """
        steps = np.isin(self.origin, states)
        origin, target = (np.searchsorted(states, each[steps]) for each in (self.origin, self.target))
        chance = self.chance[steps]
        likely = np.zeros((longest + 1, len(states)))
        likely[0, np.searchsorted(states, END)] = 1
        for packets in range(1, longest + 1):
            likely[packets] = np.bincount(origin, chance * likely[packets - 1, target], len(states))
            likely[packets] /= likely[packets].max() or 1
        return likely

    def own(
        self, state_of: NDArray[np.int64], data: Encoded, flows: NDArray[np.int64], height: int
    ) -> NDArray[np.uint8]:
        """
        Return the maps of the states of these flows: uint8[flows, height, features].
        """
        index = places(data, flows, height)
        return self.edges[np.where(index >= 0, state_of[index], END)]


def learn_structure(
    data: Encoded, edges: NDArray[np.uint8], codec: Codec, longest: int
) -> tuple[Structure, NDArray[np.int64]]:
    """
    Learn each class's chain. Also return each packet's state, END beyond the longest height.
    """
    begin = starts(plans(data, longest), codec)
    label_of = np.unique(data.labels, return_inverse=True)[1]
    height_of = np.array([height for _, height, _ in begin])
    group = _number(label_of, height_of)
    rare = np.bincount(group)[group] < FEWEST
    group = _number(label_of, np.where(rare, 0, height_of))

    flow = data.flow_of
    position = np.arange(len(flow)) - data.starts[flow]
    seen = np.flatnonzero(position < longest)
    flow, position, kind = flow[seen], position[seen], packet_kinds(data)[seen]
    before = np.where(position > 0, np.roll(kind, 1) + 1, 0)
    state = 1 + _number(group[flow], before, kind)
    number_of_states = int(state.max()) + 1

    start = {name: number_of_states + i for i, name in enumerate(sorted(set(begin)))}
    origin = np.where(position > 0, np.roll(state, 1), np.array([start[b] for b in begin])[flow])
    last = np.append(position[1:] == 0, True)
    steps, count = np.unique(
        np.append(origin, state[last]) << 32 | np.append(state, np.full(last.sum(), END)), return_counts=True
    )
    origin, target = steps >> 32, steps & 0xFFFFFFFF

    order = np.argsort(state, kind="stable")
    sums = np.add.reduceat(
        edges[seen][order], np.searchsorted(state[order], np.arange(1, number_of_states)), dtype=float
    )
    means = sums / np.bincount(state)[1:, None]
    state_of = np.full(len(data.rows), END)
    state_of[seen] = state
    again = np.zeros(number_of_states, bool)
    again[state] = sent_again(data)[seen]
    structure = Structure(
        edges=np.concatenate([np.zeros_like(means[:1]), means]).round().astype(np.uint8),
        origin=origin.astype(np.int32),
        target=target.astype(np.int32),
        chance=count / np.bincount(origin, count)[origin],
        again=again,
        start=start,
    )
    return structure, state_of


@attrs.frozen(kw_only=True, eq=False)
class Exemplars:
    """
    Canny maps of some training flows.

    images  label -> height -> uint8[choices, height, features]
    """

    images: dict[str, dict[int, NDArray[np.uint8]]]

    def draw(self, begin: Sequence[Start], height: int, rngs: Sequence[np.random.Generator]) -> NDArray[np.uint8]:
        """
        Return one map of the class and height of each start, cut to this height.
        """
        choices = [self.images[label][own_height] for label, own_height, _ in begin]
        return np.stack([maps[rng.integers(len(maps)), :height] for maps, rng in zip(choices, rngs, strict=True)])


def learn_exemplars(data: Encoded, edges: NDArray[np.uint8], codec: Codec, longest: int) -> Exemplars:
    """
    Keep a few flows' Canny maps of each class and height.
    """
    found: dict[str, dict[int, list[int]]] = {}
    for flow, (label, height, _) in enumerate(starts(plans(data, longest), codec)):
        found.setdefault(label, {}).setdefault(height, []).append(flow)
    images = {
        label: {h: own_edges(data, edges, np.array(flows[:EXEMPLARS]), h) for h, flows in by_height.items()}
        for label, by_height in found.items()
    }
    return Exemplars(images=images)


def own_edges(data: Encoded, edges: NDArray[np.uint8], flows: NDArray[np.int64], height: int) -> NDArray[np.uint8]:
    """
    Return these flows' own Canny maps: uint8[flows, height, features].
    """
    index = places(data, flows, height)
    return np.where(index[..., None] >= 0, edges[index], np.uint8(0))
