"""
What a plugin registers: light, frozen descriptions that name their implementation without importing it.

So `netdiff --help` and `netdiff plugins list` know every component and import none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import attrs

API_VERSION = 1
"""The version of hooks and interfaces; a spec written for another one is listed as broken."""

_NAME = re.compile(r"[a-z][a-z0-9-]*")
_TARGET = re.compile(r"[\w.]+:\w+")


def _matches(pattern: re.Pattern[str], example: str) -> Any:
    def check(instance: Any, attribute: Any, value: str) -> None:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"{type(instance).__name__}.{attribute.name} is {value!r}; write it like {example!r}")

    return check


def _names(values: Iterable[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise ValueError(f"names of rule sets are {values!r}; write a tuple: ({values!r},)")
    return tuple(values)


@attrs.frozen(kw_only=True)
class Spec:
    """
    name     what the user types: ``--encoder nprint``
    target   ``"module:Class"``, imported when the component is chosen
    summary  one line for `netdiff plugins list`
    api      the `API_VERSION` that it was written for
    """

    name: str = attrs.field(validator=_matches(_NAME, "nprint"))
    target: str = attrs.field(validator=_matches(_TARGET, "my_package.encoder:MyEncoder"))
    summary: str
    api: int = API_VERSION


@attrs.frozen(kw_only=True)
class EncoderSpec(Spec):
    """
    Describes an `interfaces.Encoder`.
    """


@attrs.frozen(kw_only=True)
class BackendSpec(Spec):
    """
    Describes an `interfaces.Backend`.

    baseline  True for a trivial generator that exists to be compared with
    """

    baseline: bool = False


@attrs.frozen(kw_only=True)
class RuleSetSpec(Spec):
    """
    Describes an `interfaces.RuleSet`.

    requires   rule sets that must be active and run before this one: tcp requires ipv4
    conflicts  rule sets that must not be active beside this one
    """

    requires: tuple[str, ...] = attrs.field(default=(), converter=_names)
    conflicts: tuple[str, ...] = attrs.field(default=(), converter=_names)


@attrs.frozen(kw_only=True)
class EvaluatorSpec(Spec):
    """
    Describes an `interfaces.Evaluator`.
    """


@attrs.frozen(kw_only=True)
class ExecutorSpec(Spec):
    """
    Describes an `interfaces.Executor`.
    """


KINDS: dict[str, type[Spec]] = {
    "encoder": EncoderSpec,
    "backend": BackendSpec,
    "rules": RuleSetSpec,
    "evaluator": EvaluatorSpec,
    "executor": ExecutorSpec,
}
"""The kinds of component, by the word that the command line and the configuration use."""
