"""
The rule sets ``icmp`` (RFC 792) and ``icmpv6`` (RFC 4443).

A flow in which every message is assigned, whole, (an echo reply) asked for and of one exchange stays as it is. Any
other becomes an exchange of echoes: the initiator asks, the responder answers the latest question that is still open,
and where there is none asks itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.model import ICMP, ICMPV6

from .bits import Bits
from .headers import Draft, malformed_transport
from .rules import rules_of
from .ruleset import InetRules
from .segments import Flows, vote

Array = NDArray[Any]

_PROTOCOL = {4: ICMP, 6: ICMPV6}
_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
_QUOTING = {4: (3, 4, 5, 11, 12), 6: (1, 2, 3, 4)}  # error messages that quote the packet they are about
_SOURCE = {4: 12, 6: 8}  # where the source address is in the IP header; the destination follows it
_ADDRESS = {4: 4, 6: 16}
_NEIGHBOR = range(133, 138)  # RFC 4861: sent with a hop limit of 255

# IP version: {type: (highest code, bytes that must follow the eight of the header)}
_ASSIGNED = {
    4: {0: (0, 0), 3: (15, 28), 4: (0, 28), 5: (3, 28), 8: (0, 0), 9: (0, 8), 10: (0, 0), 11: (1, 28), 12: (2, 28),
        13: (0, 12), 14: (0, 12)},
    6: {1: (8, 40), 2: (0, 40), 3: (1, 40), 4: (10, 40), 128: (0, 0), 129: (0, 0), 130: (0, 16), 131: (0, 16),
        132: (0, 16), 133: (0, 0), 134: (0, 8), 135: (0, 16), 136: (0, 16), 137: (0, 32), 143: (0, 0)},
}  # fmt: skip


class IcmpRules(InetRules):
    """
    ICMP messages and their pairs.
    """

    name = header = protocol = "icmp"
    checksums: ClassVar[tuple[str, ...]] = ("icmp",)
    rules = rules_of("icmp")
    version = 4

    def settle(self, bits: Bits) -> None:
        """
        Give every packet of an ICMP flow a whole ICMP header.
        """
        bits.complete("icmp", 64, np.flatnonzero(bits.live & (bits.protocols == _PROTOCOL[self.version])))

    def mend(self, draft: Draft, rng: np.random.Generator) -> None:
        """
        Make echoes of what is no valid exchange.
        """
        flows = _flows(draft, self.version)
        if not len(flows):
            return
        for rule, find in (("type", _unassigned), ("echo", _out_of_exchange)):
            faulty = flows.any_in_flow(find(draft, flows, self.version))
            if faulty.any() and f"{self.name}.{rule}" not in draft.off:
                _echo(draft, f"{self.name}.{rule}", flows.part(faulty), self.version)
        _stay_on_link(draft, f"{self.name}.type", flows, self.version)

    def faults(self, draft: Draft) -> Iterator[tuple[str, Array]]:
        """
        Yield what `rules` says.
        """
        flows = _flows(draft, self.version)
        yield f"{self.name}.header", malformed_transport(draft.traffic, draft.headers, _PROTOCOL[self.version])
        yield f"{self.name}.checksum", draft.wrong_checksums(draft.judgeable(self.name))[0]
        wrong = _unassigned(draft, flows, self.version) | _strayed(draft, flows, self.version)
        yield f"{self.name}.type", flows.packets[wrong]
        yield f"{self.name}.echo", flows.packets[_out_of_exchange(draft, flows, self.version)]


class Icmpv6Rules(IcmpRules):
    """
    ICMPv6 messages and their pairs.
    """

    name = protocol = "icmpv6"
    checksums = ("icmpv6",)
    rules = rules_of("icmpv6")
    version = 6


def _flows(draft: Draft, version: int) -> Flows:
    h = draft.headers
    return Flows.of(draft.traffic, (h.protocols == _PROTOCOL[version]) & (h.transport_offsets >= 0) & ~h.fragments)


def _unassigned(draft: Draft, flows: Flows, version: int) -> NDArray[np.bool_]:
    """
    Return bool[n]: messages of no known type and code or too short for their type, errors whose quoted packet did not
    come from whom they are sent to, and neighbour discovery whose options do not fill the message.
    """
    h, p = draft.headers, flows.packets
    kind, code = draft.get("icmp.type", p), draft.get("icmp.code", p)
    highest, least = np.full(256, -1), np.zeros(256, np.int64)
    assigned = _ASSIGNED[version]
    highest[list(assigned)] = [codes for codes, _ in assigned.values()]
    least[list(assigned)] = [size for _, size in assigned.values()]
    bad = (code > highest[kind]) | (h.payload_lengths[p] < least[kind])
    source, size = _SOURCE[version], _ADDRESS[version]
    quote = h.transport_offsets[p] + 8
    quotes = np.flatnonzero(np.isin(kind, _QUOTING[version]) & (quote + source + 2 * size <= draft.traffic.ends[p]))
    bad[quotes] |= draft.data[quote[quotes]] >> 4 != version
    receiver = h.ip_offsets[p[quotes]] + source + size
    octet = np.arange(size)
    sender = draft.data[quote[quotes, None] + source + octet]
    bad[quotes] |= (sender != draft.data[receiver[:, None] + octet]).any(1)
    neighbor = np.flatnonzero(np.isin(kind, _NEIGHBOR) & ~bad) if version == 6 else np.zeros(0, np.int64)
    bad[neighbor] = _bad_options(draft, p[neighbor], least[kind[neighbor]])
    return bad


def _bad_options(draft: Draft, packets: Array, least: Array) -> NDArray[np.bool_]:
    """
    Return bool[n]: an option behind the first 8 + `least` bytes of these messages has the length 0 or does not fit
    (RFC 4861 section 4.6: lengths count eight bytes). What was not captured is not judged.
    """
    h = draft.headers
    at = h.transport_offsets[packets] + 8 + least
    end = at + h.payload_lengths[packets] - least
    captured = draft.traffic.ends[packets]
    bad = np.zeros(len(packets), bool)
    i = np.arange(len(packets))
    while len(i := i[(at[i] < end[i]) & (at[i] + 1 < captured[i])]):
        size = 8 * draft.data[at[i] + 1].astype(np.int64)
        bad[i] = (size == 0) | (at[i] + size > end[i])
        at[i] = np.where(bad[i], end[i], at[i] + size)
    return bad


def _strayed(draft: Draft, flows: Flows, version: int) -> NDArray[np.bool_]:
    """
    Return bool[n]: neighbour discovery that may have passed a router, its hop limit is not 255 (RFC 4861 section 7.1).
    """
    p = flows.packets
    if version == 4:
        return np.zeros(len(p), bool)
    return np.isin(draft.get("icmp.type", p), _NEIGHBOR) & (draft.get("ipv6.hl", p) != 255)


def _stay_on_link(draft: Draft, rule: str, flows: Flows, version: int) -> None:
    """
    Write a hop limit of 255 into all packets of flows with neighbour discovery that may have passed a router.
    """
    rows = flows.row[flows.flow[_strayed(draft, flows, version)]]
    if len(rows):
        i = np.flatnonzero(np.isin(draft.traffic.flow_of, rows) & (draft.headers.ip_versions == 6))
        draft.put(rule, "ipv6.hl", i, 255)


def _out_of_exchange(draft: Draft, flows: Flows, version: int) -> NDArray[np.bool_]:
    """
    Return bool[n]: echo replies that nobody asked for, and messages that are of another exchange than the flow's first
    one: the identifier of an echo tells one exchange from another.
    """
    kind = draft.get("icmp.type", flows.packets)
    is_echo = (kind == _REQUEST[version]) | (kind == _REPLY[version])
    exchange = np.where(is_echo, draft.get("icmp.id", flows.packets), -1)
    return _unasked(draft, flows, version) | (exchange != exchange[flows.first])


def _unasked(draft: Draft, flows: Flows, version: int) -> NDArray[np.bool_]:
    """
    Return bool[n]: echo replies whose identifier and sequence number no open request of the other side has.
    """
    p = flows.packets
    kind = draft.get("icmp.type", p)
    request, reply = kind == _REQUEST[version], kind == _REPLY[version]
    unasked = np.zeros(len(p), bool)
    if not reply.any():
        return unasked
    asker = draft.from_initiator[p] ^ reply  # who asked what this message is or answers
    key = np.column_stack([flows.flow, asker, draft.get("icmp.id", p), draft.get("icmp.seq", p)])
    echo = np.flatnonzero(request | reply)
    _, group = np.unique(key[echo], axis=0, return_inverse=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    exchange = Flows.sorted(echo[order], group.reshape(-1)[order])
    is_reply = reply[exchange.packets]
    balance = exchange.before(np.where(is_reply, -1, 1)) + np.where(is_reply, -1, 1)
    unasked[exchange.packets] = is_reply & _new_low(exchange, balance)
    return unasked


def _new_low(flows: Flows, balance: Array) -> NDArray[np.bool_]:
    """
    Return bool[n]: questions less answers fall below 0 and below where they ever were in this flow: an answer too many.
    """
    lowest = -flows.running_max(np.maximum(-balance, 0), np.ones(len(balance), bool))
    before = np.concatenate([[0], lowest[:-1]]) if len(lowest) else lowest
    return lowest < np.where(flows.position == 0, 0, before)


def _echo(draft: Draft, rule: str, flows: Flows, version: int) -> None:
    """
    Write echo requests and replies, with the identifier that most messages of the flow have. What is left open is a
    stack: each answer takes the latest question, which in order of (flow, height of the stack) is the message before
    it.
    """
    p, forth = flows.packets, draft.from_initiator[flows.packets]
    step = np.where(forth, 1, -1)
    balance = flows.before(step) + step
    reply = ~forth & ~_new_low(flows, balance)
    lowest = -flows.running_max(np.maximum(-balance, 0), np.ones(len(p), bool))
    height = balance - lowest + reply  # a question has the height that it makes, an answer that which it finds
    first = flows.initial(draft.get("icmp.seq", p), forth)
    own = np.where(forth, flows.before(forth), flows.before(~forth & ~reply))
    sequence = (first + own) & 0xFFFF
    paired = np.flatnonzero(forth | reply)
    order = paired[np.lexsort((flows.position[paired], height[paired], flows.flow[paired]))]
    question = np.concatenate([[0], order[:-1]]) if len(order) else order
    answers = reply[order]
    sequence[order[answers]] = sequence[question[answers]]

    identifier = vote(flows.flow, draft.get("icmp.id", p), len(flows.row), 16)
    draft.put(rule, "icmp.type", p, np.where(reply, _REPLY[version], _REQUEST[version]))
    draft.put(rule, "icmp.code", p, 0)
    draft.put(rule, "icmp.id", p, identifier[flows.flow])
    draft.put(rule, "icmp.seq", p, sequence)
    ports = np.array(draft.flows.initiator_ports)
    ports[flows.row] = identifier
    draft.flows = attrs.evolve(draft.flows, initiator_ports=ports)
