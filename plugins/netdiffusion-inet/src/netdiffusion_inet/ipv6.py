"""
The rule set ``ipv6`` (RFC 8200).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.interfaces import RuleSet
from netdiffusion_core.model import ICMPV6, Encoded, Traffic, Violation

from .bits import Bits
from .checksum import wrong_transport_checksums
from .headers import Draft, malformed
from .rules import RULES, rules_of

Array = NDArray[Any]

DEFAULT_HOP_LIMIT = 64  # RFC 1700, "IP parameters"
_HARMLESS_EXTENSIONS = (0, 60)  # hop-by-hop and destination options: may stand empty before any transport


class Ipv6Rules(RuleSet):
    """
    Each IPv6 header by itself.
    """

    rules = rules_of("ipv6")

    def constrain(self, encoded: Encoded) -> Encoded:
        """
        Give every packet of an IPv6 flow a whole IPv6 header and one transport header, and no packet of another flow.
        """
        if not encoded.layout.has("ipv6"):
            return encoded
        bits = Bits(encoded)
        mine = bits.live & (bits.ip_versions == 6)
        bits.clear("ipv6", bits.live & ~mine)
        bits.complete("ipv6", 64, mine)
        bits.keep_one_transport(mine)
        bits.write("ipv6.ver", mine, 6)
        extended = np.isin(bits.values("ipv6.nh"), _HARMLESS_EXTENSIONS)
        if "trace.extension_words" in bits.spans:
            extended &= bits.values("trace.extension_words") > 0
        bits.write("ipv6.nh", mine & (bits.protocols >= 0) & ~extended, bits.protocols)
        return bits.encoded()

    def repair(self, traffic: Traffic, rng: np.random.Generator) -> Traffic:
        """
        Mend hop limit 0, payload length, and the checksum of ICMPv6, an integral part of IPv6 (RFC 4443 section 2).
        """
        traffic = traffic.packed()
        draft = Draft(traffic)
        draft.put("ipv6.hl", _dead(draft), DEFAULT_HOP_LIMIT)
        draft.put("ipv6.len", *_wrong_lengths(draft))
        draft = Draft(draft.finish())  # what a checksum covers is known when the lengths are right
        return draft.finish(seal=wrong_transport_checksums(draft.traffic, draft.headers, (ICMPV6,)))

    def check(self, traffic: Traffic) -> Iterator[Violation]:
        """
        Yield what `rules` says.
        """
        traffic = traffic.packed()
        draft = Draft(traffic)
        yield from RULES["ipv6.header"].broken(traffic, malformed(traffic, draft.headers, 6))
        yield from RULES["ipv6.length"].broken(traffic, _wrong_lengths(draft)[0])
        yield from RULES["ipv6.hop-limit"].broken(traffic, _dead(draft))


def _dead(draft: Draft) -> Array:
    """
    Return the IPv6 packets with hop limit 0.
    """
    i = np.flatnonzero(draft.headers.ip_versions == 6)
    return i[draft.get("ipv6.hl", i) == 0]


def _wrong_lengths(draft: Draft) -> tuple[Array, Array]:
    """
    Return ``(packets, lengths)``: where the payload length is shorter than the headers behind the first or longer than
    the packet, and what it should be. A length of 0 (segmentation offload, RFC 2675) stands for all of the packet.
    """
    h = draft.headers
    i = np.flatnonzero(h.ip_versions == 6)
    told = draft.get("ipv6.len", i)
    least = h.ip_header_lengths[i] + h.transport_header_lengths[i] - 40
    most = np.minimum(draft.traffic.wire_lengths[i] - h.link_lengths[i] - 40, 65_535)
    right = np.where((told == 0) | (told > most), most, np.maximum(told, least))
    return i[told != right], right[told != right]
