"""
The whole extension surface, on one page.

A plugin is a module named by an entry point of the group ``netdiffusion``. It implements any of these hooks with
`netdiffusion_core.hookimpl`. Selection by name is a registry look-up, so the order of plugins never matters.

Adding an argument to a hook breaks nobody (an implementation takes those it names); removing one raises
`specs.API_VERSION`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import typer

    from .model import Traffic
    from .specs import BackendSpec, EncoderSpec, EvaluatorSpec, ExecutorSpec, RuleSetSpec

hookspec = pluggy.HookspecMarker("netdiffusion")
hookimpl = pluggy.HookimplMarker("netdiffusion")


# --- registration: once, at start-up; must import nothing heavy -------------------------------------------------


@hookspec
def netdiffusion_register_encoders() -> Sequence[EncoderSpec]:  # type: ignore[empty-body]
    """
    Offer encoders (traffic <-> bits). First-party user: ``netdiffusion-nprint``.
    """


@hookspec
def netdiffusion_register_backends() -> Sequence[BackendSpec]:  # type: ignore[empty-body]
    """
    Offer generative models. First-party users: ``netdiffusion-stable-diffusion``, ``netdiffusion-baselines``.
    """


@hookspec
def netdiffusion_register_rules() -> Sequence[RuleSetSpec]:  # type: ignore[empty-body]
    """
    Offer protocol rule sets. First-party user: ``netdiffusion-inet``.
    """


@hookspec
def netdiffusion_register_evaluators() -> Sequence[EvaluatorSpec]:  # type: ignore[empty-body]
    """
    Offer evaluators. First-party user: ``netdiffusion-evaluators``.
    """


@hookspec
def netdiffusion_register_executors() -> Sequence[ExecutorSpec]:  # type: ignore[empty-body]
    """
    Offer executors (who does the work: processes, machines). First-party user: ``netdiffusion-local``.
    """


@hookspec
def netdiffusion_register_commands(app: typer.Typer) -> None:
    """
    Add sub-commands to ``netdiff``. Called when the command line starts; import heavy modules inside the commands.
    First-party user: ``netdiffusion-stable-diffusion`` (``netdiff train-base``).
    """


# --- input ------------------------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def netdiffusion_open_capture(path: Path) -> Traffic | None:
    """
    Read a capture format that the core does not know. Called once for each input file that is neither pcap nor
    pcapng; return None for a file that is not yours. The first answer stops the search. Flows need not be assembled:
    leave ``flow_of`` at -1 and the flow table empty, and the core assembles them. First-party user:
    ``netdiffusion-nprint`` (nPrint text files).
    """


# --- observers: the run goes on whatever they do; an exception in one is reported as a warning -------------------


@hookspec
def netdiffusion_stage_started(stage: str, folder: Path) -> None:
    """
    A stage of a run begins. `folder` is the run's working folder. First-party user: the command line's progress.
    """


@hookspec
def netdiffusion_stage_finished(stage: str, folder: Path, seconds: float) -> None:
    """
    A stage of a run ended well. First-party user: the command line's progress.
    """


@hookspec
def netdiffusion_run_finished(folder: Path, manifest: Mapping[str, Any]) -> None:
    """
    A run ended well and stands in `folder` under its final name. First-party user: the command line's closing words.
    """
