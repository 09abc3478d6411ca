"""
NetDiffusion: synthetic network traffic from labelled captures.

``netdiffusion_core.run(RunConfig(...))`` is the main job; the command `netdiff` is a thin shell over it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .hookspecs import hookimpl
from .specs import API_VERSION

if TYPE_CHECKING:
    from .config import RunConfig
    from .pipeline import run

__version__ = "0.1.0"
__all__ = ["API_VERSION", "RunConfig", "__version__", "hookimpl", "run"]


def __getattr__(name: str) -> Any:
    # `netdiff --help` imports this package: numpy and the pipeline come only when somebody asks for them.
    if name == "RunConfig":
        from .config import RunConfig

        return RunConfig
    if name == "run":
        from .pipeline import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
