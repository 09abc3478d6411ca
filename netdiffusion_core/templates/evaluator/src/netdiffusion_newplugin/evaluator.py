"""
The evaluator: packets a flow, real against synthetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import Evaluator, RealTraffic
from netdiffusion_core.model import Score, Traffic

Array = NDArray[Any]


class NewpluginEvaluator(Evaluator):
    """
    The two-sample Kolmogorov-Smirnov statistic of packets a flow, mean over the classes that all sides have.
    """

    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterator[Score]:
        """
        Yield ``packets``; NaN where no class is on all sides.
        """
        train, test, fake = (flow_lengths(traffic) for traffic in (real.train, real.test, synthetic))
        common = sorted(train.keys() & test.keys() & fake.keys())
        per_class = {label: kolmogorov_smirnov(test[label], fake[label]) for label in common}
        floors = [kolmogorov_smirnov(test[label], train[label]) for label in common]
        yield Score(
            name="newplugin.packets",
            value=float(np.mean(list(per_class.values()))) if common else math.nan,
            goal="minimize",
            lower=0,
            upper=1,
            floor=float(np.mean(floors)) if common else None,
            summary="Kolmogorov-Smirnov statistic of packets a flow, mean over classes",
            detail={"per_class": per_class} if common else {"reason": "no class is in train, test and synthetic alike"},
        )


def flow_lengths(traffic: Traffic) -> dict[str, Array]:
    """
    Return the number of packets of every flow, class by class.
    """
    lengths = np.diff(traffic.by_flow()[1])
    return {str(label): lengths[traffic.flows.labels == label] for label in np.unique(traffic.flows.labels)}


def kolmogorov_smirnov(a: Array, b: Array) -> float:
    """
    Return the largest distance between the two empirical distribution functions.
    """
    x = np.concatenate([a, b])
    of_a, of_b = (np.searchsorted(np.sort(each), x, "right") / len(each) for each in (a, b))
    return float(np.abs(of_a - of_b).max())
