"""
Flows class by class, and scores that are means over classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import attrs
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from netdiffusion_core.capture.dissect import dissect
from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import RealTraffic
from netdiffusion_core.model import ICMP, ICMPV6, TCP, UDP, Score, Traffic

from .memory import once

Array = NDArray[Any]
T = TypeVar("T")

REPEATS = 3
"""
How often a figure that depends on chance (forests, draws) is measured: it is the mean, and ``detail["spread"]`` the
standard deviation.
"""

_AT_LEAST = 20  # flows of a class, however long they are


@attrs.frozen(eq=False, kw_only=True)
class Group:
    """
    The flows of one class: rows of the flow tables of train, test and synthetic.

    matched  at most as many training flows as there are synthetic ones, drawn at random: the floor of a figure
             compares these with `test`, so that floor and value suffer alike from small numbers
    """

    train: Array
    matched: Array
    test: Array
    synthetic: Array


@attrs.frozen(eq=False, kw_only=True)
class Sides:
    """
    What an evaluator compares.

    groups   Group by label, sorted: the classes that all three sides have
    drawn    of which sides only some flows are looked at: ``{"train": "1,000 of 9,000 flows"}``
    missing  for each side that lacks classes of another one: which
    """

    train: Traffic
    test: Traffic
    synthetic: Traffic
    groups: dict[str, Group]
    missing: dict[str, list[str]]
    drawn: dict[str, str]
    _real: RealTraffic
    _key: Hashable

    def of_real(self, key: Hashable, compute: Callable[[], T], *what: Hashable) -> T:
        """
        Return ``compute()``, which must depend on real flows, the numbers of synthetic ones, the seed, `key` and `what`
        only. So a floor is computed once for ours and all baselines of a run.
        """
        return once(self._real, (self._key, key, what), compute)


def compare(
    real: RealTraffic,
    synthetic: Traffic,
    context: Context,
    evaluator: str,
    max_flows: int | None = None,
    max_packets: int | None = None,
) -> Sides:
    """
    Put real and synthetic flows side by side, drawn at random where there are many: at most `max_flows` of each class
    and side, and of a side that has more than `max_packets` at most as many of each class.
    """
    whole = {"train": real.train, "test": real.test, "synthetic": synthetic}
    sides = {side: at_most(traffic, context, max_flows, max_packets) for side, traffic in whole.items()}
    drawn = {
        side: f"{len(sides[side].flows):,} of {len(traffic.flows):,} flows"
        for side, traffic in whole.items()
        if sides[side] is not traffic
    }
    names = {side: set(traffic.flows.labels.tolist()) for side, traffic in sides.items()}
    every, common = set().union(*names.values()), set.intersection(*names.values())
    rng = context.rng(f"{evaluator}.match")
    groups = {}
    for label in sorted(common):
        flows = {side: np.flatnonzero(traffic.flows.labels == label) for side, traffic in sides.items()}
        groups[label] = Group(matched=draw(flows["train"], len(flows["synthetic"]), rng), **flows)
    return Sides(
        **sides,
        groups=groups,
        missing={side: sorted(every - present) for side, present in names.items() if every - present},
        drawn=drawn,
        real=real,
        key=(
            evaluator,
            context.seed,
            max_flows,
            max_packets,
            *((label, len(g.synthetic)) for label, g in groups.items()),
        ),
    )


def as_captured(synthetic: Traffic, real: RealTraffic) -> Traffic:
    """
    Return synthetic packets cut where the real captures of their class cut headers: a header's end that lies behind the
    snap length was never seen, so nobody can be blamed for having it.
    """

    def cut() -> Traffic:
        labels = synthetic.flows.labels
        snap = np.full(len(labels), np.iinfo(np.int32).max)
        for label in np.unique(labels):
            halves = [half.select_flows(half.flows.labels == label) for half in (real.train, real.test)]
            captured, inside = (np.concatenate(each) for each in zip(*map(_cut, halves), strict=True))
            if inside.any():
                shortest = int(np.median(captured[inside]))
                if np.median(captured) <= shortest:  # else a packet or two are of another capture, or broken
                    snap[labels == label] = shortest
        whole = np.append(snap, np.iinfo(np.int32).max)[synthetic.flow_of]  # flow -1: a packet of no flow
        limit = synthetic.captured_lengths - _behind_link(synthetic) + whole
        captured = np.minimum(synthetic.captured_lengths, limit).astype(np.int32)
        return attrs.evolve(synthetic, captured_lengths=captured)

    return once(synthetic, ("as captured", id(real)), cut)


def _cut(traffic: Traffic) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """
    Return of the packets that were cut the captured bytes behind the link layer, and whether they end in a header.
    """
    short = traffic.captured_lengths < traffic.wire_lengths
    inside = [np.empty(0, bool)]
    for part in traffic.chunks():
        headers = dissect(traffic.select_packets(part))
        known = np.isin(headers.protocols, (ICMP, TCP, UDP, ICMPV6)) & (headers.fragment_offsets == 0)
        inside.append(known & (headers.transport_offsets < 0))
    return _behind_link(traffic)[short], np.concatenate(inside)[short]


def _behind_link(traffic: Traffic) -> NDArray[np.int64]:
    """
    Return the captured bytes of each packet behind its link layer, which differs between captures.
    """
    links = [dissect(traffic.select_packets(part)).link_lengths for part in traffic.chunks()]
    return traffic.captured_lengths - np.concatenate([np.empty(0, np.int64), *links]).astype(np.int64)


def at_most(traffic: Traffic, context: Context, flows: int | None, packets: int | None = None) -> Traffic:
    """
    Return at most so many flows of each class, drawn at random; of traffic with more than so many packets as many of
    each class. The same object where that is all.
    """
    labels, numbers = np.unique(traffic.flows.labels, return_counts=True)
    few_flows = flows is None or not len(labels) or numbers.max() <= flows
    few_packets = packets is None or len(traffic) <= packets
    if few_flows and few_packets:
        return traffic

    def choose() -> Traffic:
        rng = context.rng("evaluators.at_most")
        chosen = [np.flatnonzero(traffic.flows.labels == label) for label in labels]
        if not few_flows:
            chosen = [draw(mine, flows or 0, rng) for mine in chosen]
        if not few_packets:
            lengths = np.bincount(traffic.flow_of[traffic.flow_of >= 0], minlength=len(traffic.flows))
            share = (packets or 0) // max(len(labels), 1)
            shuffled = [rng.permutation(mine) for mine in chosen]
            chosen = [mine[: max(_AT_LEAST, int((np.cumsum(lengths[mine]) <= share).sum()))] for mine in shuffled]
        return traffic.select_flows(np.sort(np.concatenate(chosen)))

    return once(traffic, ("at most", flows, packets, context.seed), choose)


def draw(flows: Array, count: int, rng: np.random.Generator) -> Array:
    """
    Draw `count` of these flows without replacement, or return all where there are no more.
    """
    return flows if len(flows) <= count else np.sort(rng.choice(flows, count, replace=False))


def tied(*keys: Array) -> Array:
    """
    Number flows so that those which share any key have one number: int[flows]. A key is an array with one entry a flow.
    Flows that are tied must never lie on both sides of a training.
    """
    flows = len(keys[0])
    nodes = flows
    rows, columns = [], []
    for key in keys:
        distinct, inverse = np.unique(key, return_inverse=True)
        rows.append(np.arange(flows))
        columns.append(nodes + inverse)
        nodes += len(distinct)
    edge = np.concatenate(rows), np.concatenate(columns)
    _, number = connected_components(coo_array((np.ones(len(edge[0])), edge), shape=(nodes, nodes)), directed=False)
    return np.asarray(number[:flows])


def score(
    name: str,
    summary: str,
    values: Mapping[str, float | Sequence[float]],
    floors: Mapping[str, float | Sequence[float]],
    *,
    goal: Literal["minimize", "maximize"] = "minimize",
    lower: float = 0.0,
    upper: float = 1.0,
    **detail: Any,
) -> Score:
    """
    Return a score that is the mean over classes, with every class in its detail. A figure that depends on chance has
    several values a class, one a repetition: their mean counts, and ``detail["spread"]`` is the standard deviation of
    the score over repetitions. A class whose figure is NaN does not count; without any class the value is NaN, and the
    detail's ``reason`` says why.
    """
    per_class = {
        label: {"value": float(np.mean(value)), "floor": float(np.mean(floors[label]))}
        for label, value in values.items()
    }
    measured = [label for label, figures in per_class.items() if not any(map(math.isnan, figures.values()))]
    detail = {"per_class": per_class, **detail}
    if not measured:
        detail.setdefault("reason", "no class could be measured: each needs enough flows in train, test and synthetic")
        return Score(name=name, value=math.nan, goal=goal, lower=lower, upper=upper, summary=summary, detail=detail)
    by_repetition = np.mean([np.atleast_1d(values[label]) for label in measured], axis=0)
    return Score(
        name=name,
        value=min(max(float(by_repetition.mean()), lower), upper),  # a mean of ones can be a hair above 1
        goal=goal,
        lower=lower,
        upper=upper,
        floor=float(np.mean([per_class[label]["floor"] for label in measured])),
        summary=summary,
        detail=detail | spread(by_repetition),
    )


def spread(values: Sequence[float] | Array) -> dict[str, float]:
    """
    Return the standard deviation over repetitions for a score's detail, nothing when there was one.
    """
    return {"spread": float(np.std(values, ddof=1))} if len(values) > 1 else {}
