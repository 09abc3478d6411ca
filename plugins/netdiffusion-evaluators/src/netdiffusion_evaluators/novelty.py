"""
Novelty: are synthetic flows new, do they differ from one another, and do they tell who was trained on?

Flows are compared by their header bits less artefacts, so that a copy with fresh sequence numbers is still a copy.
Short flows are alike by nature (two look-ups of one kind differ in nothing but their identifiers): read each figure
beside its floor, which real test flows get.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import Encoder, Evaluator, RealTraffic
from netdiffusion_core.model import Score, Traffic

from .features import digests, first_packets, header_bits, in_chunks, require_encoder, varies
from .groups import REPEATS, as_captured, compare, draw, score
from .memory import once

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
        metadata={"help": "flows of a class and side that distances and distinctness look at, drawn at random"},
    )


_FIGURES: tuple[tuple[str, Literal["minimize", "maximize"], float, str], ...] = (
    ("copies", "minimize", 0.0, "Share of synthetic flows that equal a training flow but for artefacts"),
    ("distinct", "maximize", 0.0, "Share of distinct flows among as many synthetic as real test flows"),
    ("distance", "maximize", 0.0, "Distance to the nearest training flow, as a share of what real test flows have"),
    ("diversity", "maximize", 0.0, "Distance to the nearest other synthetic flow, as a share of what real flows have"),
    ("membership_auc", "minimize", 0.5, "AUC of telling training from test flows by the nearest synthetic flow"),
)


class Novelty(Evaluator):
    """
    Copies, distinct flows, nearest neighbours and a membership-inference attack, class by class.
    """

    Options = NoveltyOptions

    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        """
        Return, each a mean over classes,

        ``copies``          share of flows that are equal to a training flow
        ``distinct``        number of different flows by number of flows, among as many synthetic as real test ones
        ``distance``        mean Hamming distance to the nearest training flow of the class
        ``diversity``       mean Hamming distance to the nearest other synthetic flow of the class
        ``membership_auc``  how well an attacker who has only the synthetic flows tells flows that were trained on from
                            flows that were not, by the distance to the nearest synthetic one (the black-box attack of
                            Chen et al. 2020, arXiv 1909.03935, section 5), at least 0.5

        Distance and diversity are shares of what real test flows have, at most 1: farther away is not better. The floor
        of distance is what training flows have that were held out: test flows are of other captures where the data is
        split so, and farther away by that alone. Raises ConfigError without an encoder.
        """
        encoder, most = require_encoder(context, "novelty"), self.options.max_flows
        sides = compare(real, as_captured(synthetic, real), context, "novelty")
        values: dict[str, dict[str, Any]] = {name: {} for name, *_ in _FIGURES}
        floors: dict[str, dict[str, Any]] = {name: {} for name in values}
        raw: dict[str, dict[str, dict[str, float]]] = {"distance": {}, "diversity": {}}
        with context.progress("novelty", 3 + len(sides.groups)) as advance:
            prints = {}
            for side in ("train", "test", "synthetic"):
                prints[side] = kept_prints(getattr(sides, side), encoder)
                advance()
            for label, g in sides.groups.items():
                for side, flows, figures in (("synthetic", g.synthetic, values), ("test", g.test, floors)):
                    figures["copies"][label] = float(np.isin(prints[side][flows], prints["train"]).mean())

                rng = context.rng(f"novelty.{label}")
                same = min(len(g.test), len(g.synthetic), most)  # fewer flows are more easily distinct and far apart
                test, train, fake = draw(g.test, same, rng), draw(g.train, most, rng), draw(g.synthetic, same, rng)
                values["distinct"][label] = len(np.unique(prints["synthetic"][fake])) / same
                floors["distinct"][label] = len(np.unique(prints["test"][test])) / same

                X_train, X_test, X_fake = (
                    beginnings(traffic, flows, encoder, self.options.first_packets)
                    for traffic, flows in ((sides.train, train), (sides.test, test), (sides.synthetic, fake))
                )
                informative = varies(np.concatenate([X_train, X_test]))
                X_train, X_test, X_fake = X_train[:, informative], X_test[:, informative], X_fake[:, informative]
                for name, real_distance, held_out, fake_distance in (
                    (
                        "distance",
                        nearest(X_test, X_train).mean(),
                        nearest_held_out(X_train, context.rng(f"novelty.{label}.held_out")),
                        nearest(X_fake, X_train).mean(),
                    ),
                    ("diversity", nearest_other(X_test), math.inf, nearest_other(X_fake)),
                ):
                    raw[name][label] = {"synthetic": float(fake_distance), "real_test": float(real_distance)}
                    values[name][label] = float(min(fake_distance / real_distance, 1.0)) if real_distance else math.nan
                    floors[name][label] = float(min(held_out / real_distance, 1.0)) if real_distance else math.nan

                attacks = []
                for _ in range(REPEATS):
                    members, others = rng.permutation(X_train), rng.permutation(X_test)
                    half = len(others) // 2  # the other half stands for a generator that never saw a training flow
                    attacks.append(
                        (membership(members, others, X_fake), membership(members, others[:half], others[half:]))
                    )
                values["membership_auc"][label], floors["membership_auc"][label] = zip(*attacks, strict=True)
                advance(note=label)
        return [
            score(
                f"novelty.{name}",
                f"{summary}, mean over classes",
                values[name],
                floors[name],
                goal=goal,
                lower=lower,
                hamming=raw.get(name, {}),
                missing_classes=sides.missing,
            )
            for name, goal, lower, summary in _FIGURES
        ]


def membership(members: Array, others: Array, synthetic: Array) -> float:
    """
    Return the AUC, at least 0.5, of telling equally many members from others by the distance to the nearest synthetic
    flow; NaN where there is nothing to tell them by.
    """
    size = min(len(members), len(others))
    asked = np.concatenate([members[:size], others[:size]])
    if not size or not len(synthetic) or not asked.shape[1]:
        return math.nan
    is_member = np.repeat([1, 0], size)
    return max(float(roc_auc_score(is_member, -nearest(asked, synthetic))), 0.5)


def nearest(flows: Array, others: Array) -> Array:
    """
    Return each flow's Hamming distance (share of differing columns) to the nearest of the others: float64[flows], NaN
    without columns.
    """
    if not others.shape[1]:
        return np.full(len(flows), math.nan)
    neighbours = NearestNeighbors(n_neighbors=1, metric="hamming", algorithm="brute").fit(others)
    return np.asarray(neighbours.kneighbors(flows)[0][:, 0])


def nearest_held_out(train: Array, rng: np.random.Generator) -> float:
    """
    Return the mean Hamming distance of a random quarter of the training flows to the nearest of the others; infinite
    for a single flow.
    """
    flows, quarter = rng.permutation(train), max(len(train) // 4, 1)
    return float(nearest(flows[:quarter], flows[quarter:]).mean()) if len(train) > 1 else math.inf


def nearest_other(flows: Array) -> float:
    """
    Return the mean Hamming distance of each flow to the nearest other one; NaN for a single flow.
    """
    if not flows.shape[1] or len(flows) < 2:
        return math.nan
    neighbours = NearestNeighbors(n_neighbors=1, metric="hamming", algorithm="brute").fit(flows)
    return float(neighbours.kneighbors()[0].mean())  # without an argument a flow is not its own neighbour


def kept_prints(traffic: Traffic, encoder: Encoder) -> NDArray[np.str_]:
    """
    Return each flow's SHA-256 over all its header bits less artefacts: str[flows].
    """

    def compute() -> NDArray[np.str_]:
        parts = (digests(header_bits(encoded), encoded.starts) for encoded in in_chunks(traffic, encoder))
        return np.array([digest for some in parts for digest in some], np.str_)

    return once(traffic, ("novelty", encoder), compute)


def beginnings(traffic: Traffic, flows: Array, encoder: Encoder, first: int) -> NDArray[np.int8]:
    """
    Return the header bits less artefacts of the first packets of these flows: int8[flows, first * columns].
    """

    def compute() -> NDArray[np.int8]:
        parts = []
        for encoded in in_chunks(traffic.select_flows(flows), encoder):
            bits = header_bits(encoded)
            parts.append(first_packets(bits, encoded.starts, first).reshape(len(encoded), first * bits.shape[1]))
        return np.concatenate(parts)

    return once(traffic, ("beginnings", encoder, first, flows.tobytes()), compute)
