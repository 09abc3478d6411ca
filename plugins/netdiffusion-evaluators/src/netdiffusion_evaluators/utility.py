"""
Utility: is synthetic traffic good enough to train on? Train on synthetic, test on real (TSTR), as in Esteban, Hyland
and Rätsch 2017 (arXiv 1706.02633), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from netdiffusion_core.context import Context, stream_seed
from netdiffusion_core.interfaces import Evaluator, RealTraffic
from netdiffusion_core.model import Score, Traffic, counts_by_label

from .features import VIEWS, ClassifierOptions, View, require_encoder
from .groups import by_class

_MEASURES = {  # title, over all flows, of one class
    "accuracy": ("Accuracy", accuracy_score, recall_score),
    "macro_f1": ("Macro F1", partial(f1_score, average="macro", zero_division=0.0), f1_score),
}


class Utility(Evaluator):
    """
    TSTR by a random forest that tells the classes apart, on header bits and on flow statistics.
    """

    Options = ClassifierOptions

    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        """
        Return ``accuracy`` and ``macro_f1`` on header bits, the same on ``statistics``, and ``ratio``: macro F1 on bits
        as a share of its floor. The floor is TRTR: trained on real flows, at most as many a class as there are
        synthetic ones. With fewer than two classes all are NaN. Raises ConfigError without an encoder.
        """
        encoder = require_encoder(context, "utility")
        groups, missing = by_class(real, synthetic, context, "utility")
        classes, first = list(groups), self.options.first_packets
        detail: dict[str, Any] = {"missing_classes": missing}
        if len(classes) < 2:
            detail["reason"] = "a classifier needs at least two classes that train, test and synthetic all have"
            unmeasured = [_figure(view, name, math.nan, None, detail) for view in VIEWS for name in _MEASURES]
            return [*unmeasured, _ratio(None, detail)]

        train, test, fake = (
            traffic.select_flows(np.concatenate([getattr(group, side) for group in groups.values()]))
            for traffic, side in ((real.train, "matched"), (real.test, "test"), (synthetic, "synthetic"))
        )
        truth, scores = test.flows.labels, []
        detail["training_flows_synthetic"] = counts_by_label(fake.flows.labels)
        detail["training_flows_real"] = counts_by_label(train.flows.labels)
        with context.progress("utility", 2 * len(VIEWS)) as advance:
            for view in VIEWS:
                X_test, guesses = view.see(test, encoder, first).values, []
                for teacher in (fake, train):
                    forest = self._forest(context)
                    forest.fit(view.see(teacher, encoder, first).values, teacher.flows.labels)
                    guesses.append(forest.predict(X_test))
                    advance(note=view.title)
                confusion = [
                    {"true class": label, **dict(zip(classes, row, strict=True))}
                    for label, row in zip(
                        classes, confusion_matrix(truth, guesses[0], labels=classes).tolist(), strict=True
                    )
                ]
                for name, (_, overall, of_class) in _MEASURES.items():
                    value, floor = (float(overall(truth, guess)) for guess in guesses)
                    by_label = (
                        of_class(truth, guess, labels=classes, average=None, zero_division=0.0).tolist()
                        for guess in guesses
                    )
                    per_class = {
                        label: {"value": v, "floor": f} for label, v, f in zip(classes, *by_label, strict=True)
                    }
                    told = {"per_class": per_class, "confusion": confusion, **detail}
                    scores.append(_figure(view, name, value, floor, told))
        tstr, trtr = scores[1].value, scores[1].floor
        return [*scores, _ratio(tstr / trtr if trtr else None, {"missing_classes": missing})]

    def _forest(self, context: Context) -> RandomForestClassifier:
        seed = stream_seed(context.seed, "utility.forest") % 2**32
        return RandomForestClassifier(self.options.trees, random_state=seed, n_jobs=1)


def _figure(view: View, name: str, value: float, floor: float | None, detail: Mapping[str, Any]) -> Score:
    return Score(
        name=f"utility.{view.prefix}{name}",
        value=value,
        goal="maximize",
        lower=0.0,
        upper=1.0,
        floor=floor,
        summary=f"{_MEASURES[name][0]} on real test flows of a random forest that learned synthetic flows by their "
        f"{view.title}",
        detail=detail,
    )


def _ratio(value: float | None, detail: Mapping[str, Any]) -> Score:
    return Score(
        name="utility.ratio",
        value=math.nan if value is None else value,
        goal="maximize",
        lower=0.0,
        upper=math.inf,
        floor=None if value is None else 1.0,
        summary="Macro F1 of learning header bits of synthetic flows, as a share of learning those of real flows",
        detail=detail,
    )
