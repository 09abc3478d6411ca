"""
The rule set, by what RFC 3550, tshark and real captures say of media.
"""

from __future__ import annotations

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

import netdiffusion_core
from netdiffusion_core import RunConfig
from netdiffusion_core.capture import assemble, read_capture
from netdiffusion_core.errors import ConfigError
from netdiffusion_core.model import Traffic, concatenate
from netdiffusion_core.options import build
from netdiffusion_core.plugins import Plugins
from netdiffusion_core.repairs import Recorder
from netdiffusion_rtp.rules import RULES, Options, RtpRules

LAB = Path(netdiffusion_core.__file__).parent / "samples" / "lab"
DATA = Path(os.environ.get("NETDIFFUSION_TEST_DATA", Path(__file__).parents[5] / "shared")) / "data"
PORT, GAP_US, TICKS = 40_000, 20_000, 160  # G.711: 20 ms of 8 kHz
FAULTY = "_ws.malformed || _ws.expert.severity == Error"


def rtp(k: int, source: int = 0xCAFE, kind: int = 0, first: int = 0x80, start: int = 65_530, size: int = 160) -> bytes:
    """
    Build the k-th packet of a source whose sequence numbers and time stamps wrap around.
    """
    stamp = (2**32 - 500 + TICKS * k) % 2**32
    return struct.pack("!BBHII", first, kind, (start + k) % 65_536, stamp, source) + bytes(size)


def report(source: int, tail: bytes = b"") -> bytes:
    """
    Build a receiver report and a description with a CNAME of one letter.
    """
    return (
        struct.pack("!BBHI", 0x80, 201, 1, source)
        + struct.pack("!BBHIBBB", 0x81, 202, 2, source, 1, 1, 97)
        + b"\0"
        + tail
    )


def call(count: int = 12) -> list[tuple[int, bool, bytes]]:
    return [(0, True, rtp(k)) for k in range(count)]


def payloads(traffic: Traffic) -> list[bytes]:
    return [traffic.packet(i)[28:] for i in range(len(traffic))]


def words(payload: bytes) -> tuple[int, ...]:
    """
    Return first octet, second octet, sequence number, time stamp and source.
    """
    return struct.unpack("!BBHII", payload[:12])


def found(traffic: Traffic, rules: RtpRules | None = None) -> set[tuple[str, int | None]]:
    return {(violation.rule, violation.packet) for violation in (rules or RtpRules()).check(traffic)}


STUN = struct.pack("!HHI", 1, 0, 0x2112A442) + bytes(12)
SOUND = {
    "a call": call(),
    "loss, disorder, a copy": [(0, True, rtp(k)) for k in (0, 1, 3, 2, 4, 4, 9, 10, 11)],
    "two sources, STUN, DTLS, keep-alive, RTCP": [
        *[(0, True, rtp(k // 2, source=1 + k % 2, kind=96 + k % 2)) for k in range(12)],
        (0, True, STUN),
        (0, True, b"\x16\xfe\xfd" + bytes(40)),
        (0, True, b""),
        (0, True, report(1)),
        (0, True, report(1)[:8] + b"\x99" * 20),  # SRTCP: encrypted behind the first eight octets
    ],
    "CSRC, extension, padding": [
        (0, True, rtp(k, first=0xB1)[:12] + bytes(4) + b"\xbe\xde\x00\x01" + bytes(4) + b"abcd\x00\x00\x00\x04")
        for k in range(5)
    ],
    "a pause of a minute": [(0, True, rtp(k, kind=96)) for k in range(5)]
    + [(0, True, rtp(k + 3000 - 5, kind=96)) for k in range(5)],
    "somebody's zeros": [(0, True, bytes(100) + b"\x01") for _ in range(20)],
    "random": [(0, True, np.random.default_rng(k).bytes(100)) for k in range(40)],
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_flows_pass_unchanged(datagrams: Callable[..., Traffic], name: str) -> None:
    traffic = datagrams(SOUND[name], port=PORT, gap_us=GAP_US)
    assert found(traffic) == set()
    assert RtpRules().repair(traffic, np.random.default_rng(0), record=pytest.fail) is traffic
    for snap_length in (28, 30, 36, 40, 41, 44, 60):
        cut = attrs.evolve(traffic, captured_lengths=np.minimum(traffic.captured_lengths, snap_length))
        assert found(cut) == set()
        assert RtpRules().repair(cut, np.random.default_rng(0)) is cut


@pytest.mark.parametrize("at", [0, 5, 11])
@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        ("rtp.version", {"first": 0x40}),
        ("rtp.header", {"first": 0x8F, "size": 20}),
        ("rtp.header", {"kind": 72}),
        ("rtp.source", {"source": 0xBEEF}),
    ],
)
def test_a_broken_header_gets_back_what_its_neighbours_say(
    datagrams: Callable[..., Traffic], rule: str, changed: dict[str, int], at: int
) -> None:
    packets = call()
    packets[at] = (0, True, rtp(at, **changed))
    traffic = datagrams(packets, port=PORT, gap_us=GAP_US)
    assert found(traffic) == {(rule, at)}
    told = Recorder(traffic)
    mended = RtpRules().repair(traffic, np.random.default_rng(0), told)
    assert found(mended) == set()
    wanted = rtp(at)[:12] + rtp(at, **changed)[12:]
    if at == 0:
        wanted = wanted[:1] + b"\x80" + wanted[2:]  # a marker: a talk spurt begins
    assert payloads(mended) == [wanted if k == at else payload for k, (_, _, payload) in enumerate(packets)]
    assert {r.rule for r in told.repairs} == {rule}
    off = RtpRules()
    off.off = frozenset({rule})
    assert off.repair(traffic, np.random.default_rng(0)) is traffic


def test_a_single_number_out_of_order_goes_and_a_jump_is_closed(datagrams: Callable[..., Traffic]) -> None:
    alone = [(0, True, rtp(k, start=65_530 + (9_000 if k == 5 else 0))) for k in range(12)]
    traffic = datagrams(alone, port=PORT, gap_us=GAP_US)
    assert found(traffic) == {("rtp.sequence", 5)}
    assert payloads(RtpRules().repair(traffic, np.random.default_rng(0))) == [p for _, _, p in call()]
    jump = [(0, True, rtp(k, start=65_530 + (9_000 if k >= 5 else 0))) for k in range(12)]
    traffic = datagrams(jump, port=PORT, gap_us=GAP_US)
    assert found(traffic) == {("rtp.sequence", 5)}
    assert payloads(RtpRules().repair(traffic, np.random.default_rng(0))) == [p for _, _, p in call()]


def test_time_stamps_follow_the_time_of_arrival(datagrams: Callable[..., Traffic]) -> None:
    late = [
        (0, True, p[:4] + struct.pack("!I", (words(p)[3] + 90_000 * (k >= 5)) % 2**32) + p[8:])
        for k, (_, _, p) in enumerate(call())
    ]
    traffic = datagrams(late, port=PORT, gap_us=GAP_US)
    assert found(traffic) == {("rtp.timestamp", 5)}
    assert payloads(RtpRules().repair(traffic, np.random.default_rng(0))) == [p for _, _, p in call()]


@pytest.mark.parametrize(
    "broken",
    [
        report(1)[:2] + b"\x00\x40" + report(1)[4:],  # longer than the datagram
        b"\x82" + report(1)[1:],  # two reports in eight octets
        report(1) + bytes(4),
        report(1)[:10] + b"\x00\x07" + report(1)[12:],  # a description longer than what is left
    ],
)
def test_a_broken_report_becomes_a_whole_one(
    datagrams: Callable[..., Traffic], tshark: Callable[..., list[list[str]]], broken: bytes
) -> None:
    traffic = datagrams([*call(), (0, True, broken)], port=PORT, gap_us=GAP_US)
    assert found(traffic) == {("rtp.rtcp", 12)}
    mended = RtpRules().repair(traffic, np.random.default_rng(0))
    assert found(mended) == set()
    assert payloads(mended)[:12] == [p for _, _, p in call()]
    decode = ("-d", f"udp.port=={PORT},rtp")
    assert tshark(mended, "rtcp", "rtcp.senderssrc", options=decode) == [["0x0000cafe"]]
    assert tshark(mended, FAULTY, "frame.number", options=decode) == []


directions = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0, 1, 11, 12, 40, 172, 173, 900])), min_size=10, max_size=60
)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(directions, min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([40_000, 40_001]),
)
def test_any_payload_becomes_media(
    datagrams: Callable[..., Traffic], flows: list[Any], noise: bool, interval_s: float, port: int
) -> None:
    rng = np.random.default_rng(0)
    packets = [
        (f, forth or k == 0, rng.bytes(size) if noise else bytes(size))
        for f, flow in enumerate(flows)
        for k, (forth, size) in enumerate(flow)
    ]
    traffic = datagrams(packets, port=port, gap_us=GAP_US)
    rules = RtpRules(Options(ports=(port,), rtcp_interval_s=interval_s))
    mended = rules.repair(traffic, rng)
    assert found(mended, rules) == set()
    assert rules.repair(mended, rng) is mended
    last: dict[tuple[int, bool], tuple[int, int, int, int]] = {}
    for k, ((flow, forth, before), after) in enumerate(zip(packets, payloads(mended), strict=True)):
        assert after[12:][: len(before)] == before[12:] or 192 <= after[1] < 224
        assert len(after) == len(before) or len(before) < 12 or (192 <= after[1] < 224 and len(after) % 4 == 0)
        if not before:
            continue
        assert after[0] >> 6 == 2
        if 192 <= after[1] < 224:
            assert interval_s or port % 2 or noise
            assert (
                noise
                or struct.unpack("!I", after[4:8])[0] == last.setdefault((flow, forth), (0, 0, 0, 0))[2]
                or port % 2
            )
            continue
        _, kind, sequence, stamp, source = words(after)
        if not noise and (flow, forth) in last:
            before_sequence, before_stamp, before_source, at = last[flow, forth]
            assert (sequence - before_sequence) % 65_536 == 1
            assert source == before_source
            clock_khz = 90 if kind & 127 == 96 else 8
            assert ((stamp - before_stamp) % 2**32) == (k - at) * GAP_US * clock_khz // 1000
        last[flow, forth] = (sequence, stamp, source, k)


def test_the_first_packet_of_a_talk_spurt_and_the_last_of_a_picture_are_marked(
    datagrams: Callable[..., Traffic],
) -> None:
    traffic = datagrams([(0, True, bytes(172))] * 30, port=PORT, gap_us=GAP_US)
    late = traffic.timestamps + np.where(np.arange(30) >= 20, 1_000_000_000, 0)
    audio = RtpRules().repair(attrs.evolve(traffic, timestamps=late), np.random.default_rng(0))
    assert [k for k, p in enumerate(payloads(audio)) if p[1] & 128] == [0, 20]
    traffic = datagrams([(0, True, bytes(1100))] * 30, port=PORT, gap_us=1000)
    late = traffic.timestamps + np.arange(30) // 3 * 30_000_000
    video = payloads(RtpRules().repair(attrs.evolve(traffic, timestamps=late), np.random.default_rng(0)))
    assert [k for k, p in enumerate(video) if p[1] & 128] == list(range(2, 30, 3))
    assert len({words(p)[3] for p in video}) == 10


def test_reports_tell_what_was_sent_and_received(
    datagrams: Callable[..., Traffic], tshark: Callable[..., list[list[str]]]
) -> None:
    traffic = datagrams([(0, k % 2 == 0, bytes(172)) for k in range(600)], port=PORT, gap_us=GAP_US)
    mended = RtpRules(Options(rtcp_interval_s=5)).repair(traffic, np.random.default_rng(0))
    decode = ("-d", f"udp.port=={PORT},rtp")
    assert tshark(mended, f"{FAULTY} || !(rtp || rtcp)", "frame.number", options=decode) == []
    fields = (
        "frame.number",
        "rtcp.senderssrc",
        "rtcp.ssrc.identifier",
        "rtcp.sender.packetcount",
        "rtcp.sender.octetcount",
    )
    rows = tshark(mended, "rtcp.pt == 200", *fields, options=decode[:2])
    assert [int(frame) for frame, *_ in rows] == [251, 252, 501, 502]
    sources = [f"0x{words(p)[4]:08x}" for p in payloads(mended)[:2]]
    for (_, sender, identifiers, count, octets), before in zip(rows, (125, 125, 249, 249), strict=True):
        assert {sender, identifiers.split(",")[0]} == set(sources)
        assert (int(count), int(octets)) == (before, 160 * before)


def test_what_is_media_is_the_user_s_choice_or_plain(datagrams: Callable[..., Traffic]) -> None:
    rng = np.random.default_rng(0)

    def changed(packets: list[Any], port: int = PORT, **options: Any) -> bool:
        traffic = datagrams(packets, port=port, gap_us=GAP_US)
        rules = RtpRules(Options(**options))
        assert (found(traffic, rules) != set()) == (rules.repair(traffic, rng) is not traffic)
        return rules.repair(traffic, rng) is not traffic

    zeros = [(0, True, bytes(172))] * 12
    assert changed(zeros)
    assert not changed(zeros[:9])  # too few to tell
    assert changed(zeros[:9], ports=(PORT,))
    assert not changed(zeros, port=5060)
    assert not changed(zeros, port=40_001)
    assert changed(zeros, port=40_001, ports=(40_001,))
    noise = [(0, True, rng.bytes(172)) for _ in range(12)]
    assert not changed(noise)  # somebody's
    assert changed(noise, ports=(PORT,))
    assert changed(noise, classes=("",))


def test_wrong_options_are_refused() -> None:
    for values in ({"ports": (0,)}, {"payload_type": 72}, {"clock_hz": 0}, {"rtcp_interval_s": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(values))):
            build(Options, values, "rules.rtp")


def test_where_payload_was_cut_off_nothing_is_written_and_the_user_hears_of_it(
    datagrams: Callable[..., Traffic], caplog: pytest.LogCaptureFixture
) -> None:
    traffic = datagrams([(0, True, bytes(172))] * 12, port=PORT)
    cut = attrs.evolve(traffic, captured_lengths=np.full(12, 28)).packed()
    with caplog.at_level(logging.WARNING, "netdiffusion"):
        assert RtpRules(Options(ports=(PORT,))).repair(cut, np.random.default_rng(0)) is cut
    assert "--payload zeros" in caplog.text


def test_the_rules_are_listed_by_the_program_and_by_the_readme() -> None:
    plugins = Plugins.discover()
    assert plugins.load("rules", "rtp").rules == RULES
    assert plugins.resolve_rules(["rtp"])[0][-2:] == ("udp", "rtp")
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `rtp.")]
    assert rows == [f"| `{rule.id}` | {rule.severity} | {rule.summary} | {rule.source} |" for rule in RULES]


@pytest.mark.parametrize("backend", ["bernoulli", "bootstrap"])
def test_a_run_writes_media_that_tshark_reads(
    backend: str, tmp_path: Path, tshark: Callable[..., list[list[str]]]
) -> None:
    pytest.importorskip("netdiffusion_nprint")
    pytest.importorskip("netdiffusion_baselines")
    result = netdiffusion_core.run(
        RunConfig(
            data=LAB, output=tmp_path / "run", classes=("rtp-call", "ntp"), rules=("udp", "rtp"), backend=backend,
            rules_options={"rtp": {"classes": ("rtp-call",), "rtcp_interval_s": 0.5}}, compare=(), evaluators=(),
            flows=10,
        )
    )  # fmt: skip
    assert not [v for v in result.violations if v.rule.startswith("rtp.")]
    media = result.synthetic.select_flows(result.synthetic.flows.labels == "rtp-call")
    ports = np.unique([media.flows.initiator_ports, media.flows.responder_ports]).tolist()
    options = [word for port in ports for word in ("-d", f"udp.port=={port},rtp")]
    assert len(tshark(media, "rtp", "frame.number", options=options)) > 500
    assert len(tshark(media, "rtcp", "frame.number", options=options)) > 5
    bad = f"{FAULTY} || udp.length > 8 && !(rtp || rtcp)"
    assert tshark(media, bad, "frame.number", "_ws.expert.message", options=options) == []


def real(*files: Path) -> Traffic:
    parts = [read_capture(file) for file in files]
    return assemble(concatenate(parts), capture_of=np.repeat(np.arange(len(parts)), [len(part) for part in parts]))


def test_the_lab_s_calls_are_media_and_break_no_rule() -> None:
    traffic = real(*sorted(LAB.glob("*/*.pcap")))
    assert found(traffic) == set()
    calls = real(*sorted((LAB / "rtp-call").glob("*.pcap")))
    heads = calls.starts + 42  # Ethernet, IPv4 and UDP
    data = np.array(calls.data)
    data[heads[::50] + 8] ^= np.arange(1, len(heads[::50]) + 1, dtype=np.uint8)
    assert len(found(attrs.evolve(calls, data=data))) == len(heads[::50])


def test_real_media_break_no_rule() -> None:
    files = sorted(DATA.glob("realtime-media/train/*.pcap"))
    if not files:
        pytest.skip(f"no captures in {DATA}/realtime-media/train: set NETDIFFUSION_TEST_DATA")
    traffic = real(*files)
    assert len(traffic) > 15_000
    assert found(traffic) == set()


def test_a_jump_stays_where_a_packet_was_cut_off(datagrams: Callable[..., Traffic]) -> None:
    jump = [(0, True, rtp(k, start=65_530 + (9_000 if k >= 5 else 0))) for k in range(12)]
    traffic = datagrams(jump, port=PORT, gap_us=GAP_US)
    lengths = np.where(np.arange(12) == 9, 60, traffic.captured_lengths)
    cut = attrs.evolve(traffic, captured_lengths=lengths).packed()
    assert found(cut) == {("rtp.sequence", 5)}
    assert RtpRules().repair(cut, np.random.default_rng(0)) is cut


def test_what_is_alone_among_cut_packets_is_not_written_again(datagrams: Callable[..., Traffic]) -> None:
    traffic = datagrams([(0, True, bytes(size)) for size in (300, 300, 40, 300)], port=PORT)
    cut = attrs.evolve(traffic, captured_lengths=np.minimum(traffic.captured_lengths, 100)).packed()
    rules = RtpRules(Options(ports=(PORT,)))
    mended = rules.repair(cut, np.random.default_rng(0))
    assert found(mended, rules) == {("rtp.version", k) for k in (0, 1, 3)}
    assert rules.repair(mended, np.random.default_rng(1)) is mended
