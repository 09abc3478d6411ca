"""
What this distribution registers. Imports nothing heavy: `netdiff --help` reads it.
"""

from __future__ import annotations

from netdiffusion_core import hookimpl
from netdiffusion_core.specs import BackendSpec


@hookimpl
def netdiffusion_register_backends() -> list[BackendSpec]:
    """
    Offer ``autoregressive``.
    """
    return [
        BackendSpec(
            name="autoregressive",
            target="netdiffusion_autoregressive.backend:Autoregressive",
            summary="a small causal transformer over packet fields, trained from scratch",
        )
    ]
