"""
What this distribution offers. Imported whenever `netdiff` starts: keep NumPy and the like out of here.
"""

from __future__ import annotations

from collections.abc import Sequence

from netdiffusion_core import hookimpl
from netdiffusion_core.specs import BackendSpec

NEWPLUGIN = BackendSpec(
    name="newplugin",
    target="netdiffusion_newplugin.backend:NewpluginBackend",
    summary="each bit by the same bit of the packet before: a Markov chain",
)


@hookimpl
def netdiffusion_register_backends() -> Sequence[BackendSpec]:
    """
    Offer the backend ``newplugin``.
    """
    return [NEWPLUGIN]
