"""
Runs that are killed, stopped or refused: nothing that was finished is lost, and the end is the same.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from netdiffusion_core import manifest, pipeline
from netdiffusion_core.config import RunConfig
from netdiffusion_core.errors import ConfigError
from netdiffusion_core.manifest import files_digest
from netdiffusion_core.plugins import Plugins

pytestmark = pytest.mark.usefixtures("alone")

KILLS = 30
TIMED = {"manifest.json", "report.json", "report.html"}  # they say how long the run took


@pytest.fixture
def config(make_data: Callable[..., Path]) -> RunConfig:
    data = make_data({"web": 7, "dns": 5})
    return RunConfig(data=data, output=Path("out"), encoder="toy", backend="toy-model", rules=("toy-ttl",))


def outcome(folder: Path) -> tuple[str, set[str]]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    digest = files_digest((p for p in files if p.name not in TIMED and p.name != "config.toml"), folder)
    return digest, {str(p.relative_to(folder)) for p in files}


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(config: RunConfig, toy: Plugins) -> None:
    start = time.monotonic()
    pipeline.run(attrs.evolve(config, output=Path("whole")), toy)
    seconds = time.monotonic() - start

    fork = multiprocessing.get_context("fork")
    dice, kills, ends = random.Random(0), 0, 0
    while kills < KILLS:
        child = fork.Process(target=pipeline.run, args=(config, toy), kwargs={"resume": True})
        child.start()
        child.join(dice.uniform(0, 1.2 * seconds))
        assert child.pid is not None
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        if Path("out").exists():
            ends += 1
            assert outcome(Path("out")) == outcome(Path("whole"))
            shutil.rmtree("out")
    pipeline.run(config, toy, resume=True)
    assert outcome(Path("out")) == outcome(Path("whole"))
    Path(".out.partial.lock").unlink(missing_ok=True)  # a killed process leaves it, and it stands in nobody's way
    assert sorted(os.listdir()) == ["data", "out", "whole"]


def test_what_is_finished_is_not_done_again(
    config: RunConfig, toy: Plugins, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.run(attrs.evolve(config, output=Path("whole")), toy)
    with monkeypatch.context() as broken:
        broken.setattr(toy.load("evaluator", "toy-eye"), "evaluate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.run(config, toy)
    assert "go on with --resume" in caplog.text

    with pytest.raises(ConfigError, match=r"an interrupted run of .*out was kept: go on with --resume, or begin anew"):
        pipeline.run(config, toy)
    with pytest.raises(ConfigError, match="the interrupted run was made from other settings"):
        pipeline.run(attrs.evolve(config, seed=5), toy, resume=True)

    with monkeypatch.context() as upgraded:
        upgraded.setattr(manifest, "versions", lambda _: {"toy": "2"})
        with pytest.raises(ConfigError, match="other versions of plugins"):
            pipeline.run(config, toy, resume=True)

    fitted: list[Any] = []
    backend = toy.load("backend", "toy-model")  # the baseline is of the same class
    fit = backend.fit
    monkeypatch.setattr(backend, "fit", lambda self, *rest: (fitted.append(self), fit(self, *rest)))
    pipeline.run(config, toy, resume=True)
    assert fitted == []
    assert outcome(Path("out")) == outcome(Path("whole"))
    assert sorted(os.listdir()) == ["data", "out", "whole"]


def test_changed_data_is_not_mixed_with_what_was_kept(
    config: RunConfig, toy: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(toy.load("evaluator", "toy-eye"), "evaluate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.run(config, toy)
    assert config.data is not None
    first, second, *_ = sorted(config.data.rglob("*.pcap"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(ConfigError, match="other data"):
        pipeline.run(config, toy, resume=True)
    pipeline.run(config, toy, overwrite=True)
    assert sorted(os.listdir()) == ["data", "out"]


def test_two_runs_into_one_folder_exclude_each_other(
    config: RunConfig, toy: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    second: list[Exception] = []

    def evaluate(*_: Any) -> list[Any]:
        try:
            pipeline.run(config, toy, overwrite=True, resume=True)
        except ConfigError as error:
            second.append(error)
        return []

    monkeypatch.setattr(toy.load("evaluator", "toy-eye"), "evaluate", evaluate)
    pipeline.run(config, toy)
    assert "another process is writing" in str(second[0])
    assert sorted(os.listdir()) == ["data", "out"]
