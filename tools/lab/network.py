"""The lab's network: hosts in namespaces, one router, and paths with delay, loss and a finite rate.

Every packet between a client and a server leaves the router's kernel through the TUN device `wan0`, is held or
dropped by `forward_packets` according to the path of its client, and comes back through `wan0` to be delivered.
The work is done in user space because many kernels come without the netem queueing discipline.
"""

import contextlib
import fcntl
import heapq
import json
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROUTER = "lab-router"
CLIENT_GATEWAY = "10.20.0.1"
SERVER_GATEWAY = "10.30.0.1"
CLIENT_PREFIX = bytes([10, 20])

TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000


@dataclass(frozen=True)
class TcpStack:
    """The settings by which operating systems differ on the wire."""

    name: str
    ttl: int
    timestamps: int
    sack: int
    window_scaling: int
    ecn: int
    mtu: int
    congestion_control: str
    receive_buffer_bytes: int
    ports: str


CLIENT_STACKS = [
    TcpStack("linux", 64, 1, 1, 1, 2, 1500, "cubic", 131072, "32768 60999"),
    TcpStack("linux-ecn", 64, 1, 1, 1, 1, 1500, "cubic", 131072, "32768 60999"),
    TcpStack("desktop-128", 128, 0, 1, 1, 2, 1500, "cubic", 65536, "49152 65535"),
    TcpStack("desktop-pppoe", 128, 0, 1, 1, 2, 1492, "cubic", 65536, "49152 65535"),
    TcpStack("mobile", 64, 1, 1, 1, 2, 1400, "cubic", 87380, "37000 50000"),
    TcpStack("vpn", 128, 0, 1, 1, 2, 1280, "reno", 65536, "49152 65535"),
    TcpStack("appliance", 255, 0, 1, 0, 0, 1500, "reno", 32768, "1024 5000"),
    TcpStack("legacy", 64, 0, 0, 0, 0, 1500, "reno", 16384, "1024 5000"),
]

SERVER_STACKS = [
    TcpStack("server-64", 64, 1, 1, 1, 2, 1500, "cubic", 131072, "32768 60999"),
    TcpStack("server-128", 128, 0, 1, 1, 2, 1500, "cubic", 65536, "49152 65535"),
    TcpStack("server-255", 255, 1, 1, 1, 2, 1460, "reno", 65536, "32768 60999"),
]


@dataclass(frozen=True)
class WanPath:
    """What happens to a client's packets between its gateway and the servers."""

    delay_ms: float
    jitter_ms: float
    loss_percent: float
    reorder_percent: float
    down_mbps: float
    up_mbps: float
    queue_ms: float
    hops: int


def random_path(rng: random.Random) -> WanPath:
    """Draw a path: the round trip is twice `delay_ms`, log-uniform over 1-120 ms."""
    delay_ms = 0.5 * 120 ** rng.random()
    down_mbps = 2 * 50 ** rng.random()
    return WanPath(
        delay_ms=round(delay_ms, 3),
        jitter_ms=round(delay_ms * rng.uniform(0, 0.1), 3),
        loss_percent=rng.choice([0, 0, 0, 0.1, 0.3, 0.5, 1, 2]),
        reorder_percent=rng.choice([0, 0, 0, 0.2, 1]),
        down_mbps=round(down_mbps, 2),
        up_mbps=round(down_mbps * rng.choice([0.2, 0.5, 1]), 2),
        queue_ms=rng.choice([50, 100, 200]),
        hops=rng.randint(3, 18),
    )


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=not check)


def set_sysctls(namespace: str, values: dict[str, str | int]) -> None:
    settings = [f"{name}={value}" for name, value in values.items()]
    command = ["ip", "netns", "exec", namespace, "sysctl", "-qw", *settings]
    subprocess.run(command, check=True)


def disable_offload(namespace: str, interface: str) -> None:
    """Make the kernel put on the link what a wire would carry: whole checksums, one packet per MTU."""
    features = ["rx", "off", "tx", "off", "sg", "off", "tso", "off", "gso", "off", "gro", "off"]
    command = ["ip", "netns", "exec", namespace, "ethtool", "-K", interface, *features]
    subprocess.run(command, check=True, capture_output=True)


def add_router() -> None:
    ip("netns", "add", ROUTER)
    set_sysctls(ROUTER, {"net.ipv6.conf.all.disable_ipv6": 1, "net.ipv6.conf.default.disable_ipv6": 1})
    set_sysctls(
        ROUTER,
        {"net.ipv4.ip_forward": 1, "net.ipv4.conf.all.rp_filter": 0, "net.ipv4.conf.default.rp_filter": 0},
    )
    ip("-n", ROUTER, "link", "set", "lo", "up")
    for bridge, address in (("clients", CLIENT_GATEWAY), ("servers", SERVER_GATEWAY)):
        ip("-n", ROUTER, "link", "add", bridge, "type", "bridge")
        ip("-n", ROUTER, "address", "add", f"{address}/16", "dev", bridge)
        ip("-n", ROUTER, "link", "set", bridge, "up")
        ip("-n", ROUTER, "rule", "add", "iif", bridge, "lookup", "100")
        disable_offload(ROUTER, bridge)
    ip("-n", ROUTER, "tuntap", "add", "dev", "wan0", "mode", "tun")
    ip("-n", ROUTER, "link", "set", "wan0", "txqueuelen", "2000", "up")
    ip("-n", ROUTER, "route", "add", "default", "dev", "wan0", "table", "100")


def add_host(namespace: str, bridge: str) -> None:
    port = namespace.removeprefix("lab-")
    ip("netns", "add", namespace)
    set_sysctls(namespace, {"net.ipv6.conf.all.disable_ipv6": 1, "net.ipv6.conf.default.disable_ipv6": 1})
    ip("-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", ROUTER)
    ip("-n", ROUTER, "link", "set", port, "master", bridge, "up")
    ip("-n", namespace, "link", "set", "lo", "up")
    disable_offload(namespace, "eth0")
    disable_offload(ROUTER, port)


def configure_host(namespace: str, address: str, gateway: str, stack: TcpStack) -> None:
    """Give the host its address and the manners of an operating system."""
    ip("-n", namespace, "address", "flush", "dev", "eth0")
    ip("-n", namespace, "link", "set", "eth0", "mtu", str(stack.mtu), "up")
    ip("-n", namespace, "address", "add", f"{address}/16", "dev", "eth0")
    # As an attribute of the route, the congestion control is free to choose even where its sysctl is locked.
    control = ["congctl", stack.congestion_control]
    ip("-n", namespace, "route", "replace", "default", "via", gateway, *control)
    set_sysctls(
        namespace,
        {
            "net.ipv4.ip_default_ttl": stack.ttl,
            "net.ipv4.tcp_timestamps": stack.timestamps,
            "net.ipv4.tcp_sack": stack.sack,
            "net.ipv4.tcp_window_scaling": stack.window_scaling,
            "net.ipv4.tcp_ecn": stack.ecn,
            "net.ipv4.tcp_rmem": f"4096 {stack.receive_buffer_bytes} 6291456",
            "net.ipv4.ip_local_port_range": stack.ports,
        },
    )


def set_resolver(namespace: str, server_address: str) -> None:
    """`ip netns exec` mounts this file over /etc/resolv.conf."""
    directory = Path("/etc/netns") / namespace
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "resolv.conf").write_text(f"nameserver {server_address}\nsearch lab.example\n")


def lab_namespaces() -> list[str]:
    directory = Path("/run/netns")
    return sorted(entry.name for entry in directory.glob("lab-*")) if directory.exists() else []


def remove_network() -> None:
    """End every process that lives in the lab's namespaces, then the namespaces themselves."""
    for namespace in lab_namespaces():
        listing = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
        for process_id in listing.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process_id), signal.SIGKILL)
        ip("netns", "delete", namespace, check=False)
        shutil.rmtree(Path("/etc/netns") / namespace, ignore_errors=True)
    with contextlib.suppress(OSError):
        Path("/etc/netns").rmdir()  # Only if nobody else keeps files there.


def start_forwarder(seed: int) -> subprocess.Popen[str]:
    command = ["ip", "netns", "exec", ROUTER, sys.executable, __file__, str(seed)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)


def set_path(forwarder: subprocess.Popen[str], client_address: str, path: WanPath) -> None:
    assert forwarder.stdin is not None
    forwarder.stdin.write(json.dumps({"client": client_address, "path": asdict(path)}) + "\n")
    forwarder.stdin.flush()


def open_tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def cross_hops(packet: bytearray, hops: int) -> None:
    """Lower the TTL as `hops` routers would, and correct the header checksum (RFC 1624)."""
    packet[8] -= hops
    checksum = struct.unpack_from("!H", packet, 10)[0] + (hops << 8)
    struct.pack_into("!H", packet, 10, (checksum & 0xFFFF) + (checksum >> 16))


def forward_packets(tun: int, control: int, rng: random.Random) -> None:
    paths: dict[bytes, WanPath] = {}
    link_free_s: dict[tuple[bytes, bool], float] = {}
    last_arrival_s: dict[tuple[bytes, bool], float] = {}
    in_flight: list[tuple[float, int, bytes]] = []
    sequence = 0
    while True:
        now_s = time.monotonic()
        while in_flight and in_flight[0][0] <= now_s:
            os.write(tun, heapq.heappop(in_flight)[2])
        wait_s = max(0.0, in_flight[0][0] - time.monotonic()) if in_flight else 1.0
        readable, _, _ = select.select([tun, control], [], [], wait_s)
        if control in readable:
            orders = os.read(control, 65536).splitlines()
            if not orders:
                return
            for order in map(json.loads, orders):
                paths[bytes(map(int, order["client"].split(".")))] = WanPath(**order["path"])
        if tun not in readable:
            continue
        packet = bytearray(os.read(tun, 65536))
        now_s = time.monotonic()
        is_up = packet[12:14] == CLIENT_PREFIX
        client = bytes(packet[12:16] if is_up else packet[16:20])
        path = paths.get(client)
        if path is None or packet[0] >> 4 != 4 or packet[8] <= path.hops:
            continue
        rate_mbps = path.up_mbps if is_up else path.down_mbps
        direction = (client, is_up)
        start_s = max(now_s, link_free_s.get(direction, 0.0))
        queue_is_full = (start_s - now_s) * 1e3 > path.queue_ms
        if queue_is_full or rng.random() * 100 < path.loss_percent:
            continue
        link_free_s[direction] = start_s + len(packet) * 8 / (rate_mbps * 1e6)
        arrival_s = link_free_s[direction] + (path.delay_ms + rng.random() * path.jitter_ms) / 1e3
        if rng.random() * 100 < path.reorder_percent:
            arrival_s += rng.uniform(0.5, 5) / 1e3
        else:
            arrival_s = max(arrival_s, last_arrival_s.get(direction, 0.0))
            last_arrival_s[direction] = arrival_s
        cross_hops(packet, path.hops)
        sequence += 1
        heapq.heappush(in_flight, (arrival_s, sequence, bytes(packet)))


if __name__ == "__main__":
    forward_packets(open_tun("wan0"), sys.stdin.fileno(), random.Random(int(sys.argv[1])))
