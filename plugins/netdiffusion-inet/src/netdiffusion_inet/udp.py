"""
The rule set ``udp`` (RFC 768).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.interfaces import RuleSet
from netdiffusion_core.model import UDP, Encoded, Traffic, Violation

from .bits import Bits
from .checksum import wrong_transport_checksums
from .headers import Draft, malformed_transport
from .rules import RULES, rules_of

Array = NDArray[Any]


class UdpRules(RuleSet):
    """
    Each UDP header by itself.
    """

    rules = rules_of("udp")

    def constrain(self, encoded: Encoded) -> Encoded:
        """
        Give every packet of a UDP flow a whole UDP header.
        """
        if not encoded.layout.has("udp"):
            return encoded
        bits = Bits(encoded)
        bits.complete("udp", 64, bits.live & (bits.protocols == UDP))
        return bits.encoded()

    def repair(self, traffic: Traffic, rng: np.random.Generator) -> Traffic:
        """
        Mend length and checksum.
        """
        traffic = traffic.packed()
        draft = Draft(traffic)
        wrong = _wrong_checksums(draft)
        draft.put("udp.len", *_wrong_lengths(draft))
        return draft.finish(seal=wrong)

    def check(self, traffic: Traffic) -> Iterator[Violation]:
        """
        Yield what `rules` says.
        """
        traffic = traffic.packed()
        draft = Draft(traffic)
        yield from RULES["udp.header"].broken(traffic, malformed_transport(traffic, draft.headers, (UDP,)))
        yield from RULES["udp.length"].broken(traffic, _wrong_lengths(draft)[0])
        yield from RULES["udp.checksum"].broken(traffic, _wrong_checksums(draft))


def _wrong_lengths(draft: Draft) -> tuple[Array, Array]:
    """
    Return ``(packets, lengths)``: where the length is not what the IP header leaves for it, and what it should be.
    """
    h = draft.headers
    i = np.flatnonzero((h.protocols == UDP) & (h.transport_offsets >= 0) & ~h.fragments)
    right = 8 + h.payload_lengths[i]
    wrong = draft.get("udp.len", i) != right
    return i[wrong], right[wrong]


def _wrong_checksums(draft: Draft) -> NDArray[np.int64]:
    """
    Return the packets whose checksum is wrong. IPv6 demands one (RFC 8200 section 8.1).
    """
    return wrong_transport_checksums(draft.traffic, draft.headers, (UDP,))
