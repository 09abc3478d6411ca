"""
The conformance kit on the backend.
"""

from __future__ import annotations

from netdiffusion_autoregressive.plugin import netdiffusion_register_backends
from netdiffusion_core.testing import BackendConformance


class TestAutoregressive(BackendConformance):
    spec = netdiffusion_register_backends()[0]
    options = {"steps": 2, "width": 32, "head_width": 32, "layers": 1, "rows_per_step": 64}  # noqa: RUF012
