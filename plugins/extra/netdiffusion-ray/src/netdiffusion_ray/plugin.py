"""
Registers the executor.
"""

from __future__ import annotations

from collections.abc import Sequence

from netdiffusion_core import hookimpl
from netdiffusion_core.specs import ExecutorSpec

RAY = ExecutorSpec(
    name="ray",
    target="netdiffusion_ray.executor:RayCluster",
    summary="a Ray cluster; models sample there too",
)


@hookimpl
def netdiffusion_register_executors() -> Sequence[ExecutorSpec]:
    """
    Offer ``ray``.
    """
    return [RAY]
