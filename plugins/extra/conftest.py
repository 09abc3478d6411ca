"""
Fixtures for the plugins here: UDP flows of any payload, built without the code under test, and tshark's verdict.
"""

from __future__ import annotations

import ipaddress
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from netdiffusion_core.capture import assemble, write_capture
from netdiffusion_core.model import FlowTable, Traffic

Datagram = tuple[int, bool, bytes]


@pytest.fixture(scope="session")
def datagrams() -> Callable[..., Traffic]:
    """
    ``datagrams([(flow, forth, payload), …], version=4, port=53, gap_us=1000)`` returns their traffic: raw IP without
    UDP checksums, each flow from a client of its own, from the ports 20000, 20002 … (20001 … if the server's is odd).
    """

    def build(packets: Sequence[Datagram], version: int = 4, port: int = 53, gap_us: int = 1000) -> Traffic:
        octets = []
        for flow, forth, payload in packets:
            net = ipaddress.ip_address("10.0.0.1" if version == 4 else "fd00::1")
            ends = [(net + flow).packed, (net + 65_535).packed]
            ports = [20_000 + 2 * flow + port % 2, port]
            (source, destination), (sport, dport) = (ends, ports) if forth else (ends[::-1], ports[::-1])
            udp = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
            if version == 4:
                ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
                total = sum(struct.unpack("!10H", ip + source + destination))
                ip = ip[:10] + struct.pack("!H", 0xFFFF - total % 0xFFFF)
            else:
                ip = struct.pack("!IHBB", 6 << 28, len(udp), 17, 64)
            octets.append(ip + source + destination + udp)
        n = len(octets)
        lengths = np.array([len(o) for o in octets])
        none = FlowTable(
            labels=[], splits=[], sources=[], ip_versions=[], protocols=[], initiator_ports=[], responder_ports=[],
            initiator_addresses=np.zeros((0, 16)), responder_addresses=np.zeros((0, 16)),
        )  # fmt: skip
        return assemble(
            Traffic(
                data=np.frombuffer(b"".join(octets), np.uint8),
                starts=np.cumsum(lengths) - lengths,
                captured_lengths=lengths,
                wire_lengths=lengths,
                timestamps=1_600_000_000_000_000_000 + 1000 * gap_us * np.arange(n),
                link_types=np.full(n, 101),
                flow_of=np.full(n, -1),
                from_initiator=np.zeros(n),
                flows=none,
            )
        )

    return build


@pytest.fixture
def tshark(tmp_path: Path) -> Callable[..., list[list[str]]]:
    """
    ``tshark(traffic, filter, *fields)`` returns these fields of the packets that a display filter shows, checksums
    validated.
    """
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed (make test, on Debian as root)")

    def ask(traffic: Traffic, only: str, *fields: str, options: Sequence[str] = ()) -> list[list[str]]:
        write_capture(tmp_path / "x.pcap", traffic, np.argsort(traffic.timestamps, kind="stable"))
        checks = [word for name in ("ip", "udp") for word in ("-o", f"{name}.check_checksum:TRUE")]
        wanted = [f"-e{field}" for field in fields]
        command = ["tshark", *checks, *options, "-r", tmp_path / "x.pcap", "-Tfields", *wanted, "-Y", only]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [line.split("\t") for line in done.stdout.splitlines()]

    return ask
