"""
The conformance kit on the encoder, with each of its layouts.
"""

from __future__ import annotations

from netdiffusion_core.testing import EncoderConformance
from netdiffusion_nprint.plugin import netdiffusion_register_encoders

(NPRINT,) = netdiffusion_register_encoders()


class TestTrace(EncoderConformance):
    spec = NPRINT


class TestPaper(EncoderConformance):
    spec = NPRINT
    options = {"layout": "paper"}  # noqa: RUF012
