"""
The core's conformance kit for this distribution's component.
"""

from __future__ import annotations

from typing import ClassVar

from netdiffusion_core.testing import ExecutorConformance
from netdiffusion_local.plugin import LOCAL


class TestLocal(ExecutorConformance):
    spec = LOCAL
    options: ClassVar[dict[str, int]] = {"processes": 2}


class TestThisProcessAlone(ExecutorConformance):
    spec = LOCAL
    options: ClassVar[dict[str, int]] = {"processes": 1}
