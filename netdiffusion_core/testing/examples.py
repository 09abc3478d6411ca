"""
Example traffic: conversations that a receiver would accept, made here and recorded nowhere.

Of the label ``web`` are HTTP downloads over TCP, of the label ``lookup`` DNS queries over UDP and echoes over ICMP,
each over IPv4 and IPv6 in turn.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

import attrs
import numpy as np

from ..capture import assemble
from ..capture.dissect import dissect
from ..capture.pcapfile import NO_FLOWS
from ..model import ICMP, ICMPV6, LINK_ETHERNET, MISSING, TCP, UDP, Encoded, Layout, Traffic
from .headers import HEADERS, header_offsets

_SYN, _FIN, _PSH, _ACK = 0x02, 0x01, 0x08, 0x10
_MSS = 1400
_START_NS = 1_700_000_000_000_000_000

Packet = tuple[bool, int, bytes]
"""Who sent it (True: the initiator), how many microseconds after the packet before, and the transport header and data,
its checksum still 0."""


def example_traffic(seed: int = 0, flows: int = 12) -> Traffic:
    """
    Return `flows` conversations of each label, different ones for each seed; no rule of the protocols is broken.
    """
    rng = np.random.default_rng([2024, seed])
    captures, labels = [], []
    for label in ("web", "lookup"):
        for i in range(flows):
            ends = _endpoints(rng, six=i % 2 == 1)
            if label == "web":
                protocol, packets = TCP, _download(rng)
            elif i % 4 < 2:
                protocol, packets = UDP, _look_up(rng)
            else:
                protocol, packets = (ICMPV6 if i % 2 else ICMP), _echoes(rng, six=i % 2 == 1)
            captures.append(_frames(rng, ends, protocol, packets))
            labels.append(label)
    frames, times = zip(*(frame for capture in captures for frame in capture), strict=True)
    traffic = _captured(frames, times, [len(frame) for frame in frames])
    capture_of = np.repeat(np.arange(len(captures)), [len(capture) for capture in captures])
    sources = np.array([f"{label}/{i}.pcap" for i, label in enumerate(labels)])
    return assemble(traffic, label=np.array(labels), source=sources, capture_of=capture_of)


def no_packets() -> Traffic:
    """
    Return traffic without a packet and without a flow.
    """
    nothing = example_traffic(flows=1).select_packets(slice(0, 0))
    return attrs.evolve(nothing, data=np.zeros(0, np.uint8), flows=NO_FLOWS)


def no_flow() -> Traffic:
    """
    Return two packets that belong to no flow, an ARP request and one cut within its Ethernet header, and two that are
    cut within IP and TCP.
    """
    arp = bytes.fromhex("ffffffffffff020000000001 0806 0001080006040001 020000000001 0a000001 000000000000 0a000002")
    syn = example_traffic(flows=1).packet(0)
    frames = [arp, arp[:9], syn[:30], syn[:44]]
    times = range(_START_NS, _START_NS + 4)
    return assemble(_captured(frames, times, [42, 42, len(syn), len(syn)]), label="cut")


def damaged(traffic: Traffic, seed: int = 0, share: float = 0.02) -> Traffic:
    """
    Return the traffic with this share of the bits behind the link layer turned, as a poor model would have it. What
    says which headers there are (IP version, header lengths, protocol) stays.
    """
    rng = np.random.default_rng([97, seed])
    wrong = np.packbits(rng.random((len(traffic.data), 8)) < share, axis=1).ravel()
    found = dissect(traffic)
    for start, link in zip(traffic.starts.tolist(), found.link_lengths.tolist(), strict=True):
        wrong[start : start + link] = 0
    for header, kept in (("ipv4", (0, 9)), ("ipv6", (0, 6)), ("tcp", (12,))):
        at = header_offsets(traffic, header)
        for octet in kept:
            wrong[at[at >= 0] + octet] = 0
    return attrs.evolve(traffic, data=traffic.data ^ wrong)


def example_bits(traffic: Traffic) -> Encoded:
    """
    Return the header bits of `headers.HEADERS` and the direction of each packet, one group of rows a flow.
    """
    order, starts = traffic.by_flow()
    chosen = traffic.select_packets(order)
    fields = tuple((f"{header}.{name}", bits) for header in HEADERS for name, bits in HEADERS[header])
    layout = Layout(name="conformance", version=1, fields=(*fields, ("trace.direction", 1)))
    rows = np.full((len(chosen), layout.width), MISSING, np.int8)
    for header in HEADERS:
        span, at = layout.span(header), header_offsets(chosen, header)
        octets = at[at >= 0, None] + np.arange((span.stop - span.start) // 8)
        rows[at >= 0, span] = np.unpackbits(chosen.data[octets], axis=1)
    rows[:, -1] = ~chosen.from_initiator
    return Encoded(
        rows=rows,
        starts=starts,
        labels=traffic.flows.labels,
        start_times=chosen.timestamps[starts[:-1]],
        layout=layout,
    )


def _captured(frames: Sequence[bytes], times: Sequence[int], wire_lengths: Sequence[int]) -> Traffic:
    """
    Put Ethernet frames one behind the other, of no flow yet.
    """
    lengths = np.array([len(frame) for frame in frames], np.int32)
    return Traffic(
        data=np.frombuffer(b"".join(frames), np.uint8),
        starts=np.cumsum(lengths) - lengths,
        captured_lengths=lengths,
        wire_lengths=np.array(wire_lengths, np.int32),
        timestamps=np.array(times, np.int64),
        link_types=np.full(len(frames), LINK_ETHERNET, np.uint16),
        flow_of=np.full(len(frames), -1, np.int32),
        from_initiator=np.zeros(len(frames), bool),
        flows=NO_FLOWS,
    )


def _endpoints(rng: np.random.Generator, six: bool) -> tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address]:
    """
    Draw an initiator in a private network and a responder in one for benchmarks (RFC 2544) or documentation (RFC 3849).
    """
    client, server = rng.integers(1, 2**24 - 1), rng.integers(1, 2**16 - 1)
    if six:
        return IPv6Address((0xFD << 120) + int(client)), IPv6Address((0x20010DB8 << 96) + int(server))
    return ip_address((10 << 24) + int(client)), ip_address((198 << 24) + (18 << 16) + int(server))


def _download(rng: np.random.Generator) -> list[Packet]:
    """
    Make an HTTP request and its answer (RFC 9112) on a TCP connection of its own, from SYN to both FINs (RFC 9293).
    """
    port, here, there = int(rng.integers(32768, 61000)), *map(int, rng.integers(0, 2**32, 2))
    request = b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"
    size = int(rng.integers(50, 6000))
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    packets: list[Packet] = []

    def send(forth: bool, flags: int, data: bytes = b"", options: bytes = b"") -> None:
        nonlocal here, there
        ports = (port, 80) if forth else (80, port)
        sequence, acknowledged = (here, there) if forth else (there, here)
        words = (20 + len(options)) // 4
        header = struct.pack(
            "!HHIIBBHHH", *ports, sequence, acknowledged * (flags & _ACK > 0), words << 4, flags, 64000, 0, 0
        )
        packets.append((forth, int(rng.lognormal(7, 1)), header + options + data))
        moved = len(data) + (flags & (_SYN | _FIN) > 0)
        here, there = (here + moved * forth) % 2**32, (there + moved * (not forth)) % 2**32

    maximum_segment_size = struct.pack("!BBH", 2, 4, _MSS)
    send(True, _SYN, options=maximum_segment_size)
    send(False, _SYN | _ACK, options=maximum_segment_size)
    send(True, _ACK)
    send(True, _PSH | _ACK, request)
    for at in range(0, len(answer), _MSS):
        send(False, _PSH | _ACK, answer[at : at + _MSS])
        send(True, _ACK)
    send(True, _FIN | _ACK)
    send(False, _FIN | _ACK)
    send(True, _ACK)
    return packets


def _look_up(rng: np.random.Generator) -> list[Packet]:
    """
    Make one to three DNS queries and their answers (RFC 1035 section 4).
    """
    port = int(rng.integers(32768, 61000))
    packets: list[Packet] = []
    for _ in range(rng.integers(1, 4)):
        label = bytes(rng.integers(97, 123, rng.integers(3, 20)).tolist())
        question = bytes([len(label)]) + label + b"\x07example\x03org\0" + struct.pack("!HH", 1, 1)  # A, Internet
        answer = struct.pack("!HHHIH4s", 0xC00C, 1, 1, 300, 4, bytes([198, 18, 0, 7]))  # 0xC00C: the name as asked
        identity = int(rng.integers(2**16))
        for forth, message in (
            (True, struct.pack("!HHHHHH", identity, 0x0100, 1, 0, 0, 0) + question),
            (False, struct.pack("!HHHHHH", identity, 0x8180, 1, 1, 0, 0) + question + answer),
        ):
            ports = (port, 53) if forth else (53, port)
            header = struct.pack("!HHHH", *ports, 8 + len(message), 0)
            packets.append((forth, int(rng.lognormal(9, 1)), header + message))
    return packets


def _echoes(rng: np.random.Generator, six: bool) -> list[Packet]:
    """
    Make two to five echo requests and their replies (RFC 792, RFC 4443 section 4).
    """
    identity, data = int(rng.integers(2**16)), bytes(range(int(rng.integers(8, 56))))
    types = {True: 128 if six else 8, False: 129 if six else 0}
    return [
        (forth, int(rng.lognormal(10, 1)), struct.pack("!BBHHH", types[forth], 0, 0, identity, sequence) + data)
        for sequence in range(1, int(rng.integers(3, 7)))
        for forth in (True, False)
    ]


def _frames(
    rng: np.random.Generator,
    ends: tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address],
    protocol: int,
    packets: list[Packet],
) -> list[tuple[bytes, int]]:
    """
    Put Ethernet and IP headers before the packets, their checksums right; return each with its time.
    """
    time, identity = _START_NS + int(rng.integers(10**6)) * 1_000_000, rng.integers(0, 2**15, 2).tolist()
    flow_label = rng.integers(1, 2**20, 2).tolist()
    frames = []
    for forth, gap_us, body in packets:
        source, target = (end.packed for end in (ends if forth else ends[::-1]))
        checksum_at = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}[protocol]
        pseudo = b"" if protocol == ICMP else source + target + struct.pack("!II", len(body), protocol)
        body = _patched(body, checksum_at, _checksum(pseudo + body) or 0xFFFF)
        if len(source) == 4:
            length = 20 + len(body)
            ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, length, identity[forth], 0x4000, 64, protocol, 0, source, target)
            ip = _patched(ip, 10, _checksum(ip))
            identity[forth] += 1
        else:
            ip = struct.pack("!IHBB16s16s", 6 << 28 | flow_label[forth], len(body), protocol, 64, source, target)
        macs = [bytes([2, 0, 0, 0, 0, number]) for number in (1 + forth, 2 - forth)]
        time += gap_us * 1000
        frames.append((b"".join(macs) + (b"\x08\x00" if len(source) == 4 else b"\x86\xdd") + ip + body, time))
    return frames


def _checksum(octets: bytes) -> int:
    """
    Return the Internet checksum (RFC 1071).
    """
    octets += b"\0" * (len(octets) % 2)
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _patched(octets: bytes, at: int, number: int) -> bytes:
    return octets[:at] + struct.pack("!H", number) + octets[at + 2 :]
