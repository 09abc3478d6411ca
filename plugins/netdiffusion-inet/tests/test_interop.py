"""
What other people's tools see in repaired traffic: tcpreplay sends it, tcptrace and nDPI find the same connections in
it, and tshark has nothing to say of what was made from hostile bits.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address as address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import netdiffusion_core
from netdiffusion_core.capture import assemble, dissect, read_capture, write_capture
from netdiffusion_core.model import ICMP, ICMPV6, MISSING, TCP, Encoded, Traffic, concatenate

encoder = pytest.importorskip("netdiffusion_nprint.encoder", reason="netdiffusion-nprint is not installed")

SAMPLE = Path(netdiffusion_core.__file__).parent / "samples" / "lab"


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if not shutil.which(tool)]
    return pytest.mark.skipif(
        bool(missing), reason=f"not installed: {', '.join(missing)} (make test, on Debian as root)"
    )


def write(path: Path, traffic: Traffic) -> Path:
    write_capture(path, traffic, np.argsort(traffic.timestamps, kind="stable"))
    return path


@pytest.fixture(scope="module", params=["dreamt", "sample"])
def capture(
    request: pytest.FixtureRequest,
    rules: SimpleNamespace,
    dream: Callable[..., Encoded],
    tmp_path_factory: pytest.TempPathFactory,
) -> SimpleNamespace:
    """
    Repaired traffic and the file that it was written to: made from random bits, and from the bits of the bundled sample
    as a model without faults would repeat them.
    """
    codec = encoder.NprintEncoder(encoder.Options(payload="random"))
    if request.param == "dreamt":
        shapes = [("stacks", 60, 20), ("stacks", 6, 200), ("stacks", 20, 3), ("stacks", 20, 1), ("ternary", 10, 20)]
        shapes += [("binary", 10, 20), ("zeros", 2, 9), ("ones", 2, 9)]
        encoded = [dream(kind, seed, flows, packets) for seed, (kind, flows, packets) in enumerate(shapes)]
    else:
        captures = [read_capture(file) for file in sorted(SAMPLE.glob("*/test.pcap"))]
        capture_of = np.repeat(np.arange(len(captures)), [len(each) for each in captures])
        encoded = [codec.encode(assemble(concatenate(captures), capture_of=capture_of))]
    rng = np.random.default_rng(3)
    traffic = rules.repair(concatenate([codec.decode(rules.constrain(part), rng) for part in encoded]))
    path = write(tmp_path_factory.mktemp("interop") / f"{request.param}.pcap", traffic)
    return SimpleNamespace(traffic=traffic, path=path)


# --- tcpreplay ----------------------------------------------------------------------------------------------------

LINK = """
    echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6  # no neighbour discovery among our packets
    ip link add sender mtu 65535 type veth peer name receiver mtu 65535
    ip link set sender up
    ip link set receiver up
"""
REPLAY = """
    : > log
    timeout 20 tcpdump -Z root -i receiver -s 0 -B 65536 -c $1 -w received.pcap 2> log &
    while ! grep -q listening log && kill -0 $!; do sleep 0.05; done
    tcpreplay --topspeed --intf1 sender $2
    wait
"""


def in_a_network_of_its_own(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = ["unshare", "--net", "sh", "-ec", script, "sh", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture(scope="module")
def veth(tmp_path_factory: pytest.TempPathFactory) -> None:
    """
    Skip where no pair of virtual Ethernet interfaces can be made.
    """
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    made = in_a_network_of_its_own(LINK, cwd=tmp_path_factory.mktemp("veth"))
    if made.returncode:
        pytest.skip(f"the kernel makes no veth pair: {made.stderr.strip()}")


@needs("tcpreplay", "tcpdump", "ip", "unshare")
@pytest.mark.usefixtures("veth")
def test_tcpreplay_sends_every_packet_over_a_wire(capture: SimpleNamespace, tmp_path: Path) -> None:
    done = in_a_network_of_its_own(LINK + REPLAY, len(capture.traffic), capture.path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sent, received = (read_capture(path).packed() for path in (capture.path, tmp_path / "received.pcap"))
    assert len(received) == len(sent) == len(capture.traffic)
    assert np.array_equal(received.wire_lengths, sent.wire_lengths)
    assert np.array_equal(received.data, sent.data)


# --- tcptrace and nDPI --------------------------------------------------------------------------------------------


def directions(traffic: Traffic, *figures: Any) -> Counter[tuple[Any, ...]]:
    """
    Return ``(sender, receiver, packets, *sums)`` for both directions of each flow; `figures` are numbers a packet.
    """
    flows = traffic.flows
    side = 2 * traffic.flow_of + ~traffic.from_initiator
    sums = [np.bincount(side, each, 2 * len(flows)).astype(int) for each in (np.ones(len(traffic)), *figures)]
    sizes = np.where(flows.ip_versions == 4, 4, 16).tolist()
    with_ports = ~np.isin(flows.protocols, (ICMP, ICMPV6))  # the table has an echo's identifier there
    ends = [
        [(address(bytes(row[:size])), port) for row, size, port in zip(rows, sizes, ports.tolist(), strict=True)]
        for rows, ports in (
            (flows.initiator_addresses, flows.initiator_ports * with_ports),
            (flows.responder_addresses, flows.responder_ports * with_ports),
        )
    ]
    pairs = [pair for a, b in zip(*ends, strict=True) for pair in ((a, b), (b, a))]
    return Counter((*pair, *numbers) for pair, *numbers in zip(pairs, *(each.tolist() for each in sums), strict=True))


@needs("tcptrace")
def test_tcptrace_finds_the_same_connections_and_nothing_amiss(capture: SimpleNamespace, tmp_path: Path) -> None:
    """
    tcptrace 6.6.7 takes IPv6 extension headers for data, and a connection that is silent for four minutes for two: it
    is not asked about those.
    """
    traffic = capture.traffic
    order, _ = traffic.by_flow()
    flow_of, times = traffic.flow_of[order], traffic.timestamps[order]
    silent = flow_of[1:][(np.diff(flow_of) == 0) & (np.diff(times) > 240e9)]
    headers = dissect(traffic)
    extended = traffic.flow_of[(headers.ip_versions == 6) & (headers.ip_header_lengths > 40)]
    asked = traffic.flows.protocols == TCP
    asked[np.concatenate([silent, extended])] = False
    traffic = traffic.select_flows(asked)
    headers = dissect(traffic)
    data, flags = headers.payload_lengths, traffic.data[headers.transport_offsets + 13]

    path = write(tmp_path / "tcp.pcap", traffic)
    words = ["tcptrace", "-l", "-n", "--csv", path]  # all figures, no names
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    table = csv.DictReader(line for line in lines if line and not line.startswith("#"))
    found = [{name: value.strip() for name, value in row.items() if name} for row in table]

    def direction(row: dict[str, str], a: str, b: str) -> tuple[Any, ...]:
        ends = [(address(row[f"host_{end}"]), int(row[f"port_{end}"])) for end in (a, b)]
        names = ("total_packets", "unique_bytes_sent", "actual_data_bytes", "actual_data_pkts", "resets_sent")
        syns, fins = row[f"SYN/FIN_pkts_sent_{a}2{b}"].split("/")
        return (*ends, *(int(row[f"{name}_{a}2{b}"]) for name in names), int(syns), int(fins))

    assert len(found) == len(traffic.flows) > 50
    assert Counter(direction(row, *way) for row in found for way in ("ab", "ba")) == directions(
        traffic, data, data, data > 0, flags & 4 > 0, flags & 2 > 0, flags & 1 > 0
    )
    amiss = ("rexmt_data_pkts", "outoforder_pkts", "zwnd_probe_pkts", "hardware_dups", "truncated_data")
    for row in found:
        reset = row["resets_sent_a2b"] != "0" or row["resets_sent_b2a"] != "0"
        faults = amiss if reset else (*amiss, "missed_data")  # it takes the number in a RST for the end of the data
        figures = {f"{fault}_{way}": row[f"{fault}_{way}"] for fault in faults for way in ("a2b", "b2a")}
        assert set(figures.values()) <= {"0", "NA"}, row


def test_ndpi_finds_the_same_flows(capture: SimpleNamespace) -> None:
    nfstream = pytest.importorskip(
        "nfstream", reason="nfstream is not installed (netdiffusion-evaluators[interop] has it)"
    )
    forever_s = 10**9
    found = list(
        nfstream.NFStreamer(
            source=str(capture.path), decode_tunnels=False, statistical_analysis=True, accounting_mode=1, n_meters=1,
            idle_timeout=forever_s, active_timeout=forever_s,
        )
    )  # fmt: skip
    theirs: Counter[tuple[Any, ...]] = Counter()
    for flow in found:
        ends = ((address(flow.src_ip), flow.src_port), (address(flow.dst_ip), flow.dst_port))
        for way, pair in (("src2dst", ends), ("dst2src", ends[::-1])):
            figures = ("packets", "bytes", "syn_packets", "fin_packets", "rst_packets", "psh_packets")
            theirs[*pair, *(getattr(flow, f"{way}_{name}") for name in figures)] += 1

    traffic = capture.traffic
    headers = dissect(traffic)
    flags = traffic.data[headers.transport_offsets + 13] * (headers.protocols == TCP)
    assert len(found) == len(traffic.flows)
    assert theirs == directions(traffic, headers.ip_lengths, *(flags & bit > 0 for bit in (2, 1, 4, 8)))


# --- tshark on hostile bits ---------------------------------------------------------------------------------------

NO_FAULT = re.compile(
    r"Connection reset \(RST\)"
    "|This frame (initiates|undergoes) the connection closing"
    "|The SYN packet does not contain a MSS option"
    "|TCP SYN with TFO Cookie"
    "|Duplicate ACK"
    "|4 NOP in a row"  # tshark 4.0 also counts three and, behind another option, one more: `check` sees real ones
    '|"Time To Live" only'
)
"""Notes and warnings of tshark about what is unusual, or worth a look, and legal."""

LAST_SEQUENCE_NUMBER = "4294967295"
"""Of a part of a connection that begins there tshark believes to have seen 0 next, and calls it a keep-alive."""

NOTE = 0x400000
"""The severity above which are warnings and errors, and below which are mere remarks."""


@pytest.fixture(scope="module")
def faults(tshark: Callable[..., list[list[str]]]) -> Callable[[Path], list[str]]:
    """
    Return ``frame number: message`` for all that tshark finds worth a note and `NO_FAULT` does not name.
    """

    def find(path: Path) -> list[str]:
        fields = ("frame.number", "tcp.seq_raw", "_ws.expert.severity", "_ws.expert.message")
        only = f"_ws.malformed || _ws.expert.severity >= {NOTE}"
        return [
            f"{frame}: {message}"
            for frame, sequence, severities, messages in tshark(path, only, *fields)
            for severity, message in zip(severities.split("|"), messages.split("|"), strict=True)
            if int(severity) >= NOTE
            and not NO_FAULT.match(message)
            and not (sequence == LAST_SEQUENCE_NUMBER and "keep-alive" in message)
        ]

    return find


FIELDS = sorted(encoder.LAYOUTS["trace"].spans())
FILLS = ("ones", "zeros", "missing", "flipped", "random", "small")


def spoil(encoded: Encoded, edits: list[tuple[str, str, int]], rng: np.random.Generator) -> Encoded:
    """
    Write over ``(field or header, fill, every so many rows)``. ``flipped`` turns one bit over, ``small`` puts bytes up
    to 10 there: kinds and lengths of TCP options that may even be right.
    """
    rows, spans = np.array(encoded.rows), encoded.layout.spans()
    for field, fill, every in edits:
        if field not in spans:
            continue
        part = rows[::every, spans[field]]
        packets, bits = part.shape
        if fill == "flipped":
            bit = part[:, rng.integers(bits)]
            bit[bit >= 0] ^= 1
        elif fill == "small":
            part[:] = np.unpackbits(rng.integers(0, 11, (packets, -(-bits // 8)), np.uint8), axis=1)[:, -bits:]
        elif fill == "random":
            part[:] = rng.integers(0, 2, part.shape)
        else:
            part[:] = {"ones": 1, "zeros": 0, "missing": MISSING}[fill]
    return attrs.evolve(encoded, rows=rows)


SOUP = [("tcp.opt", "small", 1), ("udp", "missing", 1), ("icmp", "missing", 1), ("ipv6", "missing", 1)]
LONGEST = [("ipv4.tl", "ones", 1), ("ipv6.len", "ones", 2), ("udp.len", "ones", 1), ("tcp.doff", "ones", 1)]
SHORTEST = [(field, "zeros", every) for field, _, every in LONGEST]


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(["ternary", "binary", "stacks", "stacks", "zeros", "ones"]),
    shape=st.sampled_from([(30, 1), (20, 2), (10, 3), (10, 30), (3, 200), (1, 1024)]),
    layout=st.sampled_from(["trace", "paper"]),
    payload=st.sampled_from(["random", "zeros", "none"]),
    edits=st.lists(
        st.tuples(st.sampled_from(FIELDS), st.sampled_from(FILLS), st.sampled_from([1, 2, 3, 7])), max_size=8
    ),
    seed=st.integers(0, 2**32 - 1),
)
@example("ones", (1, 1024), "trace", "random", [], 1)
@example("ones", (1, 4), "trace", "random", [("trace", "zeros", 2)], 0)  # RST at the initial number, which wraps
@example("zeros", (1, 1024), "trace", "zeros", [], 2)
@example("binary", (60, 1), "trace", "random", LONGEST, 3)
@example("binary", (60, 2), "paper", "random", SHORTEST, 4)
@example("stacks", (40, 20), "trace", "random", SOUP, 5)
@example("stacks", (1, 1024), "trace", "random", [*SOUP, *LONGEST], 6)
def test_tshark_finds_no_fault_in_what_hostile_bits_became(
    rules: SimpleNamespace,
    dream: Callable[..., Encoded],
    faults: Callable[[Path], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    shape: tuple[int, int],
    layout: str,
    payload: str,
    edits: list[tuple[str, str, int]],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    hostile = spoil(dream(kind, seed, *shape, layout), edits, rng)
    codec = encoder.NprintEncoder(encoder.Options(layout=layout, payload=payload))
    repaired = rules.repair(codec.decode(rules.constrain(hostile), rng))
    path = write(tmp_path_factory.getbasetemp() / "hostile.pcap", repaired)
    assert faults(path) == []
