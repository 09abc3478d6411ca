"""
Write headers of media.

What is new goes on from its neighbour: the last sound packet of the most frequent source of the same direction, or else
the next; where there is none at all, from a number that is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from .faults import breaks, sequence_far, stamps_far
from .media import HEADER, RR, SDES, SR, Media, by_source

Array = NDArray[Any]

_VERSION = 2
_G711, _DYNAMIC = 0, 96  # RFC 3551 section 6
_AUDIO_HZ, _VIDEO_HZ = 8_000, 90_000
_LARGEST_AUDIO = 500  # octets of a packet, on average: 60 ms of G.711
_FRAME_NS = 5_000_000  # packets less far apart are of one picture
_SILENCE_NS = 200_000_000  # what follows begins a talk spurt (RFC 3551 section 4.1)
_NTP_S = 2_208_988_800  # from 1900 to 1970
_PACKETS_PER_S, _OCTETS = 50, 160  # G.711 as RFC 3551 has it by default, where the media are in another flow
_SENDER, _RECEIVER, _BLOCK, _LEAST_SDES = 28, 8, 24, 12  # octets of reports and of a description
_CNAME, _NOTE = 1, 7
_ITEM = 257  # octets of the longest item of a description


class Choices(Protocol):
    """
    What the user may choose; see `rules.Options`.
    """

    payload_type: int | None
    clock_hz: int | None
    rtcp_interval_s: float


@attrs.frozen(kw_only=True, eq=False)
class Headers:
    """
    The RTP headers that packets ought to have.

    media
    new       bool[n]  the whole header is new
    control   bool[n]  shall be RTCP
    moved     str[n]   the rule for which sequence number or time stamp was moved, "" for none
    counted   bool[n]  RTP of the unit's most frequent source, new ones included
    source, sequence, stamp, second  int64[n]  second: marker and payload type
    """

    media: Media
    new: Array
    control: Array
    moved: Array
    counted: Array
    source: Array
    sequence: Array
    stamp: Array
    second: Array

    @classmethod
    def of(
        cls,
        media: Media,
        faults: Mapping[str, Array],
        off: Set[str],
        choices: Choices,
        rng: np.random.Generator,
    ) -> Headers:
        """
        Decide.

        faults  what `find_faults` found and is to be mended
        off     rules in whose name nothing is mended
        """
        m, n = media, len(media)
        unsound = faults["rtp.version"] | faults["rtp.header"] | faults["rtp.source"]
        sound = m.rtp & ~unsound & ~m.control
        for rule, far in (("rtp.sequence", sequence_far(m)), ("rtp.timestamp", stamps_far(m))):
            single, _ = breaks(m, sound, far)
            unsound |= single & faults[rule]
        sound &= ~unsound
        control = faults["rtp.rtcp"] | unsound & m.control
        unsound &= ~m.control & ~control
        control |= _due(m, unsound, choices.rtcp_interval_s)
        new = unsound & ~control

        sequence, stamp, moved = _without_jumps(m, sound, new, off)
        units = int(m.unit.max(initial=-1)) + 1
        main = rng.integers(1, 1 << 32, units)
        keys, count = np.unique(m.unit[sound] << 32 | m.sources[sound], return_counts=True)
        keys = keys[np.argsort(count, kind="stable")]
        main[keys >> 32] = keys & 0xFFFFFFFF  # the last of a unit stands: its most frequent
        anchor = sound & (m.sources == main[m.unit])
        counted = anchor | new

        spoken = new | control
        size = np.bincount(m.unit, m.lengths * spoken, units) / np.maximum(np.bincount(m.unit, spoken, units), 1)
        video = (size > _LARGEST_AUDIO)[m.unit]
        kind = np.where(video, _DYNAMIC, _G711) if choices.payload_type is None else np.full(n, choices.payload_type)
        clock = np.where(video, _VIDEO_HZ, _AUDIO_HZ) if choices.clock_hz is None else np.full(n, choices.clock_hz)

        head = np.searchsorted(m.unit, m.unit)
        times, marker = _pace(m, head, video & ~anchor)
        a = _neighbour(head, m.unit, anchor)
        known = a >= 0
        a = np.where(known, a, head)
        kind, clock = np.where(known, m.types[a], kind), np.where(known & (m.clocks_hz[a] > 0), m.clocks_hz[a], clock)
        rank = np.cumsum(counted)
        first, begin = rng.integers(0, 1 << 16, units)[m.unit], rng.integers(0, 1 << 32, units)[m.unit]
        following = np.where(known, sequence[a], first) + rank - rank[a]
        later = np.where(known, stamp[a], begin) + _ticks(times - times[a], clock)
        fresh = ~sound
        return cls(
            media=m,
            new=new,
            control=control,
            moved=moved,
            counted=counted,
            source=np.where(fresh, main[m.unit], m.sources),
            sequence=np.where(fresh, following, sequence) & 0xFFFF,
            stamp=np.where(fresh, later, stamp) & 0xFFFFFFFF,
            second=np.where(new, marker << 7 | kind, m.head[:, 0] & 255),
        )

    def octets(self) -> NDArray[np.uint8]:
        """
        Return the headers: uint8[n, 12].
        """
        first = np.where(self.new, _VERSION << 14, self.media.head[:, 0] & 0xFF00) | self.second
        stamp, source = self.stamp, self.source
        words = (first, self.sequence, stamp >> 16, stamp & 0xFFFF, source >> 16, source & 0xFFFF)
        return np.column_stack(words).astype(">u2").view(np.uint8).reshape(-1, HEADER)

    def reports(self, packets: Array, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """
        Write RTCP compounds into these packets (int[k]): ``(octets, sizes)``. Each is a report, of what was sent and of
        what the other side sent, as far as there is room, and a description of the sender (RFC 3550 section 6) that
        fills it up.
        """
        m, i = self.media, packets
        sizes = np.maximum((m.lengths[i] + 3) // 4 * 4, _RECEIVER + _LEAST_SDES)
        out = np.zeros((len(i), sizes.max(initial=_SENDER + _BLOCK)), np.uint8)
        partner, sender = self._partner(i), sizes >= _SENDER + _LEAST_SDES
        blocks = (partner >= 0) & (sizes >= _SENDER + _BLOCK + _LEAST_SDES)
        report = np.where(sender, _SENDER, _RECEIVER) + np.where(blocks, _BLOCK, 0)
        rows = np.arange(len(i))

        def put(rows: Array, at: Array | int, values: Array | int, octets: int = 4) -> None:
            for k in range(octets):
                out[rows, at + k] = np.broadcast_to(values, len(rows)) >> 8 * (octets - 1 - k) & 255

        put(rows, 0, _VERSION << 6 | blocks, 1)
        put(rows, 1, np.where(sender, SR, RR), 1)
        put(rows, 2, report // 4 - 1, 2)
        put(rows, 4, self.source[i])
        k = np.flatnonzero(sender)
        j = i[k]
        head = np.searchsorted(m.unit, m.unit[j])
        elapsed = (m.times[j] - m.times[head]) * _PACKETS_PER_S // 1_000_000_000
        sent, said = np.cumsum(self.counted), np.cumsum(self.counted * np.maximum(m.lengths - HEADER, 0))
        before = np.where(head > 0, head - 1, -1)
        sent, said = (np.append(total, 0)[j] - np.append(total, 0)[before] for total in (sent, said))
        put(k, 8, m.times[j] // 1_000_000_000 + _NTP_S & 0xFFFFFFFF)
        put(k, 12, (m.times[j] % 1_000_000_000 << 32) // 1_000_000_000)
        put(k, 16, self.stamp[j])
        put(k, 20, np.where(m.control[j], elapsed, sent))
        put(k, 24, np.where(m.control[j], elapsed * _OCTETS, said))
        k = np.flatnonzero(blocks)
        put(k, _SENDER, self.source[partner[k]])
        put(k, _SENDER + 10, self.sequence[partner[k]], 2)

        put(rows, report, _VERSION << 6 | 1, 1)
        put(rows, report + 1, SDES, 1)
        put(rows, report + 2, (sizes - report) // 4 - 1, 2)
        put(rows, report + 4, self.source[i])
        text = sizes - report - 9  # at least one octet of zeros ends the items
        column = np.arange(text.max(initial=0))
        left = text[:, None] - column
        of_item = np.broadcast_to(column % _ITEM, left.shape)
        letters = rng.integers(97, 123, left.shape)
        kind = np.where(column == 0, _CNAME, _NOTE)
        items = np.select([of_item == 0, of_item == 1], [kind, np.minimum(left - 1, _ITEM - 2)], letters)
        row, c = np.nonzero((left > 0) & ~((of_item == 0) & (left == 1)))  # a type alone would be no item
        out[row, report[row] + 8 + c] = items[row, c]
        return out, sizes

    def _partner(self, packets: Array) -> NDArray[np.int64]:
        """
        Return the last packet of the other side before each of these whose source is known: int64[k], -1 for none.
        """
        m, n = self.media, len(self.media)
        rank = np.argsort(np.argsort(m.times, kind="stable"), kind="stable")
        here = np.searchsorted(m.unit * n + rank, (m.unit[packets] ^ 1) * n + rank[packets]) - 1
        known = self.counted | self.control & m.control
        last = np.append(np.maximum.accumulate(np.where(known, np.arange(n), -1)), -1)[here]
        return np.where((last >= 0) & (m.unit[last] == m.unit[packets] ^ 1), last, -1)


def _without_jumps(
    media: Media, sound: Array, new: Array, off: Set[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.str_]]:
    """
    Return ``(sequence, stamp, moved)``, n each: the numbers of the sound packets (bool[n]) as if none had jumped, with
    room for the new ones (bool[n]) between them, and the rule for which each was moved. Where a packet of the unit was
    cut off, and could not be moved, all stay.
    """
    m = media
    sequence, stamp, moved = m.sequence.copy(), m.stamps.copy(), np.full(len(m), "", "U32")
    i = by_source(m, sound)
    key, movable = m.unit[i] << 32 | m.sources[i], ~np.isin(m.unit, m.unit[~m.whole])[i]
    head = np.searchsorted(key, key)
    going_on = 1 + np.diff(np.cumsum(new)[i], prepend=0)
    elapsed = _ticks(np.diff(m.times[i], prepend=0), m.clocks_hz[i])
    for rule, values, far, step in (
        ("rtp.sequence", sequence, sequence_far(m), going_on),
        ("rtp.timestamp", stamp, stamps_far(m), elapsed),
    ):
        jump = breaks(m, sound, far)[1][i] & movable & (rule not in off)
        total = np.cumsum(np.where(jump, step - np.diff(values[i], prepend=0), 0))
        shift = total - total[head]
        values[i] += shift
        moved[i[shift != 0]] = rule
    return sequence, stamp, moved


def _pace(media: Media, head: Array, video: Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """
    Return ``(times, marker)``, n each: when each packet was sampled, which is one time for all of a picture in video
    (bool[n]); and whether it is marked: the last of a picture, the first of a talk spurt.

    head  int64[n]  the first packet of the unit
    """
    n = len(media)
    gap = np.diff(media.times, prepend=0)
    gap[head] = _SILENCE_NS
    begins = gap >= _FRAME_NS
    picture = np.maximum.accumulate(np.where(begins, np.arange(n), 0))
    times = np.where(video, media.times[picture], media.times)
    return times, np.where(video, np.append(begins[1:], True)[:n], gap >= _SILENCE_NS)


def _due(media: Media, new: Array, interval_s: float) -> NDArray[np.bool_]:
    """
    Return bool[n]: of the new packets, the first of each interval but the first.
    """
    due = np.zeros(len(media), bool)
    if interval_s:
        i = np.flatnonzero(new)
        start = media.times[np.searchsorted(media.unit, media.unit[i])]
        number = (media.times[i] - start) // int(interval_s * 1e9)
        due[i[1:]] = (np.diff(number) > 0) & (np.diff(media.unit[i]) == 0)
    return due


def _neighbour(head: Array, unit: Array, anchor: Array) -> NDArray[np.int64]:
    """
    Return the last anchor (bool[n]) of the same unit up to each packet, else the next, else -1.
    """
    n = len(head)
    place = np.arange(n)
    last = np.maximum.accumulate(np.where(anchor, place, -1))
    following = np.minimum.accumulate(np.where(anchor, place, n)[::-1])[::-1]
    beyond = np.append(unit, -1)[following] != unit
    return np.where(last >= head, last, np.where(beyond, -1, following))


def _ticks(time_ns: Array, clock_hz: Array) -> NDArray[np.int64]:
    """
    Return a time as ticks of a clock.
    """
    return (time_ns // 1_000_000_000) * clock_hz + (time_ns % 1_000_000_000 * clock_hz + 500_000_000) // 1_000_000_000
