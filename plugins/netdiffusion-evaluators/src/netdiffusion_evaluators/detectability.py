"""
Detectability: the classifier two-sample test (C2ST) of Lopez-Paz and Oquab 2017 (arXiv 1610.06545). A classifier is
trained to tell synthetic flows from real ones of the same class; an AUC of 0.5 means that it can only guess.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from netdiffusion_core.context import Context, stream_seed
from netdiffusion_core.interfaces import Encoder, Evaluator, RealTraffic
from netdiffusion_core.model import Score, Traffic

from .features import (
    ARTEFACT_FIELDS,
    ARTEFACT_TCP_OPTIONS,
    VIEWS,
    ClassifierOptions,
    fingerprints,
    require_encoder,
    telling,
)
from .groups import REPEATS, as_captured, compare, draw, score, tied

Array = NDArray[Any]

TOP_FEATURES = 10

_SIDES = ("test", "train", "synthetic")
_ARTEFACTS = ARTEFACT_FIELDS | {f"TCP option {kind}": why for kind, why in ARTEFACT_TCP_OPTIONS.items()}


@attrs.frozen(kw_only=True)
class DetectabilityOptions(ClassifierOptions):
    """
    Options of the ``detectability`` evaluator.
    """

    trees: int = attrs.field(
        default=20,  # of each repetition and fold, class and view: half of the time of all evaluators together
        validator=[attrs.validators.instance_of(int), attrs.validators.ge(1)],
        metadata={"help": "trees of each random forest"},
    )
    folds: int = attrs.field(
        default=5,
        validator=[attrs.validators.instance_of(int), attrs.validators.ge(2)],
        metadata={"help": "folds of the cross-validation; a class needs twice as many flows on each side"},
    )


class Detectability(Evaluator):
    """
    C2ST by a random forest for each class, on header bits and on flow statistics.
    """

    Options = DetectabilityOptions

    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        """
        Return ``auc`` on header bits less artefacts and ``statistics_auc``, each the mean over classes of the
        out-of-fold AUC of real test against synthetic flows, never below 0.5. The floor is real training against real
        test flows. All of a class's sides have equally many flows. Flows that are copies of each other are always in
        one fold, and so are flows of one capture where a side has captures enough: nobody learns them by heart. Where
        that leaves a class fewer groups than folds, there are fewer folds, or no figure if one group is more than half
        of a side. Raises ConfigError without an encoder.
        """
        encoder, options = require_encoder(context, "detectability"), self.options
        sides = compare(real, as_captured(synthetic, real), context, "detectability", options.max_flows)
        indivisible = {side: _indivisible(getattr(sides, side), encoder, 2 * options.folds) for side in _SIDES}
        apart = {
            label: min(len(np.unique(indivisible[side][1][getattr(group, side)])) for side in _SIDES)
            for label, group in sides.groups.items()
        }
        too_few = {label: count for label, count in apart.items() if count < 2 * options.folds}
        scores = []
        with context.progress("detectability", len(VIEWS) * len(sides.groups)) as advance:
            for view in VIEWS:
                seen = {side: view.see(getattr(sides, side), encoder, options.first_packets) for side in _SIDES}
                names, fields = seen["test"].names, seen["test"].fields
                values: dict[str, Any] = dict.fromkeys(sides.groups, math.nan)
                floors: dict[str, Any] = dict(values)
                importances: dict[str, Array] = {}
                for label, group in sides.groups.items():
                    if label not in too_few:
                        size = min(len(group.train), len(group.test), len(group.synthetic))
                        rng = context.rng(f"detectability.{label}")
                        test, train, fake = (
                            (seen[side].of(flows), *(key[flows] for key in indivisible[side]))
                            for side in _SIDES
                            for flows in [draw(getattr(group, side), size, rng)]
                        )
                        values[label], importances[label] = c2st(test, fake, options, context)
                        floors[label], _ = sides.of_real(
                            (view, label, encoder, options), partial(c2st, test, train, options, context)
                        )
                    advance(note=label)
                held = [c for c in values if c not in too_few and np.isnan([values[c], floors[c]]).any()]
                scores.append(
                    score(
                        f"detectability.{view.prefix}auc",
                        f"AUC of a random forest that tells synthetic from real test flows by their {view.title}, mean "
                        "over classes",
                        values,
                        floors,
                        lower=0.5,
                        telltale_fields=_largest(fields, np.mean([*importances.values()] or [[0.0]], axis=0)),
                        telltale_features={label: _largest(names, found) for label, found in importances.items()},
                        artefacts_left_out={} if view.prefix else _ARTEFACTS,
                        classes_with_too_few_flows=too_few,
                        missing_classes=sides.missing,
                        **({"reason": _held_together(held)} if held else {}),
                    )
                )
        return scores


def c2st(
    real: tuple[Array, ...], fake: tuple[Array, ...], options: DetectabilityOptions, context: Context
) -> tuple[list[float], Array]:
    """
    Return the out-of-fold AUC of each repetition, at least 0.5, and each feature's mean importance (they sum to 1). A
    side is its features and the keys of `_indivisible`. The AUC is NaN where these leave fewer groups than folds, and
    one of them is more than half of a side: too little would be left to learn from, and telling would look hard.
    """
    X, *keys = (np.concatenate(pair) for pair in zip(real, fake, strict=True))
    y = np.repeat([0, 1], [len(real[0]), len(fake[0])])
    groups = tied(*keys)
    sizes = [np.unique(groups[y == side], return_counts=True)[1] for side in (0, 1)]
    folds = min(options.folds, *map(len, sizes))
    if folds < options.folds and any(2 * size.max() > size.sum() for size in sizes):
        return [math.nan] * REPEATS, np.zeros(X.shape[1])
    columns = telling(X)
    aucs, importances = [], np.zeros(X.shape[1])
    for repetition in range(REPEATS):
        seed = stream_seed(context.seed, f"detectability.forest {repetition}") % 2**32
        probability = np.full(len(y), 0.5)
        for learn, judge in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(X, y, groups):
            if len(columns) and len(judge) and len(np.unique(y[learn])) == 2:
                forest = RandomForestClassifier(options.trees, random_state=seed, n_jobs=1)
                forest.fit(X[learn][:, columns], y[learn])
                probability[judge] = forest.predict_proba(X[judge][:, columns])[:, 1]
                importances[columns] += forest.feature_importances_ / (folds * REPEATS)
        aucs.append(max(float(roc_auc_score(y, probability)), 0.5))
    return aucs, importances


def _indivisible(traffic: Traffic, encoder: Encoder, captures: int) -> tuple[Array, Array]:
    """
    Return two keys of each flow; flows that share one are never learned from and judged in the same fold: its
    fingerprint, and, in a class of at least so many captures, its capture.
    """
    prints, labels, sources = fingerprints(traffic, encoder), traffic.flows.labels, traffic.flows.sources
    plenty = [label for label in np.unique(labels) if len(np.unique(sources[labels == label])) >= captures]
    return prints, np.where(np.isin(labels, plenty), sources, prints)


def _held_together(classes: Sequence[str]) -> str:
    return (
        f"copies of flows hold more than half of {', '.join(classes)} together: what is learned must share none with "
        "what is judged"
    )


def _largest(names: Sequence[str], importances: Array) -> dict[str, float]:
    """
    Return the names of the greatest importances, those of one name added up.
    """
    total: Counter[str] = Counter()
    for i in np.flatnonzero(importances):
        total[names[i]] += float(importances[i])
    return dict(total.most_common(TOP_FEATURES))
