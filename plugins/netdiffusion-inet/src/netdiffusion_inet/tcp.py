"""
The rule set ``tcp``: every flow is one connection, or a part of one without its beginning (RFC 9293).

What the packets meant is kept where a connection allows it: payload sizes, PSH, FIN and RST, windows, option kinds,
acknowledgments that are late, clocks, a SYN that is sent again. Sequence numbers follow from the first of each side
and the payload sizes; what they tell of retransmissions, segments out of order and gaps stays if the user wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.model import TCP, any_of_row

from .bits import Bits
from .headers import MTU, Draft, malformed_transport
from .interpacket import HANDSHAKE, turns
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
    idle,
    padded,
    squeeze,
    table,
    walk,
)
from .rules import rules_of
from .ruleset import InetRules
from .segments import Flows, first_alike

Array = NDArray[Any]

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))

_LEGAL_OPTIONS = table(TCP_LENGTHS)
_WELL_FORMED = table({kind: (TCP_LENGTHS.get(kind) or tuple(range(2, 41))) for kind in range(2, 256)})
_OURS, _WITH_SYN_ONLY = np.zeros((2, 256), bool)
_OURS[[MSS, WINDOW_SCALE, SACK_PERMITTED, SACK, TIMESTAMPS]] = True
_WITH_SYN_ONLY[[MSS, WINDOW_SCALE, SACK_PERMITTED]] = True
_MEND = np.zeros(256, np.int64)
_MEND[[MSS, WINDOW_SCALE, SACK_PERMITTED, TIMESTAMPS]] = 4, 3, 2, 10
_TIMESTAMPS_OPTION = np.array([NOP, NOP, TIMESTAMPS, 10, *[0] * 8], np.uint8)  # RFC 7323 appendix A
_MAX_SCALE = 14  # RFC 7323 section 2.3
_MAX_WINDOW = 65_535
_MIN_MSS = 536  # RFC 9293 section 3.7.1
_LATE_ACK = 1 << 16  # a part of a connection may begin with an acknowledgment so many bytes behind
_CLOCK_HZ, _CLOCK_SLACK = 1100, 10_000  # RFC 7323 section 5.4: at most a tick a millisecond; 10 s of jitter
_OLD_ECHO = 1 << 30  # a part of a connection may begin with the echo of an old time stamp
_NS_A_TICK = 1_000_000
_IN_FLIGHT_NS = 1_000_000_000  # what arrives later than that after the other side's RST was not on its way
_WRAP = 1 << 32
_FIELDS = {
    "seq": "tcp.seq", "ack": "tcp.ackn", "flags": "tcp.flags", "window": "tcp.wsize", "urgent": "tcp.urp",
    "reserved": "tcp.res",
}  # fmt: skip


@attrs.frozen(kw_only=True)
class Options:
    """
    Options of the rule set ``tcp``.
    """

    anomalies: Literal["mend", "retransmissions", "keep"] = attrs.field(
        default="mend",
        validator=attrs.validators.in_(("mend", "retransmissions", "keep")),
        metadata={
            "help": "what becomes of retransmissions, segments out of order and gaps: mend makes the sequence space "
            "continuous, retransmissions leaves segments with the number and length of an earlier one, keep also what "
            "fits otherwise into what was sent or into the other side's window"
        },
    )


class TcpRules(InetRules):
    """
    TCP connections.
    """

    Options = Options
    name = header = protocol = "tcp"
    checksums = ("tcp",)
    rules = rules_of("tcp")

    def settle(self, bits: Bits) -> None:
        """
        Give every packet of a TCP flow a whole TCP header, SYN where the connection opens and nowhere else, and options
        that are legal where they stand. A header that says that it is longer than what is there was cut by a snap
        length: the rest is padding. Time stamps, which every segment of a connection has or none
        (RFC 7323 section 3.2), are added where most segments have them; not to a bare acknowledgment without any
        option, as some stacks send to keep a connection alive.
        """
        mine = np.flatnonzero(bits.live & (bits.protocols == TCP))
        if not len(mine):
            return
        bits.complete("tcp", 160, mine)
        flows = Flows.sorted(mine, bits.flow[mine])
        flag_column = bits.spans["tcp.cwr"].start
        flags = bits.number(flag_column, 8, mine)
        mended = self.options.anomalies == "mend"
        turn = flows.position if mended else turns(flows, flags, bits.values("tcp.seq", mine))
        opens = flows.any_in_flow((flags & SYN > 0) & (turn < HANDSHAKE))
        first, second = _syns(turn, opens, flags)
        setup = flags & (ECE | CWR) | SYN  # RFC 3168 section 6.1.1
        flags = np.where(first, setup, np.where(second, setup | ACK, flags & ~SYN))
        whole = padded(*bits.options("tcp.opt", mine), 4 * (bits.values("tcp.doff", mine) - 5))
        options, sizes = _legal_options(flows, turn, opens, flags, *whole, _bare(bits, mine, flags))
        bits.write_number(flag_column, 8, mine, flags)
        bits.write("tcp.doff", mine, 5 + sizes // 4)
        bits.write_options("tcp.opt", mine, options, sizes)

    def mend(self, draft: Draft, rng: np.random.Generator) -> None:
        """
        Make each flow one connection; see the module.
        """
        c = Connections.read(draft, _flows(draft), self.options.anomalies)
        if len(c.flows):
            _mend(c, keep=self.options.anomalies == "keep")

    def faults(self, draft: Draft) -> Iterator[tuple[str, Array]]:
        """
        Yield what `rules` says.
        """
        yield "tcp.header", malformed_transport(draft.traffic, draft.headers, TCP)
        yield "tcp.checksum", draft.wrong_checksums(draft.judgeable("tcp"))[0]
        c = Connections.read(draft, _flows(draft), self.options.anomalies)
        for rule, mask in _faults(c, keep=self.options.anomalies == "keep").items():
            yield rule, c.flows.packets[mask]


def _flows(draft: Draft) -> Flows:
    h = draft.headers
    return Flows.of(draft.traffic, (h.protocols == TCP) & (h.transport_offsets >= 0) & ~h.fragments)


@attrs.define(eq=False)
class Connections:
    """
    The TCP segments of all flows, in flow order; n of them.

    draft      where they are
    flows      Flows
    forth      bool[n]       sent by the initiator
    turn       int64[n]      which segment of a handshake it would be, see `interpacket.turns`
    opens      bool[n]       the flow begins with a handshake
    first      int64[n]      the segment that this one repeats, as far as that is to stay; itself if it is new
    times      int64[n]      nanoseconds
    overhead   int64[n]      bytes of IP and TCP options
    full_mss   int64[n]      what fits into 1500 bytes
    payload    int64[n]      bytes of data
    seq, ack, flags, window, urgent, reserved  int64[n]
    options    uint8[n, w]   w: the most bytes of options that a segment has, at least 4
    readable   uint8[n, w]   the options as they were, what cannot be read mended or blanked
    sizes      int64[n]      bytes of options
    kinds      uint8[n, w]   see `options.walk`
    """

    draft: Draft
    flows: Flows
    forth: Array
    turn: Array
    opens: Array
    first: Array
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
    readable: Array
    sizes: Array
    kinds: Array
    _flagged: dict[int, Array] = attrs.field(factory=dict, init=False)
    _found: dict[str, Array] = attrs.field(factory=dict, init=False)

    @classmethod
    def read(cls, draft: Draft, flows: Flows, anomalies: str) -> Connections:
        """
        Read the segments of these flows. If anomalies are to be mended, only a SYN may be sent again.
        """
        h, p = draft.headers, flows.packets
        flags, seq, payload, forth = (
            draft.get("tcp.flags", p), draft.get("tcp.seq", p), h.payload_lengths[p], draft.from_initiator[p],
        )  # fmt: skip
        turn = turns(flows, flags, seq)
        options, sizes = draft.options("tcp", p)
        readable, kinds = walk(options, sizes, _WELL_FORMED, _MEND)
        i = np.flatnonzero(any_of_row(readable != options))
        kinds[i] = walk(options[i], sizes[i], _WELL_FORMED)[1]
        is4 = h.ip_versions[p] == 4
        return cls(
            draft=draft,
            flows=flows,
            forth=forth,
            turn=turn,
            opens=flows.any_in_flow((flags & SYN > 0) & (turn < HANDSHAKE)),
            first=_sent_before(flows, forth, flags, seq, payload, only_syn=anomalies == "mend"),
            times=draft.timestamps[p],
            overhead=h.ip_header_lengths[p] - np.where(is4, 20, 40) + sizes,
            full_mss=np.where(is4, MTU - 40, MTU - 60),
            payload=payload,
            seq=seq,
            ack=draft.get("tcp.ackn", p),
            flags=flags,
            window=draft.get("tcp.wsize", p),
            urgent=draft.get("tcp.urp", p),
            reserved=draft.get("tcp.res", p),
            options=options,
            readable=readable,
            sizes=sizes,
            kinds=kinds,
        )

    def put(self, rule: str, name: str, values: Array) -> None:
        """
        Replace a field, here and in the draft, as this rule wants it.
        """
        i = np.flatnonzero(getattr(self, name) != values)
        if len(i) and rule not in self.draft.off:
            setattr(self, name, values)
            if name == "flags":
                self._flagged.clear()
                self._found.pop("scales", None)
            if name == "payload":
                self.draft.cut(rule, self.flows.packets[i], values[i])
            else:
                self.draft.put(rule, _FIELDS[name], self.flows.packets[i], values[i])

    def put_options(self, rule: str, options: Array) -> None:
        """
        Replace the options.
        """
        i = np.flatnonzero(any_of_row(self.options != options))
        if len(i) and rule not in self.draft.off:
            self.options = options
            self.kinds = self.kinds.copy()
            self._found.clear()
            self.kinds[i] = walk(options[i], self.sizes[i], _WELL_FORMED)[1]
            self.draft.put_options(rule, "tcp", self.flows.packets[i], options[i])

    def has(self, flag: int) -> NDArray[np.bool_]:
        """
        bool[n]: the flag is set, any one of several.
        """
        if flag not in self._flagged:  # until the flags are replaced
            self._flagged[flag] = self.flags & flag > 0
        return self._flagged[flag]

    @property
    def consumed(self) -> NDArray[np.int64]:
        """
        int64[n]: sequence numbers that each segment takes: its data, one for SYN, one for FIN (RFC 9293 section 3.4).
        """
        return self.payload + self.has(SYN) + self.has(FIN)

    @property
    def again(self) -> NDArray[np.bool_]:
        """
        bool[n]: what is sent again, as far as there is something in it.
        """
        return (self.first < np.arange(len(self.flows))) & (self.consumed > 0)

    @property
    def offers(self) -> NDArray[np.bool_]:
        """
        bool[n]: a segment whose window counts: not that of a RST, nor an old one (RFC 9293 section 3.10.7.4, SND.WL1).
        """
        return ~self.has(RST) & ~self.again

    def least(self, values: Array) -> NDArray[np.int64]:
        """
        int64[n]: the least value of a segment and those that send it again.
        """
        least = values.copy()
        np.minimum.at(least, self.first, values)
        return least[self.first]

    @property
    def sides(self) -> tuple[Array, Array]:
        """
        Masks of the segments of initiator and responder.
        """
        return self.forth, ~self.forth

    def own(self, of_initiator: Array, of_responder: Array) -> NDArray[Any]:
        """
        Choose for each segment what belongs to its sender.
        """
        return np.where(self.forth, of_initiator, of_responder)

    def find(self, kind: int) -> NDArray[np.int64]:
        """
        int64[n]: where the first option of this kind begins, -1 where there is none.
        """
        return self._once(f"find {kind}", lambda: find(self.kinds, kind))

    def _once(self, what: str, work: Callable[[], Array]) -> Array:
        """
        Return what this work finds in the options, and remember it until they are replaced.
        """
        if what not in self._found:
            self._found[what] = work()
        return self._found[what]

    def number(self, at: Array) -> NDArray[np.int64]:
        """
        int64[n]: the four bytes at this byte of the options, 0 where `at` is -1.
        """
        i = np.flatnonzero(at >= 0)
        columns = np.minimum(at[i, None] + np.arange(4), self.options.shape[1] - 1)
        numbers = np.zeros(len(at), np.int64)
        numbers[i] = self.options[i[:, None], columns] @ (256 ** np.arange(4)[::-1])
        return numbers

    def option(self, kind: int, size: int = 1) -> NDArray[np.int64]:
        """
        int64[n]: the number of `size` bytes in the option of this kind, -1 where there is none.
        """

        def read() -> Array:
            at = self.find(kind)
            value = self.number(np.where(at >= 0, at + 2, -1)) >> 8 * (4 - size)
            return np.where(at >= 0, value, -1)

        return self._once(f"read {size} bytes of {kind}", read)

    def scales(self) -> NDArray[np.int64]:
        """
        int64[n]: by how many bits the sender's windows are shifted, -1 where the handshake was not seen (RFC 7323
        section 2.2: both SYNs have the option, and in a SYN itself the window is not shifted).
        """
        return self._once("scales", self._scales)

    def _scales(self) -> Array:
        syn, option = self.has(SYN), np.minimum(self.option(WINDOW_SCALE), _MAX_SCALE)
        forth = self.flows.initial(option, syn & self.forth, -1)
        back = self.flows.initial(option, syn & ~self.forth, -1)
        scale = np.where((forth >= 0) & (back >= 0), self.own(forth, back), 0)
        return np.where(self.opens, np.where(syn, 0, scale), -1)

    def largest_payload(self) -> NDArray[np.int64]:
        """
        int64[n]: bytes of data that a segment may carry: the other side's MSS less the options of this segment
        (RFC 9293 section 3.7.1); where the other side named none, what an Ethernet frame holds.

        Behind segmentation offload a capture shows several segments as one: whole ones in a row, of which only the last
        of what an application wrote (PSH) may be shorter. A direction of which all long segments look so may keep them.
        Whole ones have the largest size allowed, or the largest seen where the path allows less.
        """
        syn, told = self.has(SYN), self.option(MSS, 2)
        mss = np.where(told < 0, self.full_mss, np.maximum(told, _MIN_MSS))
        forth = self.flows.initial(mss, syn & self.forth, self.full_mss)
        back = self.flows.initial(mss, syn & ~self.forth, self.full_mss)
        most = np.maximum(self.own(back, forth) - self.overhead, 0)
        long = self.payload > most
        if not long.any():
            return most
        alone = long & ~self.has(PSH) & (self.payload % np.maximum(most, 1) > 0)
        for side in self.sides:
            full = side & ~long & (self.payload >= _MIN_MSS)
            last = self.flows.final(full)
            largest = np.where(last >= 0, self.flows.running_max(self.payload, full)[last], _WRAP)
            alone &= ~(side & (self.payload % largest == 0))
        offloaded = self.own(*(~self.flows.any_in_flow(alone & side) for side in self.sides))
        return np.where(offloaded, np.maximum(self.payload, most), most)


def _sent_before(
    flows: Flows, forth: Array, flags: Array, seq: Array, payload: Array, only_syn: bool
) -> NDArray[np.int64]:
    """
    Return the first segment of the same flow and sender with the same number and length, SYN and FIN, int64[n]. One
    without any of these, or with RST, is itself the first.
    """
    first = np.arange(len(flows))
    takes = flags & SYN > 0 if only_syn else (payload > 0) | (flags & (SYN | FIN) > 0)
    i = np.flatnonzero(takes & (flags & RST == 0))
    length = np.where(flags & SYN, 0, payload)  # SYN carries no data
    first[i] = i[first_alike(flows.flow[i], forth[i], seq[i], length[i], flags[i] & (SYN | FIN))]
    return first


def _put_number(options: Array, at: Array, values: Array) -> None:
    """
    Write four bytes at this byte of the options, nothing where `at` is -1.
    """
    i = np.flatnonzero(at >= 0)
    octets = values[i, None] >> np.array([24, 16, 8, 0]) & 255
    options[i[:, None], at[i, None] + np.arange(4)] = octets


def _signed(difference: Array) -> NDArray[np.int64]:
    """
    Return a difference of sequence numbers or time stamps modulo 2 ** 32, between -2 ** 31 and 2 ** 31 - 1.
    """
    return (difference + (_WRAP >> 1)) % _WRAP - (_WRAP >> 1)


# --- opening, closing, options: known from the bits alone --------------------------------------------------------


def _syns(turn: Array, opens: Array, flags: Array) -> tuple[Array, Array]:
    """
    Return ``(first, second)``, bool[n]: the segments that are to be SYN and SYN-ACK. A second segment with RST refuses.
    """
    first, second = opens & (turn == 0), opens & (turn == 1)
    return first, second & (flags & RST == 0)


def _bare(bits: Bits, packets: Array, flags: Array) -> NDArray[np.bool_]:
    """
    Return bool[n]: a segment that is nothing but an acknowledgment.
    """
    is4, length = bits.ip_versions[packets] == 4, np.zeros(len(packets), np.int64)
    if is4.any():
        length[is4] = bits.values("ipv4.tl", packets[is4]) - 4 * bits.values("ipv4.hl", packets[is4])
    if not is4.all():
        length[~is4] = bits.values("ipv6.len", packets[~is4])
    return (flags == ACK) & (length <= 4 * bits.values("tcp.doff", packets))


def _misplaced(flows: Flows, turn: Array, opens: Array, flags: Array, kinds: Array) -> NDArray[np.bool_]:
    """
    Return bool[n, w]: where an option begins that has no business there: the second of its kind; in the handshake but
    not with SYN; used although both SYNs did not agree on it.
    """
    misplaced = np.zeros(kinds.shape, bool)
    rows, columns = np.nonzero(_OURS[kinds])
    kind = kinds[rows, columns].astype(np.int64)
    wrong = np.ones(len(rows), bool)
    wrong[np.unique(rows << 4 | kind, return_index=True)[1]] = False  # the first of its kind

    flow, turn, opens, syn = flows.flow[rows], turn[rows], opens[rows], flags[rows] & SYN > 0
    first, second = opens & (turn == 0), opens & (turn == 1)

    def offered(which: int, by: Array) -> Array:
        offers = np.zeros(len(flows.row), bool)
        offers[flow[by & (kind == which)]] = True
        return offers[flow]

    def agreed(which: int) -> Array:
        return offered(which, first) & offered(which, second)

    wrong |= _WITH_SYN_ONLY[kind] & ~syn
    wrong |= (kind == WINDOW_SCALE) & second & ~offered(WINDOW_SCALE, first)
    wrong |= (kind == SACK) & (syn | opens & ~agreed(SACK_PERMITTED))
    wrong |= (kind == TIMESTAMPS) & opens & ~first & ~agreed(TIMESTAMPS)
    misplaced[rows[wrong], columns[wrong]] = True
    return misplaced


def _legal_options(
    flows: Flows, turn: Array, opens: Array, flags: Array, options: Array, sizes: Array, bare: Array
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """
    Return ``(options, sizes)`` in which every option is of a kind we know, well-formed and legal where it stands;
    others are taken out. Time stamps that most segments of the connection have and this one lacks are added, but not to
    a bare one without options.
    """
    before, bare = options, bare & (sizes == 0)
    options, kinds = walk(options, sizes, _LEGAL_OPTIONS, _MEND)
    syn, reset = flags & SYN > 0, flags & RST > 0
    first, second = opens & (turn == 0), opens & (turn == 1)
    # RFC 7323 section 3.2: the first SYN offers time stamps, and they are used if the second has them too.
    stamp = find(kinds, TIMESTAMPS)
    stamped = stamp >= 0
    later = ~syn & ~reset
    most = np.bincount(flows.flow[later], np.where(stamped, 1, -1)[later], len(flows.row))[flows.flow] > 0
    used = np.where(flows.any_in_flow(later), most, flows.any_in_flow(second & stamped) | ~opens)
    agreed = np.where(used[:, None], NOP, kinds)  # to be added where they are missing
    unwanted = _misplaced(flows, turn, opens, flags, np.where(kinds == TIMESTAMPS, agreed, kinds))
    kept = np.where(used | first, stamp, -1)[:, None]  # the first of its kind, or none
    unwanted |= (kinds == TIMESTAMPS) & (np.arange(kinds.shape[1]) != kept)
    changed = options != before
    i = np.flatnonzero(any_of_row(changed | unwanted))
    gone = changed[i] & (options[i] <= NOP) | extent(options[i], kinds[i], unwanted[i])
    sizes = sizes.copy()
    options[i], sizes[i] = squeeze(options[i], sizes[i], gone)
    lacking = np.flatnonzero(used & ~stamped & ~reset & ~bare & (opens | flows.any_in_flow(later)))
    options, sizes = append(options, sizes, lacking, _TIMESTAMPS_OPTION, _LEGAL_OPTIONS)
    surplus = idle(options, sizes, _LEGAL_OPTIONS)
    if surplus.any():
        i = np.flatnonzero(any_of_row(surplus))
        options[i], sizes[i] = squeeze(options[i], sizes[i], surplus[i])
    return options, sizes


# --- the whole connection -----------------------------------------------------------------------------------------


def _mend(c: Connections, keep: bool) -> None:
    """
    Make valid connections of the segments: flags, then options, then how much each segment carries, then numbers.
    """
    _open_and_reset(c)
    c.put("tcp.reserved", "reserved", np.zeros_like(c.reserved))
    _place_options(c)
    c.put("tcp.syn-data", "payload", np.where(c.has(SYN | RST), 0, c.payload))
    c.put("tcp.mss", "payload", c.least(np.minimum(c.payload, c.largest_payload())))
    c.put("tcp.window", "payload", _within_window(c))
    c.put("tcp.after-fin", "flags", np.where(c.has(FIN) & ~_last_fin(c), c.flags & ~FIN, c.flags))
    urgent = _urgent(c)
    c.put("tcp.urgent", "flags", np.where(urgent, c.flags, c.flags & ~URG))
    c.put("tcp.urgent", "urgent", np.where(urgent, c.urgent, 0))
    _number(c, keep)
    c.put_options("tcp.timestamps", _stamped(c))
    bad = _bad_sack(c)
    if bad.any():
        gone = extent(c.options, c.kinds, (c.kinds == SACK) & bad[:, None])
        c.put_options("tcp.sack", squeeze(c.options, c.sizes, gone)[0])
    surplus = idle(c.options, c.sizes, _WELL_FORMED)
    if surplus.any():
        c.put_options("tcp.option-padding", squeeze(c.options, c.sizes, surplus)[0])


def _open_and_reset(c: Connections) -> None:
    """
    A connection that opens does so with SYN and SYN-ACK (or is refused with RST), and no other segment has SYN; a side
    that sends RST sends nothing else any more, and what the other side still sends was in flight (nothing is during the
    handshake); every segment but the first and RST has ACK.
    """
    turn, here = c.turn, np.arange(len(c.flows))
    c.put("tcp.flags", "flags", np.where(c.opens & (turn == 0), c.flags & ~RST, c.flags))
    reset = c.has(RST)
    if reset.any():
        for side in c.sides:
            own, other = c.flows.final(side & ~c.has(RST)), c.flows.final(~side & ~c.has(RST))
            in_flight = (c.times[other] <= c.times + _IN_FLIGHT_NS) & ~(c.opens & (turn < HANDSHAKE))
            reset = reset & (~side | (own < here) & ((other < here) | in_flight))
        c.put("tcp.after-rst", "flags", np.where(reset, c.flags, c.flags & ~RST))
    first, second = _syns(c.turn, c.opens, c.flags)
    flags = np.where(first | second, c.flags | SYN, c.flags & ~SYN)
    c.put("tcp.syn", "flags", np.where(first, flags & ~ACK, np.where(second, flags | ACK, flags)))
    flags = np.where(c.has(SYN | RST), c.flags & ~FIN, c.flags)
    c.put("tcp.flags", "flags", np.where(_needs_ack(c), flags | ACK, flags))


def _needs_ack(c: Connections) -> NDArray[np.bool_]:
    return np.where(c.opens & (c.turn < 2), c.turn == 1, ~c.has(RST))


def _place_options(c: Connections) -> None:
    """
    Blank options that cannot be read, take out those that are illegal where they stand, raise the MSS to 536 and lower
    the window scale to 14.
    """
    c.put_options("tcp.options", c.readable)
    misplaced = _misplaced(c.flows, c.turn, c.opens, c.flags, c.kinds)
    if misplaced.any():
        gone = extent(c.options, c.kinds, misplaced)
        c.put_options("tcp.option-place", squeeze(c.options, c.sizes, gone)[0])
    low, high = _small_mss(c), _large_scale(c)
    if (low | high).any():
        options = c.options.copy()
        at = c.find(MSS)[low]
        options[low, at + 2], options[low, at + 3] = divmod(_MIN_MSS, 256)
        options[high, c.find(WINDOW_SCALE)[high] + 2] = _MAX_SCALE
        c.put_options("tcp.option-value", options)


def _small_mss(c: Connections) -> NDArray[np.bool_]:
    mss = c.option(MSS, 2)
    return (mss >= 0) & (mss < _MIN_MSS)


def _large_scale(c: Connections) -> NDArray[np.bool_]:
    return c.option(WINDOW_SCALE) > _MAX_SCALE


def _within_window(c: Connections) -> NDArray[np.int64]:
    """
    Return payloads cut so that what a side sends between two segments of the other fits into the largest window that
    the other can offer there; two less, for a FIN and so that the window is never full.
    """
    scale, again = c.scales(), c.again
    result = c.payload
    for side in c.sides:
        total = c.flows.before(np.where(side & ~again, c.payload, 0))
        other = c.flows.last(~side & c.offers)
        begun = np.where(other >= 0, total[other], 0)
        limit = (_MAX_WINDOW << np.where(other >= 0, scale[other], 0)) - 2
        limit = np.where(c.opens, limit, _WRAP)
        ahead = total - begun
        fits = np.minimum(ahead + c.payload, limit) - np.minimum(ahead, limit)
        result = np.where(side & ~again, fits, result)
    return c.least(result)


def _last_fin(c: Connections) -> NDArray[np.bool_]:
    """
    Return bool[n]: the first FIN of its sender that no new data of the same side follow, and where it is sent again.
    """
    fin, new = np.zeros(len(c.flows), bool), ~c.again
    for side in c.sides:
        last = side & new & c.has(FIN) & (c.flows.after(side & new & (c.payload > 0)) == 0)
        fin |= last & (c.flows.before(last) == 0)
    return fin[c.first]


def _urgent(c: Connections) -> NDArray[np.bool_]:
    return c.has(URG) & (c.urgent > 0) & (c.urgent <= c.payload)


def _bases(c: Connections) -> tuple[Array, Array]:
    """
    Return ``(own, other)``, int64[n]: the first sequence number of the sender and of the other side. One that sends
    nothing here has what the other side acknowledges first.
    """
    bases = []
    for side in c.sides:
        acknowledged = c.flows.initial(c.ack, ~side & c.has(ACK))
        bases.append(c.flows.initial(c.seq, side, acknowledged))
    return c.own(*bases), c.own(*bases[::-1])


def _offsets(c: Connections, own_base: Array) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """
    Return ``(offset, own, other)``, int64[n]: where each segment begins in the sequence space of its sender, counted
    from its first number `own_base`, and how far its sender and the other side have got before it.
    """
    offset = _signed(c.seq - own_base)
    reached = []
    for side in c.sides:
        before = c.flows.last(side)
        high = c.flows.running_max(offset + c.consumed, side)
        reached.append(np.where(before >= 0, np.maximum(high[before], 0), 0))
    return offset, c.own(*reached), c.own(*reached[::-1])


def _number(c: Connections, keep: bool) -> None:
    """
    Number the segments, acknowledge, and open windows for what comes.

    An acknowledgment that is late (of something the other side has sent, but not its last) is kept, as real ones cross
    with data; where it would overrun the window the connection acknowledges at once.
    """
    own_base, other_base = _bases(c)
    c.put("tcp.sequence", "seq", (own_base + _sequence(c, _signed(c.seq - own_base), keep)) % _WRAP)

    offset, _, sent = _offsets(c, own_base)
    acknowledges = c.has(ACK)
    late = _signed(c.ack - other_base)
    late = np.where((late <= sent) & (late >= np.where(c.opens, 1, -_LATE_ACK)), late, sent)
    fits = c.again & (late == _signed(c.ack - other_base))  # an old segment may come again
    running = c.own(*(c.flows.running_max(late, side & acknowledges) for side in c.sides))
    scale = np.maximum(c.scales(), 0)
    arrives, offers = _arrives(c, offset), c.opens & c.offers
    overrun = offers & ((arrives - np.where(acknowledges, running, 0) >> scale) + 1 > _MAX_WINDOW)
    running = np.where(c.flows.any_in_flow(overrun), sent, running)
    ack = np.where(acknowledges, (other_base + np.where(fits, late, running)) % _WRAP, 0)
    c.put("tcp.acknowledgment", "ack", ack)

    need = (arrives - np.where(acknowledges, running, 0) >> scale) + 1
    window = np.where(offers, np.clip(need, c.window, _MAX_WINDOW), c.window)
    shut = (window == 0) & ~c.has(SYN | FIN | RST)
    if shut.any():
        usual = (c.flows.initial(c.window, side & (c.window > 0), _MAX_WINDOW) for side in c.sides)
        window = np.where(shut, c.own(*usual), window)
    c.put("tcp.window", "window", window)


def _sequence(c: Connections, offset: Array, keep: bool) -> NDArray[np.int64]:
    """
    Return where each segment begins, int64[n], given where its number says so: where its sender's last new one ended,
    or if it is sent again, where it did before. A RST may stand on what was sent, but not on SYN.

    keep  Leave those that repeat what was sent, and those that leave a gap, unless that is beyond what the other side's
          window can be (of a part of a connection: 65,535). A segment without data, SYN or FIN repeats nothing, and
          FIN comes last.
    """
    flows, again, lowest = c.flows, c.again, np.where(c.opens, 1, 0)
    consumed = np.where(again, 0, c.consumed)
    kept = keep & ~again & ~c.has(SYN | RST) & (offset >= lowest)
    window = (_MAX_WINDOW << np.maximum(c.scales(), 0)) - 2 if keep else 0
    while kept.any():  # each round lets go of those that do not fit to what the others make of the sequence space
        begin, wrong = np.zeros_like(offset), np.zeros(len(offset), bool)
        for side in c.sides:
            # The furthest after each segment is max(what was before + its length, or if kept: its own end).
            added = np.where(side & ~kept, consumed, 0)
            total = flows.before(added) + added
            furthest = total + np.maximum(flows.running_max(offset + consumed - total, side & kept), 0)
            before, other = flows.last(side), flows.last(~side & c.offers)
            reached = np.where(before >= 0, furthest[before], 0)
            edge = np.where(other >= 0, furthest[other] + window[other], _MAX_WINDOW)
            begin = np.where(side, np.where(kept, offset, reached), begin)
            ends = c.has(FIN) | (consumed == 0)
            wrong |= side & kept & ((begin + consumed > edge) | ends & (offset < reached))
            pushed = side & ~kept & ~again & (begin + consumed > edge) & c.opens  # over the edge, by a gap before it
            wrong |= kept & flows.any_in_flow(pushed)
        if not wrong.any():
            break
        kept &= ~wrong
    else:
        begin = c.own(*(flows.before(np.where(side, consumed, 0)) for side in c.sides))
    begin = np.where(c.has(RST) & (offset >= lowest) & (offset <= begin), offset, begin)
    return np.where(again, begin[c.first], begin)


def _arrives(c: Connections, offset: Array) -> NDArray[np.int64]:
    """
    Return how far the other side gets before the sender of each segment sends its next: int64[n].
    """
    end = np.append(c.flows.heads, len(c.flows))[c.flows.flow + 1]  # where the flow ends
    furthest = np.zeros(len(c.flows), np.int64)
    for side in c.sides:
        following = c.flows.next(side & c.offers)
        until = np.where(following >= 0, following, end) - 1
        sent = np.maximum(c.flows.running_max(offset + c.consumed, ~side), 0)
        furthest = np.where(side, sent[until], furthest)
    return furthest


def _stamped(c: Connections) -> NDArray[np.uint8]:
    """
    Return the options with valid time stamps (RFC 7323): a sender's clock that does not go back and ticks at most once
    a millisecond is kept (0 stands for a clock that was not read, as in Windows' SYN), another is replaced by one of
    1000 ticks a second from its first value; the echo is a value that the other side has sent, its latest if it was not
    one. Only a part of a connection may echo what was sent before or what was not captured.
    """
    at = c.find(TIMESTAMPS)
    has = at >= 0
    if not has.any():
        return c.options
    value, echo = c.number(np.where(has, at + 2, -1)), c.number(np.where(has, at + 6, -1))
    read = has & (value > 0)
    elapsed = np.zeros((2, len(at)), np.int64)  # ticks of initiator and responder since its first
    base = np.zeros((2, len(at)), np.int64)
    for k, side in enumerate(c.sides):
        mine = read & side
        before = c.flows.last(mine)
        step = np.where(mine & (before >= 0), _signed(value - value[before]), 0)
        span_ns = np.where(before >= 0, c.times - c.times[before], 0)
        wild = mine & ((step < 0) | (step > span_ns * _CLOCK_HZ // 10**9 + _CLOCK_SLACK))
        base[k] = c.flows.initial(value, mine)
        begin = c.flows.initial(c.times, mine)
        kept = c.flows.before(step) + step
        elapsed[k] = np.where(c.flows.any_in_flow(wild), (c.times - begin) // _NS_A_TICK, kept)
    own_base, other_base = c.own(*base), c.own(*base[::-1])
    own = c.own(*elapsed)
    options = c.options.copy()
    _put_number(options, np.where(read, at + 2, -1), (own_base + own) % _WRAP)

    latest = c.own(*(c.flows.last(read & side) for side in c.sides[::-1]))
    anything = c.own(*(c.flows.any_in_flow(read & side) for side in c.sides[::-1]))
    newest = np.where(latest >= 0, own[latest], 0)
    late = _signed(echo - other_base)
    slack = np.where(c.opens, 0, _CLOCK_SLACK)
    good = (late <= newest + slack) & (late >= np.where(c.opens, 0, -_OLD_ECHO)) | ~anything
    good |= (echo == 0) & (c.has(SYN) | (latest < 0))
    echo = np.where(good, echo, (other_base + newest) % _WRAP)
    _put_number(options, np.where(has, at + 6, -1), np.where(c.has(ACK), echo, 0))
    return options


def _bad_sack(c: Connections) -> NDArray[np.bool_]:
    """
    Return bool[n]: a SACK block is empty, or not within what the other side has sent.
    """
    at = c.find(SACK)
    bad = np.zeros(len(at), bool)
    if (at < 0).all():
        return bad
    blocks = np.where(at >= 0, (np.take_along_axis(c.options, at[:, None] + 1, 1)[:, 0] - 2) // 8, 0)
    own_base, other_base = _bases(c)
    sent = _offsets(c, own_base)[2]
    for k in range(4):
        here = np.where(k < blocks, at + 2 + 8 * k, -1)
        left, right = c.number(here), c.number(np.where(here >= 0, here + 4, -1))
        begin, end = _signed(left - other_base), _signed(right - other_base)
        bad |= (here >= 0) & ((end <= begin) | (end > sent) | (begin < np.where(c.opens, 0, -_LATE_ACK)))
    return bad


# --- check --------------------------------------------------------------------------------------------------------


def _faults(c: Connections, keep: bool) -> dict[str, Array]:
    """
    Return the segments that break each rule, by rule: bool[n].
    """
    syn, fin, rst, acks = c.has(SYN), c.has(FIN), c.has(RST), c.has(ACK)
    turn, new = c.turn, ~c.again
    own_base, other_base = _bases(c)
    offset, own_end, other_end = _offsets(c, own_base)
    own_seen = c.own(*(c.flows.last(side) for side in c.sides)) >= 0
    other_seen = c.own(*(c.flows.last(side) for side in c.sides[::-1])) >= 0
    fins = c.own(*(c.flows.before(fin & side) for side in c.sides))
    reset = [c.flows.last(rst & side) for side in c.sides]
    own_reset, other_reset = c.own(*reset), c.own(*reset[::-1])
    after_reset = (own_reset >= 0) | (other_reset >= 0) & (c.times > c.times[other_reset] + _IN_FLIGHT_NS)
    acknowledged = np.where(acks, _signed(c.ack - other_base), 0)
    before = c.own(*(c.flows.last(acks & side) for side in c.sides))
    highest = c.own(*(c.flows.running_max(acknowledged, acks & side) for side in c.sides))
    taken_back = new & (before >= 0) & (acknowledged < highest[before])
    jumps = new & own_seen & np.where(rst, c.opens & (offset < np.minimum(own_end, 1)), offset != own_end)
    if keep:
        jumps &= _sequence(c, offset, keep) != offset
    return {
        "tcp.reserved": c.reserved > 0,
        "tcp.options": (c.readable != c.options).any(1),
        "tcp.option-place": _misplaced(c.flows, c.turn, c.opens, c.flags, c.kinds).any(1),
        "tcp.option-padding": idle(c.options, c.sizes, _WELL_FORMED).any(1),
        "tcp.option-value": _small_mss(c) | _large_scale(c),
        "tcp.flags": syn & rst | (syn | rst) & fin | _needs_ack(c) & ~acks & ~syn,
        "tcp.syn": syn & ~((turn == 0) & ~acks | (turn == 1) & acks),
        "tcp.syn-data": (syn | rst) & (c.payload > 0),
        "tcp.urgent": ~_urgent(c) & ((c.urgent > 0) | c.has(URG)),
        "tcp.acknowledgment": np.where(acks, other_seen & (acknowledged > other_end) | taken_back, c.ack > 0),
        "tcp.sequence": jumps,
        "tcp.after-fin": new & (fins > 0) & ((c.payload > 0) | fin | syn),
        "tcp.after-rst": after_reset & ~rst,
        "tcp.window": (c.window == 0) & ~(syn | fin | rst) | _overruns(c, offset + c.consumed, acknowledged),
        "tcp.mss": c.payload > c.largest_payload(),
        "tcp.timestamps": (_stamped(c) != c.options).any(1),
        "tcp.sack": _bad_sack(c),
    }


def _overruns(c: Connections, end: Array, acknowledged: Array) -> Array:
    """
    Return bool[n]: data go beyond the window that the other side offered last, where its scale is known.
    """
    edge = acknowledged + (c.window << np.maximum(c.scales(), 0))
    other = c.own(*(c.flows.last(c.offers & side) for side in c.sides[::-1]))
    return c.opens & (c.payload > 0) & (other >= 0) & (end > edge[other])
