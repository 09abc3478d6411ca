"""
The rule set ``ipv6`` (RFC 8200).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bits import Bits
from .headers import Draft, malformed, oversized
from .rules import rules_of
from .ruleset import InetRules

Array = NDArray[Any]

DEFAULT_HOP_LIMIT = 64  # RFC 1700, "IP parameters"
_HARMLESS_EXTENSIONS = (0, 60)  # hop-by-hop and destination options: may stand empty before any transport


class Ipv6Rules(InetRules):
    """
    Each IPv6 header by itself.
    """

    name = header = protocol = "ipv6"
    checksums = ("icmpv6",)  # an integral part of IPv6: RFC 4443 section 2
    rules = rules_of("ipv6")

    def settle(self, bits: Bits) -> None:
        """
        Give every packet of an IPv6 flow a whole IPv6 header and one transport header, and no packet of another flow.
        """
        mine, others = (np.flatnonzero(bits.live & is6) for is6 in (bits.ip_versions == 6, bits.ip_versions != 6))
        bits.clear("ipv6", others)
        if not len(mine):
            return
        bits.complete("ipv6", 64, mine)
        bits.keep_one_transport(mine)
        bits.write("ipv6.ver", mine, 6)
        extended = np.isin(bits.values("ipv6.nh", mine), _HARMLESS_EXTENSIONS)
        if "trace.extension_words" in bits.spans:
            extended &= bits.values("trace.extension_words", mine) > 0
        ours = mine[(bits.protocols[mine] >= 0) & ~extended]
        bits.write("ipv6.nh", ours, bits.protocols[ours])

    def mend(self, draft: Draft, rng: np.random.Generator) -> None:
        """
        Mend hop limit 0, payload length, datagrams that are too long, and the checksum of ICMPv6.
        """
        draft.put("ipv6.hop-limit", "ipv6.hl", _dead(draft), DEFAULT_HOP_LIMIT)
        draft.put_lengths("ipv6.length", *_wrong_lengths(draft))
        draft.cut("ipv6.mtu", *oversized(draft.headers, 6))

    def faults(self, draft: Draft) -> Iterator[tuple[str, Array]]:
        """
        Yield what `rules` says.
        """
        yield "ipv6.header", malformed(draft.traffic, draft.headers, 6)
        yield "ipv6.length", _wrong_lengths(draft)[0]
        yield "ipv6.mtu", oversized(draft.headers, 6)[0]
        yield "ipv6.hop-limit", _dead(draft)


def _dead(draft: Draft) -> Array:
    """
    Return the IPv6 packets with hop limit 0.
    """
    i = np.flatnonzero(draft.headers.ip_versions == 6)
    return i[draft.get("ipv6.hl", i) == 0]


def _wrong_lengths(draft: Draft) -> tuple[Array, Array]:
    """
    Return ``(packets, lengths)``: where the payload length is shorter than the headers behind the first or longer than
    the packet, and what the length of the packet should be. A payload length of 0 (segmentation offload, RFC 2675)
    stands for all of the packet.
    """
    h = draft.headers
    i = np.flatnonzero(h.ip_versions == 6)
    told = draft.get("ipv6.len", i)
    least = h.ip_header_lengths[i] + h.transport_header_lengths[i] - 40
    most = np.minimum(draft.traffic.wire_lengths[i] - h.link_lengths[i] - 40, 65_535)
    right = np.where((told == 0) | (told > most), most, np.maximum(told, least))
    return i[told != right], 40 + right[told != right]
