"""
Capture files in and out, header positions, flow assembly.
"""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.contrib.mpls import MPLS
from scapy.layers.dot11 import Dot11, Dot11QoS, RadioTap
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, LLC, SNAP, CookedLinux, CookedLinuxV2, Dot1Q, Dot3, Ether, Loopback
from scapy.layers.ppp import PPP, PPPoE
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgWriter, PcapWriter

from netdiffusion_core.capture import assemble, dissect, pcapfile, read_capture, write_capture
from netdiffusion_core.capture.flows import group_ids
from netdiffusion_core.capture.pcapfile import NO_FLOWS
from netdiffusion_core.errors import DataError, RunError
from netdiffusion_core.model import Traffic, concatenate

DATA = Path(os.environ.get("NETDIFFUSION_TEST_DATA", Path(__file__).parents[2] / "shared"))
NS = 1_000_000_000
ZOO = sorted(f for f in (DATA / "zoo").glob("*") if f.suffix not in (".csv", ".md"))

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def traffic_of(packets: list[bytes | Packet], times_s: list[float] | None = None, link: int = 1) -> Traffic:
    """
    Put packets one second apart, or at these times, into a traffic without flows.
    """
    raw = [bytes(p) for p in packets]
    lengths = np.array([len(p) for p in raw], np.int64)
    return Traffic(
        data=np.frombuffer(b"".join(raw), np.uint8),
        starts=np.cumsum(lengths) - lengths,
        captured_lengths=lengths,
        timestamps=np.array([round(t * NS) for t in (times_s or range(len(raw)))]),
        wire_lengths=lengths,
        link_types=np.full(len(raw), link),
        flow_of=np.full(len(raw), -1),
        from_initiator=np.zeros(len(raw), bool),
        flows=NO_FLOWS,
    )


def outcome(path: Path) -> tuple[Traffic | None, str]:
    """
    Return the assembled traffic of a file, or why there is none.
    """
    try:
        return assemble(read_capture(path)), ""
    except DataError as error:
        return None, str(error)


def same_packets(a: Traffic, b: Traffic) -> bool:
    columns = ("data", "captured_lengths", "timestamps", "wire_lengths", "link_types")
    return all(np.array_equal(getattr(a.packed(), c), getattr(b.packed(), c)) for c in columns)


def pcap(records: list[bytes], order: str = "<", magic: int = 0xA1B2C3D4, link: int = 1) -> bytes:
    """
    Build a pcap file by hand: record i at i seconds and 7 ticks, four bytes longer on the wire.
    """
    extra = bytes(8 if magic == 0xA1B2CD34 else 0)
    parts = [struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, link)]
    for i, data in enumerate(records):
        parts += [struct.pack(f"{order}IIII", i, 7, len(data), len(data) + 4), extra, data]
    return b"".join(parts)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + length + body + length


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(
    link: int, order: str = "<", resolution: int | None = None, offset: int | None = None, snap: int = 0
) -> bytes:
    options = b""
    if resolution is not None:
        options += struct.pack(f"{order}HHB3x", 9, 1, resolution)
    if offset is not None:
        options += struct.pack(f"{order}HHq", 14, 8, offset)
    return block(1, struct.pack(f"{order}HHI", link, 0, snap) + options + (bytes(4) if options else b""), order)


def enhanced(number: int, ticks: int, data: bytes, wire: int, order: str = "<") -> bytes:
    fields = struct.pack(f"{order}IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), wire)
    return block(6, fields + data, order)


# --- files ------------------------------------------------------------------------------------------------------


packet_lists = st.lists(
    st.tuples(st.binary(max_size=80), st.integers(0, 2000), st.integers(0, 4_294_967_295 * NS)), max_size=20
)


@quick
@given(packet_lists, st.randoms(use_true_random=False))
def test_what_is_written_is_read_back(tmp_path: Path, packets: list[tuple[bytes, int, int]], random) -> None:
    traffic = attrs.evolve(
        traffic_of([p for p, _, _ in packets]),
        timestamps=np.array([t for _, _, t in packets], np.int64),
        wire_lengths=np.array([len(p) + extra for p, extra, _ in packets], np.int64),
    )
    write_capture(tmp_path / "a.pcap", traffic)
    assert same_packets(read_capture(tmp_path / "a.pcap"), traffic)
    order = np.array(random.sample(range(len(packets)), len(packets)), np.int64)
    write_capture(tmp_path / "a.pcap", traffic, order)
    assert same_packets(read_capture(tmp_path / "a.pcap"), traffic.select_packets(order))
    assert os.listdir(tmp_path) == ["a.pcap"]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "tick_ns"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1), (0xA1B2CD34, 1000)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_every_kind_of_pcap(tmp_path: Path, order: str, magic: int, tick_ns: int, pack) -> None:
    records = [b"abc", b"", bytes(range(200))]
    (tmp_path / "x").write_bytes(pack(pcap(records, order, magic, link=101)))
    traffic = read_capture(tmp_path / "x")
    assert [traffic.packet(i) for i in range(3)] == records
    assert traffic.timestamps.tolist() == [i * NS + 7 * tick_ns for i in range(3)]
    assert traffic.wire_lengths.tolist() == [7, 4, 204]
    assert traffic.link_types.tolist() == [101] * 3
    assert traffic.flow_of.tolist() == [-1] * 3


def test_pcapng_of_two_sections_byte_orders_and_many_clocks(tmp_path: Path) -> None:
    old = struct.pack(">HHIIII", 1, 0, 0, 5, 3, 3) + b"old"
    content = b"".join(
        [
            section("<"),
            interface(1, resolution=9, snap=4),
            block(5, bytes(20)),  # statistics: of no interest
            interface(101, resolution=0x80 | 20, offset=1000),
            enhanced(1, 3 << 19, b"half", 60),
            enhanced(0, 1_700_000_000 * NS + 1, b"nano", 4),
            block(3, struct.pack("<I", 9) + b"simp"),  # nine bytes on the wire, cut to the interface's four
            section(">"),
            interface(113, ">"),
            interface(1, ">", resolution=12),
            enhanced(0, 1_500_000, b"micro", 5, ">"),
            block(2, old, ">"),
        ]
    )
    (tmp_path / "x.pcapng").write_bytes(content)
    traffic = read_capture(tmp_path / "x.pcapng")
    assert [traffic.packet(i) for i in range(5)] == [b"half", b"nano", b"simp", b"micro", b"old"]
    assert traffic.timestamps.tolist() == [1001 * NS + NS // 2, 1_700_000_000 * NS + 1, 0, 1_500_000_000, 0]
    assert traffic.wire_lengths.tolist() == [60, 4, 9, 5, 3]
    assert traffic.link_types.tolist() == [101, 1, 1, 113, 1]


@pytest.mark.parametrize("writer", [PcapNgWriter, PcapWriter])
def test_scapys_files(tmp_path: Path, writer) -> None:
    packets = [
        Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        / IP(src="10.0.0.1", dst="10.0.0.2")
        / UDP()
        / Raw(bytes(i))
        for i in range(5)
    ]
    out = writer(str(tmp_path / "x"))
    for i, packet in enumerate(packets):
        packet.time = 1_000 + i / 4
        out.write(packet)
    out.close()
    traffic = read_capture(tmp_path / "x")
    assert same_packets(traffic, traffic_of(packets, [1_000 + i / 4 for i in range(5)]))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("form", ["pcap", "pcapng"])
def test_a_large_file_is_mapped_and_reads_the_same(tmp_path: Path, monkeypatch, form: str, pack) -> None:
    records = [bytes([i]) * (i + 20) for i in range(50)]
    blocks = b"".join(enhanced(0, i * 1_000_007, r, len(r) + 4) for i, r in enumerate(records))
    (tmp_path / "x").write_bytes(pack(pcap(records) if form == "pcap" else section() + interface(1) + blocks))
    whole = read_capture(tmp_path / "x")
    monkeypatch.setattr(pcapfile, "MAPPED_BYTES", 100)
    monkeypatch.setattr(pcapfile, "_WINDOW_BYTES", 150)
    mapped = read_capture(tmp_path / "x")
    assert [mapped.packet(i) for i in range(len(mapped))] == records
    assert same_packets(whole, mapped)
    assert all(len(list(mapped.chunks(7))) == 8 for _ in range(2))  # a slice let go is read again
    write_capture(tmp_path / "y", mapped, np.arange(len(mapped))[::-1])
    assert read_capture(tmp_path / "y").packet(0) == records[-1]


BIG = """
import re, sys  # ru_maxrss would count the memory of the parent before exec
from pathlib import Path
from netdiffusion_core.capture import assemble, read_capture
traffic = assemble(read_capture(Path(sys.argv[1])))
peak_kib = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(len(traffic), len(traffic.flows), int(peak_kib) >> 10)
"""


def test_five_gigabytes_are_read_in_little_memory(tmp_path: Path) -> None:
    packet = bytes(Ether() / IP(src="10.0.0.1", dst="10.0.0.2", len=60_000) / UDP(sport=1, dport=2, len=59_980))
    n = 5 * (1 << 30) // 60_016
    with (tmp_path / "big.pcap").open("wb") as file:  # zeros that nobody writes take no room on the disk
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1))
        for i in range(n):
            file.seek(24 + i * 60_016)
            file.write(struct.pack("<IIII", i // 1000, i % 1000, 60_000, 60_014) + packet)
        file.truncate(24 + n * 60_016)
    command = [sys.executable, "-c", BIG, tmp_path / "big.pcap"]
    packets, flows, peak_mib = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert (int(packets), int(flows)) == (n, 1)
    assert int(peak_mib) < 300  # one page a packet makes 350 already, if they all stay


@pytest.mark.parametrize("form", ["pcap", "pcapng"])
def test_a_cut_file_keeps_its_whole_packets(tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str) -> None:
    records = [bytes(20), bytes(33), bytes(8)]
    if form == "pcap":
        content, head = pcap(records), 24
    else:
        content, head = section() + interface(1) + b"".join(enhanced(0, 0, r, len(r)) for r in records), 28
    path = tmp_path / "x"
    for size in range(1, len(content)):
        path.write_bytes(content[:size])
        caplog.clear()
        if size < head:
            with pytest.raises(DataError):
                read_capture(path)
            continue
        traffic = read_capture(path)
        got = [traffic.packet(i) for i in range(len(traffic))]
        assert got == records[: len(got)]
        assert len(got) < 3
        if caplog.records:
            assert str(path) in caplog.text
            assert "cut short at byte" in caplog.text
    path.write_bytes(gzip.compress(content)[:-12])
    assert len(read_capture(path)) <= 3
    assert "gzip data is cut short" in caplog.text


PCAPNG = (
    section()
    + interface(1)
    + enhanced(0, 5, bytes(40), 40)
    + section(">")
    + interface(1, ">")
    + enhanced(0, 1, b"x", 1, ">")
)


@quick
@given(
    st.sampled_from([pcap([bytes(20), bytes(33)]), pcap([bytes(9)], ">"), PCAPNG]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.integers(0, 400),
)
def test_damage_gives_packets_or_one_clear_error(tmp_path: Path, content: bytes, changes, size: int) -> None:
    damaged = bytearray(content)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    (tmp_path / "x.pcap").write_bytes(damaged[: max(size, len(damaged) // 2)])
    traffic, error = outcome(tmp_path / "x.pcap")
    if traffic is None:
        assert str(tmp_path) in error
        assert "\n" not in error
    else:
        assert (traffic.wire_lengths >= traffic.captured_lengths).all()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"time,src,dst\n", "not a capture"),
        (b"\x28\xb5\x2f\xfd" + bytes(50), "not a capture"),
        (b"\x1f\x8b" + bytes(50), "damaged"),
        (pcap([])[:17], "cut short in its file header"),
        (pcap([bytes(8)]) + struct.pack("<IIII", 0, 0, 1 << 31, 5), "damaged at byte 48"),
        (section() + block(6, struct.pack("<IIIII", 0, 0, 0, 4, 4) + bytes(4)), "interface that is not described"),
        (section() + interface(1) + block(6, struct.pack("<IIIII", 0, 0, 0, 400, 4) + bytes(4)), "400 captured bytes"),
        (section() + interface(1) + enhanced(0, (1 << 63) - 1, b"", 0), "time stamp"),
        (section() + struct.pack("<II", 6, 3) + bytes(9), "claims 3 bytes"),
    ],
)
def test_an_unusable_file_says_why(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.pcap").write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_capture(tmp_path / "x.pcap")


def test_what_is_no_file_says_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "pipe"):
        with pytest.raises(DataError, match=str(path)):
            read_capture(path)


@pytest.mark.skipif(not ZOO, reason=f"no zoo of odd captures in {DATA}; set NETDIFFUSION_TEST_DATA")
def test_odd_captures_of_other_tools(caplog: pytest.LogCaptureFixture) -> None:
    usable = 0
    for path in ZOO:
        start = time.monotonic()
        traffic, error = outcome(path)
        if traffic is None:
            assert path.name in error
        else:
            usable += 1
            in_flow = traffic.flow_of >= 0
            assert set(np.unique(traffic.flow_of[in_flow]).tolist()) == set(range(len(traffic.flows)))
        assert time.monotonic() - start < 5, path
    assert usable > 0.9 * len(ZOO)


def test_a_failed_write_leaves_what_stood_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(b"before")
    traffic = traffic_of([b"abc"])
    with pytest.raises(RunError, match="No such file"):
        write_capture(tmp_path / "missing" / "x.pcap", traffic)
    with pytest.raises(DataError, match="link types 1, 101"):
        write_capture(path, concatenate([traffic, traffic_of([b"abc"], link=101)]))
    with pytest.raises(DataError, match="1970"):
        write_capture(path, attrs.evolve(traffic, timestamps=np.array([-1])))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match=r"x\.pcap: No space left on device"):
        write_capture(path, traffic)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["x.pcap"]


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
def test_tshark_reads_what_is_written(tmp_path: Path) -> None:
    packets = [Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=5, dport=6) / Raw(bytes(i)) for i in range(3)]
    write_capture(tmp_path / "x.pcap", traffic_of(packets, [1e9 + 0.000000001, 1e9 + 0.5, 1e9 + 2]))
    fields = ["-e", "frame.time_epoch", "-e", "frame.len", "-e", "udp.length"]
    got = subprocess.run(
        ["tshark", "-n", "-r", tmp_path / "x.pcap", "-T", "fields", *fields], capture_output=True, text=True, check=True
    ).stdout.split()
    assert got[1::3] == [str(len(p)) for p in packets]
    assert got[2::3] == ["8", "9", "10"]
    assert got[3] == "1000000000.500000000"


# --- headers ----------------------------------------------------------------------------------------------------

INNER = (
    IP(src="1.2.3.4", dst="5.6.7.8", options=b"\x01\x01\x01\x00")
    / TCP(sport=1111, dport=22, options=[("NOP", None)] * 4)
    / Raw(b"pay")
)


@pytest.mark.parametrize(
    ("link", "packet", "vlan"),
    [
        (1, Ether() / INNER, -1),
        (1, Ether() / Dot1Q(vlan=5) / INNER, 5),
        (1, Ether(type=0x88A8) / Dot1Q(vlan=7) / Dot1Q(vlan=9) / INNER, 7),
        (1, Ether(type=0x8847) / MPLS(label=3, s=0) / MPLS(label=4, s=1) / INNER, -1),
        (1, Ether() / PPPoE() / PPP(proto=0x21) / INNER, -1),
        (1, Dot3() / LLC() / SNAP(code=0x800) / INNER, -1),
        (1, Ether() / IP(options=b"\x01\x01\x01\x00") / INNER, -1),
        (1, Ether() / IPv6() / IP() / INNER, -1),
        (51, PPPoE() / PPP(proto=0x21) / INNER, -1),
        (105, Dot11(type=2) / LLC() / SNAP(code=0x800) / INNER, -1),
        (105, Dot11(type=2, FCfield=3) / LLC() / SNAP(code=0x800) / INNER, -1),
        (127, RadioTap() / Dot11(type=2, subtype=8) / Dot11QoS() / LLC() / SNAP(code=0x800) / INNER, -1),
        (113, CookedLinux(proto=0x800) / INNER, -1),
        (276, CookedLinuxV2(proto=0x800) / INNER, -1),
        (0, Loopback(type=2) / INNER, -1),
        (9, b"\xff\x03\x00\x21" + bytes(INNER), -1),
        (50, b"\xff\x03\x00\x21" + bytes(INNER), -1),
        (104, b"\x0f\x00\x08\x00" + bytes(INNER), -1),
        (101, INNER, -1),
        (228, INNER, -1),
    ],
)
def test_headers_are_found_behind_every_link_layer(link: int, packet: Packet | bytes, vlan: int) -> None:
    raw = bytes(packet)
    found = dissect(traffic_of([raw + bytes(5)], link=link))  # trailing padding is no payload
    at = len(raw) - len(INNER)
    assert found.vlans.tolist() == [vlan]
    assert found.ip_versions.tolist() == [4]
    assert found.ip_offsets.tolist() == found.link_lengths.tolist() == [at]
    assert found.ip_header_lengths.tolist() == [24]
    assert found.transport_offsets.tolist() == [at + 24]
    assert found.transport_header_lengths.tolist() == [24]
    assert found.payload_lengths.tolist() == [3]


def test_what_only_looks_like_ip_is_none() -> None:
    inside = bytes(LLC() / SNAP(code=0x800) / INNER)
    encrypted, beacon = Dot11(type=2, FCfield=0x40) / Raw(inside), Dot11(type=0, subtype=8) / Raw(inside)
    assert dissect(traffic_of([encrypted, beacon], link=105)).ip_versions.tolist() == [0, 0]
    phantom = Ether(dst="45:00:00:40:00:01", src="00:00:40:11:00:00") / ARP()
    assert dissect(traffic_of([phantom])).ip_versions.tolist() == [0]
    broken = IP(dst="1.2.3.4", proto=4) / Raw(b"\x41" + bytes(30))  # IP in IP whose inner header is none
    found = dissect(traffic_of([broken], link=101))
    assert (found.ip_offsets.tolist(), found.protocols.tolist()) == ([0], [4])


def test_ipv6_extension_headers_are_passed() -> None:
    packet = IPv6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(offset=0, m=1, id=77) / UDP() / Raw(b"12345678")
    later = IPv6() / IPv6ExtHdrFragment(offset=3, m=0, id=77, nh=17) / Raw(b"12345678")
    found = dissect(traffic_of([packet, later], link=101))
    assert found.protocols.tolist() == [17, 17]
    assert found.ip_header_lengths.tolist() == [56, 48]
    assert found.fragments.tolist() == [True, True]
    assert found.fragment_offsets.tolist() == [0, 3]
    assert found.fragment_ids.tolist() == [77, 77]
    assert found.transport_offsets.tolist() == [56, -1]


# --- flows ------------------------------------------------------------------------------------------------------

A, B = ("10.0.0.1", 4000), ("10.0.0.2", 80)


def tcp(source: tuple[str, int], destination: tuple[str, int], flags: str, seq: int = 0, ack: int = 0) -> Packet:
    ip = IP(src=source[0], dst=destination[0])
    return ip / TCP(sport=source[1], dport=destination[1], flags=flags, seq=seq, ack=ack)


def udp(source: tuple[str, int], destination: tuple[str, int]) -> Packet:
    return IP(src=source[0], dst=destination[0]) / UDP(sport=source[1], dport=destination[1])


def assembled(packets: list[Packet], times_s: list[float] | None = None, link: int = 101) -> Traffic:
    return assemble(traffic_of(packets, times_s, link))


def test_a_syn_with_a_new_sequence_number_begins_a_flow() -> None:
    connection = [tcp(A, B, "S", 100), tcp(A, B, "S", 100), tcp(B, A, "SA", 5, 101), tcp(A, B, "A", 101, 6)]
    again = [tcp(A, B, "S", 999), tcp(B, A, "SA", 7, 1000)]
    assert assembled(connection + again).flow_of.tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    "packets",
    [
        [tcp(B, A, "SA", 5, 101), tcp(A, B, "S", 100), tcp(A, B, "A", 101, 6)],  # the capture exchanged them
        [tcp(A, B, "S", 100), tcp(B, A, "S", 7), tcp(B, A, "SA", 7, 101), tcp(A, B, "SA", 100, 8)],  # simultaneous open
    ],
)
def test_one_connection_is_one_flow(packets: list[Packet]) -> None:
    traffic = assembled(packets)
    assert set(traffic.flow_of.tolist()) == {0}
    assert traffic.flows.initiator_ports.tolist() == [A[1]]


@pytest.mark.parametrize(
    ("packets", "initiator"),
    [
        ([tcp(B, A, "A"), tcp(A, B, "A")], B),  # mid-stream: the sender of the first packet
        ([tcp(B, A, "SA"), tcp(A, B, "A")], A),  # begins at the SYN-ACK: its receiver
        ([tcp(B, A, "S"), tcp(A, B, "SA")], B),  # a server port says nothing against a SYN
        ([udp(B, A), udp(A, B)], B),
    ],
)
def test_initiator(packets: list[Packet], initiator: tuple[str, int]) -> None:
    traffic = assembled(packets)
    assert len(traffic.flows) == 1
    flows = traffic.flows
    responder = A if initiator == B else B
    assert bytes(flows.initiator_addresses[0]) == bytes(map(int, initiator[0].split("."))) + bytes(12)
    assert bytes(flows.responder_addresses[0]) == bytes(map(int, responder[0].split("."))) + bytes(12)
    assert (flows.initiator_ports[0], flows.responder_ports[0]) == (initiator[1], responder[1])
    assert traffic.from_initiator.tolist() == [p.src == initiator[0] for p in packets]


def test_silence_ends_a_udp_flow_but_no_tcp_flow() -> None:
    packets = [p for _ in range(3) for p in (udp(A, B), tcp(A, B, "A"))]
    traffic = assembled(packets, [0, 0, 120, 120, 240.001, 240.001])
    assert traffic.flow_of.tolist() == [0, 1, 0, 1, 2, 1]
    assert traffic.flows.protocols.tolist() == [17, 6, 17]


def test_many_packets_are_told_apart_as_few_are() -> None:
    one = traffic_of([udp(A, B), udp(B, A), udp(A, ("10.0.0.3", 80)), ARP()], link=101)
    many = one.select_packets(np.tile(np.arange(4), 30_000))  # more than a chunk, of shared bytes
    many = assemble(attrs.evolve(many, timestamps=np.arange(len(many)) * 1000))
    assert np.array_equal(many.flow_of, np.tile([0, 0, 1, -1], 30_000))
    assert np.array_equal(many.from_initiator, np.tile([True, False, True, False], 30_000))


def test_interleaved_flows_are_told_apart_and_ordered_by_time() -> None:
    c = ("10.0.0.1", 4001)
    packets = [udp(c, B), udp(A, B), udp(B, c), udp(B, A), Ether() / ARP()]
    traffic = traffic_of([Ether() / p if IP in p else p for p in packets], [1, 0, 2, 3, 4])
    flows = assemble(traffic, label="web", split="train", source="x.pcap")
    assert flows.flow_of.tolist() == [1, 0, 1, 0, -1]
    assert flows.flows.initiator_ports.tolist() == [4000, 4001]
    assert flows.flows.labels.tolist() == ["web"] * 2
    assert flows.flows.splits.tolist() == ["train"] * 2
    assert flows.flows.sources.tolist() == ["x.pcap"] * 2


def test_vlans_and_captures_separate_flows() -> None:
    packets = [Ether() / Dot1Q(vlan=v) / udp(A, B) for v in (1, 2, 1)] * 2
    traffic = assemble(traffic_of(packets), label=np.array(["x", "y", "z"]), capture_of=np.array([0, 0, 0, 2, 2, 2]))
    assert traffic.flow_of.tolist() == [0, 1, 0, 2, 3, 2]
    assert traffic.flows.labels.tolist() == ["x", "x", "z", "z"]


def test_icmp_echoes_pair_by_identifier_and_errors_by_address() -> None:
    there, back = IP(src="10.0.0.1", dst="10.0.0.2"), IP(src="10.0.0.2", dst="10.0.0.1")
    error = back / ICMP(type=3, code=3) / IPerror(src="10.0.0.1", dst="10.0.0.2") / UDP()
    packets = [there / ICMP(id=7), back / ICMP(type=0, id=7), there / ICMP(id=8), error, back / ICMP(type=0, id=8)]
    traffic = assembled(packets)
    assert traffic.flow_of.tolist() == [0, 0, 1, 2, 1]
    assert traffic.flows.initiator_ports.tolist() == [7, 8, 0]
    assert traffic.flows.responder_ports.tolist() == [0, 0, 0]
    six = [IPv6(src="::1", dst="::2") / ICMPv6EchoRequest(id=9), IPv6(src="::2", dst="::1") / ICMPv6EchoReply(id=9)]
    traffic = assembled(six)
    assert traffic.flow_of.tolist() == [0, 0]
    assert traffic.flows.ip_versions.tolist() == [6]
    assert bytes(traffic.flows.initiator_addresses[0]) == bytes(15) + b"\x01"
    assert traffic.flows.initiator_ports.tolist() == [9]


def test_fragments_go_with_the_first_of_their_datagram() -> None:
    def fragment(number: int, offset: int, payload: Packet) -> Packet:
        return IP(src=A[0], dst=B[0], id=number, flags="MF", frag=offset, proto=17) / payload

    first, other = (UDP(sport=p, dport=53, len=24) for p in (1, 2))
    packets = [
        fragment(5, 1, Raw(bytes(8))),  # arrives before its first
        fragment(5, 0, first),
        fragment(6, 0, other),
        fragment(5, 2, Raw(bytes(8))),
        fragment(6, 1, Raw(bytes(8))),
        fragment(9, 1, Raw(bytes(8))),  # its first is missing
    ]
    traffic = assembled(packets)
    assert traffic.flow_of.tolist() == [0, 0, 1, 0, 1, -1]
    assert traffic.flows.initiator_ports.tolist() == [1, 2]
    assert traffic.flows.responder_ports.tolist() == [53, 53]


def test_a_transport_header_cut_by_the_snap_length_still_tells_its_flow() -> None:
    whole = tcp(A, B, "A")
    traffic = assembled([bytes(whole), bytes(whole)[:28], bytes(tcp(B, A, "PA"))[:36]])
    assert traffic.flow_of.tolist() == [0, 0, 0]
    assert traffic.from_initiator.tolist() == [True, True, False]


ENDPOINTS = st.sampled_from([A, B, ("10.0.0.1", 80), ("10.0.0.3", 80)])


@quick
@given(
    st.lists(st.tuples(ENDPOINTS, ENDPOINTS, st.sampled_from(["S", "SA", "A", "u"]), st.integers(0, 2)), max_size=25),
    st.randoms(use_true_random=False),
)
def test_flows_do_not_depend_on_the_order_of_packets_in_the_file(steps, random) -> None:
    packets = [udp(s, d) if f == "u" else tcp(s, d, f, seq) for s, d, f, seq in steps]
    traffic = traffic_of(packets, link=101)
    shuffled = np.array(random.sample(range(len(packets)), len(packets)), np.int64)
    plain, other = assemble(traffic), assemble(traffic.select_packets(shuffled))
    assert np.array_equal(plain.flow_of[shuffled], other.flow_of)
    assert np.array_equal(plain.from_initiator[shuffled], other.from_initiator)
    assert plain.flows == other.flows
    for (source, destination, kind, _), flow in zip(steps, plain.flow_of.tolist(), strict=True):
        ends = {
            (bytes(a[:4]), int(p))
            for a, p in (
                (plain.flows.initiator_addresses[flow], plain.flows.initiator_ports[flow]),
                (plain.flows.responder_addresses[flow], plain.flows.responder_ports[flow]),
            )
        }
        assert ends == {(bytes(map(int, a.split("."))), p) for a, p in (source, destination)}
        assert plain.flows.protocols[flow] == (17 if kind == "u" else 6)


@quick
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30), st.sampled_from([1, 1 << 32, 1 << 61]))
def test_rows_get_one_number_if_and_only_if_they_are_equal(rows: list[tuple[int, int, int]], scale: int) -> None:
    ids, _ = group_ids(np.array(rows, np.uint64) * np.uint64(scale))
    assert len(set(zip(ids.tolist(), rows, strict=True))) == len(set(rows)) == len(set(ids.tolist()))
