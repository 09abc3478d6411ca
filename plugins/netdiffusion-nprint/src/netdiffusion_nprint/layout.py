"""
The columns of an encoded packet: nPrint's bits less the addresses, as in the paper, and 64 more for direction and time.

Every header starts at a multiple of eight columns, so a row is also a row of bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from netdiffusion_core.model import Layout

_PACKET = (
    # RFC 791 without the addresses (bytes 12 to 19)
    ("ipv4.ver", 4), ("ipv4.hl", 4), ("ipv4.tos", 8), ("ipv4.tl", 16), ("ipv4.id", 16), ("ipv4.rbit", 1),
    ("ipv4.dfbit", 1), ("ipv4.mfbit", 1), ("ipv4.foff", 13), ("ipv4.ttl", 8), ("ipv4.proto", 8), ("ipv4.cksum", 16),
    ("ipv4.opt", 320),
    # RFC 8200 without the addresses (bytes 8 to 39)
    ("ipv6.ver", 4), ("ipv6.tc", 8), ("ipv6.fl", 20), ("ipv6.len", 16), ("ipv6.nh", 8), ("ipv6.hl", 8),
    # RFC 9293
    ("tcp.sprt", 16), ("tcp.dprt", 16), ("tcp.seq", 32), ("tcp.ackn", 32), ("tcp.doff", 4), ("tcp.res", 3),
    ("tcp.ns", 1), ("tcp.cwr", 1), ("tcp.ece", 1), ("tcp.urg", 1), ("tcp.ackf", 1), ("tcp.psh", 1), ("tcp.rst", 1),
    ("tcp.syn", 1), ("tcp.fin", 1), ("tcp.wsize", 16), ("tcp.cksum", 16), ("tcp.urp", 16), ("tcp.opt", 320),
    # RFC 768
    ("udp.sport", 16), ("udp.dport", 16), ("udp.len", 16), ("udp.cksum", 16),
    # RFC 792; RFC 4443 in IPv6
    ("icmp.type", 8), ("icmp.code", 8), ("icmp.cksum", 16), ("icmp.roh", 32),
)  # fmt: skip

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
