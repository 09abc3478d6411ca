"""
Utility: is synthetic traffic good enough to train on? Train on synthetic, test on real (TSTR), as in Esteban, Hyland
and Rätsch 2017 (arXiv 1706.02633), section 4; and the two uses of the NetDiffusion paper: training sets in which
synthetic flows take the place of some real ones, and synthetic flows for classes that have too few real ones.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from netdiffusion_core.context import Context, stream_seed
from netdiffusion_core.interfaces import Encoder, Evaluator, RealTraffic
from netdiffusion_core.model import Score, Traffic, counts_by_label

from .features import (
    VIEWS,
    ClassifierOptions,
    Features,
    View,
    fingerprints,
    require_encoder,
    stacked,
    telling,
)
from .groups import REPEATS, Sides, as_captured, compare, draw, spread

Array = NDArray[Any]

SHARES = tuple(range(10, 100, 10))
"""Percent of synthetic flows in mixed training sets."""

CUT_TO = 0.1
"""Share of its real training flows that the class-balancing experiment leaves a class."""

macro_f1 = partial(f1_score, average="macro", zero_division=0.0)

_MEASURES = {  # title, over all flows, of one class
    "accuracy": ("Accuracy", accuracy_score, recall_score),
    "macro_f1": ("Macro F1", macro_f1, f1_score),
}
_SUMMARIES = {
    **{
        f"{view.prefix}{name}": f"{title} on real test flows of a random forest that learned synthetic flows by their "
        f"{view.title}"
        for view in VIEWS
        for name, (title, *_) in _MEASURES.items()
    },
    "ratio": "Macro F1 of learning header bits of synthetic flows, as a share of learning those of real flows",
    "mixed_macro_f1": "Macro F1 of a random forest that learned header bits of real flows of which 10 to 90 % were "
    "replaced by synthetic ones, mean over shares",
    "balanced_recall": "Recall by header bits of classes that kept a tenth of their real training flows and were "
    "topped up with synthetic ones",
    "service_macro_f1": "Macro F1 of telling services, not classes, after learning header bits of synthetic flows",
}
_TOPPED_UP, _ALL = "a tenth, real, topped up with synthetic", "all, real"
_TOO_FEW_CLASSES = (
    "a classifier needs two classes that train, test and synthetic all have, with flows to learn that are no test flows"
)
_NO_SERVICES = (
    "the labels name no services: a label's service is what stands before its first hyphen (video-netflix is of "
    "video); some classes must share one, and there must be two"
)


@attrs.frozen(eq=False, kw_only=True)
class Lesson:
    """
    One view of the flows that may be learned, and of those that are asked about.

    X, y            features and str[flows]  real training flows, and synthetic ones behind them
    synthetic       bool[flows]
    X_test, y_test  real test flows
    """

    X: Features
    y: Array
    synthetic: Array
    X_test: Features
    y_test: Array

    def of(self, label: str, synthetic: bool) -> Array:
        """
        Return the rows of one class and side.
        """
        return np.flatnonzero((self.y == label) & (self.synthetic == synthetic))

    def answers(self, learned: Array, model: ClassifierMixin) -> Array:
        """
        Return what a model that learned these rows says of the test flows: str[flows].
        """
        y, asked = self.y[learned], np.arange(len(self.y_test))
        columns = telling(*(part[learned] for part in self.X.parts))
        if not len(columns) or len(np.unique(y)) < 2:  # nothing to learn: the most frequent class, whatever is asked
            return np.full(len(asked), statistics.mode(y.tolist()))
        return np.asarray(model.fit(self.X.of(learned, columns), y).predict(self.X_test.of(asked, columns)))


@attrs.frozen(eq=False, kw_only=True)
class Results:
    """
    What came out in one view. Where two figures stand together, the first is of synthetic flows, the second of real.

    tstr, trtr   the answers of each repetition
    classifiers  macro F1 by classifier
    mixed        macro F1 by percent of synthetic flows
    balanced     by training set, for each repetition: recall of the cut classes, and macro F1 of all
    services     macro F1 of services; None where labels name none
    """

    tstr: Sequence[Array]
    trtr: Sequence[Array]
    classifiers: Mapping[str, tuple[float, float]]
    mixed: Mapping[int, float]
    balanced: Mapping[str, Sequence[tuple[float, float]]]
    services: tuple[float, float] | None


class Utility(Evaluator):
    """
    Classifiers that learn synthetic flows, alone and beside real ones, and are asked about real ones.
    """

    Options = ClassifierOptions

    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        """
        Return ``accuracy`` and ``macro_f1`` of a random forest on header bits, the same on ``statistics``; ``ratio``:
        macro F1 on bits as a share of its floor; ``mixed_macro_f1``, ``balanced_recall`` and ``service_macro_f1``. The
        floor is TRTR: trained on real flows, at most as many a class as there are synthetic ones. No flow that is also
        a test flow is learned. With fewer than two classes all are NaN. Raises ConfigError without an encoder.
        """
        encoder = require_encoder(context, "utility")
        sides = compare(real, as_captured(synthetic, real), context, "utility", self.options.max_flows)
        train, fake, leaked = _learnable(sides, encoder)
        labels = np.intersect1d(sides.train.flows.labels[train], sides.synthetic.flows.labels[fake]).tolist()
        detail: dict[str, Any] = {"leaked_flows_left_out": leaked, "missing_classes": sides.missing}
        if len(labels) < 2:
            detail["reason"] = _TOO_FEW_CLASSES
            return [_score(name, [math.nan], None, detail) for name in _SUMMARIES]

        parts = [
            (part, flows[np.isin(part.flows.labels[flows], labels)])
            for part, flows in (
                (sides.train, train),
                (sides.synthetic, fake),
                (sides.test, np.arange(len(sides.test.flows))),
            )
        ]
        y, y_fake, y_test = (part.flows.labels[flows] for part, flows in parts)
        detail |= {"training_flows_synthetic": counts_by_label(y_fake), "training_flows_real": counts_by_label(y)}
        results = {}
        with context.progress("utility", len(VIEWS) * _STEPS) as advance:
            for view in VIEWS:
                learned, generated, asked = (
                    (view.see(part, encoder, self.options.first_packets), flows) for part, flows in parts
                )
                lesson = Lesson(
                    X=stacked([learned, generated]),
                    y=np.concatenate([y, y_fake]),
                    synthetic=np.repeat([False, True], [len(y), len(y_fake)]),
                    X_test=stacked([asked]),
                    y_test=y_test,
                )
                key = (view, encoder, self.options, *labels)
                step = partial(advance, note=view.title)
                results[view] = learn(lesson, labels, self.options.trees, context, partial(sides.of_real, key), step)
        return list(_scores(results, labels, y_test, detail))


_STEPS = 5


def learn(
    lesson: Lesson,
    labels: Sequence[str],
    trees: int,
    context: Context,
    of_real: Callable[[Callable[[], Any], str], Any],
    advance: Callable[[], None],
) -> Results:
    """
    Do all experiments in one view. ``of_real(compute, what)`` remembers what depends on real flows only.
    """

    def seed(repetition: int) -> int:
        return stream_seed(context.seed, f"utility.forest {repetition}") % 2**32

    def forest(rows: Array, repetition: int = 0) -> Array:
        return lesson.answers(rows, RandomForestClassifier(trees, random_state=seed(repetition), n_jobs=1))

    real = {label: lesson.of(label, False) for label in labels}
    fake = {label: lesson.of(label, True) for label in labels}
    all_real, all_fake = np.flatnonzero(~lesson.synthetic), np.flatnonzero(lesson.synthetic)

    tstr = [forest(all_fake, r) for r in range(REPEATS)]
    trtr = of_real(lambda: [forest(all_real, r) for r in range(REPEATS)], "forest")
    advance()

    classifiers = {"random forest": tuple(macro_f1(lesson.y_test, guess[0]) for guess in (tstr, trtr))}
    for name, model in {
        "decision tree": DecisionTreeClassifier(random_state=seed(0)),
        "linear SVM": make_pipeline(StandardScaler(), SVC(kernel="linear")),
    }.items():
        right = partial(_f1_of, lesson, model)
        classifiers[name] = right(all_fake), of_real(partial(right, all_real), name)
    advance()

    mixed = {0: classifiers["random forest"][1]}
    for percent in SHARES:
        rng = context.rng(f"utility.mixed {percent}")
        rows = []
        for label in labels:
            replaced = draw(fake[label], round(percent / 100 * len(real[label])), rng)
            rows += [replaced, draw(real[label], len(real[label]) - len(replaced), rng)]
        mixed[percent] = macro_f1(lesson.y_test, forest(np.concatenate(rows)))
    mixed[100] = classifiers["random forest"][0]
    advance()

    balanced: dict[str, list[tuple[float, float]]] = {"a tenth, real": [], _TOPPED_UP: [], _ALL: []}
    for r in range(REPEATS):
        rng = context.rng(f"utility.balanced {r}")
        cut = rng.permutation(labels)[: len(labels) // 2].tolist()
        left = real | {label: draw(real[label], max(1, round(CUT_TO * len(real[label]))), rng) for label in cut}
        top_up = [draw(fake[label], len(real[label]) - len(left[label]), rng) for label in cut]
        few = np.concatenate([*left.values()])
        for name, answers in zip(
            balanced,
            (of_real(partial(forest, few, r), f"cut {r}"), forest(np.concatenate([few, *top_up]), r), trtr[r]),
            strict=True,
        ):
            recall = recall_score(lesson.y_test, answers, labels=cut, average="macro", zero_division=0.0)
            balanced[name].append((recall, macro_f1(lesson.y_test, answers)))
    advance()

    services = None
    names = {label: label.split("-")[0] for label in labels}
    if 2 <= len(set(names.values())) < len(labels):
        y, y_test = (np.array([names[label] for label in labels_of]) for labels_of in (lesson.y, lesson.y_test))
        told = attrs.evolve(lesson, y=y, y_test=y_test)
        right = partial(_f1_of, told, RandomForestClassifier(trees, random_state=seed(0), n_jobs=1))
        services = right(all_fake), of_real(partial(right, all_real), "services")
    advance()
    return Results(tstr=tstr, trtr=trtr, classifiers=classifiers, mixed=mixed, balanced=balanced, services=services)


def _f1_of(lesson: Lesson, model: ClassifierMixin, rows: Array) -> float:
    return float(macro_f1(lesson.y_test, lesson.answers(rows, model)))


def _learnable(sides: Sides, encoder: Encoder) -> tuple[Array, Array, dict[str, int]]:
    """
    Return the training and the synthetic flows (rows) that may be learned, and how many may not: a flow that equals a
    test flow bit for bit, identifiers and times included, would teach its answer.
    """
    asked = fingerprints(sides.test, encoder)
    chosen, leaked = [], {}
    for side, name in (("train", "matched"), ("synthetic", "synthetic")):
        flows = np.concatenate([np.empty(0, np.int64), *(getattr(group, name) for group in sides.groups.values())])
        leaks = np.isin(fingerprints(getattr(sides, side), encoder)[flows], asked)
        chosen.append(flows[~leaks])
        leaked[side] = int(leaks.sum())
    return chosen[0], chosen[1], leaked


def _scores(
    results: Mapping[View, Results], labels: Sequence[str], truth: Array, detail: Mapping[str, Any]
) -> Iterator[Score]:
    for view, found in results.items():
        confusion = confusion_matrix(truth, found.tstr[0], labels=labels).tolist()
        told = {
            "confusion": [
                {"true class": label, **dict(zip(labels, row, strict=True))}
                for label, row in zip(labels, confusion, strict=True)
            ],
            "classifiers": [
                {"classifier": name, "learned synthetic: macro F1": ours, "learned real: macro F1": theirs}
                for name, (ours, theirs) in found.classifiers.items()
            ],
            **detail,
        }
        for name, (_, overall, of_class) in _MEASURES.items():
            values, floors = ([float(overall(truth, g)) for g in guesses] for guesses in (found.tstr, found.trtr))
            by_label = (
                np.mean([of_class(truth, g, labels=labels, average=None, zero_division=0.0) for g in guesses], axis=0)
                for guesses in (found.tstr, found.trtr)
            )
            per_class = {
                label: {"value": float(v), "floor": float(f)} for label, v, f in zip(labels, *by_label, strict=True)
            }
            yield _score(f"{view.prefix}{name}", values, floors, {"per_class": per_class, **told})

    bits = next(iter(results.values()))
    tstr, trtr = ([macro_f1(truth, g) for g in guesses] for guesses in (bits.tstr, bits.trtr))
    whole = float(np.mean(trtr))
    ratios = [v / whole for v in tstr] if whole else [math.nan]
    yield _score("ratio", ratios, [1.0] if whole else None, {} if whole else {"reason": "real flows teach nothing"})

    yield _score(
        "mixed_macro_f1",
        [float(np.mean([bits.mixed[percent] for percent in SHARES]))],
        [bits.mixed[0]],
        {
            "mixing": [
                {"synthetic training flows": f"{percent} %"}
                | {f"{view.title}: macro F1": found.mixed[percent] for view, found in results.items()}
                for percent in bits.mixed
            ],
            **detail,
        },
    )
    topped_up, ideal = ([recall for recall, _ in bits.balanced[name]] for name in (_TOPPED_UP, _ALL))
    yield _score(
        "balanced_recall",
        topped_up,
        ideal,
        {
            "balancing": [
                {"training flows of a cut class": name}
                | {
                    f"{view.title}: {measure}": float(mean)
                    for view, found in results.items()
                    for measure, mean in zip(("recall", "macro F1"), np.mean(found.balanced[name], axis=0), strict=True)
                }
                for name in bits.balanced
            ],
            **detail,
        },
    )
    if bits.services is None:
        yield _score("service_macro_f1", [math.nan], None, {"reason": _NO_SERVICES})
    else:
        table = [
            {"view": view.title, "learned synthetic: macro F1": ours, "learned real: macro F1": theirs}
            for view, found in results.items()
            for ours, theirs in [found.services or (math.nan, math.nan)]
        ]
        yield _score("service_macro_f1", bits.services[:1], bits.services[1:], {"services": table, **detail})


def _score(name: str, values: Sequence[float], floors: Sequence[float] | None, detail: Mapping[str, Any]) -> Score:
    """
    Return the mean over repetitions.
    """
    return Score(
        name=f"utility.{name}",
        value=float(np.mean(values)),
        goal="maximize",
        lower=0.0,
        upper=math.inf if name == "ratio" else 1.0,
        floor=None if floors is None else float(np.mean(floors)),
        summary=_SUMMARIES[name],
        detail={**detail, **spread(values)},
    )
