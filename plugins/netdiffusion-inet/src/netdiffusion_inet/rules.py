"""
The rules, one record each: what `check` reports, what `repair` mends and where it is written.
"""

from __future__ import annotations

from netdiffusion_core.model import Rule


def _rules(*rules: Rule) -> dict[str, Rule]:
    return {rule.id: rule for rule in rules}


RULES = _rules(
    Rule("ipv4.bits", "ipv4", "error", "packets of an IPv4 flow have a whole IPv4 header without fragments, with "
         "options of a known kind, and one transport header, of the protocol that it names", "RFC 791 section 3.1"),
    Rule("ipv4.header", "ipv4.ver", "error", "version is 4 and the header at least 20 bytes, all within the packet",
         "RFC 791 section 3.1", repairable=False),
    Rule("ipv4.length", "ipv4.tl", "error", "total length covers the headers and no more than the packet",
         "RFC 791 section 3.1"),
    Rule("ipv4.mtu", "ipv4.tl", "warning", "a packet with UDP or ICMP is at most 1500 bytes long: more is sent in "
         "fragments", "RFC 894, RFC 791 section 3.2"),
    Rule("ipv4.reserved-bit", "ipv4.rbit", "warning", "the first flag is 0", "RFC 791 section 3.1"),
    Rule("ipv4.fragment", "ipv4.foff", "warning", "a fragment comes with all the others of its datagram",
         "RFC 791 section 3.2"),
    Rule("ipv4.ttl", "ipv4.ttl", "error", "time to live is at least 1", "RFC 1122 section 3.2.1.7"),
    Rule("ipv4.options", "ipv4.opt", "error", "options are well-formed", "RFC 791 section 3.1"),
    Rule("ipv4.checksum", "ipv4.cksum", "error", "header checksum fits", "RFC 791 section 3.1, RFC 1071"),
    Rule("ipv6.bits", "ipv6", "error", "packets of an IPv6 flow have a whole IPv6 header and one transport header, of "
         "the protocol that it names", "RFC 8200 section 3"),
    Rule("ipv6.header", "ipv6.ver", "error", "version is 6 and the header 40 bytes, all within the packet",
         "RFC 8200 section 3", repairable=False),
    Rule("ipv6.length", "ipv6.len", "error", "payload length covers the headers and no more than the packet",
         "RFC 8200 section 3"),
    Rule("ipv6.mtu", "ipv6.len", "warning", "a packet with UDP or ICMPv6 is at most 1500 bytes long: more is sent in "
         "fragments", "RFC 2464 section 2, RFC 8200 section 5"),
    Rule("ipv6.hop-limit", "ipv6.hl", "error", "hop limit is at least 1", "RFC 8200 section 3"),
    Rule("interpacket.direction", "trace.direction", "warning", "the initiator sends the first packet; a TCP handshake "
         "goes forth, back, forth", "RFC 9293 section 3.5"),
    Rule("interpacket.ports", "tcp.sprt", "error", "ports are the same in all packets of a flow, and not 0",
         "RFC 9293 section 3.3.1, RFC 6335 section 6"),
    Rule("interpacket.endpoints", "tcp.sprt", "warning", "no two flows at the same time have the same protocol, "
         "addresses and ports", "RFC 9293 section 3.3.1"),
    Rule("interpacket.ttl", "ipv4.ttl", "warning", "time to live changes at most three times in each direction of a "
         "flow, and then to what is left of 32, 64, 128 or 255 after at most 40 hops",
         "RFC 791 section 3.2: it counts the hops of one path"),
    Rule("interpacket.ip-id", "ipv4.id", "warning", "where the identification counts up, no single packet leaves the "
         "count", "RFC 6864 section 4.1 leaves it free; stacks count, draw or send 0"),
    Rule("interpacket.timestamps", "trace.iat_us", "warning", "time does not go backwards within a flow, nor on by "
         "more than two hours", "draft-ietf-opsawg-pcap; RFC 9293 section 3.8.4, keep-alives"),
    Rule("interpacket.silence", "trace.iat_us", "warning", "a flow without TCP is silent for two minutes at most, one "
         "of ICMP for one minute: what comes later is another flow", "RFC 4787 section 4.3, RFC 5508 section 3.2"),
    Rule("tcp.bits", "tcp", "error", "packets of a TCP flow have a whole TCP header, SYN where the connection opens "
         "and nowhere else, and options that are legal where they stand", "RFC 9293 sections 3.1, 3.5"),
    Rule("tcp.header", "tcp.doff", "error", "data offset is at least 5 words, all within the packet",
         "RFC 9293 section 3.1", repairable=False),
    Rule("tcp.reserved", "tcp.res", "warning", "reserved bits are 0", "RFC 9293 section 3.1"),
    Rule("tcp.options", "tcp.opt", "error", "options are well-formed", "RFC 9293 section 3.1"),
    Rule("tcp.option-place", "tcp.opt", "error", "options come once; maximum segment size, window scale and "
         "SACK-permitted with SYN only, SACK and time stamps only if both SYNs agreed on them",
         "RFC 9293 section 3.1, RFC 7323 sections 2.2, 3.2, RFC 2018 section 2"),
    Rule("tcp.option-padding", "tcp.opt", "warning", "no more than three NOP stand in a row: more align nothing",
         "RFC 9293 section 3.1"),
    Rule("tcp.option-value", "tcp.opt", "warning", "the maximum segment size is at least 536 and the window scale at "
         "most 14", "RFC 9293 section 3.7.1, RFC 7323 section 2.3"),
    Rule("tcp.flags", "tcp.flags", "error", "SYN, FIN and RST exclude each other; every segment has ACK but the first "
         "SYN and a RST that refuses nothing", "RFC 9293 sections 3.5, 3.10.7"),
    Rule("tcp.syn", "tcp.flags", "warning", "SYN opens the flow; in each direction there is one, which may be sent "
         "again",
         "RFC 9293 section 3.5"),
    Rule("tcp.syn-data", "ipv4.tl", "warning", "SYN and RST carry no data", "RFC 9293 sections 3.4, 3.5.3"),
    Rule("tcp.urgent", "tcp.urp", "warning", "the urgent pointer is 0 unless URG is set and points into the data",
         "RFC 9293 section 3.8.5"),
    Rule("tcp.acknowledgment", "tcp.ackn", "warning", "only what the other side has sent is acknowledged, no "
         "acknowledgment is taken back, and the number is 0 without ACK", "RFC 9293 section 3.4"),
    Rule("tcp.sequence", "tcp.seq", "warning", "each segment continues where its sender's last one ended",
         "RFC 9293 section 3.4"),
    Rule("tcp.after-fin", "tcp.flags", "warning", "a side that has sent FIN sends no more data",
         "RFC 9293 section 3.6"),
    Rule("tcp.after-rst", "tcp.flags", "warning", "nothing but RST follows RST, except what was on its way for a "
         "second",
         "RFC 9293 section 3.5.3"),
    Rule("tcp.window", "tcp.wsize", "warning", "the window is open, and data stay within it", "RFC 9293 section 3.8.6"),
    Rule("tcp.mss", "ipv4.tl", "warning", "data stay within the maximum segment size of the other side, or 1500-byte "
         "packets where it named none; where all that are longer are whole segments in a row, or end in PSH, "
         "the capture lies behind segmentation offload", "RFC 9293 section 3.7.1"),
    Rule("tcp.timestamps", "tcp.opt", "warning", "time stamps rise with the clock and echo the other side's",
         "RFC 7323 sections 3.2, 5.4"),
    Rule("tcp.sack", "tcp.opt", "warning", "SACK blocks lie within what the other side has sent",
         "RFC 2018 section 3"),
    Rule("tcp.checksum", "tcp.cksum", "error", "checksum fits", "RFC 9293 section 3.1"),
    Rule("udp.bits", "udp", "error", "packets of a UDP flow have a whole UDP header", "RFC 768"),
    Rule("udp.header", "udp.len", "error", "eight bytes of header are within the packet", "RFC 768", repairable=False),
    Rule("udp.length", "udp.len", "error", "length is the header and the data, as the IP header has it", "RFC 768"),
    Rule("udp.checksum", "udp.cksum", "error", "checksum fits", "RFC 768, RFC 8200 section 8.1"),
    *(
        rule
        for name, source, echo in (("icmp", "RFC 792", "RFC 792"), ("icmpv6", "RFC 4443", "RFC 4443 section 4.2"))
        for rule in (
            Rule(f"{name}.bits", "icmp", "error", "packets of an ICMP flow have a whole ICMP header", source),
            Rule(f"{name}.header", "icmp.type", "error", "eight bytes of header are within the packet", source,
                 repairable=False),
            Rule(f"{name}.type", "icmp.type", "error", "type and code are assigned, what they promise follows, and an "
                 "error quotes a packet of the other direction"
                 + ("; neighbour discovery has a hop limit of 255" if name == "icmpv6" else ""),
                 source if name == "icmp" else "RFC 4443 section 2.4, RFC 4861"),
            Rule(f"{name}.echo", "icmp.roh", "warning", "a reply has identifier and sequence number of an earlier "
                 "request of the other side that was not answered yet; a flow with echoes has nothing else, and one "
                 "identifier", echo),
            Rule(f"{name}.checksum", "icmp.cksum", "error", "checksum fits",
                 source if name == "icmp" else "RFC 4443 section 2.3"),
        )
    ),
)  # fmt: skip
"""Every rule of this distribution by id."""


def rules_of(name: str) -> tuple[Rule, ...]:
    """
    Return the rules of one rule set.
    """
    return tuple(rule for rule in RULES.values() if rule.id.startswith(name + "."))
