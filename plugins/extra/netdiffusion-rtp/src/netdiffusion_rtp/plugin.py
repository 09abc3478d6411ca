"""
What this distribution offers: the rule set ``rtp``.
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
            name="rtp",
            target="netdiffusion_rtp.rules:RtpRules",
            summary="RTP and RTCP: headers, sources, sequence numbers and time stamps of media flows (RFC 3550, 3551)",
            requires=("udp",),
        )
    ]
