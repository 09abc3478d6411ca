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

from netdiffusion_core.interfaces import Record, forget
from netdiffusion_core.model import ICMP, ICMPV6, TCP, UDP, Traffic

from .headers import Draft, own_bytes
from .rules import rules_of
from .ruleset import InetRules
from .segments import Flows, first_alike, vote

Array = NDArray[Any]

HANDSHAKE = 3
"""Segments of a handshake: SYN, SYN-ACK, ACK (RFC 9293 section 3.5)."""

_SYN, _ACK = 0x02, 0x10
_LONGEST_GAP_NS = 7_200_000_000_000  # two hours, the default of TCP keep-alives: RFC 9293 section 3.8.4
_LONGEST_SILENCE_NS = 120_000_000_000  # RFC 4787 section 4.3
_LONGEST_ICMP_SILENCE_NS = 60_000_000_000  # RFC 5508 section 3.2
_LARGEST_STEP = 2_048  # of a counting IPv4 identification: the host sends other packets in between
_EPHEMERAL = (49_152, 65_536)  # RFC 6335 section 6
_TTL_STEPS = 3  # within one direction: a middle box answers for a host, a route changes
_PLAUSIBLE_TTL = np.zeros(256, bool)
for _initial in (32, 64, 128, 255):  # what stacks begin with; 40 hops are more than the Internet has across
    _PLAUSIBLE_TTL[max(_initial - 40, 1) : _initial + 1] = True


class InterpacketRules(InetRules):
    """
    The packets of a flow as a conversation.
    """

    name = "interpacket"
    rules = rules_of("interpacket")

    def repair(self, traffic: Traffic, rng: np.random.Generator, record: Record = forget) -> Traffic:
        """
        Mend packets, see `mend`, and put them in the order of time where a flow is not.
        """
        traffic = super().repair(traffic, rng, record)
        if "interpacket.timestamps" not in self.off and len(_backwards(traffic)):
            traffic = own_bytes(traffic.select_packets(np.argsort(traffic.timestamps, kind="stable")))
        return traffic

    def mend(self, draft: Draft, rng: np.random.Generator) -> None:
        """
        Mend directions, gaps that are too long, ports (two for each flow, by vote of its packets; a missing one is
        drawn from `rng`) and TTL (by vote in each direction). A counting IPv4 identification goes on counting.
        """
        flows = _flows(draft)
        _settle_direction(draft, flows)
        _settle_times(draft, flows)
        _settle_ports(draft, flows, rng)
        lines = _lines(draft, flows)
        i, usual = _unusual_ttl(draft, lines)
        is4 = draft.headers.ip_versions[i] == 4
        draft.put("interpacket.ttl", "ipv4.ttl", i[is4], usual[is4])
        draft.put("interpacket.ttl", "ipv6.hl", i[~is4], usual[~is4])
        draft.put("interpacket.ip-id", "ipv4.id", *_off_count(draft, lines))

    def faults(self, draft: Draft) -> Iterator[tuple[str, Array]]:
        """
        Yield what `rules` says.
        """
        flows = _flows(draft)
        forth = draft.from_initiator[flows.packets]
        opens, turn = opening(draft, flows)
        wanted = np.where(opens, turn != 1, (flows.position == 0) | forth)
        yield "interpacket.direction", flows.packets[wanted != forth]
        ends, told = _told_ports(draft, flows)
        agreed = vote(ends.flow, told[:, 0] << 16 | told[:, 1], len(ends.row), 32)[ends.flow]
        apart = (told[:, 0] != agreed >> 16) | (told[:, 1] != agreed & 0xFFFF) | (told == 0).any(1)
        yield "interpacket.ports", ends.packets[apart]
        ports = np.column_stack([draft.flows.initiator_ports, draft.flows.responder_ports])
        shared = np.isin(ends.row, _same_endpoints(draft, flows, ports, ends.row))
        yield "interpacket.endpoints", ends.packets[ends.heads[shared]]
        lines = _lines(draft, flows)
        yield "interpacket.ttl", _unusual_ttl(draft, lines)[0]
        yield "interpacket.ip-id", _off_count(draft, lines)[0]
        gaps = _gaps(draft, flows)
        late = flows.packets[gaps > _LONGEST_GAP_NS]
        yield "interpacket.timestamps", np.union1d(late, _backwards(draft.traffic))
        yield "interpacket.silence", flows.packets[gaps > _longest_silences(draft, flows)]


def _flows(draft: Draft) -> Flows:
    return Flows.of(draft.traffic, draft.headers.ip_versions > 0)


def _backwards(traffic: Traffic) -> Array:
    """
    Return the packets that are earlier than the one before them in the same flow, in the order of the capture.
    """
    if (np.diff(traffic.timestamps) >= 0).all():
        return np.zeros(0, np.int64)
    i = np.flatnonzero(traffic.flow_of >= 0)
    i = i[np.argsort(traffic.flow_of[i], kind="stable")]
    back = (np.diff(traffic.timestamps[i]) < 0) & (np.diff(traffic.flow_of[i]) == 0)
    return i[1:][back]


def turns(flows: Flows, flags: Array, seq: Array) -> NDArray[np.int64]:
    """
    Return which segment of a handshake each one would be, int64[n]: its position in its flow, where a SYN that is sent
    again (RFC 9293 section 3.8.1) has that of the first one and moves no other.

    flags, seq  int64[n], 0 where there is no TCP
    """
    syn = np.flatnonzero(flags & _SYN)
    first = np.arange(len(flows))
    first[syn] = syn[first_alike(flows.flow[syn], flags[syn] & _ACK, seq[syn])]
    return (flows.position - flows.before(first < np.arange(len(flows))))[first]


def opening(draft: Draft, flows: Flows) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """
    Return for each packet in flow order whether it is one of the (up to) three of a TCP handshake, and which one.
    """
    h = draft.headers
    tcp = np.flatnonzero(((h.protocols == TCP) & (h.transport_offsets >= 0))[flows.packets])
    flags, seq = np.zeros((2, len(flows)), np.int64)
    flags[tcp], seq[tcp] = (draft.get(field, flows.packets[tcp]) for field in ("tcp.flags", "tcp.seq"))
    turn = turns(flows, flags, seq)
    return flows.any_in_flow((turn < HANDSHAKE) & (flags & _SYN > 0)) & (turn < HANDSHAKE), turn


def _settle_direction(draft: Draft, flows: Flows) -> None:
    """
    Make the sender of each flow's first packet its initiator, which only changes the sides of the flow table, and turn
    packets of a handshake that go the wrong way.
    """
    rule = "interpacket.direction"
    if rule in draft.off:
        return
    heads = flows.packets[flows.heads]
    behind = ~draft.from_initiator[heads]
    if behind.any():
        swapped = np.zeros(len(draft.flows) + 1, bool)  # the last entry serves flow_of == -1
        swapped[flows.row] = behind
        swap, table = swapped[:-1], draft.flows
        sides = {}
        for what in ("addresses", "ports"):
            initiator, responder = getattr(table, f"initiator_{what}"), getattr(table, f"responder_{what}")
            chosen = swap.reshape(-1, *[1] * (initiator.ndim - 1))
            sides[f"initiator_{what}"] = np.where(chosen, responder, initiator)
            sides[f"responder_{what}"] = np.where(chosen, initiator, responder)
        draft.flows = attrs.evolve(table, **sides)
        draft.from_initiator = draft.from_initiator ^ swapped[draft.traffic.flow_of]
        draft.record(rule, "trace.initiator", heads[behind], ~behind[behind], behind[behind])
    forth = draft.from_initiator[flows.packets]
    opens, turn = opening(draft, flows)
    draft.turn(rule, flows.packets[opens & ((turn != 1) != forth)])


def _gaps(draft: Draft, flows: Flows) -> NDArray[np.int64]:
    """
    Return the nanoseconds since the packet before in the same flow: int64[n], 0 for the first.
    """
    return np.where(flows.position == 0, 0, np.diff(draft.timestamps[flows.packets], prepend=0))


def _longest_silences(draft: Draft, flows: Flows) -> NDArray[np.int64]:
    """
    Return the nanoseconds that each packet's flow may be silent: int64[n]. TCP says itself when a connection is over.
    """
    protocols = draft.flows.protocols[flows.row]
    longest = np.where(np.isin(protocols, (ICMP, ICMPV6)), _LONGEST_ICMP_SILENCE_NS, _LONGEST_SILENCE_NS)
    return np.where(protocols == TCP, np.iinfo(np.int64).max, longest)[flows.flow]


def _settle_times(draft: Draft, flows: Flows) -> None:
    """
    Shorten gaps that are too long. Note also which packets stand behind later ones.
    """
    rule = "interpacket.timestamps"
    if rule not in draft.off:
        _shorten(draft, rule, flows, _LONGEST_GAP_NS)
        behind = np.isin(flows.packets, _backwards(draft.traffic))
        if behind.any():
            iat_us = _gaps(draft, flows)[behind] // 1000
            before, bits = np.full(len(iat_us), -1), 1 + np.bitwise_count(iat_us)
            draft.record(rule, "trace.iat_us", flows.packets[behind], before, iat_us, bits)
    if "interpacket.silence" not in draft.off:
        _shorten(draft, "interpacket.silence", flows, _longest_silences(draft, flows))


def _shorten(draft: Draft, rule: str, flows: Flows, longest: NDArray[np.int64] | int) -> None:
    """
    Cut gaps to so many nanoseconds; what follows moves forward.
    """
    gaps = _gaps(draft, flows)
    after = np.minimum(gaps, longest)
    i = np.flatnonzero(gaps > after)
    if len(i):
        draft.record(rule, "trace.iat_us", flows.packets[i], gaps[i] // 1000, after[i] // 1000)
        times = draft.timestamps.copy()
        times[flows.packets] = times[flows.packets[flows.first]] + flows.before(after) + after
        draft.timestamps = times


def _told_ports(draft: Draft, flows: Flows) -> tuple[Flows, NDArray[np.int64]]:
    """
    Return the TCP and UDP packets, and the ports of initiator and responder that each names: int64[n, 2].
    """
    protocol, present = draft.headers.protocols[flows.packets], draft.headers.transport_offsets[flows.packets] >= 0
    ends = flows.part(present & ((protocol == TCP) | (protocol == UDP)))
    told = np.column_stack([draft.get(field, ends.packets) for field in ("tcp.sprt", "tcp.dprt")])
    return ends, np.where(draft.from_initiator[ends.packets, None], told, told[:, ::-1])


def _settle_ports(draft: Draft, flows: Flows, rng: np.random.Generator) -> None:
    """
    Give each TCP and UDP flow the two ports that most of its packets name, 0 not counted, and no two flows at the same
    time the same pair of endpoints.
    """
    ends, told = _told_ports(draft, flows)
    ports = np.column_stack([draft.flows.initiator_ports, draft.flows.responder_ports]).astype(np.int64)
    given = ports.copy()
    if "interpacket.ports" not in draft.off:
        for side in (0, 1):
            named = told[:, side] > 0
            agreed = vote(ends.flow[named], told[named, side], len(ends.row), 16)
            if not agreed.all():
                agreed[agreed == 0] = rng.integers(*_EPHEMERAL, (agreed == 0).sum())
            ports[ends.row, side] = agreed
        _put_ports(draft, "interpacket.ports", ends, ports)
    if "interpacket.endpoints" not in draft.off:
        agreed = ports.copy()
        while len(again := _same_endpoints(draft, flows, ports, ends.row)):
            ports[again, 0] = rng.integers(*_EPHEMERAL, len(again))
        moved = (ports != agreed).any(1)[ends.row[ends.flow]]
        if moved.any():
            _put_ports(draft, "interpacket.endpoints", ends.part(moved), ports)
    if (ports != given).any():
        initiator, responder = ports.T.astype(np.uint16)
        draft.flows = attrs.evolve(draft.flows, initiator_ports=initiator, responder_ports=responder)


def _put_ports(draft: Draft, rule: str, ends: Flows, ports: Array) -> None:
    """
    Write the ports of the flow table into the packets.
    """
    initiator, responder = ports[ends.row].T[:, ends.flow]
    forth, protocols = draft.from_initiator[ends.packets], draft.headers.protocols[ends.packets]
    source, destination = np.where(forth, initiator, responder), np.where(forth, responder, initiator)
    for values, tcp, udp in ((source, "tcp.sprt", "udp.sport"), (destination, "tcp.dprt", "udp.dport")):
        for field, protocol in ((tcp, TCP), (udp, UDP)):
            mine = protocols == protocol
            draft.put(rule, field, ends.packets[mine], values[mine])


def _same_endpoints(draft: Draft, flows: Flows, ports: Array, rows: Array) -> Array:
    """
    Return those of these rows of the flow table that begin before another one with the same protocol, addresses and
    ports has ended.
    """
    if len(rows) < 2:
        return rows[:0]
    table, times = draft.flows, draft.timestamps[flows.packets]
    begin, end = np.zeros((2, len(table)), np.int64)
    begin[flows.row], end[flows.row] = times[flows.heads], times[np.append(flows.heads[1:], len(flows)) - 1]
    here, there = (
        np.column_stack([addresses, port >> 8, port & 255])[rows]
        for addresses, port in ((table.initiator_addresses, ports[:, 0]), (table.responder_addresses, ports[:, 1]))
    )
    differs = here != there
    at = differs.argmax(1)[:, None]
    ahead = np.take_along_axis(here, at, 1) <= np.take_along_axis(there, at, 1)
    key = np.column_stack([np.where(ahead, here, there), np.where(ahead, there, here), table.protocols[rows]])
    _, group = np.unique(key, axis=0, return_inverse=True)
    group = group.reshape(-1)
    order = np.lexsort((begin[rows], group))
    i = rows[order]
    clash = (np.diff(group[order]) == 0) & (begin[i[1:]] <= end[i[:-1]])
    return i[1:][clash]


def _lines(draft: Draft, flows: Flows) -> Flows:
    """
    Put the packets of each direction of each flow behind one another.
    """
    group = 2 * flows.flow + draft.from_initiator[flows.packets]
    order = np.argsort(group, kind="stable")
    return Flows.sorted(flows.packets[order], group[order])


def _unusual_ttl(draft: Draft, lines: Flows) -> tuple[Array, Array]:
    """
    Return ``(packets, usual)``: a TTL or hop limit that is not the usual one of its direction although that changes all
    the time, or is none that a host may have sent, and the usual one. 0 is the business of other rules.
    """
    is4 = draft.headers.ip_versions[lines.packets] == 4
    ttl = np.zeros(len(lines), np.int64)
    ttl[is4] = draft.get("ipv4.ttl", lines.packets[is4])
    ttl[~is4] = draft.get("ipv6.hl", lines.packets[~is4])
    steps = np.bincount(lines.flow, (np.diff(ttl, prepend=0) != 0) & (lines.position > 0), len(lines.row))[lines.flow]
    alive = ttl > 0
    usual = vote(lines.flow[alive], ttl[alive], len(lines.row), 8)[lines.flow]
    i = np.flatnonzero(alive & (ttl != usual) & ((steps > _TTL_STEPS) | ~_PLAUSIBLE_TTL[ttl]))
    return lines.packets[i], usual[i]


def _off_count(draft: Draft, lines: Flows) -> tuple[Array, Array]:
    """
    Return ``(packets, identification)``: single IPv4 packets that leave the count of a sender who counts, and the
    number that continues it. A sender counts if most of its steps are small and go up; one who sends 0 or draws its
    numbers has nothing to continue. 0 itself is no number (RFC 6864: nobody needs it where nothing is fragmented).
    """
    line = lines.part(draft.headers.ip_versions[lines.packets] == 4)
    number = draft.get("ipv4.id", line.packets)
    step = np.diff(number, prepend=0) & 0xFFFF
    far = np.minimum(step, 0x10000 - step) > _LARGEST_STEP
    inner = line.position > 0
    small = inner & (step > 0) & (step <= _LARGEST_STEP)
    steps = np.bincount(line.flow, inner, len(line.row))
    counts = np.bincount(line.flow, small, len(line.row)) * 2 > steps
    over = (step + np.append(step[1:], 0)) & 0xFFFF  # from the packet before to the one behind
    last = np.append(line.position[1:] == 0, True)[: len(line)]
    resumed = ~last & (over > 1) & (over <= _LARGEST_STEP)
    off = counts[line.flow] & inner & far & resumed & (number > 0)
    before = line.last(~off)
    i = np.flatnonzero(off)
    return line.packets[i], number[before[i]] + (i - before[i]) & 0xFFFF
