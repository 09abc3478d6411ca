"""
Flows as the paper draws them: one pixel a bit, one row a packet, red 1, green 0, blue -1 (header absent).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..model import Layout

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = np.array([(0, 0, 255), (0, 255, 0), (255, 0, 0)], np.uint8)
"""RGB of the values -1, 0 and 1, in this order."""


def packet_image(rows: NDArray[np.int8], scale: int = 1) -> Image:
    """
    Return rows of bits (int8[packets, columns]) as a palette image, each bit `scale` pixels wide and high.
    """
    from PIL import Image

    picture = Image.fromarray((rows + 1).astype(np.uint8).repeat(scale, 0).repeat(scale, 1))
    picture.putpalette(COLOURS.tobytes())
    return picture


def render_png(rows: NDArray[Any], layout: Layout, path: Path | BinaryIO, scale: int = 1) -> None:
    """
    Write one flow as a lossless RGB PNG; at scale 1 the pixels are exactly the bits.

    Raises DataError when the rows are not packets of this layout.
    """
    if rows.ndim != 2 or rows.shape[1] != layout.width or not len(rows):
        raise DataError(
            f"a packet image of layout {layout.name} needs rows of {layout.width} columns and at least one packet; "
            f"got an array of shape {rows.shape}"
        )
    packet_image(rows, scale).convert("RGB").save(path, format="PNG", optimize=True)
