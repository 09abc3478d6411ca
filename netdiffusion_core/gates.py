"""
Gates: what a figure must reach, such as ``utility.macro_f1>=0.8``, for use in continuous integration.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from .errors import ConfigError, did_you_mean

_HOLDS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_PATTERN = re.compile(r"\s*([^\s<>=]+)\s*(>=|<=|>|<)\s*([-+]?\d*\.?\d+(?:e[-+]?\d+)?)\s*", re.IGNORECASE)


@attrs.frozen
class Gate:
    """
    A bound of one figure: ``value relation bound`` must hold. A figure that was not measured (NaN) misses every gate.
    """

    figure: str
    relation: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """
        Read ``utility.macro_f1>=0.8``. Raises ValueError that says how to write it.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(
                f"the gate {text!r} is not a figure, one of {' '.join(_HOLDS)}, and a number; write it like "
                "'utility.macro_f1>=0.8', in quotes on a command line"
            )
        return cls(match[1], match[2], float(match[3]))

    def holds(self, value: float) -> bool:
        """
        Tell whether a figure passes.
        """
        return bool(_HOLDS[self.relation](value, self.bound))

    def __str__(self) -> str:
        return f"{self.figure} {self.relation} {self.bound:g}"


def parse(texts: Iterable[str]) -> list[Gate]:
    """
    Read several gates. Raises ValueError.
    """
    return [Gate.parse(text) for text in texts]


def require_figures(texts: Sequence[str], known: Sequence[str]) -> None:
    """
    Raise ConfigError for a gate on a figure that nothing measures.
    """
    for gate in parse(texts):
        if gate.figure not in known:
            raise ConfigError(
                f"the gate {gate} cannot be judged: there is no figure {gate.figure!r}."
                f"{did_you_mean(gate.figure, known)} The figures: {', '.join(known) or 'none'}"
            )


def judge(texts: Iterable[str], values: Mapping[str, float]) -> list[dict[str, Any]]:
    """
    Return one row a gate: ``gate``, ``value`` (NaN: not measured), ``holds``, and a ``sentence``.

    values  by figure
    """
    rows = []
    for gate in parse(texts):
        value = values.get(gate.figure, math.nan)
        holds = gate.holds(value)
        said = "was not measured" if math.isnan(value) else f"is {value:.4g}"
        verb = "holds" if holds else "misses"
        sentence = f"{gate.figure} {said}, and {verb} the gate {gate}"
        rows.append({"gate": str(gate), "value": value, "holds": holds, "sentence": sentence})
    return rows
