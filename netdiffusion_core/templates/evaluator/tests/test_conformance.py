"""
NetDiffusion's conformance kit on the evaluator, and its formula.
"""

from __future__ import annotations

import numpy as np
from netdiffusion_newplugin.evaluator import kolmogorov_smirnov
from netdiffusion_newplugin.plugin import NEWPLUGIN

from netdiffusion_core.testing import EvaluatorConformance


class TestNewplugin(EvaluatorConformance):
    spec = NEWPLUGIN


def test_the_statistic_is_that_of_the_textbook() -> None:
    assert kolmogorov_smirnov(np.array([1, 2, 3]), np.array([1, 2, 3])) == 0
    assert kolmogorov_smirnov(np.array([1, 2]), np.array([3, 4])) == 1
    assert kolmogorov_smirnov(np.array([1, 2, 3, 4]), np.array([3, 4])) == 0.5
