"""
Time and memory of encode, of repair, check and write, and of evaluate, for a thousand flows and for many more, or for
one large capture.

The flows are those of the bundled sample, drawn with replacement, with 64 packets each and other addresses; a large
capture holds copies of the whole sample, each with other addresses. Memory is the peak of all processes of a stage
together, without the pages of mapped files (RssAnon of Linux): those are the page cache's, and are given back when
somebody else needs them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import attrs
import numpy as np
from rich.console import Console
from rich.table import Table

from netdiffusion_core import pipeline, slices, storage
from netdiffusion_core.capture import write_capture
from netdiffusion_core.config import RunConfig
from netdiffusion_core.context import Context
from netdiffusion_core.flow_files import SLICE_FLOWS
from netdiffusion_core.model import Encoded
from netdiffusion_core.plugins import Plugins

SAMPLE = Path(__file__).parents[1] / "netdiffusion_core/samples/lab"
PACKETS = 64
STAGES = ("encode", "repair, check, write", "evaluate")
ONE_CAPTURE = ("encode a capture", "repair a capture", "check a capture", "evaluate a capture")
BLOCK_S = 60  # of a large capture: the flows of a copy of the sample begin within so many seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flows", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, len(os.sched_getaffinity(0))])
    parser.add_argument("--capture-gb", type=float, help="one capture of that size instead (5: 40 GB of space)")
    parser.add_argument("--folder", type=Path, help="where the flows are written (100,000: tens of GB); else TMPDIR")
    parser.add_argument("--evaluators", default="", help="by comma; all if none is named")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        work(given.stage, given.folder, given.processes[0], given.evaluators)
        return
    table = Table(box=None, header_style="bold")
    for name in ("flows", "packets", "stage", "processes", "s", "packets/s", "peak MiB"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for size in [given.capture_gb] if given.capture_gb else given.flows:
        with tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-") as place:
            folder = Path(place)
            if given.capture_gb:
                flows, packets = make_capture(folder / "large.pcap", size)
            else:
                make(folder, size)
                flows, packets = size, size * PACKETS
            for stage in ONE_CAPTURE if given.capture_gb else STAGES:
                for processes in dict.fromkeys(given.processes):
                    words = ["--stage", stage, "--folder", place, "--processes", str(processes)]
                    seconds, mib = measure([*words, "--evaluators", given.evaluators])
                    row = (f"{flows:,}", f"{packets:,}", stage, str(processes), f"{seconds:.1f}")
                    table.add_row(*row, f"{packets / seconds:,.0f}", f"{mib:,}")
                    print(f"{flows} flows, {stage}, {processes} processes: {seconds:.1f} s, {mib} MiB", file=sys.stderr)
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")
    Console(width=100).print(table)


def make(folder: Path, flows: int) -> None:
    """
    Write so many flows into ``folder/data/CLASS/train`` and ``test``, some captures a class.
    """
    plugins = Plugins.discover()
    config = RunConfig(data=SAMPLE, max_packets=PACKETS)
    encoder, config = pipeline.prepare_encoder(config, plugins)
    sample = encoder.encode(pipeline.load(config, plugins))
    sample = sample.select(np.flatnonzero(sample.lengths))
    rng = np.random.default_rng(0)
    for number, first in enumerate(range(0, flows, SLICE_FLOWS)):
        drawn = np.sort(rng.integers(0, len(sample), min(SLICE_FLOWS, flows - first)))
        chosen = sample.select(drawn)
        repeated = np.arange(PACKETS) % chosen.lengths[:, None] + chosen.starts[:-1, None]
        rows = chosen.rows[repeated.ravel()]
        identification = rows[:, sample.layout.span("ipv4.id")]  # so that no two flows are the same
        identification[identification >= 0] = rng.integers(0, 2, int((identification >= 0).sum()))
        bits = Encoded(
            rows=rows,
            starts=PACKETS * np.arange(len(drawn) + 1),
            labels=chosen.labels,
            start_times=chosen.start_times + 1_000_000_000 * number,
            layout=chosen.layout,
        )
        traffic = encoder.decode(bits, np.random.default_rng(number))
        part = "test" if number % 3 == 2 or flows <= SLICE_FLOWS else "train"
        for label in np.unique(chosen.labels):
            mine = traffic.select_flows(traffic.flows.labels == label)
            halves = {part: mine} if flows > 3 * SLICE_FLOWS else halved(mine)
            for name, half in halves.items():
                target = folder / "data" / str(label) / name
                target.mkdir(parents=True, exist_ok=True)
                write_capture(target / f"{number:05d}.pcap", half)


def make_capture(path: Path, gigabytes: float) -> tuple[int, int]:
    """
    Write one capture of that size: copies of the sample with other addresses, one after the other. Return the number of
    its flows and packets.
    """
    plugins = Plugins.discover()
    config = RunConfig(data=SAMPLE)
    encoder, config = pipeline.prepare_encoder(config, plugins)
    sample = encoder.encode(pipeline.load(config, plugins))
    flows = packets = 0
    part = path.with_name("part.pcap")
    with path.open("wb") as file:
        for number in itertools.count():
            rng = np.random.default_rng(number)
            begin = 1_700_000_000 + BLOCK_S * (number + rng.random(len(sample)))
            block = encoder.decode(attrs.evolve(sample, start_times=(begin * 1e9).astype(np.int64)), rng)
            write_capture(part, block, np.argsort(block.timestamps, kind="stable"))
            file.write(part.read_bytes()[24 if number else 0 :])
            flows, packets = flows + len(block.flows), packets + len(block)
            if file.tell() > gigabytes * 1e9:
                break
    part.unlink()
    return flows, packets


def halved(traffic: pipeline.Traffic) -> dict[str, pipeline.Traffic]:
    flows = np.arange(len(traffic.flows))
    return {"test": traffic.select_flows(flows % 3 == 0), "train": traffic.select_flows(flows % 3 > 0)}


def work(stage: str, folder: Path, processes: int, evaluators: str) -> None:
    """
    Do one stage, in a process of its own.
    """
    data, bits, synthetic, large = (folder / name for name in ("data", "bits", "synthetic", "large.pcap"))
    cut, some = ["--max-packets", PACKETS], ["--evaluators", evaluators] if evaluators else []
    commands = {
        "encode": ["encode", data, "-o", bits, *cut],
        "evaluate": ["evaluate", data, synthetic, "-o", folder / "report", *cut, *some],
        "encode a capture": ["encode", large, "-o", bits],
        "repair a capture": ["repair", large, "-o", synthetic],
        "check a capture": ["check", synthetic / large.name],
        "evaluate a capture": ["evaluate", large, synthetic / large.name, "-o", folder / "report", *some],
    }
    if stage in commands:
        words = [*commands[stage], "--set", f"executor.processes={processes}", "-q"]
        if "-o" in words:
            words.append("--overwrite")
        os.execv(sys.executable, [sys.executable, "-m", "netdiffusion_core", *map(str, words)])
    plugins = Plugins.discover()
    config = RunConfig(executor_options={"processes": processes})
    made_by = storage.read_encoder(folder / "bits")
    context = Context(encoder=plugins.create("encoder", made_by["name"], made_by["options"]))
    context = attrs.evolve(context, rules=pipeline.prepare_rules(config, plugins)[0])
    for name in ("synthetic", "working"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "working").mkdir()
    with pipeline.prepare_executor(config, plugins) as executor:
        shop = slices.Workshop(plugins=plugins, context=context, executor=executor, folder=folder / "working")
        made = shop.finish(folder / "bits", folder / "working" / "made", with_changes=True)
        shop.check(made.folder)
        shop.write(made.folder, folder / "synthetic")
    shutil.rmtree(folder / "working")


def measure(words: list[str]) -> tuple[float, int]:
    """
    Return the seconds that a stage takes, and the peak of its processes' anonymous memory in MiB.
    """
    start, peak_kib = time.perf_counter(), 0
    child = subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.DEVNULL)
    while child.poll() is None:
        peak_kib = max(peak_kib, sum(map(anonymous_kib, tree(child.pid))))
        time.sleep(0.05)
    if child.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {child.returncode}")
    return time.perf_counter() - start, peak_kib >> 10


def tree(pid: int) -> list[int]:
    """
    Return a process and all below it.
    """
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [p for child in (task / "children").read_text().split() for p in tree(int(child))]
    except OSError:
        pass
    return found


def anonymous_kib(pid: int) -> int:
    """
    Return the memory of a process that no file stands behind; 0 when it has ended.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    main()
