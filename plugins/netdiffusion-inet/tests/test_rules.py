"""
The rules, by what the RFCs say: an independent TCP receiver, scapy's checksums, and hand-made conversations.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.all import ICMP, IP, TCP, UDP, Ether, ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, Raw

from netdiffusion_core.capture import assemble, dissect
from netdiffusion_core.model import Encoded, FlowTable, Traffic
from netdiffusion_inet.icmp import IcmpRules
from netdiffusion_inet.ipv4 import Ipv4Rules
from netdiffusion_inet.plugin import netdiffusion_register_rules
from netdiffusion_inet.rules import RULES

CLIENT, SERVER = "10.0.0.1", "198.18.0.1"
LINK = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")  # named, or scapy asks the network for them


def traffic_of(packets: list[Any], gap_ns: int = 20_000_000) -> Traffic:
    """
    Build a traffic from scapy packets, `gap_ns` apart.
    """
    octets = [bytes(packet) for packet in packets]
    n = len(octets)
    none = FlowTable(
        labels=[], splits=[], sources=[], ip_versions=[], protocols=[], initiator_ports=[], responder_ports=[],
        initiator_addresses=np.zeros((0, 16)), responder_addresses=np.zeros((0, 16)),
    )  # fmt: skip
    return assemble(
        Traffic(
            data=np.frombuffer(b"".join(octets), np.uint8),
            starts=np.cumsum([0] + [len(o) for o in octets[:-1]]),
            captured_lengths=[len(o) for o in octets],
            timestamps=1_600_000_000_000_000_000 + gap_ns * np.arange(n),
            wire_lengths=[len(o) for o in octets],
            link_types=np.ones(n),
            flow_of=np.full(n, -1),
            from_initiator=np.zeros(n),
            flows=none,
        )
    )


def segment(forth: bool, payload: bytes = b"", options: Any = (), **fields: Any) -> Any:
    """
    Build a TCP segment of client or server.
    """
    ip = IP(src=CLIENT, dst=SERVER, ttl=64) if forth else IP(src=SERVER, dst=CLIENT, ttl=57)
    ports = {"sport": 40000, "dport": 80} if forth else {"sport": 80, "dport": 40000}
    return LINK / ip / TCP(**ports, options=list(options), **fields) / Raw(payload)


def conversation() -> list[Any]:
    """
    A valid connection: options, late acknowledgment, sequence numbers that wrap, both FINs.
    """
    first, other = 2**32 - 3, 7000
    offer = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (100, 0)), ("NOP", None), ("WScale", 7)]
    answer = [("MSS", 1400), ("SAckOK", b""), ("Timestamp", (900, 100)), ("NOP", None), ("WScale", 9)]

    def stamp(value: int, echo: int) -> list[Any]:
        return [("NOP", None), ("NOP", None), ("Timestamp", (value, echo))]

    return [
        segment(True, flags="S", seq=first, ack=0, options=offer),
        segment(False, flags="SA", seq=other, ack=first + 1, options=answer),
        segment(True, flags="A", seq=first + 1, ack=other + 1, options=stamp(120, 900)),
        segment(True, b"GET", flags="PA", seq=first + 1, ack=other + 1, options=stamp(121, 900)),
        segment(False, b"a" * 1388, flags="A", seq=other + 1, ack=1, options=stamp(950, 121), window=300),
        segment(False, b"b" * 100, flags="PA", seq=other + 1389, ack=1, options=stamp(950, 121), window=300),
        segment(True, flags="A", seq=1, ack=other + 1389, options=stamp(160, 950)),  # not yet of the second one
        segment(True, flags="FA", seq=1, ack=other + 1489, options=stamp(161, 950)),
        segment(False, flags="FA", seq=other + 1489, ack=2, options=stamp(990, 161)),
        segment(True, flags="A", seq=2, ack=other + 1490, options=stamp(200, 990)),
    ]


def echo(sequence: int, reply: bool, identifier: int = 77) -> Any:
    ip = IP(src=SERVER, dst=CLIENT) if reply else IP(src=CLIENT, dst=SERVER)
    return LINK / ip / ICMP(type=0 if reply else 8, id=identifier, seq=sequence) / Raw(b"abcdefg")


def ids(rules: SimpleNamespace, traffic: Traffic) -> set[str]:
    return {violation.rule for violation in rules.check(traffic)}


# --- specs --------------------------------------------------------------------------------------------------------


def test_each_transport_requires_ip_and_its_place_in_a_flow() -> None:
    requires = {spec.name: set(spec.requires) for spec in netdiffusion_register_rules()}
    assert requires["ipv4"] == requires["ipv6"] == set()
    assert all(requires[name] == {"ipv4", "ipv6", "interpacket"} for name in ("tcp", "udp", "icmp"))


def test_every_rule_is_listed_with_its_source(rules: SimpleNamespace) -> None:
    listed = [rule.id for each in rules.sets for rule in each.rules]
    assert sorted(listed) == sorted(RULES)
    assert all(rule.source and rule.summary for rule in RULES.values())


# --- what is valid stays ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "packets",
    [
        conversation(),
        conversation()[4:],
        [segment(True, flags="S", seq=5, ack=0), segment(False, flags="RA", seq=0, ack=6, window=0)],
        [echo(1, False), echo(1, True), echo(2, False), echo(3, False), echo(3, True)],  # the second was lost
        [
            LINK / IPv6(src="fd00::1", dst="2001:db8::1") / ICMPv6EchoRequest(id=1, seq=5, data=b"x"),
            LINK / IPv6(src="2001:db8::1", dst="fd00::1") / ICMPv6EchoReply(id=1, seq=5, data=b"x"),
            LINK / IPv6(src="fd00::1", dst="2001:db8::1") / UDP(sport=5, dport=6) / Raw(b"odd"),
        ],
        [LINK / IP(src=CLIENT, dst=SERVER) / UDP(sport=5000, dport=53, chksum=0) / Raw(b"no checksum")],
        [LINK / IP(src=SERVER, dst=CLIENT) / ICMP(type=3, code=3) / IP(src=CLIENT, dst=SERVER) / UDP(dport=9)],
    ],
    ids=["connection", "part of one", "refused", "ping", "IPv6", "UDP without checksum", "port unreachable"],
)
def test_valid_traffic_passes_unchanged(rules: SimpleNamespace, packets: list[Any]) -> None:
    traffic = traffic_of(packets)
    assert rules.check(traffic) == []
    assert rules.repair(traffic) == traffic

    encoder = pytest.importorskip("netdiffusion_nprint.encoder").NprintEncoder()
    encoded = encoder.encode(traffic)
    assert np.array_equal(rules.constrain(encoded).rows, encoded.rows)


def test_a_packet_cut_by_the_snap_length_keeps_its_checksum(rules: SimpleNamespace) -> None:
    whole = traffic_of(conversation())
    keep = np.minimum(whole.captured_lengths, 100)
    cut = attrs.evolve(whole, captured_lengths=keep).packed()
    assert rules.check(cut) == []
    assert rules.repair(cut) == cut


# --- what is broken is found and mended ---------------------------------------------------------------------------

BROKEN = {  # rule: (index of the packet in the conversation, header, field, value)
    "ipv4.checksum": (3, IP, "chksum", 1),
    "ipv4.ttl": (0, IP, "ttl", 0),
    "ipv4.length": (3, IP, "len", 39),
    "ipv4.reserved-bit": (3, IP, "flags", 4),
    "interpacket.ports": (3, TCP, "dport", 81),
    "interpacket.ttl": (3, IP, "ttl", 63),
    "tcp.checksum": (3, TCP, "chksum", 1),
    "tcp.flags": (0, TCP, "flags", "SF"),
    "tcp.syn": (5, TCP, "flags", "SA"),
    "tcp.reserved": (3, TCP, "reserved", 7),
    "tcp.sequence": (5, TCP, "seq", 12345),
    "tcp.acknowledgment": (6, TCP, "ack", 999_999),
    "tcp.after-fin": (4, TCP, "flags", "FA"),
    "tcp.after-rst": (4, TCP, "flags", "RA"),
    "tcp.urgent": (3, TCP, "urgptr", 9),
    "tcp.window": (2, TCP, "window", 0),
    "tcp.option-place": (3, TCP, "options", [("MSS", 1460), *[("NOP", None)] * 8]),
    "tcp.options": (3, TCP, "options", [(99, b"x" * 6), (2, b"\x01"), ("NOP", None)]),
    "tcp.timestamps": (3, TCP, "options", [("NOP", None), ("NOP", None), ("Timestamp", (5, 900))]),
    "tcp.sack": (6, TCP, "options", [("NOP", None), ("NOP", None), ("SAck", (1, 2))]),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_one_broken_field_is_found_and_mended(rules: SimpleNamespace, rule: str) -> None:
    index, header, field, value = BROKEN[rule]
    packets = conversation()
    setattr(packets[index][header], field, value)
    valid, broken = traffic_of(conversation()), traffic_of(packets)
    traffic = attrs.evolve(broken, flow_of=valid.flow_of, from_initiator=valid.from_initiator, flows=valid.flows)
    found = [violation for violation in rules.check(traffic) if violation.rule == rule]
    assert found
    assert all(violation.severity == RULES[rule].severity for violation in found)
    assert rules.check(rules.repair(traffic)) == []


def test_data_beyond_the_segment_size_are_cut(rules: SimpleNamespace) -> None:
    packets = conversation()
    packets[4][Raw].load = b"a" * 3000  # the client offered 1460, twelve of them for the time stamps
    traffic = traffic_of(packets)
    assert "tcp.mss" in ids(rules, traffic)
    repaired = rules.repair(traffic)
    assert dissect(repaired).payload_lengths[4] == 1460 - 12
    assert len(repaired.packet(4)) == repaired.wire_lengths[4] == 14 + 20 + 32 + 1448


def test_ports_are_those_that_most_packets_name(rules: SimpleNamespace) -> None:
    packets = [segment(i % 2 == 0, b"x", flags="A", seq=100, ack=100) for i in range(12)]
    traffic = traffic_of(packets)
    data = np.array(traffic.data)
    at = traffic.starts + 34
    data[at[3] : at[3] + 4] = data[at[4] : at[4] + 4] = 0xEE
    repaired = rules.repair(attrs.evolve(traffic, data=data))
    assert (repaired.flows.initiator_ports[0], repaired.flows.responder_ports[0]) == (40000, 80)
    assert all(TCP(repaired.packet(i)[34:]).sport == (40000, 80)[i % 2] for i in range(12))


def test_time_stamps_rise_and_gaps_stay(rules: SimpleNamespace) -> None:
    traffic = traffic_of(conversation())
    times = np.array(traffic.timestamps)
    times[5] = times[4]
    repaired = rules.repair(attrs.evolve(traffic, timestamps=times)).timestamps
    assert (np.diff(repaired) >= 1000).all()
    assert np.array_equal(np.diff(repaired)[[0, 1, 2, 3, 6, 7, 8]], np.diff(times)[[0, 1, 2, 3, 6, 7, 8]])


def test_an_answer_to_nothing_becomes_a_question(rules: SimpleNamespace) -> None:
    traffic = traffic_of([echo(4, False), echo(9, True), echo(4, True), echo(5, False)])
    assert "icmp.echo" in ids(rules, traffic)
    repaired = rules.repair(traffic)
    messages = [IP(repaired.packet(i)[14:]) for i in range(4)]
    assert [(m.src, m[ICMP].type, m[ICMP].seq) for m in messages] == [
        (CLIENT, 8, 4), (SERVER, 0, 4), (SERVER, 8, 4), (CLIENT, 8, 5)
    ]  # fmt: skip


def test_two_flows_at_one_time_have_different_endpoints(rules: SimpleNamespace) -> None:
    one = traffic_of([segment(True, b"x", flags="A", seq=5, ack=5)])
    both = attrs.evolve(
        one.select_packets(np.array([0, 0])), flow_of=np.array([0, 1]), flows=one.flows.select(np.array([0, 0]))
    )
    repaired = rules.repair(both)
    assert repaired.flows.initiator_ports[0] == 40000 != repaired.flows.initiator_ports[1]


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=70), st.sampled_from([TCP, UDP, ICMP]), st.booleans())
def test_checksums_are_those_of_scapy(rules: SimpleNamespace, payload: bytes, layer: Any, six: bool) -> None:
    if layer is ICMP:
        transport = ICMPv6EchoRequest(id=3, data=payload) if six else ICMP(type=8, id=3) / Raw(payload)
    else:
        transport = layer(sport=1234, dport=4321) / Raw(payload)
    ip = IPv6(src="fd00::1", dst="2001:db8::1") if six else IP(src=CLIENT, dst=SERVER, options=[])
    traffic = traffic_of([LINK / Raw(b"odd") / Raw(payload), LINK / ip / transport])
    assert not {rule for rule in ids(rules, traffic) if rule.endswith("checksum")}
    data = np.array(traffic.data)
    at = dissect(traffic).transport_offsets[1] + {TCP: 16, UDP: 6, ICMP: 2}[layer]
    data[at] ^= 0x55
    broken = attrs.evolve(traffic, data=data)
    assert {"tcp.checksum", "udp.checksum", "icmp.checksum"} & ids(rules, broken)
    assert rules.repair(broken) == rules.repair(traffic)


# --- whatever the model dreams ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["ternary", "binary", "stacks", "stacks", "stacks", "zeros", "ones", "missing"]),
    seed=st.integers(0, 2**32 - 1),
    flows=st.integers(1, 6),
    packets=st.sampled_from([1, 2, 3, 4, 30, 200]),
    layout=st.sampled_from(["trace", "paper"]),
    payload=st.sampled_from(["random", "zeros", "none"]),
)
def test_any_bits_become_valid_traffic(
    rules: SimpleNamespace,
    dream: Callable[..., Encoded],
    kind: str,
    seed: int,
    flows: int,
    packets: int,
    layout: str,
    payload: str,
) -> None:
    encoder = pytest.importorskip("netdiffusion_nprint.encoder")
    encoded = dream(kind, seed, flows, packets, layout)
    constrained = rules.constrain(encoded)
    assert np.array_equal(rules.constrain(constrained).rows, constrained.rows)
    options = encoder.Options(layout=layout, payload=payload)
    traffic = encoder.NprintEncoder(options).decode(constrained, np.random.default_rng(0))
    assert len(traffic) == (0 if kind == "missing" else flows * packets)
    repaired = rules.repair(traffic)
    assert rules.check(repaired) == []
    assert rules.repair(repaired) == repaired
    receive(repaired)


def receive(traffic: Traffic) -> None:
    """
    A TCP receiver written from RFC 9293 and RFC 7323 and nothing else: it reads each flow segment by segment.
    """
    headers = dissect(traffic)
    for flow in range(len(traffic.flows)):
        mine = np.flatnonzero(traffic.flow_of == flow)
        mine = mine[headers.protocols[mine] == 6]
        handshake = len(mine) > 0 and any(traffic.data[headers.transport_offsets[i] + 13] & 2 for i in mine[:3])
        ends: list[int | None] = [None, None]  # next sequence number of each side
        acked, edges, closed, reset_ns = [None, None], [None, None], [False, False], [None, None]
        scales, stamps = [0, 0], [None, None]
        for position, i in enumerate(mine):
            side = int(not traffic.from_initiator[i])
            tcp = TCP(traffic.packet(i)[headers.transport_offsets[i] - traffic.starts[i] :])
            syn, fin, rst, ack = ("S" in tcp.flags, "F" in tcp.flags, "R" in tcp.flags, "A" in tcp.flags)
            size, options = int(headers.payload_lengths[i]), dict(o for o in tcp.options if o[0] != "NOP")
            assert tcp.dataofs >= 5
            assert tcp.reserved & 0b110 == 0
            if handshake and position < 2 and not rst:
                assert (syn, ack, fin, size) == (True, position == 1, False, 0)
                assert side == position
                scales[side] = options.get("WScale")
            else:
                assert not syn
                assert ack or rst
                assert not {"MSS", "WScale", "SAckOK"} & options.keys()
            assert reset_ns[side] is None or rst, "a side speaks after its RST"
            assert not (rst and size)
            if ends[side] is not None and not rst:
                assert tcp.seq == ends[side], "the sequence space has a gap"
            if closed[side]:
                assert (size, fin) == (0, False), "data after FIN"
            if ack and ends[1 - side] is not None:
                behind = (ends[1 - side] - tcp.ack) % 2**32
                assert behind < 2**31, "what was not sent is acknowledged"
                if acked[side] is not None:
                    assert (tcp.ack - acked[side]) % 2**32 < 2**31, "an acknowledgment is taken back"
                acked[side] = tcp.ack
            if handshake and size and edges[1 - side] is not None:
                assert (edges[1 - side] - (tcp.seq + size)) % 2**32 < 2**31, "data beyond the window"
            if not rst:
                ends[side] = (tcp.seq + size + syn + fin) % 2**32
                if ack and ends[1 - side] is not None:
                    scale = 0 if syn or None in scales else scales[side]
                    edges[side] = (tcp.ack + (tcp.window << scale)) % 2**32
            else:
                reset_ns[side] = traffic.timestamps[i]
            closed[side] = closed[side] or fin
            if "Timestamp" in options:
                value, echoed = options["Timestamp"]
                if stamps[side] is not None and stamps[side] > 0:
                    assert (value - stamps[side]) % 2**32 < 2**31, "the time stamp clock goes back"
                if handshake and ack and stamps[1 - side] is not None:
                    assert (stamps[1 - side] - echoed) % 2**32 < 2**31, "the echo of a time stamp that was not sent"
                stamps[side] = value


def test_icmp_checksum_holds_without_the_icmp_rules():
    """
    ICMP is an integral part of IP (RFC 792): the ipv4 rules alone make its checksum right.
    """
    ip = [IP(src=CLIENT, dst=SERVER, len=length) for length in (None, 21, 2000)]  # right, too short, too long
    traffic = traffic_of([LINK / ip[i] / ICMP(id=7, seq=i, chksum=0x1234) / Raw(b"abcd") for i in range(3)])
    found = [
        {v.rule for v in IcmpRules().check(t)} for t in (traffic, Ipv4Rules().repair(traffic, np.random.default_rng(0)))
    ]
    assert "icmp.checksum" in found[0]
    assert not found[1]
