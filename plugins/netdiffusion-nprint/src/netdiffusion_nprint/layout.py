"""
The columns of an encoded packet: nPrint's bits less the addresses, as in the paper, and 64 more for direction and time.

Every header starts at a multiple of eight columns, so a row is also a row of bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from netdiffusion_core.model import Layout

HEADERS: dict[str, tuple[tuple[str, int], ...]] = {
    "radiotap": (
        ("reversion", 8), ("pad0", 8), ("len", 16), ("present", 96), ("mactimestamp", 64), ("flags", 8), ("rate", 8),
        ("channel", 16), ("channelflags", 16), ("antennasignal", 8), ("pad1", 8), ("rxflags", 16), ("pad2", 48),
        ("timestamp", 96), ("antennas", 32),
    ),
    "wlan": (("type", 8), ("flag", 8), ("duration", 16), ("rx_addr", 48)),
    "eth": (("dhost", 48), ("shost", 48), ("ethertype", 16)),
    # RFC 791
    "ipv4": (
        ("ver", 4), ("hl", 4), ("tos", 8), ("tl", 16), ("id", 16), ("rbit", 1), ("dfbit", 1), ("mfbit", 1),
        ("foff", 13), ("ttl", 8), ("proto", 8), ("cksum", 16), ("src", 32), ("dst", 32), ("opt", 320),
    ),
    # RFC 8200
    "ipv6": (
        ("ver", 4), ("tc", 8), ("fl", 20), ("len", 16), ("nh", 8), ("hl", 8), ("src", 128), ("dst", 128),
    ),
    # RFC 9293
    "tcp": (
        ("sprt", 16), ("dprt", 16), ("seq", 32), ("ackn", 32), ("doff", 4), ("res", 3), ("ns", 1), ("cwr", 1),
        ("ece", 1), ("urg", 1), ("ackf", 1), ("psh", 1), ("rst", 1), ("syn", 1), ("fin", 1), ("wsize", 16),
        ("cksum", 16), ("urp", 16), ("opt", 320),
    ),
    # RFC 768
    "udp": (("sport", 16), ("dport", 16), ("len", 16), ("cksum", 16)),
    # RFC 792; RFC 4443 in IPv6
    "icmp": (("type", 8), ("code", 8), ("cksum", 16), ("roh", 32)),
}  # fmt: skip
"""nPrint's headers in its column order, each with its fields and their bits."""

_PACKET = tuple(
    (f"{header}.{field}", bits)
    for header in ("ipv4", "ipv6", "tcp", "udp", "icmp")
    for field, bits in HEADERS[header]
    if field not in ("src", "dst")
)

_TRACE = (
    ("trace.direction", 1),  # 0: sent by the flow's initiator, 1: by the responder
    ("trace.iat_us", 48),  # inter-arrival time: microseconds since the flow's previous packet, 0 for the first
    ("trace.padding", 7),  # bytes on the wire behind the IP packet, such as Ethernet padding; 127: or more
    ("trace.extension_words", 8),  # IPv6 extension headers before the transport header, in units of 8 bytes
)

PAPER = Layout(name="nprint-paper", version=1, fields=_PACKET)
"""The 1088 columns of the NetDiffusion paper's images."""

TRACE = Layout(name="nprint-trace", version=1, fields=_PACKET + _TRACE)
"""The same 1088 and behind them 64 for what the paper's image loses: 1152 = 18 x 64 columns."""

LAYOUTS = {"paper": PAPER, "trace": TRACE}

COLUMN = {name: span.start // 8 for name, span in PAPER.spans().items() if span.start % 8 == 0}
"""Where a header or field begins, in bytes of a row of eight columns each."""

TRACE_COLUMN = PAPER.width // 8


def chunks(packets: int, size: int = 65_536) -> Iterator[slice]:
    """
    Cut ``range(packets)`` into slices, so that the temporaries of one stay small.
    """
    return (slice(start, min(start + size, packets)) for start in range(0, packets, size))
