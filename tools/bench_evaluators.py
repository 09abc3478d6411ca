"""
Time all installed evaluators on flows of one length.

    OMP_NUM_THREADS=1 .venv/bin/python tools/bench_evaluators.py [DATA] [--flows 500] [--packets 128]

DATA is LABEL/train, LABEL/test folders or pcaps of a class, by default the bundled sample. The packets of a short flow
are repeated until it is long enough. Synthetic flows are the bootstrap's: training flows, drawn with replacement.
"""

from __future__ import annotations

import argparse
import os
import time
from importlib.resources import files
from pathlib import Path

import attrs
import numpy as np

from netdiffusion_core import dataset
from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import RealTraffic
from netdiffusion_core.model import Traffic
from netdiffusion_core.plugins import Plugins


def cpu_s() -> float:
    """
    Return the CPU time of this process and of those that it started and waited for.
    """
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def stretched(traffic: Traffic, packets: int) -> Traffic:
    """
    Return flows of exactly this many packets: a short flow begins anew a millisecond after its end.
    """
    order, starts = traffic.by_flow()
    lengths = np.diff(starts)
    again, position = np.divmod(np.arange(packets), np.maximum(lengths, 1)[:, None])
    chosen = order[starts[:-1, None] + position]
    first, last = traffic.timestamps[order[starts[:-1]]], traffic.timestamps[order[starts[1:] - 1]]
    shift = again * (last - first + 1_000_000)[:, None]
    part = traffic.select_packets(chosen.ravel())
    return attrs.evolve(part, timestamps=part.timestamps + shift.ravel())


def some(traffic: Traffic, flows: int, rng: np.random.Generator) -> Traffic:
    """
    Draw flows, the same number of each class as nearly as possible, with replacement where a class has too few.
    """
    labels = np.unique(traffic.flows.labels)
    chosen = []
    for rank, label in enumerate(labels):
        own = np.flatnonzero(traffic.flows.labels == label)
        count = flows // len(labels) + (rank < flows % len(labels))
        chosen.append(rng.choice(own, count, replace=count > len(own)))
    parts, (order, starts) = np.concatenate(chosen), traffic.by_flow()
    packets = np.concatenate([order[starts[f] : starts[f + 1]] for f in parts])
    lengths = np.diff(starts)[parts]
    part = traffic.select_packets(packets)
    return attrs.evolve(part, flow_of=np.repeat(np.arange(len(parts)), lengths), flows=traffic.flows.select(parts))


def main() -> None:
    """
    Print a line an evaluator.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("data", nargs="?", type=Path, default=Path(str(files("netdiffusion_core") / "samples/lab")))
    parser.add_argument("--flows", type=int, default=500)
    parser.add_argument("--packets", type=int, default=128)
    arguments = parser.parse_args()

    traffic, rng = dataset.load(arguments.data), np.random.default_rng(0)
    train, test = (traffic.select_flows(traffic.flows.splits == half) for half in ("train", "test"))
    train, test, copies = (
        stretched(some(part, arguments.flows, rng), arguments.packets) for part in (train, test, train)
    )
    plugins = Plugins.discover()
    encoder = plugins.create("encoder", "nprint")
    rules = tuple((name, plugins.create("rules", name)) for name in plugins.names("rules"))
    context = Context(seed=1, encoder=encoder, rules=rules)
    real = RealTraffic(train=train, test=test)
    print(
        f"{arguments.flows} flows of {arguments.packets} packets on each side, {len(set(train.flows.labels))} classes"
    )
    total = {"first": 0.0, "next": 0.0}
    for name in plugins.names("evaluator"):
        evaluator, spent = plugins.create("evaluator", name), []
        for synthetic in (copies, attrs.evolve(copies)):  # the second time as a baseline is judged: the same real flows
            began, clock = cpu_s(), time.perf_counter()
            scores = list(evaluator.evaluate(real, synthetic, context))
            spent.append((cpu_s() - began, time.perf_counter() - clock))
        print(f"{name:14} {len(scores):3} figures " + "   ".join(f"{c:6.1f} CPU-s {w:6.1f} s" for c, w in spent))
        for key, (cpu, _) in zip(total, spent, strict=True):
            total[key] += cpu
    print(f"all: {total['first']:.1f} CPU-s, and {total['next']:.1f} for each further set of synthetic flows")


if __name__ == "__main__":
    main()
