"""
The rule set, by what scapy, tshark and real captures say of DNS.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRROPT

import netdiffusion_core
from netdiffusion_core import RunConfig
from netdiffusion_core.capture import assemble, read_capture
from netdiffusion_core.model import Traffic, concatenate
from netdiffusion_core.plugins import Plugins
from netdiffusion_core.repairs import Recorder
from netdiffusion_dns.rules import RULES, DnsRules, Options

LAB = Path(netdiffusion_core.__file__).parent / "samples" / "lab"
DATA = Path(os.environ.get("NETDIFFUSION_TEST_DATA", Path(__file__).parents[5] / "shared")) / "data"
RESERVED = ("test", "example", "invalid", "example.com", "example.net", "example.org")  # RFC 2606
DOCUMENTATION = [
    ipaddress.ip_network(n) for n in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]


def payloads(traffic: Traffic) -> list[bytes]:
    """
    Return what stands behind the UDP headers of raw IP packets without options.
    """
    return [p[28:] if p[0] >> 4 == 4 else p[48:] for p in map(traffic.packet, range(len(traffic)))]


def found(traffic: Traffic, rules: DnsRules | None = None) -> set[tuple[str, int | None]]:
    return {(violation.rule, violation.packet) for violation in (rules or DnsRules()).check(traffic)}


def question(name: bytes = b"\x03www\x07example\x00", kind: int = 1) -> bytes:
    return name + struct.pack("!HH", kind, 1)


def header(ident: int, flags: int, *counts: int) -> bytes:
    return struct.pack("!HH4H", ident, flags, *counts)


def record(kind: int, data: bytes, owner: bytes = b"\xc0\x0c") -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, 60, len(data)) + data


A_RECORD = record(1, bytes([192, 0, 2, 1]))
QUERY = header(7, 0x0100, 1, 0, 0, 0) + question()
ANSWER = header(7, 0x8180, 1, 1, 0, 0) + question() + A_RECORD

SOUND = {
    "two questions, answered out of order": [
        (0, True, bytes(DNS(id=1, rd=1, qd=DNSQR(qname="a.example.com")))),
        (0, True, bytes(DNS(id=2, rd=1, qd=DNSQR(qname="a.example.com", qtype="AAAA"), ar=DNSRROPT()))),
        (0, True, bytes(DNS(id=1, rd=1, qd=DNSQR(qname="a.example.com")))),
        (0, False, bytes(DNS(id=2, qr=1, ra=1, qd=DNSQR(qname="a.example.com", qtype="AAAA"), ar=DNSRROPT()))),
        (0, False, bytes(DNS(id=1, qr=1, ra=1, qd=DNSQR(qname="A.Example.COM"), an=DNSRR(rdata="192.0.2.9")))),
    ],
    "aliases, pointers to pointers, many types": [
        (0, True, QUERY),
        (
            0,
            False,
            header(7, 0x8580, 1, 2, 2, 2)
            + question()
            + record(5, b"\x03cdn\xc0\x10")  # at 29: its data at 41
            + record(1, bytes(4), b"\xc0\x29")
            + record(6, b"\x02ns\xc0\x29\x04mail\xc0\x10" + bytes(20))
            + record(15, b"\x00\x05\x02mx\xc0\x29")
            + record(16, b"\x03abc\x00")
            + b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x08\x00\x0c\x00\x04\x00\x00\x00\x00",
        ),
    ],
    "a refusal without question, an update that deletes, a cookie alone": [
        (0, True, QUERY),
        (0, False, header(7, 0x8181, 0, 0, 0, 0)),
        (0, True, header(8, 0x2800, 1, 0, 1, 0) + question(kind=6) + b"\xc0\x0c\x00\x01\x00\xff" + bytes(6)),
        (
            0,
            True,
            header(9, 0, 0, 0, 0, 1) + b"\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x0c\x00\x0a\x00\x08" + bytes(8),
        ),
    ],
    "one ID for two questions": [
        (0, True, QUERY),
        (0, True, QUERY.replace(b"www", b"ftp")),
        (0, False, ANSWER),
        (0, False, ANSWER.replace(b"www", b"ftp")),
    ],
    "not on the port": [],
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_conversations_pass_unchanged(datagrams: Callable[..., Traffic], name: str) -> None:
    traffic = datagrams(SOUND[name]) if SOUND[name] else datagrams([(0, True, b"no DNS")], port=5353)
    assert found(traffic) == set()
    assert DnsRules().repair(traffic, np.random.default_rng(0), record=pytest.fail) is traffic
    for snap_length in (20, 28, 34, 40, 41, 45, 57, 70, 90, 110):
        cut = attrs.evolve(traffic, captured_lengths=np.minimum(traffic.captured_lengths, snap_length))
        assert found(cut) == set()
        assert DnsRules().repair(cut, np.random.default_rng(0)) is cut


FAULTS = {
    "short header": ("dns.header", QUERY[:11]),
    "opcode": ("dns.header", QUERY[:2] + b"\x19" + QUERY[3:]),
    "reserved bit": ("dns.flags", QUERY[:3] + b"\x40" + QUERY[4:]),
    "response code in a query": ("dns.flags", QUERY[:3] + b"\x03" + QUERY[4:]),
    "no question": ("dns.question", header(7, 0x0100, 0, 0, 0, 0)),
    "two questions": ("dns.question", header(7, 0x0100, 2, 0, 0, 0) + 2 * question()),
    "label too long": ("dns.name", header(7, 0, 1, 0, 0, 0) + question(b"\x40" + 64 * b"a" + b"\x00")),
    "name too long": ("dns.name", header(7, 0, 1, 0, 0, 0) + question(4 * (b"\x3f" + 63 * b"a") + b"\x00")),
    "pointer to itself": ("dns.name", header(7, 0, 1, 0, 0, 0) + question(b"\xc0\x0c")),
    "pointer forward": ("dns.name", header(7, 0, 1, 0, 0, 0) + question(b"\x01a\xc0\x20") + bytes(20)),
    "pointer into the header": ("dns.name", header(7, 0, 1, 0, 0, 0) + question(b"\x01a\xc0\x02")),
    "record missing": ("dns.counts", QUERY[:7] + b"\x01" + QUERY[8:]),
    "octets left over": ("dns.counts", QUERY + b"\x00"),
    "name cut off": ("dns.counts", QUERY[:-6]),
    "address of five octets": ("dns.record", header(7, 0, 1, 1, 0, 0) + question() + record(1, bytes(5))),
    "alias longer than its name": ("dns.record", header(7, 0, 1, 1, 0, 0) + question() + record(5, b"\xc0\x0c\x00")),
    "text longer than the record": ("dns.record", header(7, 0, 1, 1, 0, 0) + question() + record(16, b"\x09abc")),
    "option longer than the record": (
        "dns.record",
        header(7, 0, 1, 0, 0, 1) + question() + record(41, b"\x00\x0c\x01\x01\x00", b"\x00"),
    ),
    "EDNS twice": ("dns.edns", header(7, 0, 1, 0, 0, 2) + question() + 2 * record(41, b"", b"\x00")),
    "EDNS as an answer": ("dns.edns", header(7, 0, 1, 1, 0, 0) + question() + record(41, b"", b"\x00")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_mended_and_the_other_flow_stays(datagrams: Callable[..., Traffic], name: str) -> None:
    rule, payload = FAULTS[name]
    traffic = datagrams([(0, True, QUERY), (0, False, ANSWER), (1, True, payload)])
    assert found(traffic) == {(rule, 2)}
    told = Recorder(traffic)
    mended = DnsRules().repair(traffic, np.random.default_rng(0), told)
    assert found(mended) == set()
    assert payloads(mended)[:2] == [QUERY, ANSWER]
    assert {r.rule for r in told.repairs} <= {rule, "udp.checksum", "ipv4.checksum"}
    if rule == "dns.flags":
        assert payloads(mended)[2][4:] == payload[4:]
    off = DnsRules()
    off.off = frozenset({rule})
    assert (rule, 2) not in found(traffic, off)
    assert off.repair(traffic, np.random.default_rng(0)) is traffic


@pytest.mark.parametrize(
    ("rule", "answer"),
    [
        ("dns.unasked", b"\x00\x08" + ANSWER[2:]),
        ("dns.repeat", ANSWER.replace(b"\x03www", b"\x03ftp")),
        ("dns.counts", ANSWER + bytes(30)),
    ],
)
def test_a_wrong_answer_gets_number_and_question_of_its_query(
    datagrams: Callable[..., Traffic], rule: str, answer: bytes
) -> None:
    other = [header(9, 0x0100, 1, 0, 0, 0) + question(kind=28), header(9, 0x8180, 1, 0, 0, 0) + question(kind=28)]
    traffic = datagrams([(0, True, other[0]), (0, False, other[1]), (0, True, QUERY), (0, False, answer)])
    assert found(traffic) == {(rule, 3)}
    mended = DnsRules().repair(traffic, np.random.default_rng(0))
    assert found(mended) == set()
    assert payloads(mended)[:3] == [*other, QUERY]
    new = DNS(payloads(mended)[3])
    assert (new.id, new.qr, new.qd[0].qname) == (7, 1, b"www.example.")
    assert len(payloads(mended)[3]) == len(answer)


def test_flags_and_answers_are_mended_in_a_part_of_a_capture(datagrams: Callable[..., Traffic]) -> None:
    flags = FAULTS["reserved bit"][1]
    traffic = datagrams([(0, True, bytes(700)), (1, True, flags), (2, True, QUERY), (2, False, ANSWER + bytes(9))])
    part = traffic.select_flows(np.array([1, 2]))
    mended = DnsRules().repair(part, np.random.default_rng(0))
    assert found(mended) == set()
    assert payloads(mended)[:2] == [QUERY, QUERY]
    assert DNS(payloads(mended)[2]).qd[0].qname == b"www.example."


def test_the_answer_to_a_question_that_is_written_anew_is_written_anew(datagrams: Callable[..., Traffic]) -> None:
    traffic = datagrams([(0, True, QUERY + bytes(11)), (0, False, ANSWER)])
    assert found(traffic) == {("dns.counts", 0)}
    mended = DnsRules().repair(traffic, np.random.default_rng(0))
    assert found(mended) == set()
    asked, answered = map(DNS, payloads(mended))
    assert asked.id == answered.id
    assert asked.qd[0].qname == answered.qd[0].qname != b"www.example."


messages = st.lists(
    st.tuples(st.booleans(), st.one_of(st.integers(0, 60), st.integers(17, 1400)), st.booleans()),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(messages, min_size=1, max_size=4), st.sampled_from([4, 6]), st.integers(0, 2**32))
def test_any_payload_becomes_conversations(
    datagrams: Callable[..., Traffic], flows: list[Any], version: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    packets = [
        (f, forth or k == 0, rng.bytes(size) if noise else bytes(size))
        for f, flow in enumerate(flows)
        for k, (forth, size, noise) in enumerate(flow)
    ]
    traffic = datagrams(packets, version=version)
    mended = DnsRules().repair(traffic, rng)
    assert found(mended) == set()
    assert DnsRules().repair(mended, rng) is mended
    asked: dict[tuple[int, int], Any] = {}
    alone = {f for f, flow in enumerate(flows) if len(flow) == 1}
    for (flow, forth, before), after in zip(packets, payloads(mended), strict=True):
        assert len(after) >= max(len(before), 17)
        if len(before) >= 60 or (flow in alone and len(before) >= 24):
            assert len(after) == len(before) or not is_pair(flows[flow])
        message = DNS(after)
        assert message.qr == (not forth)
        assert len(message.qd) == 1
        if forth:
            assert (flow, message.id) not in asked
            asked[flow, message.id] = message
        else:
            assert bytes(message.qd[0]) == bytes(asked[flow, message.id].qd[0])
        name = message.qd[0].qname.decode().rstrip(".")
        assert name == "" or name.endswith(RESERVED)
        for each in message.an:
            if each.type in (1, 28):
                assert any(ipaddress.ip_address(each.rdata) in ipaddress.ip_network(net) for net in DOCUMENTATION)


def is_pair(flow: list[Any]) -> bool:
    """
    Tell whether the flow is one query and at most one answer, both with room for a name and a record.
    """
    return len(flow) == 1 or (len(flow) == 2 and not flow[1][0] and min(size for _, size, _ in flow) >= 60)


def test_where_payload_was_cut_off_nothing_is_written_and_the_user_hears_of_it(
    datagrams: Callable[..., Traffic], caplog: pytest.LogCaptureFixture
) -> None:
    traffic = datagrams([(0, True, bytes(40)), (0, False, bytes(80))])
    cut = attrs.evolve(traffic, captured_lengths=np.full(2, 28)).packed()
    with caplog.at_level(logging.WARNING, "netdiffusion"):
        assert DnsRules().repair(cut, np.random.default_rng(0)) is cut
    assert "--payload zeros" in caplog.text


def test_other_ports_are_an_option(datagrams: Callable[..., Traffic]) -> None:
    traffic = datagrams([(0, True, bytes(40))], port=5300)
    assert found(traffic) == set()
    rules = DnsRules(Options(ports=(5300,)))
    assert found(rules.repair(traffic, np.random.default_rng(0)), rules) == set()
    assert found(traffic, rules) == {("dns.question", 0), ("dns.counts", 0)}


def test_the_rules_are_listed_by_the_program_and_by_the_readme() -> None:
    plugins = Plugins.discover()
    assert plugins.load("rules", "dns").rules == RULES
    assert plugins.resolve_rules(["dns"])[0][-2:] == ("udp", "dns")
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `dns.")]
    assert rows == [f"| `{rule.id}` | {rule.severity} | {rule.summary} | {rule.source} |" for rule in RULES]


def test_tshark_reads_all_of_it(datagrams: Callable[..., Traffic], tshark: Callable[..., list[list[str]]]) -> None:
    rng = np.random.default_rng(1)
    packets = []
    for flow in range(300):
        for k in range(rng.integers(1, 9)):
            size = int(rng.choice([rng.integers(0, 60), rng.integers(20, 200), rng.integers(20, 1400)]))
            packets.append((flow, k == 0 or rng.random() < 0.5, rng.bytes(size) if flow % 2 else bytes(size)))
    traffic = datagrams(packets)
    faulty = "_ws.malformed || _ws.expert.severity == Error"
    assert len(tshark(traffic, faulty, "frame.number")) > 600
    mended = DnsRules().repair(traffic, rng)
    assert tshark(mended, f"{faulty} || !dns", "frame.number", "_ws.expert.message") == []
    assert tshark(mended, "dns.flags.response == 1 && !dns.response_to && !dns.retransmission", "frame.number") == []
    kinds = {kind for (kinds,) in tshark(mended, "dns.resp.type", "dns.resp.type") for kind in kinds.split(",")}
    assert kinds >= {"1", "5", "16", "28", "41"}


@pytest.mark.parametrize("backend", ["bernoulli", "bootstrap"])
def test_a_run_writes_dns_that_tshark_reads(
    backend: str, tmp_path: Path, tshark: Callable[..., list[list[str]]]
) -> None:
    pytest.importorskip("netdiffusion_nprint")
    pytest.importorskip("netdiffusion_baselines")
    result = netdiffusion_core.run(
        RunConfig(
            data=LAB, output=tmp_path / "run", classes=("dns", "ntp"), rules=("tcp", "udp", "dns"), backend=backend,
            compare=(), evaluators=(), flows=20,
        )
    )  # fmt: skip
    assert not [v for v in result.violations if v.rule.startswith("dns.")]
    assert "dns.question" in {repair["rule"] for repair in result.repairs}
    questions = tshark(result.synthetic, "udp.port == 53 && dns.flags.response == 0", "dns.qry.name")
    assert len(questions) >= 5  # many a port of bernoulli has a wrong bit
    assert all(name.endswith((*RESERVED, "<Root>")) for (name,) in questions)
    bad = "udp.port == 53 && (!dns || _ws.malformed || _ws.expert.severity == Error)"
    assert tshark(result.synthetic, bad, "frame.number", "_ws.expert.message") == []


def real(*files: Path) -> Traffic:
    parts = [read_capture(file) for file in files]
    return assemble(concatenate(parts), capture_of=np.repeat(np.arange(len(parts)), [len(part) for part in parts]))


def test_the_lab_s_dns_breaks_no_rule() -> None:
    assert found(real(*sorted(LAB.glob("*/*.pcap")))) == set()


def test_real_dns_breaks_hardly_a_rule() -> None:
    files = sorted(DATA.glob("*dns/train/*.pcap"))
    if not files:
        pytest.skip(f"no captures in {DATA}/dns/train: set NETDIFFUSION_TEST_DATA")
    traffic = real(*files)
    rules = sorted(rule for rule, _ in found(traffic))
    assert len(traffic) > 4000
    # an exploit with two questions, a tunnel's answer to nothing, a gateway that fills its answer up with zeros
    assert rules == ["dns.counts", *4 * ["dns.question"], "dns.unasked"]
