"""
Payload written behind UDP headers, judged by scapy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scapy.all import IP, UDP, Dot1Q, Ether, IPv6, IPv6ExtHdrHopByHop, Raw

from netdiffusion_core.capture import assemble
from netdiffusion_core.capture.payload import write_payloads
from netdiffusion_core.model import FlowTable, Traffic
from netdiffusion_core.repairs import Recorder

LINK = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
FOUR, SIX = IP(src="10.0.0.1", dst="198.18.0.1"), IPv6(src="fd00::1", dst="2001:db8::1")


def traffic_of(packets: list[Any]) -> Traffic:
    octets = [bytes(packet) for packet in packets]
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
            timestamps=np.arange(len(octets)),
            wire_lengths=lengths,
            link_types=np.ones(len(octets)),
            flow_of=np.full(len(octets), -1),
            from_initiator=np.zeros(len(octets)),
            flows=none,
        )
    )


def table(payloads: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.array([len(p) for p in payloads])
    octets = np.zeros((len(payloads), sizes.max()), np.uint8)
    for row, payload in zip(octets, payloads, strict=True):
        row[: len(payload)] = np.frombuffer(payload, np.uint8)
    return octets, sizes


@pytest.mark.parametrize("new", [b"", b"ab", b"abcdefgh", b"longer than it was"], ids=len)
@pytest.mark.parametrize(
    "below",
    [LINK / FOUR, LINK / SIX, LINK / Dot1Q(vlan=3) / FOUR, LINK / SIX / IPv6ExtHdrHopByHop()],
    ids=["IPv4", "IPv6", "VLAN", "IPv6 with options"],
)
def test_lengths_and_checksums_fit_and_the_other_packets_stay(below: Any, new: bytes) -> None:
    packets = [below / UDP(sport=5, dport=6) / Raw(old) for old in (b"first", b"old text", b"last")]
    traffic = traffic_of(packets)
    octets, sizes = table([new, new])
    written = write_payloads(traffic, np.array([1, 2]), octets, sizes, np.array(["a.one", "b.two"]))
    for i, old in enumerate((b"old text", b"last"), 1):
        wanted = below / UDP(sport=5, dport=6) / Raw(new + old[len(new) :])
        assert written.packet(i) == bytes(wanted)
        assert written.wire_lengths[i] == len(wanted)
    assert written.packet(0) == traffic.packet(0)
    assert (written is traffic) == (new == b"")


def test_each_change_is_told_and_nothing_else() -> None:
    packets = [LINK / FOUR / UDP(sport=5, dport=6) / Raw(old) for old in (b"same", b"abc", b"x")]
    traffic = traffic_of(packets)
    record = Recorder(traffic)
    octets, sizes = table([b"same", b"abd", b"xyz"])
    write_payloads(traffic, np.arange(3), octets, sizes, np.array(["r.1", "r.1", "r.2"]), record)
    told = {(r.rule, r.field): (r.packets.tolist(), r.before.tolist(), r.after.tolist()) for r in record.repairs}
    assert told["r.1", "payload"] == ([1], [3], [3])
    assert told["r.2", "payload"] == ([2], [1], [3])
    assert told["r.2", "udp.len"] == ([2], [9], [11])
    assert told["r.2", "ipv4.tl"] == ([2], [29], [31])
    assert told["udp.checksum", "udp.cksum"][0] == [1, 2]
    assert told["ipv4.checksum", "ipv4.cksum"][0] == [2]
    assert len(told) == 6
    assert [r.bits.tolist() for r in record.repairs[:2]] == [[3], [16]]  # c, d: 0x63, 0x64; two octets more


def test_a_udp_checksum_that_is_not_used_stays_unused_over_ipv4() -> None:
    traffic = traffic_of([LINK / FOUR / UDP(sport=5, dport=6, chksum=0) / Raw(b"abc")])
    written = write_payloads(traffic, np.array([0]), *table([b"xyz"]), np.array(["r.1"]))
    assert written.packet(0)[-5:] == b"\x00\x00xyz"


def test_padding_of_ethernet_goes_when_the_packet_grows_into_it() -> None:
    packet = LINK / FOUR / UDP(sport=5, dport=6) / Raw(b"ab")
    traffic = traffic_of([bytes(packet) + bytes(16)])
    grown = write_payloads(traffic, np.array([0]), *table([b"abcd"]), np.array(["r.1"]))
    assert grown.packet(0) == bytes(LINK / FOUR / UDP(sport=5, dport=6) / Raw(b"abcd"))
