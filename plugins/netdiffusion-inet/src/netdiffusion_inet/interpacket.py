"""
The rule set ``interpacket``: what holds between the packets of a flow, whatever its transport.

Who speaks is settled first, since ports and TTL are constant for each direction. A flow's initiator is the sender of
its first packet. A TCP flow with a SYN among its first three packets begins with a handshake: forth, back, forth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.interfaces import RuleSet
from netdiffusion_core.model import TCP, UDP, FlowTable, Traffic, Violation

from .headers import Draft
from .ipv4 import DEFAULT_TTL
from .rules import RULES, rules_of
from .segments import Flows, vote

Array = NDArray[Any]

HANDSHAKE = 3
"""Segments of a handshake: SYN, SYN-ACK, ACK (RFC 9293 section 3.5)."""

_SYN = 0x02
_TICK_NS = 1_000  # the resolution of a pcap file
_LONGEST_GAP_NS = 7_200_000_000_000  # two hours, the default of TCP keep-alives: RFC 9293 section 3.8.4
_LARGEST_STEP = 2_048  # of a counting IPv4 identification: the host sends other packets in between
_EPHEMERAL = (49_152, 65_536)  # RFC 6335 section 6
_PORTS = {TCP: ("tcp.sprt", "tcp.dprt"), UDP: ("udp.sport", "udp.dport")}


class InterpacketRules(RuleSet):
    """
    The packets of a flow as a conversation.
    """

    rules = rules_of("interpacket")

    def repair(self, traffic: Traffic, rng: np.random.Generator) -> Traffic:
        """
        Mend directions, ports (two for each flow, by vote of its packets; a missing one is drawn from `rng`), TTL (one
        for each direction, by vote) and time stamps (a microsecond to two hours apart). A counting IPv4
        identification goes on counting.
        """
        draft = Draft(traffic)
        flows = Flows.of(traffic, draft.headers.ip_versions > 0)
        if not len(flows):
            return traffic
        opens = opening(draft, flows)
        table, from_initiator = _lead(traffic, flows)
        wanted = from_initiator[flows.packets]
        wanted = np.where(opens, flows.position != 1, wanted)
        turned = flows.packets[wanted != from_initiator[flows.packets]]
        draft.turn(turned)
        from_initiator[flows.packets] = wanted
        times = _rising(traffic, flows)
        table = _settle_ports(draft, flows, wanted, times, table, rng)
        _settle_ttl(draft, flows, wanted)
        i, identification = _off_count(draft, flows, wanted)
        draft.put("ipv4.id", i, identification)
        traffic = draft.finish(from_initiator=from_initiator, flows=table, timestamps=times)
        if len(_backwards(traffic)):
            traffic = traffic.select_packets(np.argsort(times, kind="stable"))
        return traffic

    def check(self, traffic: Traffic) -> Iterator[Violation]:
        """
        Yield what `rules` says.
        """
        draft = Draft(traffic)
        flows = Flows.of(traffic, draft.headers.ip_versions > 0)
        forth = traffic.from_initiator[flows.packets]
        wanted = np.where(opening(draft, flows), flows.position != 1, (flows.position == 0) | forth)
        yield from RULES["interpacket.direction"].broken(traffic, flows.packets[wanted != forth])
        for protocol, fields in _PORTS.items():
            i = flows.packets[_has(draft, flows.packets, protocol)]
            source, destination = (draft.get(field, i) for field in fields)
            told = np.where(traffic.from_initiator[i], source << 16 | destination, destination << 16 | source)
            row = traffic.flow_of[i]
            agreed = vote(row, told, len(traffic.flows), 32)[row]
            yield from RULES["interpacket.ports"].broken(traffic, i[(told != agreed) | (source * destination == 0)])
        ttl = _ttl(draft, flows.packets)
        group = 2 * flows.flow + forth
        usual = vote(group, ttl, 2 * len(flows.row), 8)[group]
        yield from RULES["interpacket.ttl"].broken(traffic, flows.packets[ttl != usual])
        yield from RULES["interpacket.ip-id"].broken(traffic, _off_count(draft, flows, forth)[0])
        yield from RULES["interpacket.timestamps"].broken(traffic, _backwards(traffic))


def _backwards(traffic: Traffic) -> Array:
    """
    Return the packets that are earlier than the one before them in the same flow, in the order of the capture.
    """
    i = np.flatnonzero(traffic.flow_of >= 0)
    i = i[np.argsort(traffic.flow_of[i], kind="stable")]
    back = (np.diff(traffic.timestamps[i]) < 0) & (np.diff(traffic.flow_of[i]) == 0)
    return i[1:][back]


def opening(draft: Draft, flows: Flows) -> NDArray[np.bool_]:
    """
    Return for each packet in flow order whether it is one of the (up to) three of a TCP handshake.
    """
    early = (flows.position < HANDSHAKE) & _has(draft, flows.packets, TCP)
    early[early] = draft.get("tcp.flags", flows.packets[early]) & _SYN > 0
    return flows.any_in_flow(early) & (flows.position < HANDSHAKE)


def _has(draft: Draft, packets: Array, protocol: int) -> Array:
    return (draft.headers.protocols[packets] == protocol) & (draft.headers.transport_offsets[packets] >= 0)


def _lead(traffic: Traffic, flows: Flows) -> tuple[FlowTable, NDArray[np.bool_]]:
    """
    Return ``(flows, from_initiator)`` in which each flow's initiator is the sender of its first packet. The packets
    stay as they are: only the flow table changes sides.
    """
    swapped = np.zeros(len(traffic.flows) + 1, bool)  # the last entry serves flow_of == -1
    swapped[flows.row] = ~traffic.from_initiator[flows.packets[flows.heads]]
    swap, table = swapped[:-1], traffic.flows
    pairs = {}
    for what in ("addresses", "ports"):
        initiator, responder = getattr(table, f"initiator_{what}"), getattr(table, f"responder_{what}")
        chosen = swap.reshape(-1, *[1] * (initiator.ndim - 1))
        pairs[f"initiator_{what}"] = np.where(chosen, responder, initiator)
        pairs[f"responder_{what}"] = np.where(chosen, initiator, responder)
    return attrs.evolve(table, **pairs), traffic.from_initiator ^ swapped[traffic.flow_of]


def _settle_ports(
    draft: Draft, flows: Flows, from_initiator: Array, times: Array, table: FlowTable, rng: np.random.Generator
) -> FlowTable:
    """
    Give each TCP and UDP flow the two ports that most of its packets name, 0 not counted, and no two flows at the same
    time the same pair of endpoints.
    """
    count = len(draft.traffic.flows)
    ports = np.column_stack([table.initiator_ports, table.responder_ports]).astype(np.int64)
    told = np.zeros((len(flows), 2), np.int64)
    for protocol, fields in _PORTS.items():
        chosen = _has(draft, flows.packets, protocol)
        source, destination = (draft.get(field, flows.packets[chosen]) for field in fields)
        forth = from_initiator[chosen]
        told[chosen, 0] = np.where(forth, source, destination)
        told[chosen, 1] = np.where(forth, destination, source)
    row = flows.row[flows.flow]
    transport = _has(draft, flows.packets, TCP) | _has(draft, flows.packets, UDP)
    mine = np.zeros(count, bool)
    mine[row[transport]] = True
    for side in (0, 1):
        given = told[:, side] > 0
        ports[mine, side] = vote(row[given], told[given, side], count, 16)[mine]
        lost = mine & (ports[:, side] == 0)
        ports[lost, side] = rng.integers(*_EPHEMERAL, lost.sum())
    last = np.append(flows.heads[1:], len(flows)) - 1
    begin, end = np.zeros((2, count), np.int64)
    begin[flows.row], end[flows.row] = times[flows.packets[flows.heads]], times[flows.packets[last]]
    while len(again := _same_endpoints(table, ports, np.flatnonzero(mine), begin, end)):
        ports[again, 0] = rng.integers(*_EPHEMERAL, len(again))

    for protocol, fields in _PORTS.items():
        chosen = _has(draft, flows.packets, protocol)
        pair = ports[row[chosen]]
        forth = from_initiator[chosen]
        draft.put(fields[0], flows.packets[chosen], np.where(forth, pair[:, 0], pair[:, 1]))
        draft.put(fields[1], flows.packets[chosen], np.where(forth, pair[:, 1], pair[:, 0]))
    return attrs.evolve(
        table, initiator_ports=ports[:, 0].astype(np.uint16), responder_ports=ports[:, 1].astype(np.uint16)
    )


def _same_endpoints(table: FlowTable, ports: Array, flows: Array, begin: Array, end: Array) -> Array:
    """
    Return those of these flows that begin before another one with the same protocol, addresses and ports has ended.
    """
    here, there = (
        np.column_stack([addresses, port >> 8, port & 255])[flows]
        for addresses, port in ((table.initiator_addresses, ports[:, 0]), (table.responder_addresses, ports[:, 1]))
    )
    differs = here != there
    at = differs.argmax(1)[:, None]
    ahead = np.take_along_axis(here, at, 1) <= np.take_along_axis(there, at, 1)
    key = np.column_stack([np.where(ahead, here, there), np.where(ahead, there, here), table.protocols[flows]])
    _, group = np.unique(key, axis=0, return_inverse=True)
    group = group.reshape(-1)
    order = np.lexsort((begin[flows], group))
    i = flows[order]
    clash = (np.diff(group[order]) == 0) & (begin[i[1:]] <= end[i[:-1]])
    return i[1:][clash]


def _ttl(draft: Draft, packets: Array) -> NDArray[np.int64]:
    """
    Return time to live or hop limit: int64[packets].
    """
    is4 = draft.headers.ip_versions[packets] == 4
    ttl = np.zeros(len(packets), np.int64)
    ttl[is4] = draft.get("ipv4.ttl", packets[is4])
    ttl[~is4] = draft.get("ipv6.hl", packets[~is4])
    return ttl


def _settle_ttl(draft: Draft, flows: Flows, from_initiator: Array) -> None:
    """
    Give each direction of a flow the TTL that most of its packets have.
    """
    ttl = _ttl(draft, flows.packets)
    group = 2 * flows.flow + from_initiator
    alive = ttl > 0
    usual = vote(group[alive], ttl[alive], 2 * len(flows.row), 8, DEFAULT_TTL)[group]
    is4 = draft.headers.ip_versions[flows.packets] == 4
    draft.put("ipv4.ttl", flows.packets[is4], usual[is4])
    draft.put("ipv6.hl", flows.packets[~is4], usual[~is4])


def _off_count(draft: Draft, flows: Flows, from_initiator: Array) -> tuple[Array, Array]:
    """
    Return ``(packets, identification)``: single IPv4 packets that leave the count of a sender who counts, and the
    number that continues it. A sender counts if most of its steps are small and go up; one who sends 0 or draws its
    numbers has nothing to continue. 0 itself is no number (RFC 6864: nobody needs it where nothing is fragmented).
    """
    chosen = np.flatnonzero(draft.headers.ip_versions[flows.packets] == 4)
    group = 2 * flows.flow[chosen] + from_initiator[chosen]
    order = np.argsort(group, kind="stable")
    line = Flows.sorted(flows.packets[chosen[order]], group[order])
    number = draft.get("ipv4.id", line.packets)
    step = np.diff(number, prepend=0) & 0xFFFF
    inner = line.position > 0
    small = inner & (step > 0) & (step <= _LARGEST_STEP)
    steps = np.bincount(line.flow, inner, len(line.row))
    counts = np.bincount(line.flow, small, len(line.row)) * 2 > steps
    leads_on = np.append(small[1:], False)[: len(line)]
    last = np.append(line.position[1:] == 0, True)[: len(line)]
    off = counts[line.flow] & inner & ~last & ~small & ~leads_on & (number > 0)
    before = line.last(~off)
    i = np.flatnonzero(off)
    return line.packets[i], number[before[i]] + (i - before[i]) & 0xFFFF


def _rising(traffic: Traffic, flows: Flows) -> NDArray[np.int64]:
    """
    Return time stamps: int64[packets]. A flow keeps its gaps where they are between a tick and the longest.
    """
    times = np.array(traffic.timestamps)
    if not len(flows):
        return times
    here = times[flows.packets]
    gap = np.diff(here, prepend=here[:1])
    gap = np.where(flows.position == 0, 0, np.clip(gap, _TICK_NS, _LONGEST_GAP_NS))
    elapsed = np.cumsum(gap)
    times[flows.packets] = here[flows.first] + elapsed - elapsed[flows.first]
    return times
