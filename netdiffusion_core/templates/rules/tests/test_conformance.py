"""
NetDiffusion's conformance kit on the rule set, and what it is for.
"""

from __future__ import annotations

import numpy as np
from netdiffusion_newplugin.plugin import NEWPLUGIN
from netdiffusion_newplugin.rules import NewpluginRules

from netdiffusion_core.testing import RuleSetConformance, damaged, example_traffic


class TestNewplugin(RuleSetConformance):
    spec = NEWPLUGIN


def test_wrong_flow_labels_are_found_and_mended() -> None:
    broken = damaged(example_traffic())
    found = {violation.packet for violation in NewpluginRules().check(broken)}
    assert found
    repaired = NewpluginRules().repair(broken, np.random.default_rng(0))
    changed = {i for i in range(len(broken)) if broken.packet(i) != repaired.packet(i)}
    assert changed == found
