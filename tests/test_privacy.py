"""
What identifies somebody in the training captures is in no synthetic capture: addresses, names, payload.
"""

from __future__ import annotations

import ipaddress
import random
import re
from pathlib import Path

import attrs
import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

from netdiffusion_core import dataset
from netdiffusion_core.cli import main

pytestmark = pytest.mark.usefixtures("alone")

FLOWS = 8
QUICK = {"stable-diffusion": ["steps=1", "rows_per_step=256", "sampling_steps=2", "threads=1"]}
PIECE_BYTES = 8


@attrs.define
class Secrets:
    """
    What must not leave the training captures. Addresses and names in bytes, names as on the wire; pieces of payload.
    """

    addresses: set[bytes] = attrs.field(factory=set)
    names: set[bytes] = attrs.field(factory=set)
    pieces: set[bytes] = attrs.field(factory=set)
    texts: set[bytes] = attrs.field(factory=set)

    def found_in(self, content: bytes) -> list[bytes]:
        return [secret for secret in self.addresses | self.names if secret in content] + sorted(
            self.pieces & pieces_of(content)
        )


def pieces_of(content: bytes) -> set[bytes]:
    """
    Every piece of eight bytes; those of less than four different values are in any padding, and nobody's.
    """
    found = {content[i : i + PIECE_BYTES] for i in range(len(content) - PIECE_BYTES + 1)}
    return {piece for piece in found if len(set(piece)) > 3}


def client_hello(name: bytes, dice: random.Random) -> bytes:
    """
    A TLS 1.2 ClientHello with one cipher and the server's name (RFC 5246 section 7.4.1.2, RFC 6066 section 3).
    """
    server_name = b"\0\0" + len(name + b"12345").to_bytes(2) + len(name + b"123").to_bytes(2) + b"\0"
    extensions = server_name + len(name).to_bytes(2) + name
    body = b"\x03\x03" + dice.randbytes(32) + b"\0\0\x02\xc0\x2f\x01\0" + len(extensions).to_bytes(2) + extensions
    return b"\x16\x03\x01" + (len(body) + 4).to_bytes(2) + b"\x01\0" + len(body).to_bytes(2) + body


def conversation(label: str, i: int, dice: random.Random, secrets: Secrets) -> list[Packet]:
    """
    One flow of a class, between hosts of its own, to a name of its own; what it gives away is noted.
    """
    name = f"host{i}.{label}.clinic-{dice.randrange(10**6)}.example".encode()
    on_the_wire = b"".join(bytes([len(part)]) + part for part in name.split(b"."))
    macs = ["02" + "".join(f":{dice.randrange(256):02x}" for _ in range(5)) for _ in range(2)]
    if label == "dns":
        ends = [str(ipaddress.IPv6Address((0x2A0B << 112) | dice.getrandbits(112))) for _ in range(2)]
        answer = f"203.0.113.{i}"
        secrets.addresses.add(ipaddress.ip_address(answer).packed)
        ask, reply = (UDP(sport=40000 + i, dport=53), UDP(sport=53, dport=40000 + i))
        question = DNS(id=dice.randrange(1 << 16), qd=DNSQR(qname=name))
        steps = [
            (0, ask / question),
            (1, reply / DNS(id=question.id, qr=1, qd=DNSQR(qname=name), an=DNSRR(rrname=name, rdata=answer))),
        ]
    else:
        ends = [str(ipaddress.IPv4Address(dice.randrange(11 << 24, 100 << 24))) for _ in range(2)]
        there, back = {"sport": 50000 + i, "dport": 443}, {"sport": 443, "dport": 50000 + i}
        request = client_hello(name, dice) if label == "tls" else b"GET / HTTP/1.1\r\nHost: " + name + b"\r\n\r\n"
        steps = [
            (0, TCP(**there, flags="S", seq=100)),
            (1, TCP(**back, flags="SA", seq=500, ack=101)),
            (0, TCP(**there, flags="PA", seq=101, ack=501) / Raw(request)),
            (1, TCP(**back, flags="PA", seq=501, ack=101 + len(request)) / Raw(dice.randbytes(300))),
            (0, ICMP(type=8, id=i) / Raw(dice.randbytes(56))),
        ]
    secrets.addresses |= {ipaddress.ip_address(a).packed for a in ends} | {
        bytes.fromhex(m.replace(":", "")) for m in macs
    }
    secrets.names |= {name, on_the_wire}
    secrets.texts |= {name, *(a.encode() for a in (*ends, *macs))}
    version = IPv6 if label == "dns" else IP
    packets = []
    for n, (side, rest) in enumerate(steps):
        packet = Ether(src=macs[side], dst=macs[1 - side]) / version(src=ends[side], dst=ends[1 - side]) / rest
        packet.time = 1_700_000_000 + 10 * i + n / 100
        transport = rest.payload
        secrets.pieces |= pieces_of(bytes(transport))
        packets.append(packet)
    return packets


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Secrets]:
    """
    Whole captures, payload included, of names asked by DNS over IPv6, told to TLS, and to HTTP.
    """
    folder, dice, secrets = tmp_path_factory.mktemp("captures"), random.Random(0), Secrets()
    for label in ("dns", "tls", "http"):
        (folder / label).mkdir()
        for i in range(FLOWS):
            wrpcap(str(folder / label / f"{i}.pcap"), conversation(label, i, dice, secrets))
    return folder, secrets


@pytest.mark.parametrize(
    ("backend", "payload"),
    [("bernoulli", "zeros"), ("bernoulli", "random"), ("bootstrap", "zeros"), ("stable-diffusion", "zeros")],
)
def test_nothing_that_identifies_somebody_leaves_the_training_captures(
    captures: tuple[Path, Secrets], backend: str, payload: str
) -> None:
    folder, secrets = captures
    words = [word for option in QUICK.get(backend, ()) for word in ("--set", f"backend.{option}")]
    words += ["--backend", backend, "--flows", "8", "--max-packets", "16", "--payload", payload, "-q"]
    assert main(["run", str(folder), "-o", "out", *words, "--compare=", "--evaluators", "novelty"]) == 0

    synthetic = dataset.load(Path("out/synthetic"))
    packets = [synthetic.packet(i) for i in range(len(synthetic))]
    assert len(packets) > 50
    assert not secrets.found_in(b"\0".join(packets))
    for path in Path("out").rglob("*"):  # what else the run says about them: report, manifest, configuration, model
        if path.is_file() and path.suffix != ".npy":
            content = path.read_bytes()
            told = [
                text for text in secrets.texts if re.search(rb"(?<![\w.:])" + re.escape(text) + rb"(?![\w.:])", content)
            ]
            assert not told, path


def test_the_search_finds_what_is_there(captures: tuple[Path, Secrets]) -> None:
    folder, secrets = captures
    assert len(secrets.addresses) > 6 * FLOWS
    assert len(secrets.names) == 6 * FLOWS
    for label in ("dns", "tls", "http"):
        found = secrets.found_in((folder / label / "3.pcap").read_bytes())
        assert {4, 6} <= {len(secret) for secret in found}
        assert any(b"host3" in secret and b"clinic" in secret for secret in found)
        assert sum(len(secret) == PIECE_BYTES for secret in found) > 20
