"""
The conformance kit on the backend, with a small base.
"""

from __future__ import annotations

from typing import ClassVar

import pytest

from netdiffusion_core.model import Encoded
from netdiffusion_core.testing import BackendConformance
from netdiffusion_stable_diffusion.plugin import netdiffusion_register_backends

(STABLE_DIFFUSION,) = netdiffusion_register_backends()


class TestStableDiffusion(BackendConformance):
    spec = STABLE_DIFFUSION
    rows: ClassVar[Encoded]

    @pytest.fixture(autouse=True)
    def _with_a_small_base(self, packet_base, data):
        small = {"steps": 4, "rows_per_step": 128, "sampling_steps": 2, "threads": 1, "lora_rank": 2, "device": "cpu"}
        type(self).options = {**small, "base": str(packet_base)}
        type(self).rows = data

    @classmethod
    def data(cls) -> Encoded:
        """
        Rows of the layout that the small base knows.
        """
        return cls.rows
