"""
The rule set ``icmp``: ICMP (RFC 792) and ICMPv6 (RFC 4443).

A flow in which every message is assigned, whole and (an echo reply) asked for stays as it is. Any other becomes an
exchange of echoes: the initiator asks, the responder answers the latest question that is still open, and where there is
none asks itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.interfaces import RuleSet
from netdiffusion_core.model import ICMP, ICMPV6, Encoded, Traffic, Violation

from .bits import Bits
from .checksum import wrong_transport_checksums
from .headers import Draft, malformed_transport
from .rules import RULES, rules_of
from .segments import Flows, vote

Array = NDArray[Any]

_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
_QUOTING = {4: (3, 4, 5, 11, 12), 6: (1, 2, 3, 4)}  # error messages that quote the packet they are about
_NEIGHBOR = range(133, 138)  # RFC 4861: sent with a hop limit of 255

# IP version: {type: (highest code, bytes that must follow the eight of the header)}
_ASSIGNED = {
    4: {0: (0, 0), 3: (15, 28), 4: (0, 28), 5: (3, 28), 8: (0, 0), 9: (0, 8), 10: (0, 0), 11: (1, 28), 12: (2, 28),
        13: (0, 12), 14: (0, 12)},
    6: {1: (8, 40), 2: (0, 40), 3: (1, 40), 4: (10, 40), 128: (0, 0), 129: (0, 0), 130: (0, 16), 131: (0, 16),
        132: (0, 16), 133: (0, 0), 134: (0, 8), 135: (0, 16), 136: (0, 16), 137: (0, 32), 143: (0, 0)},
}  # fmt: skip


class IcmpRules(RuleSet):
    """
    ICMP messages and their pairs.
    """

    rules = rules_of("icmp")

    def constrain(self, encoded: Encoded) -> Encoded:
        """
        Give every packet of an ICMP flow a whole ICMP header.
        """
        if not encoded.layout.has("icmp"):
            return encoded
        bits = Bits(encoded)
        bits.complete("icmp", 64, bits.live & np.isin(bits.protocols, (ICMP, ICMPV6)))
        return bits.encoded()

    def repair(self, traffic: Traffic, rng: np.random.Generator) -> Traffic:
        """
        Make echoes of what is no valid exchange; mend checksums.
        """
        traffic = traffic.packed()
        draft = Draft(traffic)
        wrong = wrong_transport_checksums(traffic, draft.headers, (ICMP, ICMPV6))
        flows = _flows(draft)
        faulty = flows.any_in_flow(_unassigned(draft, flows) | _unasked(draft, flows))
        ports = np.array(traffic.flows.initiator_ports)
        if faulty.any():
            packets = flows.packets[faulty]
            flows = Flows.sorted(packets, traffic.flow_of[packets].astype(np.int64))
            row = flows.row[flows.flow]
            identifier = vote(row, draft.get("icmp.id", packets), len(traffic.flows), 16)
            ports[flows.row] = identifier[flows.row]
            _echo(draft, flows, identifier[row])
        return draft.finish(seal=wrong, flows=attrs.evolve(traffic.flows, initiator_ports=ports))

    def check(self, traffic: Traffic) -> Iterator[Violation]:
        """
        Yield what `rules` says.
        """
        traffic = traffic.packed()
        draft = Draft(traffic)
        wrong = wrong_transport_checksums(traffic, draft.headers, (ICMP, ICMPV6))
        flows = _flows(draft)
        yield from RULES["icmp.header"].broken(traffic, malformed_transport(traffic, draft.headers, (ICMP, ICMPV6)))
        yield from RULES["icmp.checksum"].broken(traffic, wrong)
        yield from RULES["icmp.type"].broken(traffic, flows.packets[_unassigned(draft, flows)])
        yield from RULES["icmp.echo"].broken(traffic, flows.packets[_unasked(draft, flows)])


def _flows(draft: Draft) -> Flows:
    h = draft.headers
    return Flows.of(draft.traffic, np.isin(h.protocols, (ICMP, ICMPV6)) & (h.transport_offsets >= 0) & ~h.fragments)


def _unassigned(draft: Draft, flows: Flows) -> NDArray[np.bool_]:
    """
    Return bool[n]: messages of no known type and code, too short for their type, or whose quoted packet is none.
    """
    h, p = draft.headers, flows.packets
    kind, code = draft.get("icmp.type", p), draft.get("icmp.code", p)
    bad = np.zeros(len(p), bool)
    for version, assigned in _ASSIGNED.items():
        here = h.ip_versions[p] == version
        highest, least = np.full(256, -1), np.zeros(256, np.int64)
        highest[list(assigned)] = [codes for codes, _ in assigned.values()]
        least[list(assigned)] = [size for _, size in assigned.values()]
        bad |= here & ((code > highest[kind]) | (h.payload_lengths[p] < least[kind]))
        quote = h.transport_offsets[p] + 8
        quotes = here & np.isin(kind, _QUOTING[version]) & (quote < draft.traffic.ends[p])
        bad[quotes] |= draft.data[quote[quotes]] >> 4 != version
    neighbor = (h.ip_versions[p] == 6) & np.isin(kind, _NEIGHBOR)
    bad[neighbor] |= draft.get("ipv6.hl", p[neighbor]) != 255
    return bad


def _unasked(draft: Draft, flows: Flows) -> NDArray[np.bool_]:
    """
    Return bool[n]: echo replies whose identifier and sequence number no open request of the other side has.
    """
    p = flows.packets
    version, kind = draft.headers.ip_versions[p], draft.get("icmp.type", p)
    request = np.where(version == 4, kind == _REQUEST[4], kind == _REQUEST[6])
    reply = np.where(version == 4, kind == _REPLY[4], kind == _REPLY[6])
    asker = draft.traffic.from_initiator[p] ^ reply  # who asked what this message is or answers
    key = np.column_stack([flows.flow, asker, draft.get("icmp.id", p), draft.get("icmp.seq", p)])
    echo = np.flatnonzero(request | reply)
    _, group = np.unique(key[echo], axis=0, return_inverse=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    exchange = Flows.sorted(echo[order], group.reshape(-1)[order])
    is_reply = reply[exchange.packets]
    balance = exchange.before(np.where(is_reply, -1, 1)) + np.where(is_reply, -1, 1)
    unasked = np.zeros(len(p), bool)
    unasked[exchange.packets] = is_reply & _new_low(exchange, balance)
    return unasked


def _new_low(flows: Flows, balance: Array) -> NDArray[np.bool_]:
    """
    Return bool[n]: questions less answers fall below 0 and below where they ever were in this flow: an answer too many.
    """
    lowest = -flows.running_max(np.maximum(-balance, 0), np.ones(len(balance), bool))
    before = np.concatenate([[0], lowest[:-1]]) if len(lowest) else lowest
    return lowest < np.where(flows.position == 0, 0, before)


def _echo(draft: Draft, flows: Flows, identifier: Array) -> None:
    """
    Write echo requests and replies. What is left open is a stack: each answer takes the latest question, which in
    order of (flow, height of the stack) is the message before it.
    """
    p, forth = flows.packets, draft.traffic.from_initiator[flows.packets]
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

    is4 = draft.headers.ip_versions[p] == 4
    kind = np.where(reply, np.where(is4, _REPLY[4], _REPLY[6]), np.where(is4, _REQUEST[4], _REQUEST[6]))
    draft.put("icmp.type", p, kind)
    draft.put("icmp.code", p, 0)
    draft.put("icmp.id", p, identifier)
    draft.put("icmp.seq", p, sequence)
