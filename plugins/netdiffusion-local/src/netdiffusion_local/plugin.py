"""
Registers the executor.
"""

from __future__ import annotations

from collections.abc import Sequence

from netdiffusion_core import hookimpl
from netdiffusion_core.specs import ExecutorSpec

LOCAL = ExecutorSpec(
    name="local",
    target="netdiffusion_local.executor:LocalProcesses",
    summary="processes on this machine",
)


@hookimpl
def netdiffusion_register_executors() -> Sequence[ExecutorSpec]:
    """
    Offer ``local``.
    """
    return [LOCAL]
