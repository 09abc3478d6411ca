"""
What must not move a result: threads, hash seeds, time zones, languages, working folders, the order of flags and files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdiffusion_core import dataset, storage
from netdiffusion_core.cli import main
from netdiffusion_core.flow_files import SLICE_FLOWS
from netdiffusion_core.manifest import folder_digest

SAMPLE = Path(__file__).parents[1] / "netdiffusion_core/samples/lab"
SURROUNDINGS: list[dict[str, str]] = [
    {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"},
    {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7", "TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8"},
]
FLAGS = [("--rules", "tcp,udp", "--compare", "bootstrap"), ("--compare", "bootstrap", "--rules", "udp,tcp,ipv4")]


def run(place: Path, environment: dict[str, str], flags: tuple[str, ...], labels: Sequence[str]) -> dict[str, Any]:
    """
    Run in a folder of its own on copies of the sample made in this order; return what must be equal.
    """
    place.mkdir(exist_ok=True)
    for label in labels:
        shutil.copytree(SAMPLE / label, place / "data" / label)
    words = [
        "run",
        "data",
        "-o",
        "out",
        "--backend",
        "bernoulli",
        "--flows",
        "5",
        "--max-packets",
        "24",
        "--seed",
        "3",
        "-q",
    ]
    words += ["--evaluators", "fidelity,novelty", *flags]
    subprocess.run(
        [sys.executable, "-m", "netdiffusion_core", *words],
        cwd=place,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
    )
    report = json.loads((place / "out/report.json").read_text())
    digests = {part: folder_digest(place / "out" / part) for part in ("encoded", "model", "generated", "synthetic")}
    return digests | {key: value for key, value in report.items() if key not in ("manifest", "repairs")}


def test_a_result_depends_on_data_settings_and_seed_alone(tmp_path: Path) -> None:
    labels = ["redis", "dns", "ping"]
    one = run(tmp_path / "one", SURROUNDINGS[0], FLAGS[0], labels)
    two = run(tmp_path / "another place", SURROUNDINGS[1], FLAGS[1], labels[::-1])
    assert one.keys() == two.keys()
    for key in one:
        assert one[key] == two[key], key


KILLER = """
import os, signal
from netdiffusion_core import hookimpl

@hookimpl
def netdiffusion_stage_started(stage):
    if stage == "check":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_neither_processes_nor_an_interruption_move_a_result(tmp_path: Path) -> None:
    """
    There are flows for three slices, so that processes have something to divide.
    """
    labels = ["redis", "dns", "ping"]
    flags = (*FLAGS[0], "--flows", "450", "--max-packets", "8", "--evaluators", "fidelity,timing", "--set")
    one, two = (run(tmp_path / f"{n}", SURROUNDINGS[0], (*flags, f"executor.processes={n}"), labels) for n in (1, 2))
    killer = tmp_path / "killer.py"
    killer.write_text(KILLER)
    with pytest.raises(subprocess.CalledProcessError, match="SIGKILL"):
        run(tmp_path / "killed", SURROUNDINGS[0], (*flags, "executor.processes=2", "--plugin", str(killer)), labels)
    three = run(tmp_path / "killed", SURROUNDINGS[0], (*flags, "executor.processes=2", "--resume"), ())
    for key in one:
        assert one[key] == two[key] == three[key], key


@pytest.mark.usefixtures("alone")
def test_no_slice_repeats_another() -> None:
    words = ["--backend", "bernoulli", "--max-packets", "4", "--compare=", "--evaluators=", "--classes", "redis", "-q"]
    assert main(["run", str(SAMPLE), "-o", "out", "--flows", str(SLICE_FLOWS + 20), *words]) == 0
    generated = storage.load(Path("out/generated"))
    first, second = (generated.select(np.arange(20) + i).rows for i in (0, SLICE_FLOWS))
    assert not np.array_equal(first, second)
    hosts = dataset.load(Path("out/synthetic")).flows.initiator_addresses
    assert len(np.unique(hosts, axis=0)) == SLICE_FLOWS + 20
