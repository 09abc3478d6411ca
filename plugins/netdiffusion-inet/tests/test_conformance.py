"""
The conformance kit on every rule set.
"""

from __future__ import annotations

from netdiffusion_core.testing import RuleSetConformance
from netdiffusion_inet.plugin import netdiffusion_register_rules

SPECS = {spec.name: spec for spec in netdiffusion_register_rules()}


class TestIpv4(RuleSetConformance):
    spec = SPECS["ipv4"]


class TestIpv6(RuleSetConformance):
    spec = SPECS["ipv6"]


class TestInterpacket(RuleSetConformance):
    spec = SPECS["interpacket"]


class TestTcp(RuleSetConformance):
    spec = SPECS["tcp"]


class TestTcpThatKeepsRetransmissions(RuleSetConformance):
    spec = SPECS["tcp"]
    options = {"anomalies": "retransmissions"}  # noqa: RUF012


class TestTcpThatKeepsAnomalies(RuleSetConformance):
    spec = SPECS["tcp"]
    options = {"anomalies": "keep"}  # noqa: RUF012


class TestUdp(RuleSetConformance):
    spec = SPECS["udp"]


class TestIcmp(RuleSetConformance):
    spec = SPECS["icmp"]


class TestIcmpv6(RuleSetConformance):
    spec = SPECS["icmpv6"]
