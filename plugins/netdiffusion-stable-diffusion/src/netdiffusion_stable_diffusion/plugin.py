"""
What this distribution registers. Imports nothing heavy: `netdiff --help` reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netdiffusion_core import hookimpl
from netdiffusion_core.specs import BackendSpec

if TYPE_CHECKING:
    import typer


@hookimpl
def netdiffusion_register_backends() -> list[BackendSpec]:
    return [
        BackendSpec(
            name="stable-diffusion",
            target="netdiffusion_stable_diffusion.backend:StableDiffusion",
            summary="Stable Diffusion on packet images: LoRA fine-tuning, ControlNet on Canny maps",
        )
    ]


@hookimpl
def netdiffusion_register_commands(app: typer.Typer) -> None:
    from .train import train_base

    app.command("train-base")(train_base)
