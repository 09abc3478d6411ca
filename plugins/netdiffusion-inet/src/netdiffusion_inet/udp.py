"""
The rule set ``udp`` (RFC 768).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.model import UDP

from .bits import Bits
from .headers import Draft, malformed_transport
from .rules import rules_of
from .ruleset import InetRules

Array = NDArray[Any]


class UdpRules(InetRules):
    """
    Each UDP header by itself.
    """

    name = header = protocol = "udp"
    checksums = ("udp",)
    rules = rules_of("udp")

    def settle(self, bits: Bits) -> None:
        """
        Give every packet of a UDP flow a whole UDP header.
        """
        bits.complete("udp", 64, np.flatnonzero(bits.live & (bits.protocols == UDP)))

    def mend(self, draft: Draft, rng: np.random.Generator) -> None:
        """
        Mend length and checksum.
        """
        draft.put("udp.length", "udp.len", *_wrong_lengths(draft))

    def faults(self, draft: Draft) -> Iterator[tuple[str, Array]]:
        """
        Yield what `rules` says.
        """
        yield "udp.header", malformed_transport(draft.traffic, draft.headers, UDP)
        yield "udp.length", _wrong_lengths(draft)[0]
        yield "udp.checksum", draft.wrong_checksums(draft.judgeable("udp"))[0]


def _wrong_lengths(draft: Draft) -> tuple[Array, Array]:
    """
    Return ``(packets, lengths)``: where the length is not what the IP header leaves for it, and what it should be.
    """
    h = draft.headers
    i = np.flatnonzero((h.protocols == UDP) & (h.transport_offsets >= 0) & ~h.fragments)
    right = 8 + h.payload_lengths[i]
    wrong = draft.get("udp.len", i) != right
    return i[wrong], right[wrong]
