"""
The conformance kit on every evaluator.
"""

from __future__ import annotations

from netdiffusion_core.testing import EvaluatorConformance
from netdiffusion_evaluators.plugin import netdiffusion_register_evaluators

SPECS = {spec.name: spec for spec in netdiffusion_register_evaluators()}


class TestFidelity(EvaluatorConformance):
    spec = SPECS["fidelity"]


class TestUtility(EvaluatorConformance):
    spec = SPECS["utility"]
    options = {"trees": 10}  # noqa: RUF012


class TestDetectability(EvaluatorConformance):
    spec = SPECS["detectability"]
    options = {"trees": 5, "folds": 2}  # noqa: RUF012


class TestCompliance(EvaluatorConformance):
    spec = SPECS["compliance"]


class TestTiming(EvaluatorConformance):
    spec = SPECS["timing"]


class TestNovelty(EvaluatorConformance):
    spec = SPECS["novelty"]
    tolerance = 0.5  # the nearest of a dozen flows is near or far by chance
