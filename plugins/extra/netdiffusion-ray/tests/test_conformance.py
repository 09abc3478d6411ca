"""
The core's conformance kit for this distribution's component.
"""

from __future__ import annotations

from netdiffusion_core.testing import ExecutorConformance
from netdiffusion_ray.plugin import RAY


class TestRay(ExecutorConformance):
    spec = RAY
