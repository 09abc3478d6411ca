"""
What must not move a result: threads, hash seeds, time zones, languages, working folders, the order of flags and files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from netdiffusion_core.manifest import folder_digest

SAMPLE = Path(__file__).parents[1] / "netdiffusion_core/samples/lab"
SURROUNDINGS: list[dict[str, str]] = [
    {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"},
    {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7", "TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8"},
]
FLAGS = [("--rules", "tcp,udp", "--compare", "bootstrap"), ("--compare", "bootstrap", "--rules", "udp,tcp,ipv4")]


def run(place: Path, environment: dict[str, str], flags: tuple[str, ...], labels: list[str]) -> dict[str, Any]:
    """
    Run in a folder of its own on copies of the sample made in this order; return what must be equal.
    """
    place.mkdir()
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
