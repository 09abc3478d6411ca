"""
The rules, one record each: what `check` reports and where it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.model import Traffic, Violation


@attrs.frozen
class Rule:
    """
    id        ``<rule set>.<rule>``
    field     the header field that is wrong when the rule is broken
    severity  ``error``: a receiver would drop or misread the packet; ``warning``: unusual, but legal
    summary   what must hold
    source    where that is written
    """

    id: str
    field: str
    severity: Literal["error", "warning"]
    summary: str
    source: str
    repairable: bool = True

    def broken(self, traffic: Traffic, packets: NDArray[Any]) -> Iterator[Violation]:
        """
        Yield a violation for each of these packets.
        """
        for packet in np.sort(packets).tolist():
            yield Violation(
                rule=self.id,
                flow=int(traffic.flow_of[packet]),
                packet=packet,
                field=self.field,
                message=f"{self.summary} ({self.source})",
                severity=self.severity,
                repairable=self.repairable,
            )


def _rules(*rules: Rule) -> dict[str, Rule]:
    return {rule.id: rule for rule in rules}


RULES = _rules(
    Rule("ipv4.header", "ipv4.ver", "error", "version is 4 and the header at least 20 bytes, all within the packet",
         "RFC 791 section 3.1", repairable=False),
    Rule("ipv4.length", "ipv4.tl", "error", "total length covers the headers and no more than the packet",
         "RFC 791 section 3.1"),
    Rule("ipv4.reserved-bit", "ipv4.rbit", "warning", "the first flag is 0", "RFC 791 section 3.1"),
    Rule("ipv4.fragment", "ipv4.foff", "warning", "a fragment comes with all the others of its datagram",
         "RFC 791 section 3.2"),
    Rule("ipv4.ttl", "ipv4.ttl", "error", "time to live is at least 1", "RFC 1122 section 3.2.1.7"),
    Rule("ipv4.options", "ipv4.opt", "error", "options are well-formed", "RFC 791 section 3.1"),
    Rule("ipv4.checksum", "ipv4.cksum", "error", "header checksum fits", "RFC 791 section 3.1, RFC 1071"),
    Rule("ipv6.header", "ipv6.ver", "error", "version is 6 and the header 40 bytes, all within the packet",
         "RFC 8200 section 3", repairable=False),
    Rule("ipv6.length", "ipv6.len", "error", "payload length covers the headers and no more than the packet",
         "RFC 8200 section 3"),
    Rule("ipv6.hop-limit", "ipv6.hl", "error", "hop limit is at least 1", "RFC 8200 section 3"),
    Rule("interpacket.direction", "trace.direction", "warning", "the initiator sends the first packet; a TCP handshake "
         "goes forth, back, forth", "RFC 9293 section 3.5"),
    Rule("interpacket.ports", "tcp.sprt", "error", "ports are the same in all packets of a flow, and not 0",
         "RFC 9293 section 3.3.1, RFC 6335 section 6"),
    Rule("interpacket.ttl", "ipv4.ttl", "warning", "time to live is constant in each direction of a flow",
         "RFC 791 section 3.2: it counts the hops of one path"),
    Rule("interpacket.ip-id", "ipv4.id", "warning", "where the identification counts up, no single packet leaves the "
         "count", "RFC 6864 section 4.1 leaves it free; stacks count, draw or send 0"),
    Rule("interpacket.timestamps", "trace.iat_us", "warning", "time does not go backwards within a flow",
         "draft-ietf-opsawg-pcap"),
    Rule("tcp.header", "tcp.doff", "error", "data offset is at least 5 words, all within the packet",
         "RFC 9293 section 3.1", repairable=False),
    Rule("tcp.reserved", "tcp.res", "warning", "reserved bits are 0", "RFC 9293 section 3.1"),
    Rule("tcp.options", "tcp.opt", "error", "options are well-formed", "RFC 9293 section 3.1"),
    Rule("tcp.option-place", "tcp.opt", "error", "maximum segment size, window scale and SACK-permitted come once, "
         "and with SYN only", "RFC 9293 section 3.1, RFC 7323 section 2.2, RFC 2018 section 2"),
    Rule("tcp.flags", "tcp.flags", "error", "SYN comes without FIN and RST, and every later segment but RST has ACK",
         "RFC 9293 sections 3.5, 3.10.7"),
    Rule("tcp.syn", "tcp.syn", "warning", "SYN opens the flow and comes once in each direction",
         "RFC 9293 section 3.5"),
    Rule("tcp.syn-data", "ipv4.tl", "warning", "SYN and RST carry no data", "RFC 9293 sections 3.4, 3.5.3"),
    Rule("tcp.urgent", "tcp.urp", "warning", "the urgent pointer is 0 unless URG is set and points into the data",
         "RFC 9293 section 3.8.5"),
    Rule("tcp.acknowledgment", "tcp.ackn", "warning", "only what the other side has sent is acknowledged, and "
         "nothing by the first SYN", "RFC 9293 section 3.4"),
    Rule("tcp.sequence", "tcp.seq", "warning", "each segment continues where its sender's last one ended",
         "RFC 9293 section 3.4"),
    Rule("tcp.after-fin", "tcp.fin", "warning", "a side that has sent FIN sends no more data", "RFC 9293 section 3.6"),
    Rule("tcp.after-rst", "tcp.rst", "warning", "nothing but RST follows RST", "RFC 9293 section 3.5.3"),
    Rule("tcp.window", "tcp.wsize", "warning", "the window is open, and data stay within it", "RFC 9293 section 3.8.6"),
    Rule("tcp.mss", "ipv4.tl", "warning", "data stay within the maximum segment size of the other side, "
         "or 1500-byte packets where it named none",
         "RFC 9293 section 3.7.1"),
    Rule("tcp.timestamps", "tcp.opt", "warning", "time stamps rise with the clock and echo the other side's",
         "RFC 7323 sections 3.2, 5.4"),
    Rule("tcp.sack", "tcp.opt", "warning", "SACK blocks lie within what the other side has sent",
         "RFC 2018 section 3"),
    Rule("tcp.checksum", "tcp.cksum", "error", "checksum fits", "RFC 9293 section 3.1"),
    Rule("udp.header", "udp.len", "error", "eight bytes of header are within the packet", "RFC 768", repairable=False),
    Rule("udp.length", "udp.len", "error", "length is the header and the data, as the IP header has it", "RFC 768"),
    Rule("udp.checksum", "udp.cksum", "error", "checksum fits", "RFC 768, RFC 8200 section 8.1"),
    Rule("icmp.header", "icmp.type", "error", "eight bytes of header are within the packet", "RFC 792",
         repairable=False),
    Rule("icmp.type", "icmp.type", "error", "type and code are assigned, and what they promise follows",
         "RFC 792, RFC 4443, RFC 4861"),
    Rule("icmp.echo", "icmp.roh", "warning", "a reply has identifier and sequence number of an earlier request of the "
         "other side that was not answered yet", "RFC 792, RFC 4443 section 4.2"),
    Rule("icmp.checksum", "icmp.cksum", "error", "checksum fits", "RFC 792, RFC 4443 section 2.3"),
)  # fmt: skip
"""Every rule of this distribution by id."""


def rules_of(name: str) -> tuple[Rule, ...]:
    """
    Return the rules of one rule set.
    """
    return tuple(rule for rule in RULES.values() if rule.id.startswith(name + "."))
