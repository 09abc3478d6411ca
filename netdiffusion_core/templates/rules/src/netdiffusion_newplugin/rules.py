"""
The rule set: routers spread packets over paths by address and flow label, so all that one side sends in a flow has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.interfaces import Record, RuleSet, forget
from netdiffusion_core.model import Rule, Traffic, Violation
from netdiffusion_inet.headers import Draft, own_bytes

Array = NDArray[Any]

FLOW_LABEL = Rule(
    id="newplugin.flow-label",
    field="ipv6.fl",
    severity="warning",
    summary="all packets that one side sends in a flow have the flow label of its first",
    source="RFC 6437 section 2",
)


class NewpluginRules(RuleSet):
    """
    Flow labels of IPv6.
    """

    rules = (FLOW_LABEL,)

    def check(self, traffic: Traffic) -> Iterator[Violation]:
        """
        Yield a violation for each packet with another flow label than its side's first packet.
        """
        if FLOW_LABEL.id not in self.off:
            yield from FLOW_LABEL.broken(traffic, wrong_labels(Draft(traffic))[0])

    def repair(self, traffic: Traffic, rng: np.random.Generator, record: Record = forget) -> Traffic:
        """
        Give each packet the flow label of its side's first packet.
        """
        draft = Draft(own_bytes(traffic), self.off, record)  # tells `record`, and what is off it does not write
        draft.put(FLOW_LABEL.id, FLOW_LABEL.field, *wrong_labels(draft))
        return draft.finish()  # checksums fit


def wrong_labels(draft: Draft) -> tuple[Array, Array]:
    """
    Return ``(packets, right)``, int64[n] each: the packets whose flow label is wrong, and what it should be.
    """
    traffic = draft.traffic
    order, _ = traffic.by_flow()
    packets = order[draft.headers.ip_versions[order] == 6]
    side = 2 * traffic.flow_of[packets].astype(np.int64) + traffic.from_initiator[packets]
    labels = draft.get(FLOW_LABEL.field, packets)
    _, first, sides = np.unique(side, return_index=True, return_inverse=True)
    right = labels[first][sides]
    return packets[labels != right], right[labels != right]
