"""
Where the fields of the headers are, by nPrint's names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..capture import dissect
from ..capture.dissect import uint
from ..model import ICMP, ICMPV6, TCP, UDP, Traffic

Array = NDArray[Any]

HEADERS: dict[str, tuple[tuple[str, int], ...]] = {
    # RFC 791
    "ipv4": (
        ("ver", 4), ("hl", 4), ("tos", 8), ("tl", 16), ("id", 16), ("rbit", 1), ("dfbit", 1), ("mfbit", 1),
        ("foff", 13), ("ttl", 8), ("proto", 8), ("cksum", 16),
    ),
    # RFC 8200
    "ipv6": (("ver", 4), ("tc", 8), ("fl", 20), ("len", 16), ("nh", 8), ("hl", 8)),
    # RFC 9293
    "tcp": (
        ("sprt", 16), ("dprt", 16), ("seq", 32), ("ackn", 32), ("doff", 4), ("res", 3), ("ns", 1), ("cwr", 1),
        ("ece", 1), ("urg", 1), ("ackf", 1), ("psh", 1), ("rst", 1), ("syn", 1), ("fin", 1), ("wsize", 16),
        ("cksum", 16), ("urp", 16),
    ),
    # RFC 768
    "udp": (("sport", 16), ("dport", 16), ("len", 16), ("cksum", 16)),
    # RFC 792, RFC 4443
    "icmp": (("type", 8), ("code", 8), ("cksum", 16), ("roh", 32)),
}  # fmt: skip
"""Fields and their bits, from the header's first bit on; addresses and options are left out."""

_PROTOCOLS = {"tcp": (TCP,), "udp": (UDP,), "icmp": (ICMP, ICMPV6)}


def places() -> dict[str, tuple[int, int]]:
    """
    Return the first bit and the number of bits of each field in its header, by its full name: ``tcp.wsize``.
    """
    found = {}
    for header, fields in HEADERS.items():
        first = 0
        for field, bits in fields:
            found[f"{header}.{field}"] = first, bits
            first += bits
    return found


def header_offsets(traffic: Traffic, header: str) -> NDArray[np.int64]:
    """
    Return where in `Traffic.data` each packet has this header: int64[packets], -1 where it is absent.
    """
    found = dissect(traffic)
    if header in ("ipv4", "ipv6"):
        return np.where(found.ip_versions == int(header[-1]), found.ip_offsets, -1)
    return np.where(np.isin(found.protocols, _PROTOCOLS[header]), found.transport_offsets, -1)


def values(traffic: Traffic, field: str) -> NDArray[np.int64]:
    """
    Return a field of `places` of every packet: int64[packets], -1 where its header is absent.
    """
    first, bits = places()[field]
    at = header_offsets(traffic, field.split(".")[0])
    octets = (first % 8 + bits + 7) // 8
    numbers = np.full(len(traffic), -1)
    here = at[at >= 0] + first // 8
    numbers[at >= 0] = uint(traffic.data, here, octets) >> (8 * octets - first % 8 - bits) & ((1 << bits) - 1)
    return numbers
