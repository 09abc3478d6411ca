"""
What this distribution offers: the encoder ``nprint``, and nPrint's text and NetDiffusion's images as input.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from netdiffusion_core import hookimpl
from netdiffusion_core.specs import EncoderSpec

if TYPE_CHECKING:
    from netdiffusion_core.model import Traffic


@hookimpl
def netdiffusion_register_encoders() -> Sequence[EncoderSpec]:
    """
    Offer the encoder ``nprint``.
    """
    return [
        EncoderSpec(
            name="nprint",
            target="netdiffusion_nprint.encoder:NprintEncoder",
            summary="one ternary value a header bit (nPrint), plus direction and inter-arrival time",
        )
    ]


@hookimpl
def netdiffusion_open_capture(path: Path) -> Traffic | None:
    """
    Read nPrint's text (``*.npt``, ``*.nprint``; ``*.csv`` and ``*.txt`` whose first line names its columns) and
    NetDiffusion's images (``*.png``, 1088 pixels wide, or 1089 with the row's number before).
    """
    suffix = path.suffix.lower()
    if suffix == ".png" and _width(path) in (1088, 1089):
        from .image import read_image

        return read_image(path)
    if suffix in (".npt", ".nprint") or (suffix in (".csv", ".txt") and _names_columns(path)):
        from .text_reader import read_text

        return read_text(path)
    return None


def _width(path: Path) -> int:
    """
    Return the width of a PNG image, 0 for another file: other pictures may lie beside captures.
    """
    with path.open("rb") as file:
        head = file.read(24)
    return int.from_bytes(head[16:20]) if head.startswith(b"\x89PNG\r\n\x1a\n") else 0


def _names_columns(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.readline(1 << 16)
    return b",ipv4_ver_0," in head or b",ipv6_ver_0," in head
