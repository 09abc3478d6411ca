"""
The rule set ``dns``: UDP payload on port 53 as conversations of questions and answers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture.payload import write_payloads
from netdiffusion_core.interfaces import Record, RuleSet, forget
from netdiffusion_core.model import Rule, Traffic, Violation

from . import writing
from .conversation import matches, turns
from .messages import AA, HEADER, QR, RA, RCODE, TC, Messages, Z, question_octets, read

Array = NDArray[Any]

log = logging.getLogger("netdiffusion")

RULES = (
    Rule("dns.header", "dns.flags.opcode", "error", "a message has a header of twelve octets and an assigned opcode",
         "RFC 1035 section 4.1.1, RFC 6895 section 2.2"),
    Rule("dns.flags", "dns.flags", "warning", "the reserved bit Z is 0, and so are AA, TC, RA and the response code of "
         "a query", "RFC 1035 section 4.1.1"),
    Rule("dns.question", "dns.count.queries", "error", "a query asks one question, or none beside a cookie",
         "RFC 9619 section 4, RFC 7873 section 5.4"),
    Rule("dns.name", "dns.qry.name", "error", "a label has at most 63 octets, a name at most 255, and a pointer points "
         "to an earlier name", "RFC 1035 sections 3.1, 4.1.4"),
    Rule("dns.counts", "dns.count.answers", "error", "the questions and records that the header counts fill the "
         "message", "RFC 1035 section 4.1"),
    Rule("dns.record", "dns.resp.len", "error", "the data of a record have the form of its type",
         "RFC 1035 section 3.3, RFC 3596 section 2.2, RFC 2782, RFC 6891 section 6.1.2"),
    Rule("dns.edns", "dns.resp.type", "error", "there is at most one OPT record, of the root, among the additional "
         "ones", "RFC 6891 section 6.1.1"),
    Rule("dns.repeat", "dns.qry.name", "error", "a response repeats the question of its query",
         "RFC 5452 section 4.2"),
    Rule("dns.unasked", "dns.id", "warning", "a response has the ID of an earlier query of the other side",
         "RFC 1035 section 4.1.1, RFC 5452 section 4.3"),
)  # fmt: skip


def _ports(instance: Any, attribute: Any, value: tuple[int, ...]) -> None:
    for port in value:
        if not 1 <= port <= 65_535:
            raise ValueError(f"{attribute.name}: {port} is no UDP port; it must be from 1 to 65535")


@attrs.frozen(kw_only=True)
class Options:
    """
    Options of `DnsRules`.
    """

    ports: tuple[int, ...] = attrs.field(
        default=(53,),
        converter=tuple,
        validator=_ports,
        metadata={"help": "UDP flows to or from these ports are DNS"},
    )


class DnsRules(RuleSet):
    """
    Messages, and which answer belongs to which question.
    """

    Options = Options
    rules: ClassVar[tuple[Rule, ...]] = RULES

    def check(self, traffic: Traffic) -> Iterator[Violation]:
        """
        Yield a violation of each packet that breaks a rule which is not off.
        """
        messages = read(traffic, self.options.ports)
        faults = _faults(traffic, messages, messages.headed)
        for rule in RULES:
            if rule.id not in self.off:
                yield from rule.broken(traffic, messages.packets[faults[rule.id]])

    def repair(self, traffic: Traffic, rng: np.random.Generator, record: Record = forget) -> Traffic:
        """
        Write a new message of the same length in place of each that breaks a rule: the side that does not have the port
        asks, the other answers its oldest open question, and what comes before any question asks itself. A response to
        a question that is written anew is written anew, too. Where only flags are wrong, only they are mended.
        """
        messages = read(traffic, self.options.ports)
        if len(messages) and not messages.writable.any():
            log.warning(
                "dns: the payload of all %d messages was cut off, so none can be mended; generate with --payload zeros",
                len(messages),
            )
        broken = self._broken(traffic, messages)
        mended = _mend_flags(traffic, messages, broken == "dns.flags", record)
        i = np.flatnonzero((broken != "") & (broken != "dns.flags"))
        if not len(i):
            return mended
        octets, lengths = _write(traffic, messages, i, self.options.ports, rng)
        return write_payloads(mended, messages.packets[i], octets, lengths, broken[i], record)

    def _broken(self, traffic: Traffic, messages: Messages) -> NDArray[np.str_]:
        """
        Return the rule that each message breaks, "" for none and where it is not writable: str[n].
        """
        m = messages
        lost = m.headed & False
        for rule, mask in m.faults.items():
            if rule not in self.off and rule != "dns.flags":
                lost = lost | mask & m.writable
        faults = _faults(traffic, m, m.headed & ~lost)
        orphaned = (matches(traffic, m, lost)[0] >= 0) & (matches(traffic, m, m.headed & ~lost)[0] < 0)
        broken = np.full(len(m), "", "U32")
        broken[orphaned & m.writable] = "dns.unasked"
        for rule in ("dns.flags", *(r.id for r in reversed(RULES) if r.id != "dns.flags")):
            if rule not in self.off:
                broken[faults[rule] & m.writable] = rule
        return broken


def _faults(traffic: Traffic, messages: Messages, asked: Array) -> dict[str, Array]:
    """
    Return what is wrong in messages and between them: bool[n] for each rule. Who answers what is not judged in a flow
    where the header of a message was cut off.

    asked  bool[n]  the queries that count
    """
    m = messages
    query, repeats = matches(traffic, m, asked)
    dark = np.isin(m.flows, m.flows[~m.headed & (m.lengths >= HEADER)])
    unasked = m.headed & (m.flags & QR > 0) & (query < 0) & ~dark
    return m.faults | {"dns.repeat": ~repeats, "dns.unasked": unasked}


def _mend_flags(traffic: Traffic, messages: Messages, wrong: Array, record: Record) -> Traffic:
    i = np.flatnonzero(wrong)
    flags = messages.flags[i]
    flags = flags & ~np.where(flags & QR > 0, Z, Z | AA | TC | RA | RCODE)
    ids = messages.ids[i]
    octets = np.column_stack([ids >> 8, ids & 255, flags >> 8, flags & 255]).astype(np.uint8)
    return write_payloads(
        traffic, messages.packets[i], octets, np.full(len(i), 4), np.full(len(i), "dns.flags"), record
    )


def _write(
    traffic: Traffic, messages: Messages, chosen: Array, ports: tuple[int, ...], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """
    Write the chosen messages (int indices) anew: ``(octets, lengths)``, as `write_payloads` takes them.
    """
    m = messages
    new = np.zeros(len(m), bool)
    new[chosen] = True
    asks = np.where(np.isin(traffic.flows.responder_ports, ports)[m.flows], m.forth, ~m.forth)
    is_response = m.flags & QR > 0
    query = asks & (new | ~is_response & (m.questions > 0))
    head = np.searchsorted(m.flows, m.flows)
    before: Array = np.cumsum(query) - query
    response = ~asks & (new | m.headed & is_response) & (before > before[head])
    answered = turns(m.flows, query, response)

    groups, group = np.unique(np.where(response, answered, np.arange(len(m)))[chosen], return_inverse=True)
    given, asking, lengths = ~new[groups], ~response[chosen], m.lengths[chosen]
    names, edns = writing.choose(group, lengths, asking, given, rng)
    names, edns = np.where(given, m.questions[groups] - 4, names), np.where(given, m.edns[groups], edns)
    lengths = writing.fitting(lengths, names[group], edns[group], asking)
    largest = np.zeros(len(groups), np.int64)
    np.maximum.at(largest, group[~asking], lengths[~asking])

    flow = m.flows[groups]
    first, step = rng.integers(0, 1 << 16, (2, len(traffic.flows)))
    ids = (first[flow] + (step[flow] | 1) * (groups - head[groups])) & 0xFFFF  # an odd step: no two in a flow are equal
    questions = writing.ask(names, edns, largest, ids, rng)
    given = np.flatnonzero(given)
    mine = groups[given]
    octets = question_octets(traffic.data, m.at[mine], m.questions[mine])
    questions.octets[given, : octets.shape[1]] = octets
    questions.flags[given], questions.ids[given] = m.flags[mine], m.ids[mine]
    return writing.write(questions, group, lengths, asking, largest[group], rng), lengths
