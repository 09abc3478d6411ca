"""
NetDiffusion's images: one row of pixels a packet, one pixel a bit of the 1088 of `layout.PAPER`.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from netdiffusion_core.errors import DataError
from netdiffusion_core.model import MISSING, Traffic

from .layout import PAPER
from .text_reader import has_ip_header, one_flow, warn_of_rows_left_out

IMAGE_ROWS = 1024
"""The height of NetDiffusion's images, so the most packets in one."""

_MAX_ROWS = 16 * IMAGE_ROWS  # more would only fill the memory
_COLOURS = np.array([[0, 0, 255, 255], [0, 255, 0, 255], [255, 0, 0, 255]], np.uint8)  # of -1, 0, 1


def write_image(file: BinaryIO, parts: Iterable[NDArray[np.int8]]) -> None:
    """
    Write rows of bits, int8[packets, 1088], as a PNG image in RGBA: 1 is red, 0 green, an absent bit blue. What is left
    of the 1024 rows at the bottom is blue.
    """
    rows = np.full((IMAGE_ROWS, PAPER.width), MISSING, np.int8)
    packets = np.concatenate([rows[:0], *parts])
    rows[: len(packets)] = packets
    Image.fromarray(_COLOURS[rows + 1]).save(file, "PNG")


def read_image(path: Path) -> Traffic:
    """
    Read a PNG image as one flow with drawn addresses. Each pixel is what it is nearest to, red, green or blue: those of
    generated images are not exact. Rows without any bit at the bottom are no packets.

    Raises DataError for a file that is no image of 1088 columns (or 1089: one with NetDiffusion's row numbers before).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG",)) as image:
                _check(path, image)
                red, green, blue = np.moveaxis(np.asarray(image)[:, -PAPER.width :, :3], 2, 0)
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is no PNG image; save NetDiffusion's images as PNG") from error
    except (
        OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:  # fmt: skip
        raise DataError(f"{path} cannot be read as a PNG image: {error}; fetch or save it again") from error
    bits = np.where(green >= blue, np.int8(0), np.int8(MISSING))
    bits[(red >= green) & (red >= blue)] = 1
    present = np.flatnonzero((bits != MISSING).any(1))
    bits = bits[: present[-1] + 1 if len(present) else 0]
    has_ip = has_ip_header(bits)
    warn_of_rows_left_out(path, len(bits) - has_ip.sum(), len(bits))
    return one_flow(bits[has_ip])


def _check(path: Path, image: Any) -> None:
    width, height = image.size
    if width not in (PAPER.width, PAPER.width + 1) or height > _MAX_ROWS or image.mode not in ("RGB", "RGBA"):
        raise DataError(
            f"{path} is no image of packets: it has {width} x {height} pixels in {image.mode}, and NetDiffusion's have "
            f"{PAPER.width} columns, at most {_MAX_ROWS} rows, and RGB or RGBA"
        )
