"""
What this distribution offers: the rule sets ``ipv4``, ``ipv6``, ``interpacket``, ``tcp``, ``udp``, ``icmp`` and
``icmpv6``.

Every packet has an IP version and a place in a flow before its transport is looked at, so each transport requires
the other three, and the order is always the one above.
"""

from __future__ import annotations

from collections.abc import Sequence

from netdiffusion_core import hookimpl
from netdiffusion_core.specs import RuleSetSpec

_IP = ("ipv4", "ipv6")
_FLOW = (*_IP, "interpacket")


@hookimpl
def netdiffusion_register_rules() -> Sequence[RuleSetSpec]:
    """
    Offer the seven rule sets.
    """
    return [
        RuleSetSpec(
            name="ipv4",
            target="netdiffusion_inet.ipv4:Ipv4Rules",
            summary="IPv4 header: version, lengths, options, TTL, checksum (RFC 791)",
        ),
        RuleSetSpec(
            name="ipv6",
            target="netdiffusion_inet.ipv6:Ipv6Rules",
            summary="IPv6 header: version, payload length, hop limit (RFC 8200)",
        ),
        RuleSetSpec(
            name="interpacket",
            target="netdiffusion_inet.interpacket:InterpacketRules",
            summary="between the packets of a flow: who speaks, constant ports, plausible TTL, rising time stamps",
            requires=_IP,
        ),
        RuleSetSpec(
            name="tcp",
            target="netdiffusion_inet.tcp:TcpRules",
            summary="TCP: one connection a flow, sequence space, flags, options, windows, checksum (RFC 9293, 7323)",
            requires=_FLOW,
        ),
        RuleSetSpec(
            name="udp",
            target="netdiffusion_inet.udp:UdpRules",
            summary="UDP: length and checksum (RFC 768)",
            requires=_FLOW,
        ),
        RuleSetSpec(
            name="icmp",
            target="netdiffusion_inet.icmp:IcmpRules",
            summary="ICMP: types, paired echoes, quoted packets, checksum (RFC 792)",
            requires=_FLOW,
        ),
        RuleSetSpec(
            name="icmpv6",
            target="netdiffusion_inet.icmp:Icmpv6Rules",
            summary="ICMPv6: types, paired echoes, neighbour discovery, checksum (RFC 4443, 4861)",
            requires=_FLOW,
        ),
    ]
