"""
Fixtures: the rule sets in their order, and Encoded flows that no model would dare to produce.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from netdiffusion_core.interfaces import RuleSet
from netdiffusion_core.model import MISSING, Encoded, Traffic, Violation
from netdiffusion_inet.icmp import IcmpRules, Icmpv6Rules
from netdiffusion_inet.interpacket import InterpacketRules
from netdiffusion_inet.ipv4 import Ipv4Rules
from netdiffusion_inet.ipv6 import Ipv6Rules
from netdiffusion_inet.tcp import TcpRules
from netdiffusion_inet.udp import UdpRules


@pytest.fixture(scope="session")
def rules() -> SimpleNamespace:
    """
    All rule sets in order: ``constrain(encoded)``, ``repair(traffic)``, ``check(traffic)``; and new ones,
    ``without(rule)``, ``with_anomalies(mode)``, through which ``made(sets, encoded, codec, rng)`` makes packets.
    """
    sets = [Ipv4Rules(), Ipv6Rules(), InterpacketRules(), TcpRules(), UdpRules(), IcmpRules(), Icmpv6Rules()]

    def constrain(encoded: Encoded) -> Encoded:
        for each in sets:
            encoded = each.constrain(encoded)
        return encoded

    def repair(traffic: Traffic) -> Traffic:
        for each in sets:
            traffic = each.repair(traffic, np.random.default_rng(1))
        return traffic

    def check(traffic: Traffic) -> list[Violation]:
        return [violation for each in sets for violation in each.check(traffic)]

    def without(rule: str) -> list[RuleSet]:
        others = [type(each)() for each in sets]
        for each in others:
            each.off = frozenset({rule})
        return others

    def with_anomalies(mode: str) -> list[RuleSet]:
        return [TcpRules(TcpRules.Options(anomalies=mode)) if each.name == "tcp" else type(each)() for each in sets]

    def made(sets: list[RuleSet], encoded: Encoded, codec: Any, rng: np.random.Generator) -> Traffic:
        for each in sets:
            encoded = each.constrain(encoded)
        traffic: Traffic = codec.decode(encoded, rng)
        for each in sets:
            traffic = each.repair(traffic, rng)
        return traffic

    return SimpleNamespace(
        sets=sets, without=without, with_anomalies=with_anomalies, made=made, constrain=constrain, repair=repair,
        check=check,
    )  # fmt: skip


OUR_PROTOCOLS = {
    "frame", "eth", "ethertype", "ip", "ipv6", "ipv6.hopopts", "ipv6.dstopts", "tcp", "udp", "icmp", "icmpv6", "data",
}  # fmt: skip


@pytest.fixture(scope="session")
def tshark() -> Callable[..., list[list[str]]]:
    """
    ``tshark(path, only, *fields)`` returns these fields of the packets that a display filter shows, one list a packet;
    several values of a field are joined by ``|``. Checksums are validated. Of protocols it knows ours and no others:
    random payload on port 53 is no DNS, and that is none of the rules' business.
    """
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed (make test, on Debian as root)")
    listed = subprocess.run(["tshark", "-G", "protocols"], capture_output=True, text=True, check=True).stdout
    others = {line.split("\t")[2] for line in listed.splitlines()} - OUR_PROTOCOLS
    switches = [word for name in sorted(others) for word in ("--disable-protocol", name)]
    checks = [word for name in ("ip", "tcp", "udp") for word in ("-o", f"{name}.check_checksum:TRUE")]

    def ask(path: Path, only: str, *fields: str) -> list[list[str]]:
        wanted = [f"-e{field}" for field in fields]
        command = ["tshark", *switches, *checks, "-r", path, "-Tfields", "-Eaggregator=|", *wanted, "-Y", only]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [line.split("\t") for line in done.stdout.splitlines()]

    return ask


@pytest.fixture(scope="session")
def dream() -> Callable[..., Encoded]:
    """
    ``dream(kind, seed, flows, packets, layout)`` returns Encoded flows.

    ternary, binary  every value random: headers in pieces, or all of them at once
    zeros, ones, missing
    stacks           one IP version and one transport a flow, every bit of them random
    """
    layouts = pytest.importorskip("netdiffusion_nprint.layout").LAYOUTS

    def make(kind: str, seed: int, flows: int, packets: int, layout: str = "trace") -> Encoded:
        rng = np.random.default_rng(seed)
        shape = (flows * packets, layouts[layout].width)
        if kind in ("zeros", "ones", "missing"):
            rows = np.full(shape, {"zeros": 0, "ones": 1, "missing": MISSING}[kind])
        else:
            rows = rng.integers(-1 if kind == "ternary" else 0, 2, shape)
        if kind == "stacks":
            for flow in rows.reshape(flows, packets, -1):
                _one_stack(flow, layouts[layout].spans(), rng)
        return Encoded(
            rows=rows,
            starts=np.arange(flows + 1) * packets,
            labels=np.full(flows, "dream"),
            start_times=np.full(flows, 1_600_000_000_000_000_000),
            layout=layouts[layout],
        )

    return make


def _one_stack(rows: Any, spans: Any, rng: np.random.Generator) -> None:
    """
    Make the rows of one flow IPv4 or IPv6 with one transport, packets of ordinary size and pace.
    """
    rows[:, spans["ipv6" if rng.random() < 0.7 else "ipv4"]] = MISSING
    kept = rng.choice(["tcp", "udp", "icmp"], p=[0.6, 0.2, 0.2])
    for header in {"tcp", "udp", "icmp"} - {kept}:
        rows[:, spans[header]] = MISSING
    for field in ("ipv4.opt", "tcp.opt"):
        words = rng.integers(0, 11, len(rows)) * rng.integers(0, 2)
        part = rows[:, spans[field]]
        part[np.arange(320) >= 32 * words[:, None]] = MISSING
    for field, high_bits in (("ipv4.tl", 5), ("ipv6.len", 5), ("trace.iat_us", 28)):
        if field in spans:
            part = rows[:, spans[field]]
            part[:, :high_bits] = np.where(part[:, :high_bits] == MISSING, MISSING, 0)
    for field in ("tcp.syn", "tcp.rst", "tcp.fin"):  # half of the flows without each: long connections, parts of one
        if rng.random() < 0.5:
            part = rows[:, spans[field]]
            part[part != MISSING] = 0
