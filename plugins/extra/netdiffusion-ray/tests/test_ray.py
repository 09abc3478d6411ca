"""
A run on a Ray cluster on this machine, a worker of which is killed half-way: the same bytes as in one process.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import netdiffusion_core
from netdiffusion_core.cli import main
from netdiffusion_core.manifest import folder_digest

SAMPLE = Path(netdiffusion_core.__file__).parent / "samples/lab"


def kill_a_worker(killed: list[int], stop: threading.Event) -> None:
    """
    Wait for a worker process that is at a piece of work, and kill it.
    """
    while not stop.is_set():
        for entry in Path("/proc").iterdir():
            try:
                busy = entry.name.isdigit() and b"ray::_Worker.do" in (entry / "cmdline").read_bytes()
                if busy:
                    os.kill(int(entry.name), signal.SIGKILL)
                    killed.append(int(entry.name))
                    return
            except OSError:
                continue
        time.sleep(0.002)


def outcome(run: Path) -> dict[str, Any]:
    report = json.loads((run / "report.json").read_text())
    digests = {part: folder_digest(run / part) for part in ("encoded", "model", "generated", "synthetic")}
    return digests | {"scores": report["scores"], "repairs": report["repairs"]}


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="there is no /proc to find workers in")
def test_a_run_with_a_lost_worker_gives_the_bytes_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for label in ("dns", "ntp"):
        shutil.copytree(SAMPLE / label, tmp_path / "data" / label)
    words = ["run", "data", "--backend", "bernoulli", "--compare", "", "--evaluators", "timing,compliance", "-q"]
    words += ["--flows", "600", "--max-packets", "8"]
    assert main([*words, "-o", "here", "--set", "executor.processes=1"]) == 0
    killed: list[int] = []
    stop = threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=(killed, stop))
    killer.start()
    try:
        assert main([*words, "-o", "there", "--executor", "ray"]) == 0
    finally:
        stop.set()
        killer.join()
    assert killed
    here, there = outcome(tmp_path / "here"), outcome(tmp_path / "there")
    for key in here:
        assert here[key] == there[key], key
