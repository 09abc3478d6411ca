"""
Arrays on disk that grow while they are written and are mapped when they are read, so that memory holds a piece of them.

What is known of each packet of a large capture is worked on in such arrays, piece by piece.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from .errors import RunError

SPOOLED_BYTES = 1 << 23
"""A `Spool` of more bytes lies on disk."""

PIECE_ROWS = 1 << 18
"""Rows of long arrays that are worked on at a time, so that temporaries stay small."""


class Column:
    """
    A .npy file that rows are appended to. It can be read after `close`.
    """

    def __init__(self, path: Path, dtype: Any, width: tuple[int, ...] = ()) -> None:
        """
        width  the shape of one row
        """
        self._dtype, self._width, self._rows = np.dtype(dtype), width, 0
        self._file = path.open("xb")
        self._head()

    def append(self, rows: NDArray[Any]) -> None:
        """
        Write rows behind those that are there: dtype[n, *width].
        """
        rows = np.ascontiguousarray(rows, self._dtype)
        self._file.write(rows.reshape(-1).view(np.uint8).data)
        self._rows += len(rows)

    def close(self) -> None:
        """
        Write into the head how many rows there are, for which NumPy leaves room.
        """
        self._file.seek(0)
        self._head()
        self._file.close()

    def _head(self) -> None:
        shape = (self._rows, *self._width)
        head = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._file, head)


def mapped(path: Path) -> NDArray[Any]:
    """
    Map a .npy file. Raises what `numpy.load` does.
    """
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


class Spool:
    """
    An array that rows are appended to: in memory while it is small, then in a nameless file of TMPDIR.
    """

    def __init__(self, dtype: Any) -> None:
        self._dtype, self._octets = np.dtype(dtype), bytearray()
        self._file: IO[bytes] | None = None

    def append(self, rows: NDArray[Any]) -> None:
        """
        Put rows behind those that are there. Raises RunError when the disk does not take them.
        """
        octets = np.ascontiguousarray(rows, self._dtype).view(np.uint8).data
        try:
            if self._file is None and len(self._octets) + len(octets) > SPOOLED_BYTES:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
                self._file.write(self._octets)
            if self._file is None:
                self._octets += octets
            else:
                self._file.write(octets)
        except OSError as error:
            raise _no_space() from error

    def array(self) -> NDArray[Any]:
        """
        Return all rows, which may be changed: dtype[n]. Nothing can be appended from then on.
        """
        if self._file is None:
            return np.frombuffer(self._octets, self._dtype)
        try:
            self._file.flush()
        except OSError as error:
            raise _no_space() from error
        self._octets = bytearray()
        return np.frombuffer(mmap.mmap(self._file.fileno(), 0), self._dtype)


def _no_space() -> RunError:
    place = tempfile.gettempdir()
    return RunError(f"what is known of the packets does not fit into {place}: free some space, or set TMPDIR")


def spooled(dtype: Any, parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """
    Join one-dimensional arrays in a `Spool`, one behind the other.
    """
    spool = Spool(dtype)
    for part in parts:
        spool.append(part)
    return spool.array()


def filled(rows: int, value: Any, dtype: Any) -> NDArray[Any]:
    """
    Return dtype[rows] of one value, to be changed, in a `Spool` where these are many.
    """
    if rows <= PIECE_ROWS:
        return np.full(rows, value, dtype)
    return spooled(dtype, (np.full(piece.stop - piece.start, value, dtype) for piece in pieces(rows)))


def taken(array: NDArray[Any], rows: NDArray[Any] | slice) -> NDArray[Any]:
    """
    Return ``array[rows]``, in a `Spool` where these are many.

    rows  int[n] or a slice
    """
    if isinstance(rows, slice) or len(rows) <= PIECE_ROWS:
        return array[rows]
    return spooled(array.dtype, (array[rows[piece]] for piece in pieces(len(rows))))


def grouped(
    keys: NDArray[Any], groups: int, times: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    Return ``(order, starts)``: the rows of group i, by time if that is given, are ``order[starts[i]:starts[i + 1]]``;
    rows of the same time stay in their order.

    keys  int[rows]  the group of each row, -1 for none
    """
    starts = np.zeros(groups + 1, np.int64)
    for piece in pieces(len(keys)):
        starts[1:] += np.bincount(keys[piece][keys[piece] >= 0], minlength=groups)
    np.cumsum(starts, out=starts)
    order, place = filled(int(starts[-1]), 0, np.int64), starts[:-1].copy()
    for piece in pieces(len(keys)):
        rows = np.argsort(keys[piece], kind="stable")
        rows = rows[np.searchsorted(keys[piece][rows], 0) :]
        group = keys[piece][rows]
        heads = np.flatnonzero(np.diff(group, prepend=-1))
        counts = np.diff(heads, append=len(group))
        order[place[group] + np.arange(len(group)) - np.repeat(heads, counts)] = piece.start + rows
        place[group[heads]] += counts
    if times is None:
        return order, starts
    for first, last in cut(starts, PIECE_ROWS):
        rows = order[starts[first] : starts[last]]
        moments, group = times[rows], np.repeat(np.arange(first, last), np.diff(starts[first : last + 1]))
        if ((np.diff(moments) < 0) & (np.diff(group) == 0)).any():
            rows[:] = rows[np.lexsort((moments, group))]
    return order, starts


def argsort(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """
    Return ``np.argsort(values, kind="stable")``, in a `Spool` where it is long.
    """
    if len(values) <= PIECE_ROWS:
        return np.argsort(values, kind="stable")
    least, bins = int(values.min()), len(values) // PIECE_ROWS + 1
    width = (int(values.max()) - least) // bins + 1
    bin_of = spooled(np.int32, ((values[piece] - least) // width for piece in pieces(len(values))))
    return grouped(bin_of, bins, values)[0]


def pieces(rows: int) -> Iterator[slice]:
    """
    Cut so many rows into pieces of `PIECE_ROWS`.
    """
    return (slice(first, min(first + PIECE_ROWS, rows)) for first in range(0, rows, PIECE_ROWS))


def cut(starts: NDArray[np.int64], rows: int, groups: int | None = None) -> Iterator[tuple[int, int]]:
    """
    Cut groups of rows into runs, from one group to before another, of so many rows and groups at most; a group that has
    more rows is a run of its own.

    starts  int64[groups+1]: where the rows of each group begin
    """
    first, every = 0, len(starts) - 1
    while first < every:
        within = int(np.searchsorted(starts, starts[first] + rows, side="right")) - 1
        last = min(max(within, first + 1), first + (groups or every), every)
        yield first, last
        first = last
