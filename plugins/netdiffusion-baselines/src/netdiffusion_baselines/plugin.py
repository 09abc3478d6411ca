"""
Registers the baseline backends.
"""

from __future__ import annotations

from collections.abc import Sequence

from netdiffusion_core import hookimpl
from netdiffusion_core.specs import BackendSpec


@hookimpl
def netdiffusion_register_backends() -> Sequence[BackendSpec]:
    """
    Offer ``bernoulli`` and ``bootstrap``.
    """
    return [
        BackendSpec(
            name="bernoulli",
            target="netdiffusion_baselines.bernoulli:Bernoulli",
            summary="independent bits: right one by one, wrong together",
            baseline=True,
        ),
        BackendSpec(
            name="bootstrap",
            target="netdiffusion_baselines.bootstrap:Bootstrap",
            summary="copies of training flows: upper bound of fidelity, no novelty",
            baseline=True,
        ),
    ]
