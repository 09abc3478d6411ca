"""
The nprint encoder against RFC facts, nPrint itself, scapy, tshark and real captures.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Padding, Raw

from netdiffusion_core.capture import assemble, dissect, read_capture, write_capture
from netdiffusion_core.errors import DataError
from netdiffusion_core.model import MISSING, Encoded, FlowTable, Layout, Traffic, concatenate
from netdiffusion_nprint.encoder import NprintEncoder, Options
from netdiffusion_nprint.layout import PAPER, TRACE

DATA = Path(os.environ.get("NETDIFFUSION_TEST_DATA", Path(__file__).parents[4] / "shared"))
GOLDEN = DATA / "nprint-golden"
needs_data = pytest.mark.skipif(
    not (DATA / "data").is_dir() or not GOLDEN.is_dir(), reason=f"no captures in {DATA} (NETDIFFUSION_TEST_DATA)"
)
needs_tshark = pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
A4, B4 = "192.0.2.1", "192.0.2.2"
A6, B6 = "2001:db8::1", "2001:db8::2"


def traffic_of(packets: list[bytes | Packet], times_ns: list[int] | None = None, link: int = 1) -> Traffic:
    """
    Make traffic without flows from packets.
    """
    raw = [bytes(p) for p in packets]
    lengths = np.array([len(p) for p in raw], np.int64)
    empty = {f.name: np.zeros((0, 16) if "address" in f.name else 0) for f in attrs.fields(FlowTable)}
    return Traffic(
        data=np.frombuffer(b"".join(raw), np.uint8),
        starts=np.cumsum(lengths) - lengths,
        captured_lengths=lengths,
        timestamps=np.arange(len(raw)) if times_ns is None else times_ns,
        wire_lengths=lengths,
        link_types=np.full(len(raw), link),
        flow_of=np.full(len(raw), -1),
        from_initiator=np.zeros(len(raw), bool),
        flows=FlowTable(**empty),
    )


def decode(encoded: Encoded, seed: int = 0, **options: object) -> Traffic:
    layout = "trace" if encoded.layout == TRACE else "paper"
    return NprintEncoder(Options(layout=layout, **options)).decode(encoded, np.random.default_rng(seed))


def assert_survives(traffic: Traffic, **options: object) -> None:
    """
    Encoding what was decoded gives the same bits, times and labels.
    """
    encoder = NprintEncoder(Options(**options))
    before = encoder.encode(traffic)
    after = encoder.encode(encoder.decode(before, np.random.default_rng(1)))
    differing = before.rows != after.rows if before.rows.shape == after.rows.shape else None
    assert differing is not None
    assert not differing.any(), np.array(before.layout.columns)[differing.any(0)]
    assert np.array_equal(before.starts, after.starts)
    assert np.array_equal(before.start_times // 1000, after.start_times // 1000)
    assert np.array_equal(before.labels, after.labels)


def rows_of(packets: list[bytes | Packet], **options: object) -> Encoded:
    return NprintEncoder(Options(**options)).encode(assemble(traffic_of(packets), label="x"))


# --- the layouts ------------------------------------------------------------------------------------------------


def test_paper_layout_is_the_papers_image() -> None:
    widths = {name: span.stop - span.start for name, span in PAPER.spans().items() if "." not in name}
    assert widths == {"ipv4": 416, "ipv6": 64, "tcp": 480, "udp": 64, "icmp": 64}
    assert len(set(PAPER.columns)) == PAPER.width == 1088


def test_trace_layout_adds_64_columns_behind_the_papers() -> None:
    assert TRACE.width == 1152
    assert TRACE.columns[:1088] == PAPER.columns
    assert TRACE.span("trace") == slice(1088, 1152)


@needs_data
def test_columns_have_nprints_names_and_order() -> None:
    with gzip.open(GOLDEN / "public/out/443-curl.pcap.full0.npt.gz", "rt") as file:
        names = file.readline().strip().split(",")
    assert [n for n in names if not n.startswith(("src_ip", "ipv4_src", "ipv4_dst", "ipv6_src", "ipv6_dst"))] == list(
        PAPER.columns
    )


# --- encode -----------------------------------------------------------------------------------------------------


def test_fields_hold_what_the_headers_say() -> None:
    tcp_options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (7, 9)), ("NOP", None), ("WScale", 7)]
    segment = TCP(sport=50001, dport=443, seq=0x80000001, ack=5, flags="SEC", window=64240, options=tcp_options)
    options = [IPOption_NOP()] * 4
    encoded = rows_of([ETHER / IP(src=A4, dst=B4, ttl=57, id=0xBEEF, tos=3, flags="DF", options=options) / segment])
    expected = {
        "ipv4.ver": 4, "ipv4.hl": 6, "ipv4.tos": 3, "ipv4.tl": 64, "ipv4.id": 0xBEEF, "ipv4.dfbit": 1, "ipv4.mfbit": 0,
        "ipv4.ttl": 57, "ipv4.proto": 6, "tcp.sprt": 50001, "tcp.dprt": 443, "tcp.seq": 0x80000001, "tcp.ackn": 5,
        "tcp.doff": 10, "tcp.syn": 1, "tcp.ece": 1, "tcp.cwr": 1, "tcp.ackf": 0, "tcp.wsize": 64240,
    }  # fmt: skip
    assert {name: encoded.values(name)[0] for name in expected} == expected
    options = encoded.bits("ipv4.opt")[0]
    assert np.packbits(options[:32] == 1).tolist() == [1] * 4
    assert (options[32:] == MISSING).all()
    assert np.packbits(encoded.bits("tcp.opt")[0, :32] == 1).tolist() == [2, 4, 1460 >> 8, 1460 & 255]
    for absent in ("ipv6", "udp", "icmp"):
        assert (encoded.bits(absent) == MISSING).all()


def test_icmpv6_uses_the_icmp_columns_and_udp_its_own() -> None:
    echo = ETHER / IPv6(src=A6, dst=B6, fl=0xABCDE, hlim=64) / ICMPv6EchoRequest(id=7, seq=9)
    query = ETHER / IPv6(src=A6, dst=B6) / UDP(sport=1234, dport=53) / b"abc"
    encoded = rows_of([echo, query])
    assert encoded.values("ipv6.nh").tolist() == [58, 17]
    assert encoded.values("icmp.type").tolist() == [128, -1]
    assert encoded.values("icmp.roh").tolist() == [7 << 16 | 9, -1]
    assert encoded.values("udp.len").tolist() == [-1, 11]
    assert encoded.values("ipv6.fl").tolist() == [0xABCDE, 0]
    assert (encoded.bits("ipv4") == MISSING).all()


def test_trace_columns_tell_direction_time_padding_and_extensions() -> None:
    padn = IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)])
    hop = IPv6ExtHdrHopByHop()
    there = ETHER / IPv6(src=A6, dst=B6) / hop / padn / UDP(sport=5000, dport=6000) / b"x"
    back = ETHER / IPv6(src=B6, dst=A6) / UDP(sport=6000, dport=5000) / b"x" / Padding(b"\0" * 9)
    times = [1_000_000_999, 1_000_001_000, 1_000_003_998, 5_000_000_000]  # floor to microseconds, then subtract
    encoded = NprintEncoder().encode(assemble(traffic_of([there, back, there, back], times)))
    assert encoded.values("trace.direction").tolist() == [0, 1, 0, 1]
    assert encoded.values("trace.iat_us").tolist() == [0, 1, 2, 3_999_997]
    assert encoded.values("trace.padding").tolist() == [0, 9, 0, 9]
    assert encoded.values("trace.extension_words").tolist() == [3, 0, 3, 0]
    assert encoded.start_times.tolist() == [1_000_000_999]


def test_a_long_flow_keeps_its_first_packets_and_others_stay_whole() -> None:
    packets = [ETHER / IP(src=A4, dst=B4, id=i) / UDP(sport=1000 + (i % 2), dport=53) / b"x" for i in range(9)]
    encoded = rows_of([*packets, ETHER / ARP()], max_packets=4)
    assert encoded.lengths.tolist() == [4, 4]
    assert encoded.values("ipv4.id").tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_a_syn_cut_within_its_options_keeps_what_was_captured() -> None:
    syn = ETHER / IP(src=A4, dst=B4) / TCP(flags="S", options=[("MSS", 1460), ("Timestamp", (1, 0))])
    cut = bytes(syn)[: 14 + 20 + 20 + 6]
    encoded = rows_of([cut])
    assert encoded.values("tcp.syn").tolist() == [1]
    assert (encoded.bits("tcp.opt")[0] != MISSING).sum() == 32
    assert_survives(assemble(traffic_of([cut])))
    assert (rows_of([bytes(syn)[:53]]).bits("tcp") == MISSING).all()


def test_a_later_fragment_has_no_transport_header() -> None:
    later = ETHER / IP(src=A4, dst=B4, id=5, frag=10, proto=17) / Raw(b"\x12\x34" * 20)
    first = ETHER / IP(src=A4, dst=B4, id=5, flags="MF") / UDP(sport=9, dport=10) / Raw(b"x" * 72)
    encoded = rows_of([first, later])
    assert encoded.values("udp.dport").tolist() == [10, -1]
    assert encoded.values("ipv4.foff").tolist() == [0, 10]
    assert_survives(assemble(traffic_of([first, later])))


# --- nPrint itself ----------------------------------------------------------------------------------------------


def nprint_ip(packet: bytes, link: int) -> int | None:
    """
    Where nPrint sees an IP header, None where it skips the packet: its rule for every link layer but radiotap.
    """
    skipped = 16 if link == 113 else 0
    at = skipped + (14 if packet[skipped + 12 : skipped + 14] in (b"\x08\x00", b"\x86\xdd") else 0)
    protocol = {4: packet[at + 9 : at + 10], 6: packet[at + 6 : at + 7]}.get(packet[at] >> 4 if at < len(packet) else 0)
    return at if protocol in (b"\1", b"\6", b"\x11") else None


@needs_data
def test_bits_equal_nprints() -> None:
    """
    Every packet that nPrint writes is compared, save those that it reads otherwise on purpose or from memory that is
    not the packet's: later fragments, headers that are cut or shorter than their protocol's least.
    """
    flags = json.loads((GOLDEN / "row_flags.json").read_text())
    with (GOLDEN / "manifest.csv").open() as file:
        runs = [r for r in csv.DictReader(file) if r["set"] == "full0" and r["rc"] == "0" and int(r["rows"])]
    encoder = NprintEncoder()
    compared = with_transport = written = 0
    for run in runs:
        if flags.get(run["output"], {}).get("stale") or run["capture"].endswith(("_radiotap.pcap", "_latelt.pcapng")):
            continue  # which packets nPrint takes depends on leftover memory; another layout; libpcap stops early
        with gzip.open(GOLDEN / run["output"]) as lines:
            next(lines)
            expected = np.array([np.fromstring(line.split(b",", 1)[1], np.int8, sep=",") for line in lines])
        traffic = read_capture(GOLDEN / run["capture"])
        at = [nprint_ip(traffic.packet(i), traffic.link_types[i]) for i in range(len(traffic))]
        emitted = np.array([i for i, a in enumerate(at) if a is not None])
        assert len(emitted) == len(expected), run["capture"]
        # each packet is a flow of its own: row and packet are easily told apart
        n = len(traffic)
        numbers, nobody = np.zeros(n), np.zeros((n, 16))
        flows = {f.name: nobody if "address" in f.name else numbers for f in attrs.fields(FlowTable)}
        single = attrs.evolve(traffic, flow_of=np.arange(n), flows=FlowTable(**flows))
        encoded, headers = encoder.encode(single), dissect(single)
        rows = np.full((n, 1088), 99, np.int8)
        rows[encoded.flow_of] = encoded.rows[:, :1088]
        expected = np.hstack([expected[:, a:b] for a, b in ((0, 96), (160, 544), (800, 1408))])  # less the addresses

        same_ip = headers.ip_offsets[emitted] - traffic.starts[emitted] == [at[i] for i in emitted]
        same_ip &= headers.ip_versions[emitted] > 0
        same_transport = same_ip & (headers.transport_offsets[emitted] >= 0)
        assert np.array_equal(rows[emitted[same_ip], :480], expected[same_ip, :480]), run["capture"]
        assert np.array_equal(rows[emitted[same_transport]], expected[same_transport]), run["capture"]
        compared += same_ip.sum()
        with_transport += same_transport.sum()
        written += len(emitted)
    assert written > 7500
    assert compared > 0.99 * written
    assert with_transport > 0.98 * written


# --- decode of encode is the identity on bits -------------------------------------------------------------------

u8, u16, u32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))
tcp_option = st.one_of(
    st.builds(lambda v: ("MSS", v), u16),
    st.just(("SAckOK", b"")),
    st.just(("NOP", None)),
    st.builds(lambda a, b: ("Timestamp", (a, b)), u32, u32),
    st.builds(lambda v: ("WScale", v), st.integers(0, 14)),
)
transports4 = st.one_of(
    st.builds(
        TCP, sport=st.just(40000), dport=st.just(443), seq=u32, ack=u32, flags=st.integers(0, 511), window=u16,
        urgptr=u16, reserved=st.integers(0, 7), options=st.lists(tcp_option, max_size=3),
    ),
    st.builds(UDP, sport=u16, dport=u16),
    st.builds(ICMP, type=u8, code=u8, id=u16, seq=u16),
)  # fmt: skip
ipv4 = st.builds(
    IP, src=st.sampled_from((A4, B4)), dst=st.sampled_from((A4, B4)), ttl=u8, id=u16, tos=u8,
    flags=st.sampled_from(("", "DF", "evil")),
    options=st.sampled_from(([], [IPOption_NOP()], [IPOption_RR(routers=[A4] * 3)], [IPOption_NOP()] * 40)),
)  # fmt: skip
extensions = st.lists(
    st.sampled_from(
        (
            IPv6ExtHdrHopByHop(),
            IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 250), PadN(optdata=b"\0" * 30)]),
            IPv6ExtHdrFragment(id=3),
        )
    ),
    max_size=3,
)
transports6 = st.one_of(
    st.builds(TCP, sport=u16, dport=u16, seq=u32, flags=u8, options=st.lists(tcp_option, max_size=2)),
    st.builds(UDP, sport=u16, dport=u16),
    st.builds(ICMPv6EchoRequest, id=u16, seq=u16),
    st.builds(ICMPv6EchoReply, id=u16, seq=u16),
)
ipv6 = st.builds(
    IPv6, src=st.sampled_from((A6, B6)), dst=st.sampled_from((A6, B6)), tc=u8, fl=st.integers(0, 2**20 - 1), hlim=u8
)


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        network, transport = draw(ipv4), draw(transports4)
    else:
        network, transport = draw(ipv6), draw(transports6)
        for extension in draw(extensions):
            network = network / extension.copy()
        if draw(st.booleans()):
            network = network / AH(nh={TCP: 6, UDP: 17}.get(type(transport), 58), payloadlen=4, icv=b"\0" * 12)
    link = ETHER / Dot1Q(vlan=5) if draw(st.booleans()) else ETHER
    return bytes(link / network / transport / draw(st.binary(max_size=9))) + b"\0" * draw(st.integers(0, 20))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(packets(), st.integers(0, 10**13)), min_size=1, max_size=8),
    st.sampled_from(("trace", "paper")),
    st.sampled_from(("ethernet", "raw")),
    st.sampled_from(("random", "zeros", "none")),
)
def test_bits_survive(timed: list[tuple[bytes, int]], layout: str, link: str, payload: str) -> None:
    traffic = assemble(traffic_of([p for p, _ in timed], [t for _, t in timed]), label="made")
    assert_survives(traffic, layout=layout, link=link, payload=payload)


@needs_data
@pytest.mark.parametrize("label", sorted(f.parent.name for f in (DATA / "data").glob("*/train")))
def test_all_real_flows_survive(label: str) -> None:
    """
    7,114 flows in 27 classes: every bit but the addresses', direction, time in microseconds, and length.
    """
    captures = [read_capture(f) for f in sorted((DATA / "data" / label).glob("*/*.pcap"))]
    capture_of = np.repeat(np.arange(len(captures)), [len(c) for c in captures])
    real = assemble(concatenate(captures), label=label, capture_of=capture_of)
    for options in ({"max_packets": 10**6}, {"max_packets": 10**6, "layout": "paper", "link": "raw"}):
        assert_survives(real, **options)
    encoded = NprintEncoder(Options(max_packets=10**6)).encode(real)
    decoded = decode(encoded, max_packets=10**6)
    real = real.select_packets(real.by_flow()[0])
    headers = dissect(real)
    is_ip = headers.ip_versions > 0
    assert np.array_equal(decoded.from_initiator, real.from_initiator[is_ip])
    assert np.array_equal(decoded.timestamps // 1000, real.timestamps[is_ip] // 1000)
    # Decoded packets have an Ethernet header of 14 bytes. A length that the IP header does not tell is lost: 0 where
    # segmentation was offloaded, or more than there was on the wire.
    wire_lengths = (real.wire_lengths - headers.link_lengths)[is_ip] + 14
    told = np.where(headers.ip_versions[is_ip] == 4, encoded.values("ipv4.tl"), encoded.values("ipv6.len") + 40)
    is_told = (told > 0) & (told + 14 <= wire_lengths)
    assert np.array_equal(decoded.wire_lengths[is_told], wire_lengths[is_told])
    assert np.count_nonzero(~is_told) <= 4


@needs_data
def test_real_flows_keep_direction_ports_times_and_lengths() -> None:
    files = sorted((DATA / "data" / "web-tls" / "train").glob("*.pcap"))[:20]
    real = concatenate([assemble(read_capture(f), label="web-tls") for f in files])
    real = real.select_packets(real.by_flow()[0])
    decoded = decode(NprintEncoder().encode(real))
    assert np.array_equal(decoded.from_initiator, real.from_initiator)
    assert np.array_equal(decoded.timestamps // 1000, real.timestamps // 1000)
    for name in ("labels", "ip_versions", "protocols", "initiator_ports", "responder_ports"):
        assert np.array_equal(getattr(decoded.flows, name), getattr(real.flows, name)), name
    again = assemble(decoded)  # a reader of the pcap finds the same flows
    _, first = np.unique(decoded.flow_of, return_index=True)
    assert np.array_equal(again.flow_of[first][decoded.flow_of], again.flow_of)
    assert np.array_equal(again.flows.initiator_addresses[again.flow_of[first]], decoded.flows.initiator_addresses)


# --- decode of bits that no real packet gave --------------------------------------------------------------------


def encoded_of(rows: np.ndarray, starts: list[int] | None = None, layout: Layout = TRACE) -> Encoded:
    starts = [0, len(rows)] if starts is None else starts
    flows = len(starts) - 1
    return Encoded(rows=rows, starts=starts, labels=["x"] * flows, start_times=[10**18] * flows, layout=layout)


def blank(packets: int, *headers: str) -> np.ndarray:
    rows = np.full((packets, TRACE.width), MISSING, np.int8)
    for header in headers:
        rows[:, TRACE.span(header)] = 0
    return rows


def test_the_header_with_more_bits_wins_and_options_are_whole_words() -> None:
    rows = blank(3, "udp")
    rows[:, :96] = 0  # the fixed part of IPv4, and one word and a half of its options
    rows[:, TRACE.span("ipv4.ver")] = (0, 1, 0, 0)
    rows[0, TRACE.span("ipv4.opt").start :][:48] = 1
    rows[0, TRACE.span("ipv6")] = 1
    rows[1, TRACE.span("tcp")] = 1  # more bits than UDP
    rows[2, :96] = MISSING
    rows[2, 3] = 1  # one bit of IPv4 against a whole IPv6 header
    rows[2, TRACE.span("ipv6")] = 0
    rows[2, TRACE.span("ipv6.nh")] = (0, 0, 0, 1, 0, 0, 0, 1)
    first, second, third = (decode(encoded_of(rows), payload="none").packet(i) for i in range(3))
    assert len(first) == 14 + 24 + 8
    assert first[34:38] == b"\xff" * 4
    assert len(second) == 14 + 20 + 60
    assert second[34:] == b"\xff" * 60
    assert third[12:14] == b"\x86\xdd"
    assert len(third) == 14 + 40 + 8


def test_a_row_without_ip_ends_its_flow_and_a_flow_may_be_empty() -> None:
    rows = blank(7, "ipv4", "udp")
    rows[[1, 4], TRACE.span("ipv4")] = MISSING
    traffic = decode(encoded_of(rows, [0, 3, 3, 4, 7]))
    assert traffic.flow_of.tolist() == [0, 2]
    assert len(traffic.flows) == 4
    assert decode(encoded_of(rows[:0], [0])).data.size == 0


def test_lengths_are_at_least_the_headers_and_at_most_the_largest_datagram() -> None:
    rows = blank(3, "ipv4", "tcp")
    rows[1, TRACE.span("ipv4.tl")] = 1
    rows[2, TRACE.span("ipv4")] = MISSING
    rows[2, TRACE.span("ipv6")] = 1
    rows[:, TRACE.span("trace.padding")] = (0, 0, 0, 0, 1, 1, 0)
    traffic = decode(encoded_of(rows), payload="zeros")
    assert traffic.wire_lengths.tolist() == [14 + 60 + 60, 14 + 65535 + 6, 14 + 65535 + 6]
    assert np.array_equal(traffic.captured_lengths, traffic.wire_lengths)


def test_paper_layout_takes_the_direction_from_the_ports() -> None:
    there = ETHER / IP(src=A4, dst=B4) / UDP(sport=5000, dport=53) / b"x"
    back = ETHER / IP(src=B4, dst=A4) / UDP(sport=53, dport=5000) / b"x"
    ping = [ETHER / IP(src=s, dst=d) / ICMP(type=t, id=77) for s, d, t in ((A4, B4, 8), (B4, A4, 0), (A4, B4, 8))]
    traffic = decode(rows_of([there, back, back, there, *ping], layout="paper"))
    assert traffic.from_initiator.tolist() == [True, False, False, True, True, False, True]
    assert np.diff(traffic.timestamps[:4]).tolist() == [10**6] * 3
    assert traffic.flows.initiator_ports.tolist() == [5000, 77]
    assert traffic.flows.responder_ports.tolist() == [53, 0]


def test_addresses_belong_to_nobody_and_no_two_flows_share_them() -> None:
    rows = blank(300, "ipv4", "udp")
    rows[150:, TRACE.span("ipv4")] = MISSING
    rows[150:, TRACE.span("ipv6")] = 0
    traffic = decode(encoded_of(rows, list(range(301))))
    initiators, responders = traffic.flows.initiator_addresses, traffic.flows.responder_addresses
    assert len(np.unique(initiators, axis=0)) == len(np.unique(responders, axis=0)) == 300
    assert (initiators[:150, 0] == 10).all()
    assert ((responders[:150, 0] == 198) & np.isin(responders[:150, 1], (18, 19))).all()
    assert (initiators[150:, 0] == 0xFD).all()
    assert (responders[150:, :4] == (0x20, 0x01, 0x0D, 0xB8)).all()
    first, last = traffic.packet(0), traffic.packet(299)
    assert first[26:34] == initiators[0, :4].tobytes() + responders[0, :4].tobytes()
    assert last[22:54] == initiators[299].tobytes() + responders[299].tobytes()
    assert {first[0] & 3, first[6] & 3} == {2}  # locally administered, unicast


def test_hosts_come_from_the_networks_that_were_asked_for() -> None:
    rows = blank(40, "ipv4", "udp")
    rows[20:, TRACE.span("ipv4")] = MISSING
    rows[20:, TRACE.span("ipv6")] = 0
    nets = {"client_net": "192.168.7.0/29", "server_net": "2001:db8:1::/48"}
    flows = decode(encoded_of(rows, list(range(41))), **nets).flows
    assert {bytes(a[:4]) for a in flows.initiator_addresses[:20]} == {bytes([192, 168, 7, k]) for k in range(1, 7)}
    assert (flows.initiator_addresses[20:, 0] == 0xFD).all()  # no IPv6 network of clients was given
    assert (flows.responder_addresses[:20, 0] == 198).all()
    assert (flows.responder_addresses[20:, :6] == (0x20, 0x01, 0x0D, 0xB8, 0, 1)).all()
    for wrong, says in (
        ("10.0.0.1/8", "has host bits set"), ("10.0.0.0/8,192.168.0.0/16", "two networks of IPv4"),
        ("10.0.0.0/31", "no room"), ("here", "write it like 10.0.0.0/8"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            Options(client_net=wrong)


@pytest.mark.parametrize("layout", [TRACE, PAPER])
def test_any_bits_decode_to_packets_that_hold_them(layout: Layout) -> None:
    rng = np.random.default_rng(5)
    rows = rng.integers(-1, 2, (600, layout.width), np.int8)
    for header in layout.headers:
        rows[np.ix_(rng.random(600) < 0.5, np.arange(layout.width)[layout.span(header)])] = MISSING
    rows[:, layout.span("ipv4.tl")] = 0  # keeps the packets short
    rows[:, layout.span("ipv6.len")] = 0
    encoded = encoded_of(rows, [0, 100, 200, 600], layout)
    traffic = decode(encoded, payload="none", link="raw")
    assert len(traffic) > 3
    assert (np.diff(traffic.flow_of) >= 0).all()
    assert (traffic.wire_lengths >= traffic.captured_lengths).all()
    position = np.arange(len(traffic)) - np.searchsorted(traffic.flow_of, traffic.flow_of)
    for i, row in enumerate(rows[encoded.starts[traffic.flow_of] + position]):
        present = {h: (row[layout.span(h)] != MISSING).sum() for h in layout.headers}
        network = "ipv4" if present["ipv4"] >= present["ipv6"] else "ipv6"
        fixed = {h: np.packbits(row[layout.span(h)][:bits] == 1).tobytes() for h, bits in (("ipv4", 96), ("ipv6", 64))}
        packet = traffic.packet(i)
        assert packet.startswith(fixed[network])
        transport = max(("tcp", "udp", "icmp"), key=present.__getitem__)
        if present[transport]:
            size = {"tcp": 20, "udp": 8, "icmp": 8}[transport]
            assert np.packbits(row[layout.span(transport)][: 8 * size] == 1).tobytes() in packet[20:]


def test_random_iat_bits_cannot_turn_the_clock_back() -> None:
    rows = blank(40, "ipv4", "udp")
    rows[:, TRACE.span("trace.iat_us")] = 1
    assert (np.diff(decode(encoded_of(rows)).timestamps) >= 0).all()


def test_no_payload_comes_back() -> None:
    encoded = rows_of([ETHER / IP(src=A4, dst=B4) / UDP(sport=5000, dport=53) / b"secret payload"])
    assert b"secret" not in decode(encoded, seed=3).data.tobytes()


def test_rows_of_another_layout_are_refused() -> None:
    encoded = rows_of([ETHER / IP(src=A4, dst=B4) / UDP()], layout="paper")
    with pytest.raises(DataError, match=r"nprint-paper version 1.*nprint-trace version 1"):
        NprintEncoder().decode(encoded, np.random.default_rng(0))


@needs_tshark
def test_tshark_reads_decoded_packets(tmp_path: Path) -> None:
    extensions = [
        IPv6ExtHdrHopByHop(),
        IPv6ExtHdrFragment(),
        IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 200)]) / IPv6ExtHdrFragment(),
        IPv6ExtHdrFragment() / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 200)]),
        AH(nh=17, payloadlen=4, icv=b"\0" * 12),
    ]
    made = [ETHER / IPv6(src=A6, dst=B6) / e / UDP(sport=40001 + i, dport=40000) for i, e in enumerate(extensions)]
    made.append(ETHER / Dot1Q() / IP(src=A4, dst=B4, options=[IPOption_NOP()] * 4) / TCP(options=[("MSS", 9)]) / b"!")
    made.append(ETHER / IPv6(src=A6, dst=B6) / ICMPv6EchoRequest(id=3))
    write_capture(tmp_path / "decoded.pcap", decode(rows_of(made)))
    fields = ["frame.protocols", "udp.dstport", "tcp.dstport", "icmpv6.echo.identifier", "_ws.malformed"]
    command = ["tshark", "-r", tmp_path / "decoded.pcap", "-Tfields", "-Eseparator=;", *(f"-e{f}" for f in fields)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines == [
        "eth:ethertype:ipv6:ipv6.hopopts:udp;40000;;;",
        "eth:ethertype:ipv6:ipv6.fraghdr:udp;40000;;;",
        "eth:ethertype:ipv6:ipv6.dstopts:udp;40000;;;",
        "eth:ethertype:ipv6:ipv6.fraghdr:ipv6.dstopts:udp;40000;;;",
        "eth:ethertype:ipv6:ah:udp;40000;;;",
        "eth:ethertype:ip:tcp;;80;;",
        "eth:ethertype:ipv6:icmpv6;;;0x0003;",
    ]
