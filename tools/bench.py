"""
Speed and memory of the capture layer and the nprint encoder, beside dpkt and scapy on the same file in the same run,
and of the embedded model.

Times are CPU seconds of one process with one thread, the best of several; start-up is not counted. The model may use
all cores, and its times are those of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import dpkt
import numpy as np
import scapy
from rich.console import Console
from rich.table import Table
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import PcapReader

from netdiffusion_core import pipeline
from netdiffusion_core.capture import assemble, read_capture, write_capture
from netdiffusion_core.context import Context
from netdiffusion_core.model import concatenate
from netdiffusion_core.plugins import Plugins
from netdiffusion_nprint.encoder import NprintEncoder, Options

SAMPLE = Path(__file__).parents[1] / "netdiffusion_core/samples/lab"
PACKETS = 200_000
SCAPY_PACKETS = 10_000
PEAK = """
import re, sys, threading, time
from pathlib import Path
from netdiffusion_core.capture import assemble, read_capture
peak = 0
def watch():  # RssAnon: pages of mapped files are the page cache's
    global peak
    while True:
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
time.sleep(0.1)
before = peak
traffic = read_capture(Path(sys.argv[1]))
read = peak
assemble(traffic)
print(len(traffic), before >> 10, read >> 10, peak >> 10)
"""
MODEL = """
import re, sys, time
from pathlib import Path
import attrs, numpy as np
from netdiffusion_core.context import Context
from netdiffusion_core.model import Encoded, SampleRequest
from netdiffusion_nprint.encoder import NprintEncoder, Options
from netdiffusion_core.capture import assemble, read_capture
from netdiffusion_stable_diffusion.backend import Options as ModelOptions, StableDiffusion
height, flows = int(sys.argv[2]), int(sys.argv[3])
encoder = NprintEncoder(Options())
rows = np.resize(encoder.encode(assemble(read_capture(Path(sys.argv[1])))).rows, (8 * height, encoder.layout.width))
data = Encoded(rows=rows, starts=height * np.arange(9), labels=np.full(8, "x"), start_times=np.zeros(8, np.int64),
               layout=encoder.layout)
backend = StableDiffusion(ModelOptions(steps=0))
backend.fit(data, Context(seed=0))
backend.sample(SampleRequest(labels=("x",), max_packets=height, seed=1), Context(seed=1))
start = time.perf_counter()
made = backend.sample(SampleRequest(labels=("x",) * flows, max_packets=height, seed=0), Context(seed=0))
seconds = time.perf_counter() - start
peak_mib = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10
print(seconds, len(made.rows), peak_mib)
"""
MODEL_WORK = ((64, 128), (1024, 8))
"""Packets of a flow, and how many flows."""


def main() -> None:
    """
    Measure, and print a table or JSON.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capture", type=Path, help="measure on this pcap and not on the bundled sample, repeated")
    parser.add_argument("--gigabytes", type=float, default=1, help="size of the capture for the peak of memory")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        capture = arguments.capture or sample(Path(folder) / "sample.pcap")
        speeds = dict(measure(capture, Path(folder), arguments.repeat))
        flow = one_flow(Path(folder), arguments.repeat)
        memory = peak_memory(Path(folder) / "large.pcap", arguments.gigabytes)
    model = [model_speed(height, flows) for height, flows in MODEL_WORK]
    result = {"machine": machine(), "capture": str(arguments.capture or "the bundled sample, repeated"), **speeds}
    if arguments.json:
        print(json.dumps(result | {"one flow": flow, "memory": memory, "model": model}, indent=2))
    else:
        show(result, flow, memory, model)


def sample(path: Path) -> Path:
    """
    Write the bundled sample again and again, a thousand seconds apart, until there are enough packets.
    """
    once = concatenate([read_capture(f) for f in sorted(SAMPLE.rglob("*.pcap"))])
    copies = -(-PACKETS // len(once))
    many = once.select_packets(np.tile(np.arange(len(once)), copies)[:PACKETS])
    later = np.repeat(np.arange(copies) * 1_000_000_000_000, len(once))[:PACKETS]
    write_capture(path, attrs.evolve(many, timestamps=many.timestamps + later))
    return path


def measure(capture: Path, folder: Path, repeat: int) -> Iterator[tuple[str, Any]]:
    """
    Yield ``("read", packets a second)`` and so on.
    """
    encoder = NprintEncoder(Options())

    def best(work: Callable[[], Any], units: int | None = None) -> tuple[float, Any]:
        seconds = []
        for _ in range(repeat):
            start = time.process_time()
            result = work()
            seconds.append(time.process_time() - start)
        return (len(result) if units is None else units) / min(seconds), result

    def text() -> None:
        path = folder / "x.npt"
        path.unlink(missing_ok=True)
        encoder.write(read_capture(capture), path, "nprint")

    speed, traffic = best(lambda: read_capture(capture))
    yield "packets", len(traffic)
    yield "read", speed
    speed, flows = best(lambda: assemble(traffic))
    yield "assemble", speed
    speed, encoded = best(lambda: encoder.encode(flows), len(traffic))
    yield "encode", speed
    speed, _ = best(lambda: encoder.encode(assemble(read_capture(capture))), len(traffic))
    yield "capture to bits", speed
    speed, _ = best(lambda: encoder.decode(encoded, np.random.default_rng(0)), len(encoded.rows))
    yield "decode", speed
    speed, _ = best(lambda: write_capture(folder / "x.pcap", traffic), len(traffic))
    yield "write", speed
    speed, _ = best(text, len(traffic))
    yield "capture to nPrint's text", speed
    speed, _ = best(lambda: with_dpkt(capture), None)
    yield "dpkt: read and parse", speed
    speed, _ = best(lambda: with_scapy(capture), None)
    yield "scapy: read and parse", speed


def one_flow(folder: Path, repeat: int) -> dict[str, float]:
    """
    Time the way of one flow of 1,024 packets, milliseconds: all rule sets on bits drawn independently from those of
    the sample's TCP flows, the same where the headers must be found first, and the whole way from NetDiffusion's PNG
    image of it to a pcap.
    """
    plugins = Plugins.discover()
    names, _ = plugins.resolve_rules(["tcp", "udp", "icmp"])
    rules = tuple((name, plugins.create("rules", name)) for name in names)
    encoder, context = NprintEncoder(Options()), Context(seed=0)
    encoded = encoder.encode(assemble(read_capture(SAMPLE / "https-page" / "train.pcap")))
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(encoded.rows), (1024, encoded.layout.width // 8)).repeat(8, 1)  # byte by byte
    rows = np.take_along_axis(encoded.rows, drawn, 0)
    dream = attrs.evolve(encoded.select(np.array([0])), rows=rows, starts=np.array([0, 1024]))
    image, pcap = folder / "x.png", folder / "x.pcap"

    def best_ms(work: Callable[[], Any]) -> float:
        seconds: list[float] = []
        while sum(seconds) < repeat:  # one takes so little that whatever else the machine does shows in most of them
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
        return 1000 * min(seconds)

    def mend() -> None:
        pipeline.constrain(dream, rules)
        pipeline.repair(decoded, rules, context)

    def mend_unknown() -> None:  # the rules remember where the headers of an object are, and these are new ones
        pipeline.constrain(attrs.evolve(dream), rules)
        pipeline.repair(attrs.evolve(decoded), rules, context)

    def image_to_pcap() -> None:
        bits = encoder.encode(assemble(pipeline.read_packets(image, plugins)))
        bits, _ = pipeline.constrain(bits, rules)
        mended, _ = pipeline.repair(encoder.decode(bits, rng), rules, context)
        write_capture(pcap, mended)

    decoded = encoder.decode(pipeline.constrain(dream, rules)[0], rng)
    encoder.write(decoded, image, "png")
    works = {"rules": mend, "rules_and_headers": mend_unknown, "image_to_pcap": image_to_pcap}
    return {f"{name}_ms": best_ms(work) for name, work in works.items()}


def with_dpkt(capture: Path) -> list[tuple[float, int, int]]:
    """
    Read all packets with dpkt, down to the ports.
    """
    found = []
    with capture.open("rb") as file:
        for timestamp, octets in dpkt.pcap.Reader(file):
            try:
                ip = dpkt.ethernet.Ethernet(octets).data
            except dpkt.UnpackError:  # a damaged packet
                ip = None
            transport = ip.data if isinstance(ip, dpkt.ip.IP | dpkt.ip6.IP6) else None
            ports = isinstance(transport, dpkt.tcp.TCP | dpkt.udp.UDP)
            found.append((timestamp, transport.sport if ports else 0, transport.dport if ports else 0))
    return found


def with_scapy(capture: Path) -> list[tuple[float, int, int]]:
    """
    Read the first packets with scapy, down to the ports.
    """
    found = []
    with PcapReader(str(capture)) as reader:
        for packet in reader:
            transport = packet[IP].payload if IP in packet else None
            ports = isinstance(transport, TCP | UDP)
            found.append((float(packet.time), transport.sport if ports else 0, transport.dport if ports else 0))
            if len(found) == SCAPY_PACKETS:
                break
    return found


def peak_memory(path: Path, gigabytes: float) -> dict[str, float]:
    """
    Read a large capture of packets of 700 bytes, all of one flow, in a process of its own, and tell its peaks of
    memory, without the pages of mapped files.
    """
    frame = bytes(Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / bytes(658))
    record = struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1))
        while file.tell() < gigabytes * 1e9:
            file.write(record * 10_000)
    size = path.stat().st_size
    command = [sys.executable, "-c", PEAK, str(path)]
    packets, before, read, assembled = map(float, subprocess.check_output(command, text=True).split())
    path.unlink()
    return {
        "capture_bytes": size,
        "packets": packets,
        "start_mib": before,
        "peak_mib_read": read,
        "peak_mib_assembled": assembled,
    }


def model_speed(height: int, flows: int) -> dict[str, float]:
    """
    Sample flows of so many packets from the embedded base, in a process of its own.
    """
    command = [sys.executable, "-c", MODEL, str(SAMPLE / "https-page" / "train.pcap"), str(height), str(flows)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    seconds, packets, peak = map(float, subprocess.check_output(command, text=True, env=environment).split())
    return {
        "height": height,
        "flows_a_second": flows / seconds,
        "packets_a_second": packets / seconds,
        "peak_mib": peak,
    }


def machine() -> str:
    """
    Name the processor and the versions.
    """
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.open() if line.startswith("model name")), cpu)
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    return f"{cpu}, {versions}, dpkt {dpkt.__version__}, scapy {scapy.VERSION}"


def show(
    result: dict[str, Any], flow: dict[str, float], memory: dict[str, float], model: list[dict[str, float]]
) -> None:
    """
    Print a table for people.
    """
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title=f"{result['capture']}, {result['packets']:,} packets\n{result['machine']}")
    for name in ("", "packets a CPU-second", "times dpkt", "times scapy"):
        table.add_column(name, justify="left" if not name else "right")
    for name, speed in result.items():
        if isinstance(speed, float):
            ratios = (speed / result[f"{other}: read and parse"] for other in ("dpkt", "scapy"))
            table.add_row(name, f"{speed:,.0f}", *(f"{ratio:,.1f}" for ratio in ratios))
    console.print(table)
    console.print(
        f"one flow of 1,024 packets: {flow['rules_ms']:.1f} ms for all rules, {flow['rules_and_headers_ms']:.1f} ms "
        f"with finding the headers, {flow['image_to_pcap_ms']:.1f} ms from image to pcap"
    )
    console.print(
        f"memory: a capture of {memory['capture_bytes'] / 1e9:.1f} GB ({memory['packets']:,.0f} packets) was read with "
        f"a peak of {memory['peak_mib_read']:.0f} MiB, and assembled with {memory['peak_mib_assembled']:.0f} MiB "
        f"(an empty process: {memory['start_mib']:.0f} MiB)"
    )
    for row in model:
        console.print(
            f"embedded model: {row['flows_a_second']:.2f} flows of up to {row['height']:,.0f} packets a second "
            f"({row['packets_a_second']:,.0f} packets), {os.cpu_count()} cores, peak {row['peak_mib']:.0f} MiB"
        )


if __name__ == "__main__":
    main()
