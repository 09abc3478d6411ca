"""Turn the lab's capture into the sample: label the flows, choose, cut and split them, and write pcap files."""

import random
import shutil
import statistics
import struct
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
ETHERNET_BYTES = 14

PAYLOAD_BYTES = 16
MAX_STORED_PACKETS = 104
FLOWS_PER_LABEL = 70
TRAIN_SHARE = 0.7

SNAPLEN_BYTES = ETHERNET_BYTES + 60 + 60 + PAYLOAD_BYTES
PCAP_HEADER = struct.Struct("<IHHiIII")
RECORD_HEADER = struct.Struct("<IIII")
PCAP_MAGIC = 0xA1B2C3D4
LINKTYPE_ETHERNET = 1


@dataclass(frozen=True)
class SessionRecord:
    kind: str
    client_address: str
    server_address: str
    start_s: float
    stack: str


@dataclass(frozen=True)
class FlowKey:
    """The bidirectional 5-tuple, seen from the client; for ICMP both ports are the echo identifier."""

    client_address: str
    protocol: int
    client_port: int
    server_address: str
    server_port: int


@dataclass(frozen=True)
class Packet:
    key: FlowKey
    is_from_client: bool
    tcp_flags: int
    time_s: int
    time_us: int
    stored: bytes
    wire_bytes: int
    is_valid: bool


@dataclass
class Flow:
    packets: list[Packet] = field(default_factory=list)
    packet_count: int = 0
    wire_bytes: int = 0
    is_from_client: bool = False
    is_from_server: bool = False
    tcp_flags: int = 0
    is_valid: bool = True

    def add(self, packet: Packet) -> None:
        if len(self.packets) < MAX_STORED_PACKETS:
            self.packets.append(packet)
        self.packet_count += 1
        self.wire_bytes += packet.wire_bytes
        self.is_from_client |= packet.is_from_client
        self.is_from_server |= not packet.is_from_client
        self.tcp_flags |= packet.tcp_flags
        self.is_valid &= packet.is_valid

    def is_complete(self) -> bool:
        """Both ends spoke; a TCP flow also begins with its SYN and was closed or reset."""
        first = self.packets[0]
        is_sound = self.is_valid and self.is_from_client and self.is_from_server
        opens = first.is_from_client and first.tcp_flags & (SYN | ACK) == SYN
        closes = bool(self.tcp_flags & (FIN | RST))
        return is_sound and (first.key.protocol != TCP or (opens and closes))


@dataclass(frozen=True)
class Label:
    """A class of the sample: which flows of which kind of session belong to it."""

    session_kind: str
    is_member: Callable[[FlowKey], bool]
    made_by: str


def server_port(protocol: int, port: int) -> Callable[[FlowKey], bool]:
    return lambda key: key.protocol == protocol and key.server_port == port


def is_media(key: FlowKey) -> bool:
    """RTP takes even ports; the odd port above each is its RTCP, which is left out."""
    return key.protocol == UDP and key.server_port not in (53, 5060) and key.server_port % 2 == 0


LABELS = {
    "https-page": Label("https-page", server_port(TCP, 443), "nginx (TLS, HTTP/1.1 and HTTP/2), curl"),
    "hls-video": Label("hls-video", server_port(TCP, 443), "nginx (TLS), ffmpeg reading HLS at playing speed"),
    "rtp-call": Label("call", is_media, "baresip at both ends, RTP audio in six codecs"),
    "sip": Label("call", lambda key: key.server_port == 5060, "baresip at both ends, SIP over UDP and TCP"),
    "dns": Label("dns", lambda key: key.server_port == 53, "dnsmasq, dig and the C library's resolver"),
    "ssh": Label("ssh", server_port(TCP, 22), "OpenSSH, typed shell sessions and single commands"),
    "sftp": Label("sftp", server_port(TCP, 22), "OpenSSH, file transfers and listings"),
    "smtp": Label("smtp", server_port(TCP, 25), "Exim, swaks with and without STARTTLS"),
    "mqtt": Label("mqtt", server_port(TCP, 1883), "Mosquitto, publishers and subscribers"),
    "ntp": Label("ntp", server_port(UDP, 123), "chrony, chronyd and ntpdig as clients"),
    "redis": Label("redis", server_port(TCP, 6379), "Redis, redis-cli and redis-benchmark"),
    "postgresql": Label("postgresql", server_port(TCP, 5432), "PostgreSQL, psql and pgbench"),
    "rsync": Label("rsync", server_port(TCP, 873), "rsync daemon and client"),
    "snmp": Label("snmp", server_port(UDP, 161), "Net-SNMP agent, get and walk commands"),
    "ping": Label("ping", lambda key: key.protocol == ICMP, "iputils ping"),
}


def internet_checksum(data: bytes) -> int:
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def parse_packet(time_s: int, time_us: int, frame: bytes) -> Packet | None:
    """Read one frame; None for what belongs to no flow of the sample (ARP, ICMP errors, fragments)."""
    if frame[12:14] != b"\x08\x00":
        return None
    header_bytes = (frame[14] & 0x0F) * 4
    total_bytes, _, fragment = struct.unpack_from("!HHH", frame, 16)
    protocol = frame[23]
    datagram = frame[ETHERNET_BYTES : ETHERNET_BYTES + total_bytes]
    segment = datagram[header_bytes:]
    if fragment & 0x3FFF or protocol not in (ICMP, TCP, UDP):
        return None
    source, destination = (".".join(map(str, datagram[start : start + 4])) for start in (12, 16))
    pseudo_header = datagram[12:20] + struct.pack("!BBH", 0, protocol, len(segment))
    tcp_flags = 0
    if protocol == ICMP:
        if segment[0] not in (0, 8):
            return None
        source_port = destination_port = struct.unpack_from("!H", segment, 4)[0]
        transport_bytes, is_sound = 8, internet_checksum(segment) == 0
    else:
        source_port, destination_port = struct.unpack_from("!HH", segment)
        is_sound = internet_checksum(pseudo_header + segment) == 0
        transport_bytes = 8
        if protocol == TCP:
            transport_bytes, tcp_flags = (segment[12] >> 4) * 4, segment[13]
    is_from_client = source.startswith("10.20.")
    client = (source, source_port) if is_from_client else (destination, destination_port)
    server = (destination, destination_port) if is_from_client else (source, source_port)
    kept_bytes = ETHERNET_BYTES + header_bytes + transport_bytes + PAYLOAD_BYTES
    return Packet(
        key=FlowKey(client[0], protocol, client[1], *server),
        is_from_client=is_from_client,
        tcp_flags=tcp_flags,
        time_s=time_s,
        time_us=time_us,
        stored=frame[:kept_bytes],
        wire_bytes=len(frame),
        is_valid=is_sound and internet_checksum(datagram[:header_bytes]) == 0,
    )


def read_packets(capture: Path) -> Iterator[Packet]:
    with capture.open("rb") as stream:
        magic, *_ = PCAP_HEADER.unpack(stream.read(PCAP_HEADER.size))
        assert magic == PCAP_MAGIC, "the lab's own capture is little-endian with microseconds"
        while len(header := stream.read(RECORD_HEADER.size)) == RECORD_HEADER.size:
            time_s, time_us, captured_bytes, _ = RECORD_HEADER.unpack(header)
            frame = stream.read(captured_bytes)
            packet = parse_packet(time_s, time_us, frame) if len(frame) == captured_bytes else None
            if packet is not None:
                yield packet


def write_packets(path: Path, packets: list[Packet]) -> None:
    packets.sort(key=lambda packet: (packet.time_s, packet.time_us))
    with path.open("wb") as stream:
        stream.write(PCAP_HEADER.pack(PCAP_MAGIC, 2, 4, 0, 0, SNAPLEN_BYTES, LINKTYPE_ETHERNET))
        for packet in packets:
            lengths = len(packet.stored), packet.wire_bytes
            stream.write(RECORD_HEADER.pack(packet.time_s, packet.time_us, *lengths) + packet.stored)


def collect_flows(capture: Path) -> dict[str, list[Flow]]:
    """All complete flows of the capture, by client address, which is to say by session."""
    flows: dict[FlowKey, Flow] = defaultdict(Flow)
    for packet in read_packets(capture):
        flows[packet.key].add(packet)
    by_client: dict[str, list[Flow]] = defaultdict(list)
    for key, flow in flows.items():
        if flow.is_complete():
            by_client[key.client_address].append(flow)
    return by_client


def choose_flows(per_session: list[list[Flow]], rng: random.Random) -> list[list[Flow]]:
    """Up to FLOWS_PER_LABEL flows, as evenly from the sessions as they have them."""
    remaining = [rng.sample(flows, len(flows)) for flows in per_session]
    chosen: list[list[Flow]] = [[] for _ in per_session]
    count = 0
    while count < FLOWS_PER_LABEL and any(remaining):
        for session in rng.sample(range(len(remaining)), len(remaining)):
            if remaining[session] and count < FLOWS_PER_LABEL:
                chosen[session].append(remaining[session].pop())
                count += 1
    return [flows for flows in chosen if flows]


def split_sessions(per_session: list[list[Flow]]) -> tuple[list[Flow], list[Flow]]:
    """The earlier sessions train, the later ones test: no session is in both."""
    total = sum(map(len, per_session))
    train: list[Flow] = []
    test: list[Flow] = []
    for flows in per_session:
        (train if len(train) + len(test) < TRAIN_SHARE * total else test).extend(flows)
    return train, test


def write_sample(capture: Path, sessions: list[SessionRecord], output: Path, seed: int, minutes: float) -> None:
    by_client = collect_flows(capture)
    shutil.rmtree(output, ignore_errors=True)
    rows = []
    for name, label in LABELS.items():
        members = sorted(
            (session for session in sessions if session.kind == label.session_kind),
            key=lambda session: session.start_s,
        )
        per_session = [
            [flow for flow in by_client[session.client_address] if label.is_member(flow.packets[0].key)]
            for session in members
        ]
        parts = split_sessions(choose_flows(per_session, random.Random(f"{seed} {name}")))
        directory = output / name
        directory.mkdir(parents=True)
        for part, flows in zip(("train", "test"), parts, strict=True):
            write_packets(directory / f"{part}.pcap", [packet for flow in flows for packet in flow.packets])
        rows.append(describe_label(name, label, parts, directory))
        print(rows[-1], flush=True)
    size_bytes = sum(path.stat().st_size for path in output.rglob("*.pcap"))
    (output / "README.md").write_text(describe_sample(rows, size_bytes, seed, minutes, len(sessions)))


def describe_label(name: str, label: Label, parts: tuple[list[Flow], list[Flow]], directory: Path) -> str:
    flows = [flow for part in parts for flow in part]
    wire_packets = sorted(flow.packet_count for flow in flows)
    stored_packets = sum(len(flow.packets) for flow in flows)
    size_kb = sum(path.stat().st_size for path in directory.glob("*.pcap")) / 1000
    spread = f"{wire_packets[0]} / {statistics.median(wire_packets):.0f} / {wire_packets[-1]}"
    wire_kb = sum(flow.wire_bytes for flow in flows) / 1000
    columns = [name, len(parts[0]), len(parts[1]), stored_packets, spread, f"{wire_kb:.0f}", f"{size_kb:.0f}"]
    return f"| {' | '.join(map(str, columns))} | {label.made_by} |"


def package_versions() -> str:
    names = (Path(__file__).parent / "packages.txt").read_text().split()
    query = ["dpkg-query", "-W", "-f", "${Package} ${Version}\\n", *names]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip()


def describe_sample(rows: list[str], size_bytes: int, seed: int, minutes: float, session_count: int) -> str:
    table = "\n".join(rows)
    debian = Path("/etc/debian_version").read_text().strip()
    kernel = Path("/proc/sys/kernel/osrelease").read_text().strip().partition("-")[0]
    platform = f"Debian {debian}, Linux {kernel}"
    return f"""# Lab sample

Real traffic with known labels: Debian's servers and clients, talking to each other on hosts of their own
(network namespaces joined by a router). Nothing in it comes from anybody's network; all addresses and names are
the lab's. Licence: Apache-2.0.

- Made on {time.strftime("%Y-%m-%d", time.gmtime())} by `tools/lab/run.sh --seed {seed}` in {minutes:.0f} minutes, \
{session_count} sessions ({platform}).
- Captured at the clients' gateway: Ethernet, microseconds, no offload, so checksums and sizes are the wire's.
- A flow is a bidirectional 5-tuple; for ICMP, an echo identifier. Only complete flows are here: both ends spoke,
  all checksums held, and a TCP flow has its SYN and was closed or reset.
- Stored of each packet: its headers and {PAYLOAD_BYTES} bytes of payload; the record keeps the length on the wire.
  Stored of each flow: its first {MAX_STORED_PACKETS} packets.
- `train.pcap` holds the earlier sessions of a class and `test.pcap` the later ones; no session is in both.
- Each session draws its client's TCP/IP stack (TTL 64, 128 or 255; timestamps, SACK, window scaling and ECN on or
  off; MTU 1280 to 1500), its server (all servers run all services) and its path: 1 to 120 ms round trip, jitter,
  0 to 2 % loss each way, some reordering, 2 to 100 Mbit/s, 3 to 18 hops.

| Class | Train flows | Test flows | Stored packets | Packets per flow on the wire (least / median / most) \
| Wire kB | File kB | Made by |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |
{table}

The files take {size_bytes / 1e6:.2f} MB in all.

## Packages

```text
{package_versions()}
```
"""
