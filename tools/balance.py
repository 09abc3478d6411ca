"""
Does it help to top up rare classes with synthetic flows? Half of the classes keep a tenth of their training flows, a
model learns from what is left and tops them up, and a random forest that learned the result is asked about real test
flows.

    .venv/bin/python tools/balance.py DATA OUTPUT [--classes a,b] [--flows 25] [--seed 0] [--set backend.steps=100]

DATA is LABEL/train/*.pcap and LABEL/test/*.pcap. All that is measured is measured by `netdiff`: the model never sees a
flow that was cut, unlike in the figure ``utility.balanced_recall``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

KEPT = 0.1
NETDIFF = (sys.executable, "-m", "netdiffusion_core")


def main() -> None:
    """
    Print a line a training set.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--classes", default="")
    parser.add_argument("--compare", default="bernoulli", help="other backends that top up")
    parser.add_argument("--max-packets", default="64")
    parser.add_argument("--flows", type=int, default=0, help="real training flows of a class at most; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="options of stable-diffusion, for netdiff fit")
    a = parser.parse_args()

    rng = np.random.default_rng(a.seed)
    labels = a.classes.split(",") if a.classes else sorted(p.parent.name for p in a.data.glob("*/train"))
    rare = sorted(rng.permutation(labels)[: len(labels) // 2].tolist())
    real = {label: sorted((a.data / label / "train").glob("*.pcap*")) for label in labels}
    if a.flows:
        real = {label: some(files, a.flows, rng) for label, files in real.items()}
    left = real | {label: some(real[label], max(2, round(KEPT * len(real[label]))), rng) for label in rare}
    missing = max(len(real[label]) - len(left[label]) for label in rare)
    cut = link(a.output / "cut", {f"{label}/train": files for label, files in left.items()})
    for label in labels:
        (cut / label / "test").symlink_to((a.data / label / "test").resolve())

    common = ["--max-packets", a.max_packets, "--seed", str(a.seed), "-q"]
    sets = {"a tenth, real": left, "all, real": real}
    for backend in ("stable-diffusion", *filter(None, a.compare.split(","))):
        model, made = a.output / f"model-{backend}", a.output / f"made-{backend}"
        options = [word for setting in a.set if backend == "stable-diffusion" for word in ("--set", setting)]
        netdiff("fit", cut, "-o", model, "--backend", backend, *common, *options)
        wanted = ("--classes", ",".join(rare), "--flows", missing, "--rules", "tcp,udp,icmp")
        netdiff("generate", model, "-o", made, *wanted, *common)
        new = {label: sorted((made / label).glob("*.pcap")) for label in rare}
        sets[f"topped up by {backend}"] = left | {
            label: left[label] + new[label][: len(real[label]) - len(left[label])] for label in rare
        }

    print(f"{len(labels)} classes, of which {len(rare)} keep {KEPT:.0%} of their training flows: {', '.join(rare)}")
    for name, files in sets.items():
        folder = link(a.output / name.replace(" ", "-").replace(",", ""), files)
        judged = netdiff(
            "evaluate", a.data, folder, "--classes", ",".join(labels), "--evaluators", "utility", "--json", *common
        )
        for score in json.loads(judged):
            if score["name"] in ("utility.accuracy", "utility.statistics_accuracy"):
                recall = np.mean([score["detail"]["per_class"][label]["value"] for label in rare])
                print(f"{name:32} {score['name']:28} recall of the rare classes {recall:.3f}, all {score['value']:.3f}")


def some(files: list[Path], count: int, rng: np.random.Generator) -> list[Path]:
    """
    Draw so many files.
    """
    return [files[i] for i in np.sort(rng.permutation(len(files))[:count])]


def link(folder: Path, files: dict[str, list[Path]]) -> Path:
    """
    Make ``folder/LABEL/00001.pcap`` and so on, links to these files.
    """
    for label, paths in files.items():
        (folder / label).mkdir(parents=True)
        for i, path in enumerate(paths, start=1):
            (folder / label / f"{i:05d}{path.suffix}").symlink_to(path.resolve())
    return folder


def netdiff(*words: object) -> str:
    """
    Run a command and return what it prints.
    """
    return subprocess.run([*NETDIFF, *map(str, words)], check=True, text=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    main()
