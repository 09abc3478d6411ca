"""
The rules, by what the RFCs say: an independent TCP receiver, scapy's checksums, and hand-made conversations.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.all import (
    ICMP,
    IP,
    TCP,
    UDP,
    Ether,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6TimeExceeded,
    IPOption,
    IPv6,
    Raw,
)

from netdiffusion_core.capture import assemble, dissect
from netdiffusion_core.capture.dissect import Dissection
from netdiffusion_core.model import Encoded, FlowTable, Traffic
from netdiffusion_inet.headers import FIELDS, Draft, headers_of
from netdiffusion_inet.icmp import IcmpRules
from netdiffusion_inet.ipv4 import Ipv4Rules
from netdiffusion_inet.plugin import netdiffusion_register_rules
from netdiffusion_inet.rules import RULES
from netdiffusion_inet.tcp import TcpRules

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


def offloaded(whole: bytes, rest: bytes) -> list[Any]:
    """
    Two writes of a client that names no segment size, so 1460 bytes: the last segments as one, pushed.
    """
    return [
        segment(True, whole, flags="A", seq=1, ack=1),
        segment(True, rest, flags="PA", seq=1 + len(whole), ack=1),
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
    assert all(requires[name] == {"ipv4", "ipv6", "interpacket"} for name in ("tcp", "udp", "icmp", "icmpv6"))


def test_the_reference_lists_every_rule_as_the_program_does(rules: SimpleNamespace) -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "rules.md").read_text(encoding="utf-8")
    rows = [line for line in page.split("## All rules")[1].split("\n## ")[0].splitlines() if line.startswith("| `")]
    assert rows == [f"| `{rule.id}` | {rule.severity} | {rule.summary} | {rule.source} |" for rule in RULES.values()]
    listed = [rule.id for each in rules.sets for rule in each.rules]
    assert sorted(listed) == sorted(RULES)


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
        [LINK / IPv6(src="2001:db8::7", dst="fd00::1") / ICMPv6TimeExceeded() / IPv6(src="fd00::1", dst="2001:db8::1")],
        offloaded(b"a" * 2920, b"b" * 1700),
    ],
    ids=[
        "connection",
        "part of one",
        "refused",
        "ping",
        "IPv6",
        "UDP without checksum",
        "port unreachable",
        "time exceeded",
        "segmentation offload",
    ],
)
def test_valid_traffic_passes_unchanged(rules: SimpleNamespace, packets: list[Any]) -> None:
    traffic = traffic_of(packets)
    assert rules.check(traffic) == []
    for each in rules.sets:
        assert each.repair(traffic, np.random.default_rng(1), record=pytest.fail) is traffic

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
    "ipv4.options": (3, IP, "options", IPOption(option=30, length=60, value=b"\0\0")),
    "ipv4.header": (3, IP, "version", 5),
    "interpacket.ports": (3, TCP, "dport", 81),
    "interpacket.ttl": (3, IP, "ttl", 150),
    "tcp.checksum": (3, TCP, "chksum", 1),
    "tcp.header": (3, TCP, "dataofs", 4),
    "tcp.flags": (3, TCP, "flags", "P"),
    "tcp.syn": (5, TCP, "flags", "SA"),
    "tcp.reserved": (3, TCP, "reserved", 7),
    "tcp.sequence": (5, TCP, "seq", 12345),
    "tcp.acknowledgment": (6, TCP, "ack", 999_999),
    "tcp.after-fin": (4, TCP, "flags", "FA"),
    "tcp.after-rst": (4, TCP, "flags", "RA"),
    "tcp.urgent": (3, TCP, "urgptr", 9),
    "tcp.window": (2, TCP, "window", 0),
    "tcp.syn-data": (0, TCP, "payload", Raw(b"x")),
    "tcp.mss": (4, TCP, "payload", Raw(b"a" * 3000)),
    "tcp.option-value": (0, TCP, "options", [("MSS", 100), *conversation()[0][TCP].options[1:]]),
    "tcp.option-padding": (3, TCP, "options", [*[("NOP", None)] * 6, ("Timestamp", (121, 900))]),
    "tcp.option-place": (3, TCP, "options", [("MSS", 1460), *[("NOP", None)] * 8]),
    "tcp.options": (3, TCP, "options", [(99, b"x" * 6), (2, b"\x01"), ("NOP", None)]),
    "tcp.timestamps": (3, TCP, "options", [("NOP", None), ("NOP", None), ("Timestamp", (5, 900))]),
    "tcp.sack": (6, TCP, "options", [("NOP", None), ("NOP", None), ("SAck", (1, 2))]),
}


def planted(rule: str) -> Traffic:
    """
    Build traffic in which one rule is broken.
    """
    if rule in BROKEN:
        index, header, field, value = BROKEN[rule]
        packets = conversation()
        if field == "payload":
            packets[index][header].remove_payload()
            packets[index] /= value
        else:
            setattr(packets[index][header], field, value)
        valid, broken = traffic_of(conversation()), traffic_of(packets)
        return attrs.evolve(broken, flow_of=valid.flow_of, from_initiator=valid.from_initiator, flows=valid.flows)
    if rule == "interpacket.timestamps":
        return traffic_of(conversation(), gap_ns=8 * 3600 * 10**9)
    if rule == "interpacket.endpoints":
        return same_endpoints()
    if rule == "interpacket.silence":
        return spread(exchange("udp"), 121)
    four, six = LINK / IP(src=CLIENT, dst=SERVER), LINK / IPv6(src="fd00::1", dst="2001:db8::1", hlim=64)
    udp, ping = UDP(sport=5000, dport=53) / Raw(b"data"), ICMPv6EchoRequest(id=1, seq=1)
    counting = [segment(True, b"x", flags="A", seq=i, ack=9) for i in range(6)]
    for i, packet in enumerate(counting):
        packet[IP].id = 60000 if i == 3 else 10 + i
    handshake = [
        segment(True, flags="S", ack=0),
        segment(True, flags="SA", seq=7, ack=1),
        segment(True, flags="A", seq=1),
    ]
    return traffic_of(
        {
            "interpacket.direction": handshake,
            "interpacket.ip-id": counting,
            "ipv4.mtu": [four / udp / Raw(b"x" * 1600)],
            "ipv4.fragment": [LINK / IP(src=CLIENT, dst=SERVER, flags="MF") / udp],
            "ipv6.header": [LINK / IPv6(version=5, src="fd00::1", dst="2001:db8::1") / udp],
            "ipv6.length": [LINK / IPv6(src="fd00::1", dst="2001:db8::1", plen=999) / udp],
            "ipv6.mtu": [six / udp / Raw(b"x" * 1600)],
            "ipv6.hop-limit": [LINK / IPv6(src="fd00::1", dst="2001:db8::1", hlim=0) / udp],
            "udp.header": [LINK / IP(src=CLIENT, dst=SERVER, proto=17) / Raw(b"abcd")],
            "udp.length": [four / UDP(sport=5000, dport=53, len=9) / Raw(b"data")],
            "udp.checksum": [four / UDP(sport=5000, dport=53, chksum=1) / Raw(b"data")],
            "icmp.header": [LINK / IP(src=CLIENT, dst=SERVER, proto=1) / Raw(b"abcd")],
            "icmp.type": [four / ICMP(type=77)],
            "icmp.echo": [echo(1, False), echo(2, True)],
            "icmp.checksum": [four / ICMP(chksum=1)],
            "icmpv6.header": [LINK / IPv6(src="fd00::1", dst="2001:db8::1", nh=58) / Raw(b"abcd")],
            "icmpv6.type": [six / ICMPv6ND_NS(tgt="fd00::2")],  # a router may have sent it on: the hop limit is not 255
            "icmpv6.echo": [six / ping, LINK / IPv6(src="2001:db8::1", dst="fd00::1") / ICMPv6EchoReply(id=1, seq=2)],
            "icmpv6.checksum": [six / ICMPv6EchoRequest(id=1, seq=1, cksum=1)],
        }[rule]
    )


PLANTED = [rule for rule in RULES if not rule.endswith(".bits")]


@pytest.mark.parametrize("rule", PLANTED)
def test_what_is_broken_is_found_and_mended(rules: SimpleNamespace, rule: str) -> None:
    traffic = planted(rule)
    found = [violation for violation in rules.check(traffic) if violation.rule == rule]
    assert found
    assert all(violation.severity == RULES[rule].severity for violation in found)
    assert all(violation.repairable == RULES[rule].repairable for violation in found)
    left = rules.check(rules.repair(traffic))
    assert {violation.rule for violation in left} <= ({rule} if not RULES[rule].repairable else set())


@pytest.mark.parametrize("rule", PLANTED)
def test_a_rule_that_is_off_says_nothing_and_changes_nothing(rules: SimpleNamespace, rule: str) -> None:
    traffic = planted(rule)
    repaired = traffic
    for each in rules.without(rule):
        assert rule not in {violation.rule for violation in each.check(traffic)}
        repaired = each.repair(repaired, np.random.default_rng(1))
    assert rule in ids(rules, repaired)


def test_bits_are_left_alone_where_that_is_switched_off(rules: SimpleNamespace, dream: Callable[..., Encoded]) -> None:
    encoded = dream("ternary", 5, 4, 20)
    for each in ("ipv4", "ipv6", "tcp", "udp", "icmp", "icmpv6"):
        (off,) = [rule_set for rule_set in rules.without(f"{each}.bits") if rule_set.name == each]
        assert off.constrain(encoded) is encoded


def anomalous() -> tuple[Traffic, list[int]]:
    """
    Build a download with a segment that is repeated, two that are exchanged, and one that was not captured; also return
    the sequence numbers.
    """
    sent = [0, 100, 200, 100, 400, 300, 500, 700, 800]
    acked = [1, 201, 301, 301, 301, 501, 601, 601, 901]
    packets = conversation()[:4]
    for sequence, acknowledged in zip(sent, acked, strict=True):
        packets.append(segment(False, b"x" * 100, flags="A", seq=7001 + sequence, ack=1, window=300))
        packets.append(segment(True, flags="A", seq=1, ack=7000 + acknowledged))
    for packet in packets[:4]:
        packet[TCP].options = [option for option in packet[TCP].options if option[0] in ("MSS", "WScale")]
    return traffic_of(packets), [7001 + sequence for sequence in sent]


def test_anomalies_that_make_sense_are_kept_if_the_user_wants_them(rules: SimpleNamespace) -> None:
    traffic, sequence = anomalous()
    assert ids(rules, traffic) == {"tcp.sequence"}
    keep, mend = TcpRules(TcpRules.Options(anomalies="keep")), TcpRules()
    assert list(keep.check(traffic)) == []
    assert keep.repair(traffic, np.random.default_rng(0), record=pytest.fail) is traffic

    mended = mend.repair(traffic, np.random.default_rng(0))
    assert list(mend.check(mended)) == []
    assert sequence_numbers(mended)[4::2] == [7001 + 100 * i for i in range(9)]

    data = np.array(traffic.data)
    at = dissect(traffic).transport_offsets[8] + 4
    data[at] ^= 0x40  # a gigabyte ahead: nobody's window is that large
    wild = attrs.evolve(traffic, data=data)
    kept = keep.repair(wild, np.random.default_rng(0))
    assert list(keep.check(kept)) == []
    assert sequence_numbers(kept)[4::2] == [*sequence[:2], 7201, *sequence[3:]]


def twice(packets: list[Any]) -> list[Any]:
    """
    What is captured where each packet passes twice, as on a bridge.
    """
    return [packet for packet in packets for _ in range(2)]


def resent() -> list[Any]:
    """
    A connection whose SYN, data and FIN were lost before they came through. What comes again acknowledges anew.
    """
    syn, answer, *rest = conversation()
    get, (first, second), (late, fin), answer_fin, last = rest[1], rest[2:4], rest[4:6], rest[6], rest[7]
    again = segment(False, b"b" * 100, flags="PA", seq=8389, ack=1, options=second[TCP].options, window=400)
    packets = [syn, syn, answer, rest[0], get, get, first, second, late, again, fin, fin, fin, answer_fin, last]
    return [packet.copy() for packet in packets]


@pytest.mark.parametrize("packets", [twice(conversation()), resent()], ids=["twice", "resent"])
def test_what_is_sent_again_stays_if_the_user_wants_it(rules: SimpleNamespace, packets: list[Any]) -> None:
    traffic = traffic_of(packets)
    keep, mend = (rules.with_anomalies(mode) for mode in ("retransmissions", "mend"))
    assert [violation for each in keep for violation in each.check(traffic)] == []
    for each in keep:
        assert each.repair(traffic, np.random.default_rng(0), record=pytest.fail) is traffic
    assert {v.rule for each in mend for v in each.check(traffic)} == {"tcp.sequence", "tcp.after-fin"}
    mended = traffic
    for each in mend:
        mended = each.repair(mended, np.random.default_rng(0))
    assert [violation for each in mend for violation in each.check(mended)] == []


def test_numbers_that_a_model_drew_are_in_order_and_its_repetitions_stay(rules: SimpleNamespace) -> None:
    """
    Each packet twice, with numbers, acknowledgments and identifications that fit to nothing.
    """
    codec = pytest.importorskip("netdiffusion_nprint.encoder").NprintEncoder()
    encoded = codec.encode(traffic_of(conversation()))
    rows, rng, spans = encoded.rows.copy(), np.random.default_rng(5), encoded.layout.spans()
    for field in ("tcp.seq", "tcp.ackn", "ipv4.id", "tcp.sprt"):
        rows[:, spans[field]] = rng.integers(0, 2, rows[:, spans[field]].shape)
    rows = rows.repeat(2, 0)
    drawn = attrs.evolve(encoded, rows=rows, starts=np.array([0, len(rows)]))
    sets = rules.with_anomalies("retransmissions")
    traffic = rules.made(sets, drawn, codec, rng)
    assert [violation for each in sets for violation in each.check(traffic)] == []
    assert sequence_numbers(traffic)[::2] == sequence_numbers(traffic)[1::2]
    first, *_ = sequence_numbers(traffic)
    of_client = np.array(sequence_numbers(traffic))[traffic.from_initiator]
    assert (of_client[::2] - first).tolist() == [0, 1, 1, 4, 4, 5]


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["binary", "stacks", "stacks", "stacks", "zeros", "ones"]),
    seed=st.integers(0, 2**32 - 1),
    packets=st.sampled_from([2, 3, 4, 8, 30]),
    numbers=st.sampled_from([1, 2, 3, 8]),
    mode=st.sampled_from(["mend", "retransmissions", "keep"]),
)
def test_few_numbers_for_many_segments_become_valid_connections(
    rules: SimpleNamespace, dream: Callable[..., Encoded], kind: str, seed: int, packets: int, numbers: int, mode: str
) -> None:
    """
    Bits of which each segment may be sent again: with SYN, FIN and RST, other lengths, and data between.
    """
    codec, rng = pytest.importorskip("netdiffusion_nprint.encoder").NprintEncoder(), np.random.default_rng(seed)
    encoded = dream(kind, seed, 4, packets)
    rows, span = encoded.rows.copy(), encoded.layout.spans()["tcp.seq"]
    few = rng.integers(0, 2, (numbers, span.stop - span.start))
    rows[:, span] = np.where(rows[:, span] >= 0, few[rng.integers(0, numbers, len(rows))], -1)
    sets = rules.with_anomalies(mode)
    traffic = rules.made(sets, attrs.evolve(encoded, rows=rows), codec, rng)
    assert [violation for each in sets for violation in each.check(traffic)] == []
    again = traffic
    for each in sets:
        again = each.repair(again, rng)
    assert again == traffic


def sequence_numbers(traffic: Traffic) -> list[int]:
    at = dissect(traffic).transport_offsets
    return [int.from_bytes(traffic.data[i + 4 : i + 8].tobytes(), "big") for i in at]


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(["ternary", "binary", "stacks", "stacks"]),
    seed=st.integers(0, 2**32 - 1),
    flows=st.integers(1, 6),
    packets=st.sampled_from([1, 3, 40]),
)
def test_the_record_of_a_repair_makes_the_output_of_the_input(
    rules: SimpleNamespace, dream: Callable[..., Encoded], kind: str, seed: int, flows: int, packets: int
) -> None:
    encoder = pytest.importorskip("netdiffusion_nprint.encoder").NprintEncoder()
    traffic = encoder.decode(rules.constrain(dream(kind, seed, flows, packets)), np.random.default_rng(0))
    for each in rules.sets:
        records: list[Any] = []
        repaired = each.repair(traffic, np.random.default_rng(1), lambda *record: records.append(record))  # noqa: B023
        replayed = replay(traffic, records)
        assert {record[0] for record in records} <= set(RULES)
        headers, expected = dissect(replayed), dissect(repaired)
        assert np.array_equal(headers.payload_lengths, expected.payload_lengths)
        known = headers_of(repaired)
        assert all(np.array_equal(getattr(known, f.name), getattr(expected, f.name)) for f in attrs.fields(Dissection))
        for i in range(len(traffic)):
            size = headers.link_lengths[i] + headers.ip_header_lengths[i] + headers.transport_header_lengths[i]
            assert replayed.packet(i)[:size] == repaired.packet(i)[:size]
        traffic = repaired


def replay(traffic: Traffic, records: list[Any]) -> Traffic:
    """
    Write what was recorded into the bytes of the traffic. Time stamps and the bytes of payloads are left as they are.
    """
    data = np.array(traffic.data)
    for rule, field, packets, before, after, *bits in records:
        assert (np.asarray(before) != np.asarray(after)).all(), rule
        assert field.startswith("trace.") or len(bits) == (field == "payload")
        if field in ("payload", "trace.iat_us", "trace.initiator"):
            continue
        headers = dissect(attrs.evolve(traffic, data=data))
        for i, old, new in zip(packets.tolist(), before.tolist(), after.tolist(), strict=True):
            ip, transport = int(headers.ip_offsets[i]), int(headers.transport_offsets[i])
            if field == "trace.direction":
                size = {4: 4, 6: 16}[int(headers.ip_versions[i])]
                source = ip + {4: 12, 16: 8}[size]
                swap(data, source, size)
                swap(data, int(traffic.starts[i]), 6)
                swap(data, transport, 2)  # only the handshake of TCP is turned
                continue
            if ".opt." in field:
                first, size = 8 * 20 + 32 * int(field.split(".")[2]), 32
            else:
                first, size = FIELDS[field]
            at = 8 * (ip if field.startswith("ip") else transport) + first
            octets = slice(at // 8, (at + size + 7) // 8)
            word = int.from_bytes(data[octets].tobytes(), "big")
            shift = 8 * octets.stop - at - size
            assert word >> shift & (1 << size) - 1 == old, (rule, field)
            word += (new - old) << shift
            data[octets] = np.frombuffer(word.to_bytes(octets.stop - octets.start, "big"), np.uint8)
    return attrs.evolve(traffic, data=data)


def swap(data: Any, at: int, size: int) -> None:
    data[at : at + 2 * size] = np.roll(data[at : at + 2 * size], size)


def test_the_checksum_of_an_echo_of_zeros_is_all_ones(rules: SimpleNamespace) -> None:
    packets = [LINK / IP(src=a, dst=b) / ICMP(type=kind, id=0, seq=0) / Raw(bytes(9)) for a, b, kind in (
        (CLIENT, SERVER, 8), (SERVER, CLIENT, 0))]  # fmt: skip
    traffic = traffic_of(packets)
    assert rules.check(traffic) == []  # as scapy has it
    data = np.array(traffic.data)
    at = dissect(traffic).transport_offsets[1] + 2
    assert data[at : at + 2].tolist() == [255, 255]
    data[at : at + 2] = 0
    assert ids(rules, attrs.evolve(traffic, data=data)) == {"icmp.checksum"}
    assert rules.repair(attrs.evolve(traffic, data=data)) == traffic


def test_data_beyond_the_segment_size_are_cut(rules: SimpleNamespace) -> None:
    packets = conversation()
    packets[4][Raw].load = b"a" * 3000  # the client offered 1460, twelve of them for the time stamps
    traffic = traffic_of(packets)
    assert "tcp.mss" in ids(rules, traffic)
    repaired = rules.repair(traffic)
    assert dissect(repaired).payload_lengths[4] == 1460 - 12
    assert len(repaired.packet(4)) == repaired.wire_lengths[4] == 14 + 20 + 32 + 1448


def test_long_segments_that_no_offload_explains_are_cut(rules: SimpleNamespace) -> None:
    traffic = traffic_of(offloaded(b"a" * 2921, b"b" * 1700))  # two segments and a byte that nothing pushed
    assert [violation.packet for violation in rules.check(traffic) if violation.rule == "tcp.mss"] == [0, 1]
    assert dissect(rules.repair(traffic)).payload_lengths.tolist() == [1460, 1460]


def test_an_error_about_nobodys_packet_becomes_a_question(rules: SimpleNamespace) -> None:
    error = LINK / IP(src=SERVER, dst=CLIENT) / ICMP(type=3, code=3) / IP(src=SERVER, dst=CLIENT) / UDP(dport=9)
    traffic = traffic_of([error])
    assert ids(rules, traffic) == {"icmp.type"}
    assert IP(rules.repair(traffic).packet(0)[14:])[ICMP].type == 8


def test_neighbour_discovery_gets_its_hop_limit_and_stays(rules: SimpleNamespace) -> None:
    ip = IPv6(src="fd00::1", dst="fd00::2", hlim=64)
    asked = [LINK / ip / ICMPv6ND_NS(tgt="fd00::2") / ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:00:01")] * 3
    mended = [IPv6(rules.repair(traffic_of(asked)).packet(i)[14:]) for i in range(3)]
    assert [(packet.hlim, packet[ICMPv6ND_NS].tgt) for packet in mended] == [(255, "fd00::2")] * 3
    asked[1] = LINK / ip / ICMPv6ND_NS(tgt="fd00::2") / Raw(bytes(8))  # an option of length 0
    repaired = rules.repair(traffic_of(asked))
    assert [repaired.packet(i)[54] for i in range(3)] == [128] * 3


def test_ports_are_those_that_most_packets_name(rules: SimpleNamespace) -> None:
    packets = [segment(i % 2 == 0, b"x", flags="A", seq=100, ack=100) for i in range(12)]
    traffic = traffic_of(packets)
    data = np.array(traffic.data)
    at = traffic.starts + 34
    data[at[3] : at[3] + 4] = data[at[4] : at[4] + 4] = 0xEE
    repaired = rules.repair(attrs.evolve(traffic, data=data))
    assert (repaired.flows.initiator_ports[0], repaired.flows.responder_ports[0]) == (40000, 80)
    assert all(TCP(repaired.packet(i)[34:]).sport == (40000, 80)[i % 2] for i in range(12))


def test_a_reset_without_ack_acknowledges_nothing(rules: SimpleNamespace) -> None:
    traffic = traffic_of([*conversation()[:3], segment(True, flags="R", seq=2**32 - 2, ack=7001)])
    assert ids(rules, traffic) == {"tcp.acknowledgment"}
    reset = TCP(rules.repair(traffic).packet(3)[34:])
    assert (reset.flags, reset.seq, reset.ack) == ("R", 2**32 - 2, 0)


def test_time_stamps_rise_and_gaps_stay(rules: SimpleNamespace) -> None:
    traffic = traffic_of(conversation())
    times = np.array(traffic.timestamps)
    times[5] = times[4]
    repaired = rules.repair(attrs.evolve(traffic, timestamps=times)).timestamps
    assert np.array_equal(repaired, times)


@pytest.mark.parametrize(
    "stray",
    [
        echo(3, True, identifier=5),
        echo(3, False, identifier=5),
        LINK / IP(src=SERVER, dst=CLIENT) / ICMP(type=9) / Raw(bytes(8)),
    ],
    ids=["reply", "request", "no echo"],
)
def test_an_exchange_of_echoes_is_read_back_as_one_flow(rules: SimpleNamespace, stray: Any) -> None:
    one = traffic_of([echo(1, False), echo(1, True), echo(2, False)])
    two = traffic_of([echo(1, False), echo(1, True), stray])
    forth = [True, False, stray[IP].src == CLIENT]
    mixed = attrs.evolve(two, flow_of=one.flow_of, from_initiator=forth, flows=one.flows)
    assert len(two.flows) == 2
    assert ids(rules, mixed) == {"icmp.echo"}
    repaired = rules.repair(mixed)
    assert ids(rules, repaired) == set()
    assert len(assemble(repaired).flows) == 1


def exchange(protocol: str) -> Traffic:
    """
    Build a question and an answer.
    """
    forth, back = LINK / IP(src=CLIENT, dst=SERVER), LINK / IP(src=SERVER, dst=CLIENT)
    if protocol == "icmp":
        return traffic_of([echo(1, True), echo(1, False)])
    if protocol == "udp":
        return traffic_of([forth / UDP(sport=5000, dport=53) / b"?", back / UDP(sport=53, dport=5000) / b"!"])
    return traffic_of([segment(True, b"?", flags="PA", seq=5, ack=9), segment(False, b"!", flags="PA", seq=9, ack=6)])


def spread(traffic: Traffic, gap_s: int) -> Traffic:
    """
    Put so much time between the packets.
    """
    return attrs.evolve(traffic, timestamps=traffic.timestamps[0] + gap_s * 10**9 * np.arange(len(traffic)))


@pytest.mark.parametrize(
    ("protocol", "gap_s", "left_s"),
    [
        ("udp", 120, 120),
        ("udp", 121, 120),
        ("icmp", 60, 60),
        ("icmp", 61, 60),
        ("tcp", 7200, 7200),
        ("tcp", 7201, 7200),
    ],
)
def test_no_silence_makes_two_flows_of_one(rules: SimpleNamespace, protocol: str, gap_s: int, left_s: int) -> None:
    repaired = rules.repair(spread(exchange(protocol), gap_s))
    assert np.diff(repaired.timestamps).tolist() == [left_s * 10**9]
    assert len(assemble(repaired).flows) == 1
    assert ids(rules, repaired) == set()


def test_an_answer_to_nothing_becomes_a_question(rules: SimpleNamespace) -> None:
    traffic = traffic_of([echo(4, False), echo(9, True), echo(4, True), echo(5, False)])
    assert "icmp.echo" in ids(rules, traffic)
    repaired = rules.repair(traffic)
    messages = [IP(repaired.packet(i)[14:]) for i in range(4)]
    assert [(m.src, m[ICMP].type, m[ICMP].seq) for m in messages] == [
        (CLIENT, 8, 4), (SERVER, 0, 4), (SERVER, 8, 4), (CLIENT, 8, 5)
    ]  # fmt: skip


def same_endpoints() -> Traffic:
    """
    Build two flows that nobody could tell apart.
    """
    one = traffic_of([segment(True, b"x", flags="A", seq=5, ack=5)])
    return attrs.evolve(
        one.select_packets(np.array([0, 0])), flow_of=np.array([0, 1]), flows=one.flows.select(np.array([0, 0]))
    )


def test_two_flows_at_one_time_have_different_endpoints(rules: SimpleNamespace) -> None:
    repaired = rules.repair(same_endpoints())
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
    assert {"tcp.checksum", "udp.checksum", "icmp.checksum", "icmpv6.checksum"} & ids(rules, broken)
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
            assert tcp.reserved == 0
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
                if stamps[side] is not None and value:  # Windows writes 0 into its SYN: no clock was read
                    assert (value - stamps[side]) % 2**32 < 2**31, "the time stamp clock goes back"
                if handshake and ack and stamps[1 - side] is not None and (echoed or not syn):
                    assert (stamps[1 - side] - echoed) % 2**32 < 2**31, "the echo of a time stamp that was not sent"
                stamps[side] = value or stamps[side]


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


# --- a draft, for rule sets of others -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field", ["ipv4.tos", "ipv4.ttl", "ipv6.tc", "ipv6.fl", "tcp.wsize", "tcp.res", "udp.sport", "icmp.id"]
)
def test_what_others_write_into_headers_is_there_and_checksums_follow(rules: SimpleNamespace, field: str) -> None:
    traffic = traffic_of(
        [
            LINK / IP(src=CLIENT, dst=SERVER) / TCP(sport=1234, dport=4321),
            LINK / IPv6(src="fd00::1", dst="2001:db8::1", fl=7) / UDP(sport=1234, dport=4321),
            LINK / IP(src=CLIENT, dst=SERVER) / ICMP(type=8, id=3),
        ]
    )
    header, _, name = field.partition(".")
    layer = {"ipv4": IP, "ipv6": IPv6, "tcp": TCP, "udp": UDP, "icmp": ICMP}[header]
    scapys = {"wsize": "window", "res": "reserved"}.get(name, name)
    chosen = np.array([i for i in range(3) if layer in Ether(traffic.packet(i))])
    draft = Draft(traffic)
    draft.put("mine.rule", field, chosen, 5)
    written = draft.finish()
    assert all(getattr(Ether(written.packet(i))[layer], scapys) == 5 for i in chosen)
    assert not {rule for rule in ids(rules, written) if rule.endswith("checksum")}
    assert {i for i in range(3) if written.packet(i) != traffic.packet(i)} == set(chosen)


def test_a_misspelt_field_gets_a_suggestion() -> None:
    draft = Draft(traffic_of([LINK / IP(src=CLIENT, dst=SERVER) / TCP()]))
    with pytest.raises(ValueError, match=r"no field 'tcp.wsiz' to read or write. Did you mean 'tcp.wsize'\?"):
        draft.put("mine.rule", "tcp.wsiz", np.array([0]), 5)
