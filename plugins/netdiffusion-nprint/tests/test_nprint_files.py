"""
nPrint's text and NetDiffusion's files, written and read.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from netdiffusion_core.capture import assemble, read_capture
from netdiffusion_core.errors import ConfigError, DataError
from netdiffusion_core.model import MISSING, FlowTable, Traffic
from netdiffusion_core.options import build
from netdiffusion_nprint import text_reader
from netdiffusion_nprint.encoder import NprintEncoder, Options
from netdiffusion_nprint.image import read_image
from netdiffusion_nprint.layout import HEADERS, PAPER
from netdiffusion_nprint.plugin import netdiffusion_open_capture

GOLDEN = Path(os.environ.get("NETDIFFUSION_TEST_DATA", Path(__file__).parents[4] / "shared")) / "nprint-golden"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"nPrint's outputs are not in {GOLDEN} (NETDIFFUSION_TEST_DATA)"
)

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
A4, B4 = "192.0.2.1", "192.0.2.2"
A6, B6 = "2001:db8::1", "2001:db8::2"
ONE_FLOW = FlowTable(
    labels=[""], splits=[""], ip_versions=[4], protocols=[0], initiator_addresses=np.zeros((1, 16)),
    responder_addresses=np.zeros((1, 16)), initiator_ports=[0], responder_ports=[0], sources=[""],
)  # fmt: skip


def traffic_of(packets: list[bytes | Packet], times_us: list[int] | None = None, link: int = 1) -> Traffic:
    raw = [bytes(p) for p in packets]
    lengths = np.array([len(p) for p in raw], np.int64)
    return Traffic(
        data=np.frombuffer(b"".join(raw), np.uint8),
        starts=np.cumsum(lengths) - lengths,
        captured_lengths=lengths,
        timestamps=1000 * np.array(range(len(raw)) if times_us is None else times_us, np.int64),
        wire_lengths=lengths,
        link_types=np.full(len(raw), link),
        flow_of=np.full(len(raw), -1),
        from_initiator=np.zeros(len(raw), bool),
        flows=ONE_FLOW.select(np.zeros(0, np.int64)),
    )


def bits_of(traffic: Traffic) -> np.ndarray:
    """
    The 1088 columns of all IP packets, in the traffic's own order.
    """
    n = len(traffic)
    single = attrs.evolve(traffic, flow_of=np.zeros(n), flows=ONE_FLOW, timestamps=np.arange(n))
    return NprintEncoder(Options(layout="paper", max_packets=10**6)).encode(single).rows


def write(traffic: Traffic, path: Path, form: str = "nprint", **options: object) -> Path:
    NprintEncoder(Options(**options)).write(traffic, path, form)
    return path


def table(traffic: Traffic, folder: Path, args: str, **options: object) -> list[dict[str, str]]:
    """
    nPrint's text as one dictionary a row.
    """
    head, *lines = write(traffic, folder / "x.npt", nprint_args=args, **options).read_text().splitlines()
    return [dict(zip(head.split(","), line.split(","), strict=True)) for line in lines]


def field(row: dict[str, str], name: str) -> int | None:
    """
    One field of a row as a number, None where it is absent.
    """
    header, part = name.split(".")
    bits = [row[f"{header}_{part}_{i}"] for i in range(dict(HEADERS[header])[part])]
    return None if set(bits) == {"-1"} else int("".join(bits), 2)


# --- what is in the text ----------------------------------------------------------------------------------------


def test_packets_that_nprint_overlooks_are_rows_with_their_real_headers(tmp_path: Path) -> None:
    packets = [
        ETHER / Dot1Q(vlan=5) / IP(src=A4, dst=B4) / UDP(sport=1, dport=53),
        ETHER / IPv6(src=A6, dst=B6) / ICMPv6EchoRequest(id=7, seq=9),
        ETHER / IPv6(src=A6, dst=B6) / IPv6ExtHdrHopByHop() / UDP(sport=2, dport=54) / b"\xf0",
        ETHER / IP(src=A4, dst=B4) / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=3, dport=55),
        ETHER / IP(src=A4, dst=B4, frag=10, proto=17) / Raw(b"\xf0" * 20),
        ETHER / ARP(),
    ]
    rows = table(traffic_of(packets), tmp_path, "-e -4 -6 -i -t -u -p 1 -O 4")
    assert [row["flow"] for row in rows] == [
        f"{A4}_{B4}_1_53_UDP", f"{A6}_{B6}_NULL_NULL_NULL", f"{A6}_{B6}_2_54_UDP", "10.0.0.1_10.0.0.2_3_55_TCP",
        f"{A4}_{B4}_NULL_NULL_NULL",
    ]  # fmt: skip
    assert [field(row, "eth.ethertype") for row in rows] == [0x8100, 0x86DD, 0x86DD, 0x0800, 0x0800]
    assert [field(row, "ipv4.foff") for row in rows] == [0, None, None, 0, 10]
    assert [field(row, "udp.dport") for row in rows] == [53, None, 54, None, None]
    assert [field(row, "icmp.type") for row in rows] == [None, 128, None, None, None]
    assert [row["payload_bit_0"] for row in rows] == ["-1", "-1", "1", "-1", "1"]
    compatible = table(traffic_of(packets), tmp_path, "-4 -u", compat="nprint")
    assert [field(row, "udp.sport") for row in compatible] == [0xF0F0]  # the fragment's data, taken for a header


def test_compat_leaves_rows_out_of_encode_too() -> None:
    packets = [ETHER / Dot1Q(vlan=5) / IP(src=A4, dst=B4) / UDP(), ETHER / IP(src=A4, dst=B4) / UDP()]
    traffic = assemble(traffic_of(packets))
    assert NprintEncoder().encode(traffic).lengths.tolist() == [1, 1]
    assert NprintEncoder(Options(compat="nprint")).encode(traffic).lengths.tolist() == [0, 1]


@pytest.mark.parametrize("compat", ["none", "nprint"])
def test_bits_that_were_not_captured_are_filled(compat: str, tmp_path: Path) -> None:
    whole = bytes(ETHER / IP(src=A4, dst=B4) / TCP(sport=0xABCD, seq=0x12345678, options=[("MSS", 1460)]) / b"data")
    cut = [whole, whole[:40], whole[:30]]  # nPrint shows the first packet's bytes behind the ends of the others
    first, second, third = table(traffic_of(cut), tmp_path, "-4 -t -p 4 -O 3", compat=compat)
    assert field(first, "tcp.seq") == 0x12345678
    assert field(second, "tcp.sprt") == 0xABCD
    assert [second[f"tcp_seq_{i}"] for i in range(32)] == [*f"{0x1234:016b}", *["-1"] * 16]
    assert {second[f"payload_bit_{i}"] for i in range(32)} == {"-1"}
    assert field(third, "ipv4.src") == 0xC0000201
    assert (third["dst_prt"], field(third, "ipv4.dst"), field(third, "tcp.sprt")) == ("NULL", None, None)


def test_arguments_that_are_easily_got_wrong(tmp_path: Path) -> None:
    packets = [ETHER / IP(src=A4, dst=B4) / UDP(sport=7, dport=8) / b"x" for _ in range(3)]
    traffic = traffic_of([packets[0], ETHER / ARP(), *packets[1:]], [0, 1, 2_000_000, 1_999_999])
    assert table(traffic, tmp_path, "-4t -F200")[0]["tcp_sprt_0"] == "-56"
    assert table(traffic, tmp_path, "-t -Fabc")[0]["tcp_sprt_0"] == "0"
    assert len(table(traffic, tmp_path, "-4 -c3")) == 2  # packets without a row count
    assert len(table(traffic, tmp_path, "-4 -c -1")) == 3
    assert list(table(traffic, tmp_path, "-u -x udp_sport -x '(udp_(len|[sd]port|ck).*)_[^3]*'")[0]) == [
        "src_ip", "udp_sport_3", "udp_sport_13", "udp_dport_3", "udp_dport_13", "udp_len_3", "udp_len_13",
        "udp_cksum_3", "udp_cksum_13",
    ]  # fmt: skip
    assert [row["rts"] for row in table(traffic, tmp_path, "-4 -R")] == ["0", "2000000", "-1"]
    glued = write(traffic, tmp_path / "glued.npt", nprint_args="-O 4 -A").read_text().splitlines()
    assert glued[:2] == ["flow,tv_sec,tv_usec", f"{A4}_{B4}_7_8_UDP00"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("-4 -z", "'-4 -z': option -z not recognized"),
        ("-4 --tcp", "option --tcp not recognized"),
        ("-4 -p", "option -p requires argument"),
        ("-p -1", "-p -1 is not from 0 to 65535"),
        ("-p ten", "-p 'ten' is no whole number"),
        ("-O 6", "-O 6 is not from 0 to 5"),
        ("-x '('", r"-x '\(' is no regular expression"),
        ("-x 'a", "No closing quotation"),
        ("-4 capture.pcap", "'capture.pcap' is no option of nPrint"),
        ("-P capture.pcap -4", "-P has no place here: the captures are DATA"),
        ("-4 -W out.npt", "-W has no place here: the output is -o"),
    ],
)
def test_wrong_arguments_are_named_when_the_encoder_is_made(args: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"encoder: nprint_args .*{message}"):
        build(Options, {"nprint_args": args}, "encoder")


# --- there and back ---------------------------------------------------------------------------------------------

octets = st.binary(min_size=60, max_size=60)


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """
    Headers of random bytes, but for what says which and how long they are.
    """
    ip, transport = bytearray(draw(octets)), bytearray(draw(octets))
    protocol = draw(st.sampled_from((6, 17, 1)))
    size = 8
    if protocol == 6:
        words = draw(st.integers(5, 15))
        transport[12], size = words << 4 | transport[12] & 15, 4 * words
    if draw(st.booleans()):
        words = draw(st.integers(5, 15))
        ip[0], ip[9] = 0x40 | words, protocol
        ip[6:8] = bytes([ip[6] & 0xE0, 0])
        ip_size = 4 * words
    else:
        ip[0], ip[6] = 0x60 | ip[0] & 15, 58 if protocol == 1 else protocol
        ip_size = 40
    ethertype = b"\x08\x00" if ip[0] >> 4 == 4 else b"\x86\xdd"
    return bytes(12) + ethertype + bytes(ip[:ip_size]) + bytes(transport[:size])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(packets(), max_size=9), form=st.sampled_from(("nprint", "netdiffusion", "png")))
def test_bits_survive_in_files(made: list[bytes], form: str, tmp_path: Path) -> None:
    traffic = traffic_of(made)
    path = write(traffic, tmp_path / f"x{NprintEncoder.formats[form]}", form)
    assert np.array_equal(bits_of(netdiffusion_open_capture(path)), bits_of(traffic))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    timed=st.lists(st.tuples(packets(), st.integers(0, 2**50)), min_size=1, max_size=9),
    time=st.sampled_from(("-A", "-R")),
)
def test_times_and_addresses_survive_in_nprints_text(timed: list[tuple[bytes, int]], time: str, tmp_path: Path) -> None:
    traffic = traffic_of([p for p, _ in timed], [t for _, t in timed])
    args = f"-4 -6 -t -u -i {time} -F 7"
    back = netdiffusion_open_capture(write(traffic, tmp_path / "x.npt", nprint_args=args))
    since = 0 if time == "-A" else traffic.timestamps[0]
    assert np.array_equal(back.timestamps, traffic.timestamps - since)
    for i in range(len(traffic)):
        assert back.packet(i) == traffic.packet(i)[14:]


def test_a_file_may_be_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = ETHER / IP(src=A4, dst=B4) / UDP(sport=5000, dport=53) / b"x"
    back = ETHER / IP(src=B4, dst=A4) / UDP(sport=53, dport=5000) / b"x"
    traffic = traffic_of([there, back, back, there, back] * 9, list(range(7, 7 + 45)))
    for form, args in (("netdiffusion", ""), ("nprint", "-4 -u -t -R"), ("nprint", "-4 -6 -u")):
        path = write(traffic, tmp_path / "x.npt", form, nprint_args=args)
        whole = netdiffusion_open_capture(path).packed()
        with monkeypatch.context() as patch:
            patch.setattr(text_reader, "_BLOCK_BYTES", 5000)
            assert netdiffusion_open_capture(path).packed() == whole
        assert len(whole.flows) == (form == "netdiffusion")
        assert np.diff(whole.timestamps).tolist() == [1000 if "-R" in args else 10**6] * 44
    one_flow = netdiffusion_open_capture(write(traffic, tmp_path / "x.nprint", "netdiffusion"))
    assert one_flow.from_initiator.tolist() == [True, False, False, True, False] * 9


def test_netdiffusions_files_have_its_form(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = [ETHER / IP(src=A4, dst=B4, id=i) / UDP(sport=5000, dport=53) / b"x" for i in range(12)]
    lines = write(traffic_of([ETHER / ARP(), *made]), tmp_path / "x.nprint", "netdiffusion").read_text().splitlines()
    assert lines[0].split(",") == ["", *PAPER.columns]
    assert lines[11].startswith("10,0,1,0,0,")
    assert {len(line.split(",")) for line in lines} == {1089}
    write(traffic_of(made), tmp_path / "x.png", "png")
    assert not caplog.records
    with Image.open(tmp_path / "x.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGBA", (1088, 1024))
        pixels = np.asarray(image)
    assert pixels[11, :4].tolist() == [[0, 255, 0, 255], [255, 0, 0, 255], [0, 255, 0, 255], [0, 255, 0, 255]]
    assert (pixels[12:] == (0, 0, 255, 255)).all()


@pytest.mark.parametrize(("form", "most"), [("netdiffusion", 5000), ("png", 1024)])
def test_longer_traffic_is_cut_with_a_warning(
    form: str, most: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packet = bytes(ETHER / IP(src=A4, dst=B4) / UDP(sport=5000, dport=53) / b"x")
    traffic = traffic_of([ETHER / ARP()] + [packet] * (most + 1))
    path = tmp_path / f"x{NprintEncoder.formats[form]}"
    back = netdiffusion_open_capture(write(traffic, path, form, max_packets=5000))
    assert len(back) == most
    assert f"only the first {most} IP packets are written" in caplog.text
    caplog.clear()
    write(traffic.select_packets(slice(most + 1)), path, form, max_packets=5000)
    assert not caplog.records


@pytest.mark.parametrize("form", NprintEncoder.formats)
def test_files_may_have_no_packets(form: str, tmp_path: Path) -> None:
    for packets in ([], [ETHER / ARP()]):
        path = write(traffic_of(packets), tmp_path / f"x{NprintEncoder.formats[form]}", form)
        assert len(netdiffusion_open_capture(path)) == 0


def test_an_unknown_format_is_a_key_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write(traffic_of([]), tmp_path / "x", "svg")
    assert not (tmp_path / "x").exists()


# --- files of others --------------------------------------------------------------------------------------------


@needs_golden
@pytest.mark.parametrize("name", ["teams.pcap", "http_ipv6.pcap"])
def test_nprints_own_text_becomes_the_captures_flows(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.npt").write_bytes(gzip.decompress((GOLDEN / f"public/out/{name}.full0.npt.gz").read_bytes()))
    real = read_capture(GOLDEN / "public" / name)
    got, real = assemble(netdiffusion_open_capture(tmp_path / "x.npt")), assemble(real)
    assert len(got.flows) == len(real.flows)
    assert np.array_equal(got.flows.initiator_addresses, real.flows.initiator_addresses)
    assert np.array_equal(got.flows.responder_ports, real.flows.responder_ports)


def test_text_may_lack_columns_and_rows_may_lack_ip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    packets = [ETHER / IP(src=A4, dst=B4) / UDP(sport=1), ETHER / IPv6() / UDP(), ETHER / IP(src=B4, dst=A4) / ICMP()]
    traffic = traffic_of(packets)
    back = netdiffusion_open_capture(write(traffic, tmp_path / "x.npt", nprint_args="-4 -u -i -x '.*(cksum|src).*'"))
    assert [back.packet(i)[9] for i in range(len(back))] == [17, 1]
    assert "x.npt: 1 of 3 rows have no IP header and are left out" in caplog.text


def test_text_of_another_name_is_known_by_its_first_line(tmp_path: Path) -> None:
    traffic = traffic_of([ETHER / IP(src=A4, dst=B4) / UDP()])
    windows = write(traffic, tmp_path / "x.CSV").read_bytes().replace(b"\n", b"\r\n") + b"\r\n"
    (tmp_path / "x.CSV").write_bytes(windows)
    assert len(netdiffusion_open_capture(tmp_path / "x.CSV")) == 1
    (tmp_path / "labels.csv").write_text("src_ip,label\n1.2.3.4,x\n")
    assert netdiffusion_open_capture(tmp_path / "labels.csv") is None
    assert netdiffusion_open_capture(tmp_path / "x.pcap") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not nPrint's text with IP headers.*ipv4_ver_0"),
        (b"time,size\n1,2\n", "is not nPrint's text with IP headers.*-4 and -6"),
        (b"src_ip,tcp_sprt_0\n1.2.3.4,1\n", "is not nPrint's text with IP headers"),
        (b"src_ip,ipv4_ver_0,ipv4_ver_1\n1.2.3.4,0,1\n1.2.3.4,0\n1,1,1\n", "line 3 has 2 fields, the first line has 3"),
        (b"src_ip,ipv4_ver_0\n1.2.3.4,0\n\n1.2.3.4,0\n", "line 3 has 1 fields"),
        (b"ipv4_ver_0,rts\n1,soon\n", "rts is not a number somewhere"),
        (b"ipv4_ver_0,tv_sec\n1,1e99\n", "a time lies more than 285 years from 1970"),
        (b"ipv4_ver_0,tv_sec\n1,nan\n", "a time lies more than 285 years from 1970"),
    ],
)
def test_text_that_cannot_be_read(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.npt").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.npt.* ?{message}"):
        netdiffusion_open_capture(tmp_path / "x.npt")


@pytest.mark.parametrize("fill", [0, 1])
def test_text_whose_fill_value_is_a_bit_is_refused(fill: int, tmp_path: Path) -> None:
    traffic = traffic_of([ETHER / IP(src=A4, dst=B4) / UDP()])
    path = write(traffic, tmp_path / "x.npt", nprint_args=f"-4 -t -u -F {fill}")
    with pytest.raises(DataError, match=r"its fill value is 0 or 1.*write it with nPrint's option -F -1"):
        netdiffusion_open_capture(path)
    write(traffic, path, nprint_args="-4 -t -u -F 11")
    assert np.array_equal(bits_of(netdiffusion_open_capture(path)), bits_of(traffic))


def image_of(rows: np.ndarray, path: Path, mode: str = "RGB") -> Path:
    colours = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 0]], np.uint8)
    Image.fromarray(colours[rows + 1]).convert(mode).save(path)
    return path


def test_generated_images_need_not_be_exact(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    traffic = traffic_of([ETHER / IP(src=A4, dst=B4, id=i) / TCP(options=[("MSS", i)]) for i in range(30)])
    bits = np.vstack([bits_of(traffic), np.full((10, 1088), MISSING)])
    with Image.open(image_of(bits, tmp_path / "exact.png")) as image:
        pixels = np.asarray(image).astype(int)
    noise = np.random.default_rng(0).integers(-120, 120, pixels.shape)
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(tmp_path / "noisy.png")
    back = netdiffusion_open_capture(tmp_path / "noisy.png")
    assert len(back.flows) == 1
    assert np.array_equal(bits_of(back), bits[:30])
    with_numbers = np.insert(bits, 0, 1, axis=1)  # the authors' own image has a column with the row's number
    assert np.array_equal(bits_of(netdiffusion_open_capture(image_of(with_numbers, tmp_path / "y.png"))), bits[:30])
    assert not caplog.records
    bits[5] = MISSING
    assert len(netdiffusion_open_capture(image_of(bits, tmp_path / "z.png", "RGBA"))) == 29
    assert "z.png: 1 of 30 rows have no IP header and are left out" in caplog.text
    assert len(netdiffusion_open_capture(image_of(bits[30:], tmp_path / "empty.png"))) == 0


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_files_that_are_no_images_of_packets(tmp_path: Path) -> None:
    signature = b"\x89PNG\r\n\x1a\n"
    ihdr = {
        h: chunk(b"IHDR", struct.pack(">IIBBBBB", 1088, h, 8, 2, 0, 0, 0)) for h in (10, 17_000, 100_000, 2**31 - 1)
    }
    good = image_of(np.zeros((40, 1088), np.int8), tmp_path / "good.png").read_bytes()
    image_of(np.zeros((4, 1087), np.int8), tmp_path / "narrow.png")
    image_of(np.zeros((4, 1088), np.int8), tmp_path / "grey.png", "L")
    Image.new("RGB", (1088, 4)).save(tmp_path / "jpeg.png", "JPEG")
    files = {
        "narrow": (None, "no image of packets: it has 1087 x 4 pixels in RGB"),
        "grey": (None, "no image of packets: it has 1088 x 4 pixels in L, .* RGB or RGBA"),
        "jpeg": (None, "is no PNG image"),
        "text": (b"no image", "is no PNG image"),
        "none": (b"", "is no PNG image"),
        "cut": (good[: len(good) // 2], "cannot be read as a PNG image"),
        "headless": (signature, "PNG image"),
        "bodiless": (signature + ihdr[10], "PNG image"),
        "tall": (signature + ihdr[17_000] + chunk(b"IDAT", zlib.compress(b"")), "1088 x 17000 pixels"),
        "bomb": (signature + ihdr[100_000] + chunk(b"IDAT", zlib.compress(b"")), "cannot be read as a PNG image"),
        "huge": (signature + ihdr[2**31 - 1] + chunk(b"IDAT", zlib.compress(b"")), "cannot be read as a PNG image"),
    }
    for name, (content, message) in files.items():
        path = tmp_path / f"{name}.png"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=f"{re.escape(str(path))} .*{message}"):
            read_image(path)
        assert netdiffusion_open_capture(tmp_path / "narrow.png") is None  # a picture beside captures


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_read_or_refused_in_words(data: st.DataObject, tmp_path: Path) -> None:
    traffic = traffic_of([ETHER / IP(src=A4, dst=B4, id=i) / UDP() for i in range(4)])
    form, args = data.draw(st.sampled_from((("png", ""), ("nprint", "-4 -t -u -A"), ("nprint", "-4 -u -R -O 4"))))
    path = write(traffic, tmp_path / f"x{NprintEncoder.formats[form]}", form, nprint_args=args)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(DataError):
        netdiffusion_open_capture(path)


def test_files_of_others_cost_no_import(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from netdiffusion_nprint.plugin import netdiffusion_open_capture
Path(sys.argv[1]).write_text("flow,label")
assert netdiffusion_open_capture(Path(sys.argv[1])) is None
assert not {"numpy", "PIL"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "labels.csv")], check=True)
