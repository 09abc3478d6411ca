"""
Flows class by class, and scores that are means over classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import RealTraffic
from netdiffusion_core.model import Score, Traffic

Array = NDArray[Any]


@attrs.frozen(eq=False, kw_only=True)
class Group:
    """
    The flows of one class: rows of the flow tables of real.train, real.test and synthetic.

    matched  at most as many training flows as there are synthetic ones, drawn at random: the floor of a figure
             compares these with `test`, so that floor and value suffer alike from small numbers
    """

    train: Array
    matched: Array
    test: Array
    synthetic: Array


Groups = dict[str, Group]
"""Group by label, sorted."""

Missing = dict[str, list[str]]
"""For each side that lacks classes of another one: which."""


def by_class(real: RealTraffic, synthetic: Traffic, context: Context, evaluator: str) -> tuple[Groups, Missing]:
    """
    Return ``(groups, missing)``: the flows of each class that all three sides have, and the classes that one lacks.
    """
    sides = {"train": real.train, "test": real.test, "synthetic": synthetic}
    names = {side: set(traffic.flows.labels.tolist()) for side, traffic in sides.items()}
    every, common = set().union(*names.values()), set.intersection(*names.values())
    rng = context.rng(f"{evaluator}.match")
    groups = {}
    for label in sorted(common):
        flows = {side: np.flatnonzero(traffic.flows.labels == label) for side, traffic in sides.items()}
        matched = draw(flows["train"], len(flows["synthetic"]), rng)
        groups[label] = Group(matched=matched, **flows)
    missing = {side: sorted(every - present) for side, present in names.items() if every - present}
    return groups, missing


def draw(flows: Array, count: int, rng: np.random.Generator) -> Array:
    """
    Draw `count` of these flows without replacement, or return all where there are no more.
    """
    return flows if len(flows) <= count else np.sort(rng.choice(flows, count, replace=False))


def score(
    name: str,
    summary: str,
    values: Mapping[str, float],
    floors: Mapping[str, float],
    *,
    goal: Literal["minimize", "maximize"] = "minimize",
    lower: float = 0.0,
    upper: float = 1.0,
    **detail: Any,
) -> Score:
    """
    Return a score that is the mean over classes, with every class in its detail. A class whose figure is NaN does not
    count; without any class the value is NaN, and the detail's ``reason`` says why.
    """
    measured = {label: value for label, value in values.items() if not math.isnan(value)}
    detail = {"per_class": {label: {"value": v, "floor": floors[label]} for label, v in values.items()}, **detail}
    if not measured:
        detail.setdefault("reason", "no class could be measured: each needs enough flows in train, test and synthetic")
    return Score(
        name=name,
        value=float(np.mean(list(measured.values()))) if measured else math.nan,
        goal=goal,
        lower=lower,
        upper=upper,
        floor=float(np.mean([floors[label] for label in measured])) if measured else None,
        summary=summary,
        detail=detail,
    )
