"""
What this distribution offers. Imported whenever `netdiff` starts: keep NumPy and the like out of here.
"""

from __future__ import annotations

from collections.abc import Sequence

from netdiffusion_core import hookimpl
from netdiffusion_core.specs import RuleSetSpec

NEWPLUGIN = RuleSetSpec(
    name="newplugin",
    target="netdiffusion_newplugin.rules:NewpluginRules",
    summary="one IPv6 flow label in each direction of a flow (RFC 6437)",
    requires=("interpacket",),  # of netdiffusion-inet: it settles who has sent each packet
)


@hookimpl
def netdiffusion_register_rules() -> Sequence[RuleSetSpec]:
    """
    Offer the rule set ``newplugin``.
    """
    return [NEWPLUGIN]
