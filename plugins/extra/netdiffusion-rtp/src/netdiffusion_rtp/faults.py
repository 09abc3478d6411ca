"""
What is wrong with media: in each packet, and between those of a source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture.dissect import uint

from .media import HEADER, RR, RTCP_HEADER, RTCP_TYPES, SR, TYPES_OF_RTCP, Media, by_source, in_order, signed

Array = NDArray[Any]
Far = Callable[[Array, Array], Array]

_LATEST_S = 2.0
_REPORT_BLOCK = 24
_ONE_BYTE, _TWO_BYTES = 0xBEDE, 0x1000  # RFC 8285 sections 4.2, 4.3


def find_faults(media: Media) -> dict[str, NDArray[np.bool_]]:
    """
    Return for each rule bool[n]: the packets that break it. What was not captured is not judged.
    """
    m = media
    visible = m.captured >= np.minimum(np.maximum(m.lengths, 1), HEADER)
    headed = m.rtp | m.rtcp
    strayed = m.ours & ~m.other & ~np.where(m.control, m.rtcp, headed)
    header = m.rtp & (_overfull(m) | (m.types >= TYPES_OF_RTCP[0]) & (m.types < TYPES_OF_RTCP[1]))
    sound = m.rtp & ~header & ~strayed
    key = m.unit << 32 | m.sources
    sources, count = np.unique(key[sound], return_counts=True)
    several, spoken = sources[count > 1], np.bincount(m.unit, sound | m.whole & ~m.other & ~m.rtcp)
    single = sound & ~np.isin(key, several) & (spoken[m.unit] > 1)
    strayed |= ~m.is_two & ~m.other & (m.lengths >= HEADER) & np.isin(key, several)  # its SSRC gives it away
    sound &= ~single
    return {
        "rtp.version": strayed & visible,
        "rtp.header": header,
        "rtp.source": single,
        "rtp.sequence": np.logical_or(*breaks(m, sound, sequence_far(m))),
        "rtp.timestamp": np.logical_or(*breaks(m, sound, stamps_far(m))),
        "rtp.rtcp": m.rtcp & _misfit(m),
    }


def sequence_far(media: Media) -> Far:
    """
    Return a function that tells whether the sequence number of one packet (int[k]) is far from that of another.
    """
    return lambda a, b: ~in_order(signed(media.sequence[b] - media.sequence[a], 16))


def stamps_far(media: Media) -> Far:
    """
    Return a function that tells the same of time stamps, against the time of arrival.
    """

    def far(a: Array, b: Array) -> Array:
        clock_hz = media.clocks_hz[b]
        judged = (clock_hz > 0) & (media.types[a] == media.types[b])
        late = signed(media.stamps[b] - media.stamps[a], 32) - (media.times[b] - media.times[a]) / 1e9 * clock_hz
        return judged & (np.abs(late) > _LATEST_S * clock_hz)

    return far


def breaks(media: Media, chosen: Array, far: Far) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """
    Return ``(single, jump)``, bool[n] each: packets of the chosen that are far from the one before and the one after of
    their source, while these two are not far from each other; and others that are far from the one before.
    """
    i = by_source(media, chosen)
    key = media.unit[i] << 32 | media.sources[i]
    away = np.zeros(len(i) + 1, bool)
    away[1:-1] = (key[1:] == key[:-1]) & far(i[:-1], i[1:])
    around = np.zeros(len(i) + 1, bool)
    around[1:-2] = (key[2:] == key[:-2]) & ~far(i[:-2], i[2:])
    alone = away[:-1] & away[1:] & around[:-1]
    jumps = away[:-1] & ~alone
    jumps[1:] &= ~alone[:-1]
    single, jump = np.zeros(len(media), bool), np.zeros(len(media), bool)
    single[i], jump[i] = alone, jumps
    return single, jump


def _overfull(media: Media) -> NDArray[np.bool_]:
    """
    Return bool[n]: contributing sources and extension of an RTP packet take more than it has. Only an extension that
    says to be one of RFC 8285 is judged: others are encrypted, their length too. So may padding be (RFC 3711 section
    3.1).
    """
    m = media
    first = m.head[:, 0] >> 8
    size = HEADER + 4 * (first & 15)
    i = np.flatnonzero(m.rtp & (first & 16 > 0) & (size + 4 <= m.captured))
    profile, words = (uint(m.data, m.at[i] + size[i] + at, 2) for at in (0, 2))
    size[i] += np.where((profile == _ONE_BYTE) | (profile & 0xFFF0 == _TWO_BYTES), 4 + 4 * words, 4)
    return size > m.lengths


def _misfit(media: Media) -> NDArray[np.bool_]:
    """
    Return bool[n]: the first packet of an RTCP compound is longer than the datagram or has no room for its reports; or
    the others, which tell the same sender, do not fill it. Where the second tells another, what follows is encrypted
    (SRTCP: RFC 3711 section 3.4), and is not judged.
    """
    m = media
    first, kind, size = m.head[:, 0] >> 8, m.head[:, 0] & 255, 4 + 4 * m.head[:, 1]
    least = np.select([kind == SR, kind == RR], [28, 8], RTCP_HEADER) + np.where(
        (kind == SR) | (kind == RR), _REPORT_BLOCK * (first & 31), 0
    )
    wrong = (size > m.lengths) | (size < least)
    p = m.at + size
    end = m.at + m.lengths
    i = np.flatnonzero(m.rtcp & ~wrong & m.whole & (p < end))
    short = i[p[i] + 8 > end[i]]
    wrong[short] |= end[short] - p[short] < 4  # too little for anything, encrypted or not
    i = i[p[i] + 8 <= end[i]]
    sender = uint(m.data, m.at[i] + 4, 4)
    i = i[(uint(m.data, p[i] + 4, 4) == sender) & (m.data[p[i]] >> 6 == 2)]
    while len(i):
        fits = p[i] + 4 <= end[i]
        wrong[i[~fits]] = True
        i = i[fits]
        kind = m.data[p[i] + 1]
        plain = (m.data[p[i]] >> 6 == 2) & (kind >= RTCP_TYPES[0]) & (kind < RTCP_TYPES[1])
        p[i] += 4 + 4 * uint(m.data, p[i] + 2, 2)
        wrong[i] |= ~plain | (p[i] > end[i])
        i = i[~wrong[i] & (p[i] < end[i])]
    return wrong
