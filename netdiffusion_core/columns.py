"""
Arrays on disk that grow while they are written and are mapped when they are read, so that memory holds a piece of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray


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
