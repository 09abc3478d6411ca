"""
What this distribution offers: the encoder ``nprint``, and nPrint's text files as input.
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
    Read nPrint text (``*.npt``, ``*.nprint``).
    """
    if path.suffix not in (".npt", ".nprint"):
        return None
    from .text import read_text

    return read_text(path)
