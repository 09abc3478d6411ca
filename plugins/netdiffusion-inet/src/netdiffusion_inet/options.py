"""
The options of TCP and IPv4 headers: walk the list of all packets at once, and blank what is malformed.

Both lists are written alike (RFC 9293 section 3.1, RFC 791 section 3.1): 0 ends the list, 1 does nothing, any other
kind is followed by a length that counts both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MOST_BYTES = 40  # of a header of 60 bytes, the most that its length field can tell
END, NOP = 0, 1
MSS, WINDOW_SCALE, SACK_PERMITTED, SACK, TIMESTAMPS = 2, 3, 4, 5, 8

TCP_LENGTHS: Mapping[int, tuple[int, ...]] = {
    MSS: (4,),  # RFC 9293
    WINDOW_SCALE: (3,),  # RFC 7323
    SACK_PERMITTED: (2,),  # RFC 2018
    SACK: (10, 18, 26, 34),
    TIMESTAMPS: (10,),  # RFC 7323
    19: (18,),  # MD5 signature, RFC 2385
    28: (4,),  # user timeout, RFC 5482
    34: (2, *range(6, 19, 2)),  # fast open cookie, RFC 7413
}
IPV4_LENGTHS: Mapping[int, tuple[int, ...]] = {148: (4,)}  # router alert, RFC 2113


def table(lengths: Mapping[int, tuple[int, ...]]) -> NDArray[np.bool_]:
    """
    Return bool[256, 256]: whether an option of this kind may have this length.
    """
    legal = np.zeros((256, 256), bool)
    for kind, sizes in lengths.items():
        legal[kind, list(sizes)] = True
    return legal


def walk(options: Array, sizes: Array, legal: Array, mend: Array | None = None) -> tuple[Array, Array]:
    """
    Follow each packet's list of options. Returns ``(options, kinds)``.

    options  uint8[n, w]: a copy in which what cannot be understood is NOP and what follows the end of the list is 0
    kinds    uint8[n, w]: the kind at each byte where an option begins, 0 elsewhere

    sizes  int64[n]: bytes of options of each packet
    legal  bool[256, 256], see `table`; an option of a kind or length that is not there is blanked
    mend   int64[256]: the length of kinds whose length byte is written over if it is wrong, 0 for others
    """
    n, width = options.shape
    padded = np.zeros((n, width + 1), np.uint8)  # a column more: the last byte may lack its length
    padded[:, :width] = options
    options, kinds = padded, np.zeros((n, width), np.uint8)
    column = np.arange(width + 1)
    i = np.flatnonzero(sizes > 0)
    here, left = np.zeros(len(i), np.int64), sizes[i]
    while len(i):
        kind, length = options[i, here], options[i, here + 1].astype(np.int64)
        if mend is not None:
            right = mend[kind]
            length = np.where((right > 0) & (right <= left), right, length)
            options[i, here + 1] = length
        fits = length <= left
        known = legal[kind, length] & fits
        kinds[i, here] = kind * known
        blank, end = ~known & (kind > NOP), kind == END
        step = np.where(known | blank & fits & (length >= 2), length, 1)
        if blank.any():
            inside = (column >= here[blank, None]) & (column < (here + step)[blank, None])
            options[i[blank]] = np.where(inside, NOP, options[i[blank]])
        if end.any():
            options[i[end]] = np.where(column >= here[end, None], 0, options[i[end]])
            step[end] = left[end]
        on = step < left
        i, here, left = i[on], (here + step)[on], (left - step)[on]
    return options[:, :-1], kinds


def extent(options: Array, kinds: Array, chosen: Array) -> NDArray[np.bool_]:
    """
    Return bool[n, w]: the bytes of the options that begin where `chosen` holds.
    """
    row, column = np.ogrid[: len(options), : options.shape[1]]
    begin = np.maximum.accumulate(np.where(kinds > NOP, column, 0), axis=1)
    length = options[row, np.minimum(begin + 1, options.shape[1] - 1)]
    return (chosen & (kinds > NOP))[row, begin] & (column < begin + length)


def squeeze(options: Array, sizes: Array, gone: Array) -> tuple[Array, Array]:
    """
    Take out the bytes where `gone`, bool[n, w], holds. What follows moves up, and the end of the list is marked.
    Returns ``(options, sizes)``, the sizes in whole words.
    """
    row, column = np.ogrid[: len(options), : options.shape[1]]
    gone = gone & (column < sizes[:, None])
    options = options[row, np.argsort(gone, axis=1, kind="stable")]
    kept = sizes - gone.sum(1)
    return np.where(column < kept[:, None], options, END).astype(np.uint8), (kept + 3) // 4 * 4


def padded(options: Array, sizes: Array, least: Array) -> tuple[Array, Array]:
    """
    Fill up to this many bytes of options, int64[n], with the end of the list (RFC 9293 section 3.1). Returns
    ``(options, sizes)``.
    """
    sizes = np.maximum(sizes, least)
    return np.pad(options, ((0, 0), (0, max(int(sizes.max(initial=0)) - options.shape[1], 0)))), sizes


def idle(options: Array, sizes: Array, legal: Array) -> NDArray[np.bool_]:
    """
    Return bool[n, w]: NOPs that align nothing: of every four in a row all four, so that what follows stays aligned.
    """
    column = np.arange(options.shape[1])
    surplus = np.zeros(options.shape, bool)
    i = np.flatnonzero((options == NOP) @ np.ones(len(column), np.uint8) >= 4)
    if not len(i):
        return surplus
    options, sizes = options[i], sizes[i]
    kinds = walk(options, sizes, legal)[1]
    nop = (options == NOP) & ~extent(options, kinds, kinds > NOP) & (column < sizes[:, None])
    before = np.maximum.accumulate(np.where(nop, -1, column), axis=1)
    behind = np.minimum.accumulate(np.where(nop, len(column), column)[:, ::-1], axis=1)[:, ::-1]
    surplus[i] = nop & (column - before <= (behind - before - 1) // 4 * 4)
    return surplus


def append(options: Array, sizes: Array, rows: Array, extra: Array, legal: Array) -> tuple[Array, Array]:
    """
    Add the bytes `extra` behind the options of these rows, or instead of them where there is no room. Returns
    ``(options, sizes)``.
    """
    if not len(rows):
        return options, sizes
    sizes, room = sizes.copy(), np.where(sizes[rows] + len(extra) <= MOST_BYTES, sizes[rows], 0)
    wider = room.max() + len(extra) - options.shape[1]
    options = np.pad(options, ((0, 0), (0, max(wider, 0))))
    kinds = walk(options[rows], sizes[rows], legal)[1]
    options[rows] = np.where(extent(options[rows], kinds, kinds > NOP), options[rows], NOP)
    options[rows[:, None], room[:, None] + np.arange(len(extra))] = extra
    sizes[rows] = room + len(extra)
    return options, sizes


def find(kinds: Array, kind: int) -> NDArray[np.int64]:
    """
    Return where the first option of this kind begins, -1 where there is none: int64[n].
    """
    at = np.full(len(kinds), -1)
    rows, columns = np.nonzero(kinds == kind)
    at[rows[::-1]] = columns[::-1]  # the first stands
    return at
