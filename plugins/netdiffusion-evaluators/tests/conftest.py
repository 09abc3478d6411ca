"""
Small traffic with known properties, and the encoder to look at it with.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from netdiffusion_core.context import Context
from netdiffusion_core.model import LINK_RAW, TCP, UDP, FlowTable, Traffic, concatenate


@pytest.fixture(scope="session")
def context() -> Context:
    """
    A context with the nprint encoder.
    """
    encoder = pytest.importorskip("netdiffusion_nprint.encoder", reason="netdiffusion-nprint is not installed")
    return Context(seed=1, encoder=encoder.NprintEncoder())


def packet(protocol: int, from_initiator: bool, size: int, ttl: int, window: int, ports: tuple[int, int]) -> bytes:
    """
    One IPv4 packet cut behind its headers, checksums left at zero.
    """
    a, b = bytes([10, 0, 0, 1]), bytes([198, 18, 0, 1])
    source, destination = (a, b) if from_initiator else (b, a)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, size, 0, 0x4000, ttl, protocol, 0, source, destination)
    sender, receiver = ports if from_initiator else ports[::-1]
    if protocol == UDP:
        return ip + struct.pack(">HHHH", sender, receiver, size - 20, 0)
    return ip + struct.pack(">HHIIBBHHH", sender, receiver, 0, 0, 0x50, 0x18, window, 0, 0)


def one_flow(label: str, rng: np.random.Generator, packets: int) -> Traffic:
    """
    A flow of class ``web`` (TCP: a small request, 30 ms later an answer in three packets of falling size, a second of
    thought) or ``call`` (UDP: both sides in turn, every 20 ms).
    """
    i = np.arange(packets)
    if label == "web":
        protocol, port, from_initiator = TCP, 443, i % 4 == 0
        sizes = np.choose(i % 4, [120, 1440, 1100, 400]) + rng.integers(-40, 41, packets)
        gaps_s = np.choose(i % 4, [1.0, 0.03, 0.001, 0.001]) * rng.lognormal(0, 0.3, packets)
    else:
        protocol, port, from_initiator = UDP, 3478, i % 2 == 0
        sizes, gaps_s = rng.integers(120, 220, packets), 0.02 * rng.lognormal(0, 0.1, packets)
    ports = int(rng.integers(32768, 61000)), port
    windows = rng.integers(500, 64000, packets)
    data = [
        packet(protocol, bool(f), int(s), 64 if f else 52, int(w), ports)
        for f, s, w in zip(from_initiator, sizes, windows, strict=True)
    ]
    gaps_s[0] = 0
    return Traffic(
        data=np.frombuffer(b"".join(data), np.uint8),
        starts=np.cumsum([0] + [len(d) for d in data[:-1]]),
        captured_lengths=[len(d) for d in data],
        timestamps=1_700_000_000_000_000_000 + np.cumsum(gaps_s * 1e6).astype(np.int64) * 1000,
        wire_lengths=sizes,
        link_types=np.full(packets, LINK_RAW),
        flow_of=np.zeros(packets),
        from_initiator=from_initiator,
        flows=FlowTable(
            labels=[label],
            splits=[""],
            ip_versions=[4],
            protocols=[protocol],
            initiator_addresses=[[10, 0, 0, 1] + [0] * 12],
            responder_addresses=[[198, 18, 0, 1] + [0] * 12],
            initiator_ports=[ports[0]],
            responder_ports=[ports[1]],
            sources=[""],
        ),
    )


@pytest.fixture(scope="session")
def make_traffic() -> Callable[..., Traffic]:
    """
    ``make_traffic(seed, flows, labels=("web", "call"), least=8, most=24)``: that many flows of each class, each of
    `least` to `most` packets.
    """

    def make(
        seed: int, flows: int, labels: tuple[str, ...] = ("web", "call"), least: int = 8, most: int = 24
    ) -> Traffic:
        rng = np.random.default_rng(seed)
        return concatenate(
            [one_flow(label, rng, int(rng.integers(least, most + 1))) for label in labels for _ in range(flows)]
        )

    return make
