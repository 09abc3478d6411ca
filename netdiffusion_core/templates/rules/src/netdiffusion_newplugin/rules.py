"""
The rule set: routers spread packets over paths by address and flow label, so all that one side sends in a flow has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.capture import dissect
from netdiffusion_core.capture.dissect import uint
from netdiffusion_core.interfaces import Record, RuleSet, forget
from netdiffusion_core.model import Rule, Traffic, Violation

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
            yield from FLOW_LABEL.broken(traffic, wrong_labels(traffic)[0])

    def repair(self, traffic: Traffic, rng: np.random.Generator, record: Record = forget) -> Traffic:
        """
        Give each packet the flow label of its side's first packet. No checksum covers it.
        """
        packets, at, labels, right = wrong_labels(traffic)
        if FLOW_LABEL.id in self.off or not len(packets):
            return traffic
        record(FLOW_LABEL.id, FLOW_LABEL.field, packets, labels, right)
        data = traffic.data.copy()  # arrays of a Traffic are read-only
        data[at + 1] = data[at + 1] & 0xF0 | right >> 16
        data[at + 2] = right >> 8 & 0xFF
        data[at + 3] = right & 0xFF
        return attrs.evolve(traffic, data=data)


def wrong_labels(traffic: Traffic) -> tuple[Array, Array, Array, Array]:
    """
    Return ``(packets, at, labels, right)``, int64[n] each: the packets whose flow label is wrong, where in the data
    their IPv6 headers begin, the flow labels that they have, and those that they should have.
    """
    headers = dissect(traffic)
    order, _ = traffic.by_flow()
    packets = order[headers.ip_versions[order] == 6]
    side = 2 * traffic.flow_of[packets].astype(np.int64) + traffic.from_initiator[packets]
    at = headers.ip_offsets[packets]
    labels = uint(traffic.data, at, 4) & 0xFFFFF
    _, first, sides = np.unique(side, return_index=True, return_inverse=True)
    right = labels[first][sides]
    wrong = labels != right
    return packets[wrong], at[wrong], labels[wrong], right[wrong]
