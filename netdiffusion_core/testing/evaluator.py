"""
What every evaluator must do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import ClassVar

from ..context import Context
from ..errors import NetDiffusionError
from ..interfaces import RealTraffic
from ..model import Score, Traffic
from .component import Conformance, returned, unchanged
from .examples import damaged, example_traffic, no_packets


class EvaluatorConformance(Conformance):
    """
    The checks of an evaluator.

    tolerance  how far a figure of the example traffic may be from its floor, as a share of its bounds
    """

    kind: ClassVar[str] = "evaluator"
    tolerance: ClassVar[float] = 0.25
    _scores: ClassVar[list[Score]]

    def real(self) -> RealTraffic:
        """
        Return the two halves of the real flows. Override it for an evaluator that looks at other protocols.
        """
        return RealTraffic(train=example_traffic(seed=1), test=example_traffic(seed=2))

    def synthetic(self) -> Traffic:
        """
        Return what a perfect generator makes: other flows of the same source as `real`.
        """
        return example_traffic(seed=3)

    def context(self) -> Context:
        """
        Return what a run would give: the encoder ``nprint`` and the rule sets that are there.
        """
        plugins = self.plugins()
        encoder = plugins.create("encoder", "nprint") if "nprint" in plugins.names("encoder") else None
        names = [name for name in ("tcp", "udp", "icmp", "icmpv6") if name in plugins.names("rules")]
        ordered, _ = plugins.resolve_rules(names)
        return Context(encoder=encoder, rules=tuple((name, plugins.create("rules", name)) for name in ordered))

    def test_scores_are_well_formed(self) -> None:
        """
        A score is named ``<evaluator>.<figure>``, has a summary, and a value and floor within its bounds; of good
        traffic and of bad. A figure that could not be measured is NaN, and ``detail["reason"]`` says why. The detail
        can be written as JSON.
        """
        for scores in (self._good(), self._evaluate(damaged(self.synthetic(), share=0.2))):
            assert scores, "the evaluator yields no score"
            assert any(not math.isnan(score.value) for score in scores), (
                f"nothing could be measured: {scores[0].detail.get('reason')}"
            )

    def test_real_against_real_is_at_its_floor(self) -> None:
        """
        Synthetic flows of the same source as the real ones score about the floor: that is what a floor means.

        Mend: measure the floor as the value, with ``real.train`` in place of ``synthetic``.
        """
        for score in self._good():
            if score.floor is not None and math.isfinite(score.value) and math.isfinite(score.floor):
                range_ = score.upper - score.lower
                allowed = self.tolerance * (range_ if math.isfinite(range_) else max(1.0, abs(score.floor)))
                assert abs(score.value - score.floor) <= allowed, (
                    f"{score.name} is {score.value:.3g} for flows of the same source as the real ones, "
                    f"and its floor is {score.floor:.3g}"
                )

    def test_no_flows_and_missing_labels(self) -> None:
        """
        Synthetic traffic without a flow, or without one of the labels, gives scores (NaN with a reason) or one of the
        errors of `netdiffusion_core.errors`, never another exception.
        """
        first = self.synthetic().flows.labels[0]
        without = self.synthetic().select_flows(self.synthetic().flows.labels != first)
        for what, synthetic in (("no flows", no_packets()), (f"no flow of {first!r}", without)):
            try:
                self._evaluate(synthetic)
            except NetDiffusionError:
                continue
            except AssertionError:
                raise
            except Exception as error:
                raise AssertionError(
                    f"synthetic traffic with {what} raises {type(error).__name__}: {error}. Yield NaN and a reason."
                ) from error

    def test_the_seed_decides_what_is_drawn(self) -> None:
        """
        The same seed gives the same scores.

        Mend: draw from ``context.rng("<evaluator>.<what for>")``, and give that seed to a library's estimators.
        """
        one, again = self._good(), self._evaluate(self.synthetic())
        for a, b in zip(one, again, strict=True):
            for what in ("name", "value", "floor", "detail"):
                old, new = (json.dumps(getattr(score, what)) for score in (a, b))  # NaN is no NaN's equal, its name is
                assert old == new, f"the same seed gave {a.name} the {what} {old[:80]} and then {new[:80]}"

    def _good(self) -> list[Score]:
        """
        Judge the good synthetic traffic once a test class.
        """
        if "_scores" not in vars(type(self)):
            type(self)._scores = self._evaluate(self.synthetic())
        return self._scores

    def _evaluate(self, synthetic: Traffic) -> list[Score]:
        """
        Evaluate, and look at every score.
        """
        real = self.real()
        with unchanged("evaluate", real.train, real.test, synthetic):
            answer = self.component().evaluate(real, synthetic, self.context())
            scores = list(returned(answer, Iterable, "evaluate"))
        names = [score.name for score in scores]
        assert len(set(names)) == len(names), f"two scores have one name: {sorted(names)}"
        for score in scores:
            assert score.name.startswith(f"{self.spec.name}."), (
                f"the score {score.name!r} must be named {self.spec.name}.<figure>"
            )
            assert score.goal in ("minimize", "maximize", "none"), f"{score.name} has the goal {score.goal!r}"
            assert score.summary, f"{score.name} has no summary: what was measured?"
            try:
                json.dumps(score.detail)
            except (TypeError, ValueError) as error:
                raise AssertionError(f"the detail of {score.name} cannot be written as JSON: {error}") from None
            if math.isnan(score.value):
                assert score.detail.get("reason"), f'{score.name} is NaN, and detail["reason"] does not say why'
            for what, number in (("value", score.value), ("floor", score.floor)):
                if number is not None and not math.isnan(number):
                    assert math.isfinite(number), f"the {what} of {score.name} is {number}"
                    assert score.lower <= number <= score.upper, (
                        f"the {what} of {score.name} is {number}, beyond its bounds {score.lower} and {score.upper}"
                    )
        return scores
