"""
What tshark, which knows nothing of us, says of repaired traffic.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import attrs
import numpy as np
import pytest

from netdiffusion_core.capture import assemble, read_capture, write_capture
from netdiffusion_core.model import Encoded, Traffic, concatenate

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")

encoder = pytest.importorskip("netdiffusion_nprint.encoder", reason="netdiffusion-nprint is not installed")

DATA = Path(os.environ.get("NETDIFFUSION_TEST_DATA", Path(__file__).parents[4] / "shared")) / "data"

OURS = {
    "frame",
    "eth",
    "ethertype",
    "ip",
    "ipv6",
    "ipv6.hopopts",
    "ipv6.dstopts",
    "tcp",
    "udp",
    "icmp",
    "icmpv6",
    "data",
}
"""Protocols to dissect: random payload on port 53 is no DNS, and that is none of the rules' business."""

FAULTS = (
    "_ws.malformed",
    "_ws.expert.severity == Error",
    *(f"{name}.checksum.status == Bad" for name in ("ip", "tcp", "udp", "icmp", "icmpv6")),
    *(
        f"tcp.analysis.{note}"
        for note in (
            "retransmission", "fast_retransmission", "spurious_retransmission", "out_of_order", "lost_segment",
            "ack_lost_segment", "window_full", "zero_window", "keep_alive", "reused_ports",
        )
    ),
)  # fmt: skip


@functools.cache
def only_our_protocols() -> tuple[str, ...]:
    listed = subprocess.run(["tshark", "-G", "protocols"], capture_output=True, text=True, check=True).stdout
    names = {line.split("\t")[2] for line in listed.splitlines()}
    return tuple(argument for name in sorted(names - OURS) for argument in ("--disable-protocol", name))


def faults(traffic: Traffic, path: Path) -> list[str]:
    """
    Return tshark's complaints: ``frame, stream, notes``. Checksums are validated.
    """
    write_capture(path, traffic, np.argsort(traffic.timestamps, kind="stable"))
    checks = [argument for name in ("ip", "tcp", "udp") for argument in ("-o", f"{name}.check_checksum:TRUE")]
    fields = [f"-e{name}" for name in ("frame.number", "tcp.stream", "frame.protocols", "_ws.expert.message")]
    command = [
        "tshark",
        "-r",
        str(path),
        *checks,
        *only_our_protocols(),
        "-Tfields",
        *fields,
        "-Y",
        " || ".join(FAULTS),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("payload", ["random", "none"])
@pytest.mark.parametrize("layout", ["trace", "paper"])
def test_tshark_finds_nothing_in_what_was_dreamt(
    rules: SimpleNamespace, dream: Callable[..., Encoded], tmp_path: Path, layout: str, payload: str
) -> None:
    codec = encoder.NprintEncoder(encoder.Options(layout=layout, payload=payload))
    shapes = [("stacks", 60, 20), ("stacks", 8, 200), ("stacks", 20, 3), ("stacks", 20, 1), ("ternary", 10, 20)]
    shapes += [("binary", 10, 20), ("zeros", 2, 9), ("ones", 2, 9)]
    parts = [
        codec.decode(rules.constrain(dream(kind, seed, flows, packets, layout)), np.random.default_rng(seed))
        for seed, (kind, flows, packets) in enumerate(shapes)
    ]
    traffic = concatenate(parts)
    repaired = rules.repair(traffic)
    assert rules.check(repaired) == []
    assert faults(repaired, tmp_path / "repaired.pcap") == []
    sane = traffic.select_flows(np.arange(60))  # the others' times do not fit into a pcap file before they are repaired
    assert len(faults(sane, tmp_path / "raw.pcap")) > 500


def real(label: str, flows: int) -> Traffic:
    """
    Read the first flows of one class of the shared training data.
    """
    files = sorted((DATA / label / "train").glob("*.pcap"))[:flows]
    if not files:
        pytest.skip(f"no captures in {DATA / label / 'train'}: set NETDIFFUSION_TEST_DATA")
    parts = [read_capture(file) for file in files]
    parts = [part for part in parts if (part.link_types == 1).all()]
    capture_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return assemble(concatenate(parts), capture_of=capture_of)


@pytest.mark.parametrize("label", ["ssh", "web-tls", "hue-http"])
def test_tshark_finds_nothing_in_real_flows_with_wrong_bits(rules: SimpleNamespace, tmp_path: Path, label: str) -> None:
    codec = encoder.NprintEncoder()
    encoded = codec.encode(real(label, 40))
    rng = np.random.default_rng(7)
    flip = (
        rng.random(encoded.rows.shape)
        < np.repeat(rng.choice([0, 0.001, 0.01, 0.1], len(encoded)), encoded.lengths)[:, None]
    )
    rows = np.where(flip & (encoded.rows >= 0), 1 - encoded.rows, encoded.rows)
    traffic = codec.decode(rules.constrain(attrs.evolve(encoded, rows=rows)), rng)
    repaired = rules.repair(traffic)
    assert rules.check(repaired) == []
    assert faults(repaired, tmp_path / "noisy.pcap") == []


@pytest.mark.parametrize(("label", "share"), [("hue-http", 1.0), ("wemo", 1.0), ("dns", 1.0), ("ssh", 0.75)])
def test_real_flows_that_tshark_finds_clean_pass_unchanged(
    rules: SimpleNamespace, tmp_path: Path, label: str, share: float
) -> None:
    traffic = real(label, 60)
    complaints = faults(traffic, tmp_path / "real.pcap")
    order = np.argsort(traffic.timestamps, kind="stable")
    clean = np.ones(len(traffic.flows), bool)
    clean[traffic.flow_of[order[[int(line.split("\t")[0]) - 1 for line in complaints]]]] = False
    repaired = rules.repair(traffic)
    flows = np.flatnonzero(clean)
    same = [_octets(traffic, flow) == _octets(repaired, flow) for flow in flows]
    assert len(flows) > 10
    assert np.mean(same) >= share


def _octets(traffic: Traffic, flow: int) -> bytes:
    part = traffic.select_flows(np.array([flow]))
    order, _ = part.by_flow()
    return part.select_packets(order).packed().data.tobytes()
