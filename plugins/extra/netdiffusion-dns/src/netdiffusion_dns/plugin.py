"""
What this distribution offers: the rule set ``dns``.
"""

from __future__ import annotations

from collections.abc import Sequence

from netdiffusion_core import hookimpl
from netdiffusion_core.specs import RuleSetSpec


@hookimpl
def netdiffusion_register_rules() -> Sequence[RuleSetSpec]:
    """
    Offer the rule set.
    """
    return [
        RuleSetSpec(
            name="dns",
            target="netdiffusion_dns.rules:DnsRules",
            summary="DNS over UDP: whole messages as payload, answers to earlier questions (RFC 1035, 6891)",
            requires=("udp",),
        )
    ]
