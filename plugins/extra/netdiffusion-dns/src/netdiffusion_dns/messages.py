"""
Read the DNS messages (RFC 1035 section 4) of a traffic, all at once: each step moves every message one label or one
record further, so the Python loops run over the longest message and not over messages.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture.dissect import Dissection, dissect, uint
from netdiffusion_core.capture.payload import writable
from netdiffusion_core.model import UDP, Traffic

Array = NDArray[Any]

HEADER = 12
LONGEST_NAME = 255
QR, OPCODE, AA, TC, RD, RA, Z, RCODE = 0x8000, 0x7800, 0x0400, 0x0200, 0x0100, 0x0080, 0x0040, 0x000F
A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, DNAME, OPT, HTTPS, ANY = 1, 2, 5, 6, 12, 15, 16, 28, 33, 39, 41, 65, 255

_QUERY, _UPDATE = 0, 5
_OPCODES = (
    0,
    1,
    2,
    4,
    5,
    6,
)  # query, inverse query, status, notify, update, stateful (RFC 6895 section 2.2)
_SIZES = {A: 4, AAAA: 16}
_ENDS_IN_NAME = {NS: 0, CNAME: 0, PTR: 0, DNAME: 0, MX: 2, SRV: 6}  # octets before the name that ends the data
_FINE, _CUT, _WRONG = 0, 1, 2


@attrs.frozen(kw_only=True, eq=False)
class Messages:
    """
    Messages in the order of flows and of time. What was not captured is neither right nor wrong.

    packets    int64[n]        indices into the traffic's packets
    flows      int64[n]        rows of the flow table
    forth      bool[n]         sent by the flow's initiator
    at         int64[n]        where the message begins in ``traffic.data``
    lengths    int64[n]        octets on the wire
    whole      bool[n]         all of them were captured
    writable   bool[n]         other octets can be written in their place
    headed     bool[n]         the header was captured
    ids        int64[n]        0 where it was not, like all that follows
    flags      int64[n]        the header's third and fourth octet
    questions  int64[n]        octets of the first question; 0 where there is none, or not all of it was captured
    edns       bool[n]         an OPT record was found (RFC 6891)
    faults     {rule: bool[n]} what is wrong in the message itself
    """

    packets: Array
    flows: Array
    forth: Array
    at: Array
    lengths: Array
    whole: Array
    writable: Array
    headed: Array
    ids: Array
    flags: Array
    questions: Array
    edns: Array
    faults: dict[str, Array]

    def __len__(self) -> int:
        return len(self.packets)


def read(traffic: Traffic, ports: tuple[int, ...]) -> Messages:
    """
    Read the messages of all UDP flows to or from one of these ports.
    """
    table, headers = traffic.flows, dissect(traffic)
    mine = (table.protocols == UDP) & (np.isin(table.responder_ports, ports) | np.isin(table.initiator_ports, ports))
    order, _ = traffic.by_flow()
    datagram = (headers.protocols == UDP) & (headers.transport_offsets >= 0)
    packets = order[mine[traffic.flow_of[order]] & datagram[order]]
    at = headers.transport_offsets[packets] + 8
    lengths = _lengths(traffic, headers, packets, at)
    ends = np.minimum(at + lengths, traffic.ends[packets])
    whole = (at + lengths <= ends) & ~headers.fragments[packets]
    headed = ends >= at + HEADER
    head = np.zeros((len(packets), 6), np.int64)
    head[headed] = uint(traffic.data, at[headed, None] + np.arange(0, HEADER, 2), 2)
    questions, edns, faults = _walk(traffic.data, at, lengths, ends, whole, head, headed)
    return Messages(
        packets=packets,
        flows=traffic.flow_of[packets],
        forth=traffic.from_initiator[packets],
        at=at,
        lengths=lengths,
        whole=whole,
        writable=writable(traffic, headers)[packets],
        headed=headed,
        ids=head[:, 0],
        flags=head[:, 1],
        questions=questions,
        edns=edns,
        faults=faults,
    )


def question_octets(data: Array, at: Array, sizes: Array) -> NDArray[np.uint8]:
    """
    Return the first question of messages: uint8[n, the longest, at least 1], zeros behind it.
    """
    column = np.arange(sizes.max(initial=1))
    inside = column < sizes[:, None]
    octets = np.zeros(inside.shape, np.uint8)
    octets[inside] = data[(at[:, None] + HEADER + column)[inside]]
    return octets


def _lengths(traffic: Traffic, headers: Dissection, packets: Array, at: Array) -> NDArray[np.int64]:
    """
    Return the octets of each payload: what the UDP header says, as far as the IP header leaves so many.
    """
    told = uint(traffic.data, at - 4, 2) - 8
    return np.where(told < 0, headers.payload_lengths[packets], np.minimum(headers.payload_lengths[packets], told))


def _walk(
    data: Array, at: Array, lengths: Array, ends: Array, whole: Array, head: Array, headed: Array
) -> tuple[Array, Array, dict[str, Array]]:
    """
    Walk through questions and records. Return ``(questions, edns, faults)`` as in `Messages`.
    """
    n = len(at)
    flags, counts = head[:, 1], head[:, 2:]
    response, opcode = flags & QR > 0, (flags & OPCODE) >> 11
    query = opcode == _QUERY
    excess = ~response & (flags & (AA | TC | RA | RCODE) > 0) | (flags & Z > 0)
    bare = ~response & (counts[:, 0] == 0) & (counts[:, 3] == 0)  # RFC 7873 section 5.4 asks for a cookie alone
    faults = {
        "dns.header": (lengths < HEADER) | headed & ~np.isin(opcode, _OPCODES),
        "dns.flags": headed & query & excess,
        "dns.question": headed & query & ((counts[:, 0] > 1) | bare),
        **{f"dns.{rule}": np.zeros(n, bool) for rule in ("name", "counts", "record", "edns")},
    }
    questions, opts, p = np.zeros(n, np.int64), np.zeros(n, np.int64), at + HEADER
    i = np.flatnonzero(headed)

    alive = headed.copy()

    def go_on(i: Array, state: Array) -> Array:
        alive[i] = state == _FINE
        faults["dns.name"][i] |= state == _WRONG
        faults["dns.counts"][i] |= (state == _CUT) & whole[i]
        return i[state == _FINE]

    done = 0
    while len(i := i[counts[i, 0] > done]):
        name_ends, state = read_names(data, at[i], p[i], ends[i])
        state[(state == _FINE) & (name_ends + 4 > ends[i])] = _CUT
        p[i] = name_ends + 4
        i = go_on(i, state)
        if done == 0:
            questions[i] = p[i] - at[i] - HEADER
        done += 1

    total, done = counts[:, 1:].sum(1), 0
    i = np.flatnonzero(alive)
    finished = []
    while len(i):
        finished.append(i[total[i] == done])
        i = i[total[i] > done]
        owner = p[i]
        name_ends, state = read_names(data, at[i], owner, ends[i])
        state[(state == _FINE) & (name_ends + 10 > ends[i])] = _CUT
        p[i] = name_ends + 10
        fine = state == _FINE
        i, owner = go_on(i, state), owner[fine]
        kind, size = uint(data, p[i] - 10, 2), uint(data, p[i] - 2, 2)
        opt = kind == OPT
        opts[i] += opt
        additional = done >= total[i] - counts[i, 3]
        faults["dns.edns"][i] |= opt & ((opts[i] > 1) | ~additional | (data[owner] != 0))
        state = np.where(p[i] + size > ends[i], _CUT, _FINE)
        fine = state == _FINE
        i, kind, size = go_on(i, state), kind[fine], size[fine]
        judged = (size > 0) | (((flags[i] & OPCODE) >> 11) != _UPDATE)  # RFC 2136 section 2.4: deletions have no data
        faults["dns.record"][i] |= judged & _wrong_data(data, at[i], p[i], kind, size)
        p[i] += size
        done += 1
    ended = np.concatenate(finished) if finished else i
    faults["dns.counts"][ended] |= p[ended] != at[ended] + lengths[ended]
    return questions, opts > 0, faults


def read_names(data: Array, at: Array, start: Array, ends: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    Read domain names (RFC 1035 sections 3.1 and 4.1.4) at the positions `start` in messages that begin at `at` and were
    captured up to `ends`. Return ``(end, state)``: where the name ends, and whether it is fine, cut or wrong.
    """
    n = len(at)
    p, segment, end = start.copy(), start.copy(), np.full(n, -1)
    octets, state = np.zeros(n, np.int64), np.full(n, _FINE)
    i = np.arange(n)
    while len(i):
        out = p[i] >= ends[i]
        state[i[out]] = _CUT
        i = i[~out]
        size = data[p[i]].astype(np.int64)
        pointer = size >= 0xC0
        octets[i] += np.where(pointer, 0, size + 1)
        state[i[(size > 63) & ~pointer | (octets[i] > LONGEST_NAME)]] = _WRONG
        state[i[pointer & (p[i] + 2 > ends[i])]] = _CUT
        stop = (size == 0) | pointer
        first = i[stop & (end[i] < 0)]
        end[first] = p[first] + np.where(data[p[first]] > 0, 2, 1)
        j = i[pointer & (state[i] == _FINE)]
        target = at[j] + (uint(data, p[j], 2) & 0x3FFF)
        state[j[(target >= segment[j]) | (target < at[j] + HEADER)]] = _WRONG  # only a prior name: so it ends
        p[j] = segment[j] = target
        plain = i[~stop]
        p[plain] += 1 + size[~stop]
        i = i[((size > 0) | pointer) & (state[i] == _FINE)]
    return end, state


def _wrong_data(data: Array, at: Array, start: Array, kind: Array, size: Array) -> NDArray[np.bool_]:
    """
    Return bool[n]: records whose data (`size` octets from `start`, all captured) do not have the form of their type.
    """
    end = start + size
    wrong = np.zeros(len(kind), bool)
    for name, octets in _SIZES.items():
        wrong |= (kind == name) & (size != octets)
    for name, before in _ENDS_IN_NAME.items():
        i = np.flatnonzero(kind == name)
        if len(i):
            name_ends, state = read_names(data, at[i], start[i] + before, end[i])
            wrong[i] |= (state != _FINE) | (name_ends != end[i])
    i = np.flatnonzero(kind == SOA)
    if len(i):
        middle, state = read_names(data, at[i], start[i], end[i])
        wrong[i] |= state != _FINE
        i, middle = i[state == _FINE], middle[state == _FINE]
        last, state = read_names(data, at[i], middle, end[i])
        wrong[i] |= (state != _FINE) | (last + 20 != end[i])
    i = np.flatnonzero(kind == TXT)
    wrong[i] |= (size[i] == 0) | _overrun(data, start[i], end[i], 0)
    i = np.flatnonzero(kind == OPT)
    wrong[i] |= _overrun(data, start[i], end[i], 3)
    return wrong


def _overrun(data: Array, start: Array, end: Array, before: int) -> NDArray[np.bool_]:
    """
    Return bool[n]: of the pieces from ``start`` on, none ends at ``end``. The last octet of a piece's length stands
    behind `before` others: in a character string behind none (RFC 1035 section 3.3), in an EDNS option, whose length
    has two octets, behind three (RFC 6891 section 6.1.2).
    """
    p, i = start.copy(), np.arange(len(start))
    while len(i := i[p[i] + before < end[i]]):
        at = p[i] + before
        p[i] = at + 1 + data[at] + (256 * data[at - 1].astype(np.int64) if before else 0)
    return p != end
