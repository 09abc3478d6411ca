"""
The conformance kit on the rule set.
"""

from __future__ import annotations

from netdiffusion_core.testing import RuleSetConformance
from netdiffusion_rtp.plugin import netdiffusion_register_rules


class TestRtp(RuleSetConformance):
    spec = netdiffusion_register_rules()[0]
