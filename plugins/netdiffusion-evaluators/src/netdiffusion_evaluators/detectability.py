"""
Detectability: the classifier two-sample test (C2ST) of Lopez-Paz and Oquab 2017 (arXiv 1610.06545). A classifier is
trained to tell synthetic flows from real ones of the same class; an AUC of 0.5 means that it can only guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from netdiffusion_core.context import Context, stream_seed
from netdiffusion_core.interfaces import Evaluator, RealTraffic
from netdiffusion_core.model import Score, Traffic

from .features import ARTEFACT_FIELDS, VIEWS, ClassifierOptions, require_encoder, varies
from .groups import by_class, draw, score

Array = NDArray[Any]

TOP_FEATURES = 10


@attrs.frozen(kw_only=True)
class DetectabilityOptions(ClassifierOptions):
    """
    Options of the ``detectability`` evaluator.
    """

    trees: int = attrs.field(
        default=50,  # two forests a fold, class and view: most of the time of all evaluators together
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
        test flows. All of a class's sides have equally many flows. Raises ConfigError without an encoder.
        """
        encoder = require_encoder(context, "detectability")
        groups, missing = by_class(real, synthetic, context, "detectability")
        rng = context.rng("detectability.draw")
        least = 2 * self.options.folds
        sizes = {label: min(len(g.train), len(g.test), len(g.synthetic)) for label, g in groups.items()}
        too_few = {label: size for label, size in sizes.items() if size < least}
        scores = []
        with context.progress("detectability", len(VIEWS) * len(groups)) as advance:
            for view in VIEWS:
                values, floors, tells = {}, {}, {}
                for label, g in groups.items():
                    values[label] = floors[label] = math.nan
                    if label not in too_few:
                        train, test, fake = (
                            view.see(
                                t.select_flows(draw(flows, sizes[label], rng)), encoder, self.options.first_packets
                            )
                            for t, flows in ((real.train, g.train), (real.test, g.test), (synthetic, g.synthetic))
                        )
                        values[label], importances = self._c2st(test.values, fake.values, context)
                        floors[label], _ = self._c2st(test.values, train.values, context)
                        top = np.argsort(-importances, kind="stable")[:TOP_FEATURES]
                        tells[label] = {test.names[i]: float(importances[i]) for i in top if importances[i] > 0}
                    advance(note=label)
                scores.append(
                    score(
                        f"detectability.{view.prefix}auc",
                        f"AUC of a random forest that tells synthetic from real test flows by their {view.title}, mean "
                        "over classes",
                        values,
                        floors,
                        lower=0.5,
                        telltale_features=tells,
                        artefacts_left_out=list(ARTEFACT_FIELDS),
                        classes_with_too_few_flows=too_few,
                        missing_classes=missing,
                    )
                )
        return scores

    def _c2st(self, real: Array, fake: Array, context: Context) -> tuple[float, Array]:
        """
        Return the out-of-fold AUC, at least 0.5, and each feature's mean importance (they sum to 1).
        """
        X = np.concatenate([real, fake])
        y = np.repeat([0, 1], [len(real), len(fake)])
        varied = np.flatnonzero(varies(X))  # a constant column costs time and tells nothing
        seed = stream_seed(context.seed, "detectability.forest") % 2**32
        probability, importances = np.full(len(y), 0.5), np.zeros(X.shape[1])
        if len(varied):
            for learn, judge in StratifiedKFold(self.options.folds, shuffle=True, random_state=seed).split(X, y):
                forest = RandomForestClassifier(self.options.trees, random_state=seed, n_jobs=1)
                forest.fit(X[learn][:, varied], y[learn])
                probability[judge] = forest.predict_proba(X[judge][:, varied])[:, 1]
                importances[varied] += forest.feature_importances_ / self.options.folds
        return max(float(roc_auc_score(y, probability)), 0.5), importances
