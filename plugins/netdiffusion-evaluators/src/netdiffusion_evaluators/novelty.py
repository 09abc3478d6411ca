"""
Novelty: are synthetic flows new, and do they differ from one another?

Flows are compared by their header bits less artefacts, so that a copy with fresh sequence numbers is still a copy.
Short flows are alike by nature (two look-ups of one kind differ in nothing but their identifiers): read each figure
beside its floor, which real test flows get.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import Encoder, Evaluator, RealTraffic
from netdiffusion_core.model import Score, Traffic

from .features import first_packets, header_bits, in_chunks, require_encoder, varies
from .groups import by_class, draw, score

Array = NDArray[Any]


@attrs.frozen(kw_only=True)
class NoveltyOptions:
    """
    Options of the ``novelty`` evaluator.
    """

    first_packets: int = attrs.field(
        default=16,
        validator=[attrs.validators.instance_of(int), attrs.validators.ge(1)],
        metadata={"help": "packets of a flow that nearest-neighbour distances look at"},
    )
    max_flows: int = attrs.field(
        default=500,
        validator=[attrs.validators.instance_of(int), attrs.validators.ge(2)],
        metadata={"help": "flows of a class and side that nearest-neighbour distances look at, drawn at random"},
    )


_FIGURES: tuple[tuple[str, Literal["minimize", "maximize"], str], ...] = (
    ("copies", "minimize", "Share of synthetic flows that equal a training flow but for artefacts"),
    ("distinct", "maximize", "Share of distinct flows among as many synthetic as real test flows"),
    ("distance", "maximize", "Distance to the nearest training flow, as a share of what real test flows have"),
    ("diversity", "maximize", "Distance to the nearest other synthetic flow, as a share of what real test flows have"),
)


class Novelty(Evaluator):
    """
    Copies, distinct flows and nearest neighbours, class by class.
    """

    Options = NoveltyOptions

    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        """
        Return, each a mean over classes,

        ``copies``     share of flows that are equal to a training flow
        ``distinct``   number of different flows by number of flows, among as many synthetic as real test ones
        ``distance``   mean Hamming distance to the nearest training flow of the class
        ``diversity``  mean Hamming distance to the nearest other synthetic flow of the class

        The last two are shares of what real test flows have, at most 1: farther away is not better. Raises ConfigError
        without an encoder.
        """
        encoder = require_encoder(context, "novelty")
        groups, missing = by_class(real, synthetic, context, "novelty")
        rng, most = context.rng("novelty.draw"), self.options.max_flows
        values: dict[str, dict[str, float]] = {name: {} for name, *_ in _FIGURES}
        floors: dict[str, dict[str, float]] = {name: {} for name in values}
        raw: dict[str, dict[str, dict[str, float]]] = {"distance": {}, "diversity": {}}
        with context.progress("novelty", 3 + len(groups)) as advance:
            digests, first = {}, {}
            for side, traffic in (("train", real.train), ("test", real.test), ("synthetic", synthetic)):
                digests[side], first[side] = _look(traffic, encoder, self.options.first_packets)
                advance()
            for label, g in groups.items():
                for side, flows, figures in (("synthetic", g.synthetic, values), ("test", g.test, floors)):
                    figures["copies"][label] = float(np.isin(digests[side][flows], digests["train"]).mean())

                same = min(len(g.test), len(g.synthetic), most)  # fewer flows are more easily distinct and far apart
                test, fake = draw(g.test, same, rng), draw(g.synthetic, same, rng)
                values["distinct"][label] = len(np.unique(digests["synthetic"][fake])) / same
                floors["distinct"][label] = len(np.unique(digests["test"][test])) / same

                train = draw(g.train, most, rng)
                X_train, X_test, X_fake = first["train"][train], first["test"][test], first["synthetic"][fake]
                informative = varies(np.concatenate([X_train, X_test]))
                X_train, X_test, X_fake = X_train[:, informative], X_test[:, informative], X_fake[:, informative]
                for name, real_distance, fake_distance in (
                    ("distance", nearest(X_test, X_train), nearest(X_fake, X_train)),
                    ("diversity", nearest_other(X_test), nearest_other(X_fake)),
                ):
                    raw[name][label] = {"synthetic": fake_distance, "real_test": real_distance}
                    values[name][label] = min(fake_distance / real_distance, 1.0) if real_distance else math.nan
                    floors[name][label] = 1.0
                advance(note=label)
        return [
            score(
                f"novelty.{name}",
                f"{summary}, mean over classes",
                values[name],
                floors[name],
                goal=goal,
                hamming=raw.get(name, {}),
                missing_classes=missing,
            )
            for name, goal, summary in _FIGURES
        ]


def nearest(flows: Array, others: Array) -> float:
    """
    Return the mean Hamming distance (share of differing columns) to the nearest of the others; NaN without columns.
    """
    if not others.shape[1]:
        return math.nan
    neighbours = NearestNeighbors(n_neighbors=1, metric="hamming", algorithm="brute").fit(others)
    return float(neighbours.kneighbors(flows)[0].mean())


def nearest_other(flows: Array) -> float:
    """
    Return the mean Hamming distance of each flow to the nearest other one; NaN for a single flow.
    """
    if not flows.shape[1] or len(flows) < 2:
        return math.nan
    neighbours = NearestNeighbors(n_neighbors=1, metric="hamming", algorithm="brute").fit(flows)
    return float(neighbours.kneighbors()[0].mean())  # without an argument a flow is not its own neighbour


def _look(traffic: Traffic, encoder: Encoder, first: int) -> tuple[Array, Array]:
    """
    Return each flow's SHA-256 over all its header bits less artefacts, and those of its first packets:
    str[flows], int8[flows, first * columns].
    """
    digests: list[str] = []
    early = []
    for encoded in in_chunks(traffic, encoder):
        bits, starts = header_bits(encoded), encoded.starts
        digests += [hashlib.sha256(bits[a:b].tobytes()).hexdigest() for a, b in pairwise(starts)]
        early.append(first_packets(bits, starts, first).reshape(len(encoded), first * bits.shape[1]))
    return np.array(digests), np.concatenate(early)
