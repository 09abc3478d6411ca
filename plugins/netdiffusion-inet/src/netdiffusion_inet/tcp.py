"""
The rule set ``tcp``: every flow is one connection, or a part of one without its beginning (RFC 9293).

What the packets meant is kept where a connection allows it: payload sizes, PSH, FIN and RST, windows, option kinds,
acknowledgments that are late, clocks. Sequence numbers follow from the first of each side and from the payload sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.interfaces import RuleSet
from netdiffusion_core.model import TCP, Encoded, Traffic, Violation

from .bits import Bits
from .checksum import wrong_transport_checksums
from .headers import Draft, malformed_transport
from .interpacket import HANDSHAKE
from .options import (
    MSS,
    NOP,
    SACK,
    SACK_PERMITTED,
    TCP_LENGTHS,
    TIMESTAMPS,
    WINDOW_SCALE,
    append,
    extent,
    find,
    squeeze,
    table,
    walk,
)
from .rules import RULES, rules_of
from .segments import Flows

Array = NDArray[Any]

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))

_LEGAL_OPTIONS = table(TCP_LENGTHS)
_WELL_FORMED = table({kind: (TCP_LENGTHS.get(kind) or tuple(range(2, 41))) for kind in range(2, 256)})
_MEND = {MSS: 4, WINDOW_SCALE: 3, SACK_PERMITTED: 2, TIMESTAMPS: 10}
_TIMESTAMPS_OPTION = np.array([NOP, NOP, TIMESTAMPS, 10, *[0] * 8], np.uint8)  # RFC 7323 appendix A
_MAX_SCALE = 14  # RFC 7323 section 2.3
_MAX_WINDOW = 65_535
_MIN_MSS = 536  # RFC 9293 section 3.7.1
_ETHERNET_MSS = {4: 1460, 6: 1440}  # 1500 bytes less the headers
_LATE_ACK = 1 << 16  # a part of a connection may begin with an acknowledgment so many bytes behind
_CLOCK_HZ, _CLOCK_SLACK = 1100, 10_000  # RFC 7323 section 5.4: at most a tick a millisecond; 10 s of jitter
_OLD_ECHO = 1 << 30  # a part of a connection may begin with the echo of an old time stamp
_NS_A_TICK = 1_000_000
_IN_FLIGHT_NS = 1_000_000_000  # what arrives later than that after the other side's RST was not on its way
_WRAP = 1 << 32


class TcpRules(RuleSet):
    """
    TCP connections.
    """

    rules = rules_of("tcp")

    def constrain(self, encoded: Encoded) -> Encoded:
        """
        Give every packet of a TCP flow a whole TCP header, SYN where the connection opens and nowhere else, and options
        that are legal where they stand. Time stamps, which every segment of a connection has or none
        (RFC 7323 section 3.2), are added where most segments have them.
        """
        if not encoded.layout.has("tcp"):
            return encoded
        bits = Bits(encoded)
        mine = bits.live & (bits.protocols == TCP)
        bits.complete("tcp", 160, mine)
        i = np.flatnonzero(mine)
        flows = Flows.sorted(i, bits.flow[i])
        flag_column = bits.spans["tcp.cwr"].start
        flags = bits.number(flag_column, 8)[i]
        opens = flows.any_in_flow((flags & SYN > 0) & (flows.position < HANDSHAKE))
        first, second = _syns(flows, opens, flags)
        setup = flags & (ECE | CWR) | SYN  # RFC 3168 section 6.1.1
        flags = np.where(first, setup, np.where(second, setup | ACK, flags & ~SYN))
        options, sizes = bits.options("tcp.opt")
        options[i], sizes[i] = _legal_options(flows, opens, flags, options[i], sizes[i], grow=True)
        whole = np.zeros((3, len(mine)), np.int64)
        whole[0, i], whole[1, i] = flags, 5 + sizes[i] // 4
        bits.write_number(flag_column, 8, mine, whole[0])
        bits.write("tcp.doff", mine, whole[1])
        bits.write_options("tcp.opt", mine, options, sizes)
        return bits.encoded()

    def repair(self, traffic: Traffic, rng: np.random.Generator) -> Traffic:
        """
        Make each flow one connection; see the module.
        """
        traffic = traffic.packed()
        draft = Draft(traffic)
        flows = _flows(draft)
        if not len(flows):
            return traffic
        wrong = wrong_transport_checksums(traffic, draft.headers, (TCP,))
        c = _mend(Connections.read(draft, flows))
        c.write(draft)
        payload_lengths = np.array(draft.headers.payload_lengths)
        payload_lengths[flows.packets] = c.payload
        return draft.finish(seal=wrong, payload_lengths=payload_lengths)

    def check(self, traffic: Traffic) -> Iterator[Violation]:
        """
        Yield what `rules` says.
        """
        traffic = traffic.packed()
        draft = Draft(traffic)
        yield from RULES["tcp.header"].broken(traffic, malformed_transport(traffic, draft.headers, (TCP,)))
        yield from RULES["tcp.checksum"].broken(traffic, wrong_transport_checksums(traffic, draft.headers, (TCP,)))
        flows = _flows(draft)
        for rule, mask in _faults(Connections.read(draft, flows)).items():
            yield from RULES[rule].broken(traffic, flows.packets[mask])


def _flows(draft: Draft) -> Flows:
    h = draft.headers
    return Flows.of(draft.traffic, (h.protocols == TCP) & (h.transport_offsets >= 0) & ~h.fragments)


@attrs.define(eq=False)
class Connections:
    """
    The TCP segments of all flows, in flow order; n of them.

    flows      Flows
    forth      bool[n]       sent by the initiator
    opens      bool[n]       the flow begins with a handshake
    times      int64[n]      nanoseconds
    overhead   int64[n]      bytes of IP and TCP options
    full_mss   int64[n]      what fits into 1500 bytes
    payload    int64[n]      bytes of data
    seq, ack, flags, window, urgent, reserved  int64[n]
    options    uint8[n, 40]
    sizes      int64[n]      bytes of options
    kinds      uint8[n, 40]  see `options.walk`
    """

    flows: Flows
    forth: Array
    opens: Array
    times: Array
    overhead: Array
    full_mss: Array
    payload: Array
    seq: Array
    ack: Array
    flags: Array
    window: Array
    urgent: Array
    reserved: Array
    options: Array
    sizes: Array
    kinds: Array

    @classmethod
    def read(cls, draft: Draft, flows: Flows) -> Connections:
        """
        Read the segments of these flows.
        """
        h, p = draft.headers, flows.packets
        flags = draft.get("tcp.flags", p)
        options, sizes = draft.options("tcp", p)
        is4 = h.ip_versions[p] == 4
        return cls(
            flows=flows,
            forth=draft.traffic.from_initiator[p],
            opens=flows.any_in_flow((flags & SYN > 0) & (flows.position < HANDSHAKE)),
            times=draft.traffic.timestamps[p],
            overhead=h.ip_header_lengths[p] - np.where(is4, 20, 40) + sizes,
            full_mss=np.where(is4, _ETHERNET_MSS[4], _ETHERNET_MSS[6]),
            payload=h.payload_lengths[p],
            seq=draft.get("tcp.seq", p),
            ack=draft.get("tcp.ackn", p),
            flags=flags,
            window=draft.get("tcp.wsize", p),
            urgent=draft.get("tcp.urp", p),
            reserved=draft.get("tcp.res", p),
            options=options,
            sizes=sizes,
            kinds=walk(options, sizes, _WELL_FORMED)[1],
        )

    def write(self, draft: Draft) -> None:
        """
        Write all fields back. Payloads are cut by `Draft.finish`.
        """
        p = self.flows.packets
        for field, values in (
            ("seq", self.seq), ("ackn", self.ack), ("flags", self.flags), ("wsize", self.window), ("urp", self.urgent),
            ("res", self.reserved),
        ):  # fmt: skip
            draft.put(f"tcp.{field}", p, values)
        draft.put_options("tcp", p, self.options)

    def has(self, flag: int) -> NDArray[np.bool_]:
        """
        bool[n]: the flag is set.
        """
        return self.flags & flag > 0

    @property
    def consumed(self) -> NDArray[np.int64]:
        """
        int64[n]: sequence numbers that each segment takes: its data, one for SYN, one for FIN (RFC 9293 section 3.4).
        """
        return self.payload + self.has(SYN) + self.has(FIN)

    def sent(self, by: Array) -> NDArray[np.int64]:
        """
        int64[n]: sequence numbers that the side `by` (a mask over segments) has taken before each segment.
        """
        return self.flows.before(np.where(by, self.consumed, 0))

    def own(self, of_initiator: Array, of_responder: Array) -> NDArray[Any]:
        """
        Choose for each segment what belongs to its sender.
        """
        return np.where(self.forth, of_initiator, of_responder)

    def number(self, at: Array) -> NDArray[np.int64]:
        """
        int64[n]: the four bytes at this byte of the options, 0 where `at` is -1.
        """
        columns = np.clip(at[:, None] + np.arange(4), 0, 39)
        octets = np.take_along_axis(self.options, columns, 1).astype(np.int64)
        return np.where(at >= 0, octets @ (256 ** np.arange(4)[::-1]), 0)

    def set_number(self, at: Array, values: Array) -> None:
        """
        Write four bytes at this byte of the options, nothing where `at` is -1.
        """
        i = np.flatnonzero(at >= 0)
        octets = values[i, None] >> np.array([24, 16, 8, 0]) & 255
        self.options[i[:, None], at[i, None] + np.arange(4)] = octets

    def option(self, kind: int, size: int = 1) -> NDArray[np.int64]:
        """
        int64[n]: the number of `size` bytes in the option of this kind, -1 where there is none.
        """
        at = find(self.kinds, kind)
        value = self.number(np.where(at >= 0, at + 2, -1)) >> 8 * (4 - size)
        return np.where(at >= 0, value, -1)

    def scales(self) -> NDArray[np.int64]:
        """
        int64[n]: by how many bits the sender's windows are shifted, -1 where the handshake was not seen (RFC 7323
        section 2.2: both SYNs have the option, and in a SYN itself the window is not shifted).
        """
        syn, option = self.has(SYN), np.minimum(self.option(WINDOW_SCALE), _MAX_SCALE)
        forth = self.flows.initial(option, syn & self.forth, -1)
        back = self.flows.initial(option, syn & ~self.forth, -1)
        scale = np.where((forth >= 0) & (back >= 0), self.own(forth, back), 0)
        return np.where(self.opens, np.where(syn, 0, scale), -1)

    def largest_payload(self) -> Array:
        """
        int64[n]: bytes of data that a segment may carry: the other side's MSS less the options of this segment
        (RFC 9293 section 3.7.1); where the other side named none, what an Ethernet frame holds.
        """
        syn, mss = self.has(SYN), np.maximum(self.option(MSS, 2), _MIN_MSS)
        mss = np.where(self.option(MSS, 2) < 0, self.full_mss, mss)
        forth = self.flows.initial(mss, syn & self.forth, self.full_mss)
        back = self.flows.initial(mss, syn & ~self.forth, self.full_mss)
        return np.maximum(self.own(back, forth) - self.overhead, 0)


def _signed(difference: Array) -> NDArray[np.int64]:
    """
    Return a difference of sequence numbers or time stamps modulo 2 ** 32, between -2 ** 31 and 2 ** 31 - 1.
    """
    return (difference + (_WRAP >> 1)) % _WRAP - (_WRAP >> 1)


# --- opening, closing, options: known from the bits alone --------------------------------------------------------


def _syns(flows: Flows, opens: Array, flags: Array) -> tuple[Array, Array]:
    """
    Return ``(first, second)``, bool[n]: the segments that are to be SYN and SYN-ACK. A second segment with RST refuses.
    """
    first, second = opens & (flows.position == 0), opens & (flows.position == 1)
    return first, second & (flags & RST == 0)


def _legal_options(
    flows: Flows, opens: Array, flags: Array, options: Array, sizes: Array, *, grow: bool
) -> tuple[Array, Array]:
    """
    Return ``(options, sizes)`` in which every option is well-formed and legal where it stands; others are taken out.

    grow  lengthen headers by time stamps that most segments of the connection have and this one lacks
    """
    before = options
    options, kinds = walk(options, sizes, _LEGAL_OPTIONS if grow else _WELL_FORMED, _MEND)
    syn = flags & SYN > 0
    first, second = opens & (flows.position == 0), opens & (flows.position == 1)
    reset = flags & RST > 0

    def agreed(kind: int) -> Array:
        has = find(kinds, kind) >= 0
        return flows.any_in_flow(first & has) & flows.any_in_flow(second & has)

    unwanted = np.zeros(kinds.shape, bool)
    for kind in (MSS, WINDOW_SCALE, SACK_PERMITTED, SACK, TIMESTAMPS):
        unwanted |= (kinds == kind) & (np.cumsum(kinds == kind, axis=1) > 1)
    unwanted |= np.isin(kinds, (MSS, WINDOW_SCALE, SACK_PERMITTED)) & ~syn[:, None]
    offered = flows.any_in_flow(first & (find(kinds, WINDOW_SCALE) >= 0))
    unwanted |= (kinds == WINDOW_SCALE) & (second & ~offered)[:, None]
    unwanted |= (kinds == SACK) & (syn | opens & ~agreed(SACK_PERMITTED))[:, None]

    # RFC 7323 section 3.2: the first SYN offers time stamps, and they are used if the second has them too.
    stamped = find(kinds, TIMESTAMPS) >= 0
    later = ~syn & ~reset
    if grow:
        most = np.bincount(flows.flow[later], np.where(stamped, 1, -1)[later], len(flows.row))[flows.flow] > 0
        used = np.where(flows.any_in_flow(later), most, flows.any_in_flow(second & stamped) | ~opens)
    else:
        used = agreed(TIMESTAMPS) | ~opens
    unwanted |= (kinds == TIMESTAMPS) & (~used & ~first)[:, None]
    gone = (options != before) & (options <= NOP) | extent(options, kinds, unwanted)
    options, fitting = squeeze(options, sizes, gone)
    if grow:
        sizes = fitting
        lacking = np.flatnonzero(used & ~stamped & ~reset & (opens | flows.any_in_flow(later)))
        options, sizes = append(options, sizes, lacking, _TIMESTAMPS_OPTION, _LEGAL_OPTIONS)
    return options, sizes


# --- the whole connection -----------------------------------------------------------------------------------------


def _mend(c: Connections) -> Connections:
    """
    Return the segments as valid connections.
    """
    c = attrs.evolve(c, flags=_open_and_reset(c), reserved=np.zeros_like(c.reserved))
    options, _ = _legal_options(c.flows, c.opens, c.flags, c.options, c.sizes, grow=False)
    c = attrs.evolve(c, options=options, kinds=walk(options, c.sizes, _WELL_FORMED)[1])
    _bound_options(c)
    payload = np.where(c.has(SYN | RST), 0, np.minimum(c.payload, c.largest_payload()))
    c = attrs.evolve(c, payload=_within_window(c, payload))
    c = attrs.evolve(c, flags=_close(c))
    c = _number(c)
    c = attrs.evolve(c, urgent=np.where(_urgent(c), c.urgent, 0))
    _stamp(c)
    _drop_sack(c)
    return c


def _open_and_reset(c: Connections) -> Array:
    """
    Return flags in which a connection that opens does so with SYN and SYN-ACK (or is refused with RST), no other
    segment has SYN, a side that sends RST sends nothing else any more, what the other side still sends was in flight
    (nothing is during the handshake), and every segment but the first and RST has ACK.
    """
    position, here = c.flows.position, np.arange(len(c.flows))
    flags = c.flags & ~np.where(c.opens & (position == 0), RST, 0)
    reset = flags & RST > 0
    for side in (c.forth, ~c.forth):
        own, other = c.flows.final(side & (flags & RST == 0)), c.flows.final(~side & (flags & RST == 0))
        in_flight = (c.times[other] <= c.times + _IN_FLIGHT_NS) & ~(c.opens & (position < HANDSHAKE))
        reset &= ~side | (own < here) & ((other < here) | in_flight)
    flags = np.where(reset, flags, flags & ~RST)
    first, second = _syns(c.flows, c.opens, flags)
    flags = np.where(first, SYN, np.where(second, SYN | ACK, 0)) | flags & ~np.where(
        first, FIN | ACK, np.where(second | reset, SYN | FIN, SYN)
    )
    return flags | np.where(first | reset & ~(c.opens & (position == 1)), 0, ACK)


def _bound_options(c: Connections) -> None:
    """
    Raise the MSS to 536 and lower the window scale to 14, in place.
    """
    at = find(c.kinds, MSS)
    low = (at >= 0) & (c.option(MSS, 2) < _MIN_MSS)
    c.options[low, at[low] + 2], c.options[low, at[low] + 3] = divmod(_MIN_MSS, 256)
    at = find(c.kinds, WINDOW_SCALE)
    high = c.option(WINDOW_SCALE) > _MAX_SCALE
    c.options[high, at[high] + 2] = _MAX_SCALE


def _within_window(c: Connections, payload: Array) -> NDArray[np.int64]:
    """
    Cut payloads so that what a side sends between two segments of the other fits into the largest window that the
    other can offer there; two less, for a FIN and so that the window is never full.
    """
    scale = c.scales()
    result = payload
    for side in (c.forth, ~c.forth):
        total = c.flows.before(np.where(side, payload, 0))
        other = c.flows.last(~side & ~c.has(RST))
        begun = np.where(other >= 0, total[other], 0)
        limit = (_MAX_WINDOW << np.where(other >= 0, scale[other], 0)) - 2
        limit = np.where(c.opens, limit, _WRAP)
        ahead = total - begun
        fits = np.minimum(ahead + payload, limit) - np.minimum(ahead, limit)
        result = np.where(side, fits, result)
    return result


def _close(c: Connections) -> NDArray[np.int64]:
    """
    Return flags in which each side sends at most one FIN, behind all its data; PSH only with data or FIN; URG only if
    its pointer is within the data.
    """
    last_data = np.zeros(len(c.flows), bool)
    for side in (c.forth, ~c.forth):
        last_data |= side & (c.flows.after(side & (c.payload > 0)) == 0)
    fin = c.has(FIN) & last_data
    earlier = c.own(c.flows.before(fin & c.forth), c.flows.before(fin & ~c.forth))
    fin &= earlier == 0
    flags = np.where(fin, c.flags | FIN, c.flags & ~FIN)
    flags = np.where((c.payload > 0) | fin | c.has(RST), flags, flags & ~PSH)
    return np.where(_urgent(c), flags, flags & ~URG)


def _urgent(c: Connections) -> NDArray[np.bool_]:
    return c.has(URG) & (c.urgent > 0) & (c.urgent <= c.payload)


def _bases(c: Connections) -> tuple[Array, Array]:
    """
    Return ``(initiator, responder)``, int64[n]: the first sequence number of each side. One that sends nothing here has
    what the other side acknowledges first.
    """
    bases = []
    for side in (c.forth, ~c.forth):
        acknowledged = c.flows.initial(c.ack, ~side & c.has(ACK))
        bases.append(c.flows.initial(c.seq, side, acknowledged))
    return bases[0], bases[1]


def _number(c: Connections) -> Connections:
    """
    Return the segments with sequence and acknowledgment numbers, and windows that hold what comes.

    An acknowledgment that is late (of something the other side has sent, but not its last) is kept, as real ones cross
    with data; where it would overrun the window the connection acknowledges at once.
    """
    forth_base, back_base = _bases(c)
    by_initiator, by_responder = c.sent(c.forth), c.sent(~c.forth)
    own_base, other_base = c.own(forth_base, back_base), c.own(back_base, forth_base)
    own_sent, other_sent = c.own(by_initiator, by_responder), c.own(by_responder, by_initiator)

    offset = _signed(c.seq - own_base)
    seq = np.where(c.has(RST) & (offset >= 0) & (offset <= own_sent), c.seq, (own_base + own_sent) % _WRAP)

    acknowledges = c.has(ACK)
    late = _signed(c.ack - other_base)
    late = np.where((late <= other_sent) & (late >= np.where(c.opens, 1, -_LATE_ACK)), late, other_sent)
    running = c.own(*(c.flows.running_max(late, side & acknowledges) for side in (c.forth, ~c.forth)))
    scale = c.scales()
    need = _need(c, np.where(acknowledges, running, 0))
    overrun = c.opens & ~c.has(RST) & ((need >> np.maximum(scale, 0)) + 1 > _MAX_WINDOW)
    running = np.where(c.flows.any_in_flow(overrun), other_sent, running)
    need = _need(c, np.where(acknowledges, running, 0))
    silent = np.where(c.flows.after(~c.has(RST)) > 0, 0, c.ack)  # without ACK the number means nothing, but is read
    ack = np.where(acknowledges, (other_base + running) % _WRAP, np.where(c.has(SYN), 0, silent))

    window = np.where(c.opens & ~c.has(RST), np.maximum(c.window, (need >> np.maximum(scale, 0)) + 1), c.window)
    shut = (window == 0) & ~c.has(SYN | FIN | RST)
    usual = (c.flows.initial(c.window, side & (c.window > 0), _MAX_WINDOW) for side in (c.forth, ~c.forth))
    window = np.where(shut, c.own(*usual), window)
    return attrs.evolve(c, seq=seq, ack=ack, window=window)


def _need(c: Connections, acknowledged: Array) -> NDArray[np.int64]:
    """
    Return the bytes that the other side has in flight at most, from each segment to the next of the same sender.
    """
    n = len(c.flows)
    end = np.append(c.flows.heads, n)[c.flows.flow + 1]  # where the flow ends
    flight = np.zeros(n, np.int64)
    for side in (c.forth, ~c.forth):
        following = c.flows.next(side & ~c.has(RST))
        until = np.where(following >= 0, following, end) - 1
        sent = c.sent(~side) + np.where(side, 0, c.consumed)
        flight = np.where(side, sent[until] - acknowledged, flight)
    return flight


def _stamp(c: Connections) -> None:
    """
    Mend time stamps in place (RFC 7323): a sender's clock that does not go back and ticks at most once a millisecond is
    kept (0 stands for a clock that was not read yet, as in Windows' SYN), another is replaced by one of 1000 ticks a
    second from its first value; the echo is a value that the other side has sent, its latest if it was not one.
    """
    at = find(c.kinds, TIMESTAMPS)
    has = at >= 0
    value, echo = c.number(np.where(has, at + 2, -1)), c.number(np.where(has, at + 6, -1))
    elapsed = np.zeros((2, len(at)), np.int64)  # ticks of initiator and responder since its first
    base = np.zeros((2, len(at)), np.int64)
    for k, side in enumerate((c.forth, ~c.forth)):
        mine = has & side
        before = c.flows.last(mine)
        step = np.where(mine & (before >= 0), _signed(value - value[before]), 0)
        span_ns = np.where(before >= 0, c.times - c.times[before], 0)
        wild = mine & ((step < 0) | (step > span_ns * _CLOCK_HZ // 10**9 + _CLOCK_SLACK)) & (value[before] > 0)
        base[k] = c.flows.initial(value, mine)
        begin = c.flows.initial(c.times, mine)
        kept = c.flows.before(step) + step
        elapsed[k] = np.where(c.flows.any_in_flow(wild), (c.times - begin) // _NS_A_TICK, kept)
    own_base, other_base = c.own(*base), c.own(*base[::-1])
    own = c.own(*elapsed)
    c.set_number(np.where(has, at + 2, -1), (own_base + own) % _WRAP)

    latest = c.own(c.flows.last(has & ~c.forth), c.flows.last(has & c.forth))
    anything = c.own(c.flows.any_in_flow(has & ~c.forth), c.flows.any_in_flow(has & c.forth))
    newest = np.where(latest >= 0, own[latest], 0)
    late = _signed(echo - other_base)
    good = (late <= newest) & (late >= np.where(c.opens, 0, -_OLD_ECHO)) | ~anything
    echo = np.where(good, echo, (other_base + newest) % _WRAP)
    c.set_number(np.where(has, at + 6, -1), np.where(c.has(ACK), echo, 0))


def _drop_sack(c: Connections) -> None:
    """
    Take out SACK blocks of what the other side has not sent (RFC 2018 section 3).
    """
    bad = (c.kinds == SACK) & _bad_sack(c)[:, None]
    c.options, _ = squeeze(c.options, c.sizes, extent(c.options, c.kinds, bad))


def _bad_sack(c: Connections) -> NDArray[np.bool_]:
    """
    Return bool[n]: a SACK block is empty, or not within what the other side has sent.
    """
    at = find(c.kinds, SACK)
    blocks = np.where(at >= 0, (np.take_along_axis(c.options, at[:, None] + 1, 1)[:, 0] - 2) // 8, 0)
    bases = _bases(c)
    other_base = c.own(bases[1], bases[0])
    other_sent = c.own(c.sent(~c.forth), c.sent(c.forth))
    bad = np.zeros(len(at), bool)
    for k in range(4):
        here = np.where(k < blocks, at + 2 + 8 * k, -1)
        left, right = c.number(here), c.number(np.where(here >= 0, here + 4, -1))
        begin, end = _signed(left - other_base), _signed(right - other_base)
        bad |= (here >= 0) & ((end <= begin) | (end > other_sent) | (begin < np.where(c.opens, 0, -_LATE_ACK)))
    return bad


# --- check --------------------------------------------------------------------------------------------------------


def _faults(c: Connections) -> dict[str, Array]:
    """
    Return the segments that break each rule, by rule: bool[n].
    """
    syn, fin, rst, acks = c.has(SYN), c.has(FIN), c.has(RST), c.has(ACK)
    position = c.flows.position
    walked, _ = walk(c.options, c.sizes, _WELL_FORMED)
    handshake_kinds = np.isin(c.kinds, (MSS, WINDOW_SCALE, SACK_PERMITTED))
    twice = np.stack([(c.kinds == k).sum(1) > 1 for k in (MSS, WINDOW_SCALE, SACK_PERMITTED)])
    first_syn = syn & ~acks

    # The next sequence number of each side: the furthest that it has reached.
    bases = _bases(c)
    own_base, other_base = c.own(*bases), c.own(*bases[::-1])
    start = _signed(c.seq - own_base)
    end = start + c.consumed
    reached, seen = [], []
    for side in (c.forth, ~c.forth):
        before = c.flows.last(side)
        high = c.flows.running_max(end, side)
        reached.append(np.where(before >= 0, high[before], 0))
        seen.append(before >= 0)
    own_end, other_end = c.own(*reached), c.own(*reached[::-1])
    own_seen, other_seen = c.own(*seen), c.own(*seen[::-1])
    sides = (c.forth, ~c.forth)
    fins = c.own(*(c.flows.before(fin & side) for side in sides))
    reset = [c.flows.last(rst & side) for side in sides]
    own_reset, other_reset = c.own(*reset), c.own(*reset[::-1])
    after_reset = (own_reset >= 0) | (other_reset >= 0) & (c.times > c.times[other_reset] + _IN_FLIGHT_NS)
    acknowledged = np.where(acks, _signed(c.ack - other_base), 0)
    return {
        "tcp.reserved": c.reserved > 0,
        "tcp.options": (walked != c.options).any(1),
        "tcp.option-place": (handshake_kinds & ~syn[:, None]).any(1) | twice.any(0),
        "tcp.flags": syn & (fin | rst) | ~acks & ~syn & ~rst,
        "tcp.syn": syn & ~((position == 0) & first_syn | (position == 1) & acks),
        "tcp.syn-data": (syn | rst) & (c.payload > 0),
        "tcp.urgent": ~_urgent(c) & ((c.urgent > 0) | c.has(URG)),
        "tcp.acknowledgment": np.where(acks, other_seen & (acknowledged > other_end), syn & (c.ack > 0)),
        "tcp.sequence": own_seen & ~rst & (start != own_end),
        "tcp.after-fin": (fins > 0) & ((c.payload > 0) | fin | syn),
        "tcp.after-rst": after_reset & ~rst,
        "tcp.window": (c.window == 0) & ~(syn | fin | rst) | _overruns(c, end, acknowledged),
        "tcp.mss": c.payload > c.largest_payload(),
        "tcp.timestamps": _bad_stamps(c),
        "tcp.sack": _bad_sack(c),
    }


def _overruns(c: Connections, end: Array, acknowledged: Array) -> Array:
    """
    Return bool[n]: data go beyond the window that the other side offered last, where its scale is known.
    """
    edge = acknowledged + (c.window << np.maximum(c.scales(), 0))
    offers = ~c.has(RST)
    other = c.own(c.flows.last(offers & ~c.forth), c.flows.last(offers & c.forth))
    return c.opens & (c.payload > 0) & (other >= 0) & (end > edge[other])


def _bad_stamps(c: Connections) -> Array:
    """
    Return bool[n]: time stamps that `_stamp` would change.
    """
    mended = attrs.evolve(c, options=c.options.copy())
    _stamp(mended)
    return (mended.options != c.options).any(1)
