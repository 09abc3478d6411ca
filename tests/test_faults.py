"""
Disks that are full, read-only or limited, and folders that vanish: one sentence, exit code 1, and what was finished is
still there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netdiffusion_core import hookimpl, pipeline
from netdiffusion_core.cli import main
from netdiffusion_core.manifest import folder_digest
from netdiffusion_core.plugins import Plugins

pytestmark = pytest.mark.usefixtures("alone")

SAMPLE = Path(__file__).parents[1] / "netdiffusion_core/samples/lab"
FEW = ["--max-packets", "8", "-q"]
BERNOULLI = ["--backend", "bernoulli", *FEW]
RUN = ["run", "data", "--compare", "bootstrap", "--flows", "2", "--evaluators", "novelty", *BERNOULLI]
COMMANDS = {
    "run": RUN,
    "fit": ["fit", "data", *BERNOULLI],
    "generate": ["generate", "model", "--flows", "9", "-q"],
    "encode": ["encode", "data", *FEW],
    "repair": ["repair", "data", "-q"],
    "decode": ["decode", "bits", "-q"],
    "render": ["render", "data", *FEW],
}

FULL = """
import contextlib, io, json, os, subprocess, sys
from pathlib import Path
from netdiffusion_core.cli import main

def mount(*options):
    subprocess.run(["mount", *options, "tmpfs", "small"], check=True)

def call(*words, place="small/deep"):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    left = sorted({*os.listdir(place)} - {"deep"}) if os.path.exists(place) else []
    return code, said.getvalue().splitlines(), left

rows = []
for name, words in json.loads(sys.argv[1]).items():
    for kib in (4, 48):
        mount("-t", "tmpfs", "-o", f"size={kib}k")
        rows.append((name, kib, *call(*words, "-o", "small/deep/out")))
        mount("-o", "remount,ro")
        rows.append((name, 0, *call(*words, "-o", "small/out", place="small")))
        subprocess.run(["umount", "small"], check=True)

run = [*json.loads(sys.argv[1])["run"], "-o", "small/deep/out"]
made = [p for part in ("encoded", "model") for p in Path("whole", part).rglob("*")]
mount("-t", "tmpfs", "-o", f"size={sum(4 + (p.stat().st_size >> 10) for p in made) + 300}k")  # the rest finds no room
rows.append(("run", 1, *call(*run)))
mount("-o", "remount,size=64m")
rows.append(("resumed", 64 << 10, *call(*run, "--resume")))
subprocess.run(["cp", "-r", "small/deep/out", "resumed"], check=True)
print(json.dumps(rows))
"""

LIMITED = """
import contextlib, io, json, os, resource, sys
from netdiffusion_core.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
rows = []
for name, words in json.loads(sys.argv[1]).items():
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main([*words, "-o", "small/out"])
    rows.append((name, 0, code, said.getvalue().splitlines(), sorted(os.listdir("small"))))
print(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    A folder with ``data`` (two classes of the bundled sample), ``bits``, ``model``, and a finished run ``whole``.
    """
    folder = tmp_path_factory.mktemp("workshop")
    for label in ("ntp", "redis"):
        shutil.copytree(SAMPLE / label, folder / "data" / label)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main([*COMMANDS["encode"], "-o", "bits"]) == 0
        assert main([*COMMANDS["fit"], "-o", "model"]) == 0
        assert main([*RUN, "-o", "whole"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def place(workshop: Path, tmp_path: Path) -> Path:
    """
    A copy of the workshop, as the working folder.
    """
    shutil.copytree(workshop, tmp_path, dirs_exist_ok=True)
    Path("small").mkdir()
    return tmp_path


def rows_of(script: str, *before: str) -> list[list[Any]]:
    command = [*before, sys.executable, "-c", script, json.dumps(COMMANDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def outcome(run: Path) -> list[str]:
    return [folder_digest(run / part) for part in ("model", "generated", "synthetic", "encoded")]


def test_a_disk_that_is_full_or_read_only_is_one_sentence(place: Path) -> None:
    """
    Every command that writes, on small disks: in a mount namespace of its own, so that no root is needed.
    """
    namespace = ("unshare", "--user", "--map-root-user", "--mount")
    probe = [*namespace, "mount", "-t", "tmpfs", "tmpfs", "small"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces are not permitted here")
    *rows, late, resumed = rows_of(FULL, *namespace)
    refused = set()
    for name, kib, code, said, left in rows:
        if code == 0:
            assert left == ["out"], (name, kib)
            continue
        refused.add(name)
        assert code == 1, (name, kib, said)
        assert left == [], (name, kib)
        assert len(said) == 1, (name, kib, said)
        reason = "no space left on the device of" if kib else "small: Read-only file system"
        assert reason in said[0], (name, kib)
        assert said[0].endswith("out was not written"), (name, kib)
    assert refused == set(COMMANDS)
    assert late[2:] == [1, late[3], [".out.partial"]]
    assert "go on with --resume" in late[3][0]
    assert resumed[2:] == [0, [], ["out"]]
    assert outcome(Path("resumed")) == outcome(Path("whole"))


def test_a_limit_on_the_size_of_files_is_one_sentence(place: Path) -> None:
    rows = rows_of(LIMITED)
    assert [row[0] for row in rows] == list(COMMANDS)
    for name, _, code, said, left in rows:
        if code:
            assert len(said) == 1, (name, said)
            assert "File too large" in said[0] or "there is a limit on the size of files" in said[0]
            assert left == [], name
            continue
        assert left == ["out"]  # all its files are small
        shutil.rmtree("small/out")
    assert {row[0] for row in rows if row[2] == 1} >= {"run", "fit", "encode", "repair"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "words", [["evaluate", "data", "whole/synthetic", "--evaluators", "novelty", "-q"], ["check", "data", "--json"]]
)
def test_output_that_nobody_takes_is_one_sentence(place: Path, words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "netdiffusion_core", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "netdiff: what was to be printed could not be written whole: No space left on device"
    )


class Vandal:
    """
    An observer that removes a folder when a stage begins.
    """

    def __init__(self, stage: str, folder: str) -> None:
        self.stage, self.folder = stage, folder

    @hookimpl
    def netdiffusion_stage_started(self, stage: str) -> None:
        if stage == self.stage:
            shutil.rmtree(self.folder)


@pytest.mark.parametrize("folder", ["small", "small/.out.partial"])
@pytest.mark.parametrize("stage", ["load", "split", "fit", "write", "evaluate", "report"])
def test_a_run_whose_folder_vanishes_does_not_end_well(
    place: Path, capsys: pytest.CaptureFixture[str], folder: str, stage: str
) -> None:
    plugins = Plugins.discover()
    plugins.manager.register(Vandal(stage, folder))
    assert main([*RUN, "-o", "small/out"], plugins) == 1
    assert capsys.readouterr().err == f"netdiff: {place}/small/out was removed while the work went on; run it again\n"
    assert not Path("small").exists() or os.listdir("small") == []


@pytest.mark.parametrize(
    ("command", "function"),
    [("fit", "save_model"), ("generate", "generate"), ("encode", "encode"), ("repair", "repair"), ("render", "encode")],
)
def test_a_command_whose_folder_vanishes_does_not_end_well(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, function: str
) -> None:
    work: Callable[..., Any] = getattr(pipeline, function)

    def vandal(*arguments: Any, **named: Any) -> Any:
        shutil.rmtree("small", ignore_errors=True)
        return work(*arguments, **named)

    monkeypatch.setattr(pipeline, function, vandal)
    assert main([*COMMANDS[command], "-o", "small/out"]) == 1
    assert "small/out was removed while the work went on; run it again" in capsys.readouterr().err
    assert not Path("small").exists() or os.listdir("small") == []


@pytest.mark.parametrize(
    ("words", "function", "reason"),
    [
        ([*RUN, "-o", "small/out"], "prepare", "there is no file or folder data"),
        (["evaluate", "data", "data", "--evaluators", "novelty", "-q"], "split", "there is no file or folder data"),
        ([*COMMANDS["repair"], "-o", "small/out"], "read", "there is no file data/"),
        (["check", "data/ntp/train.pcap"], "read", "there is no file data/"),
    ],
)
def test_data_that_vanishes_is_named(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    function: str,
    reason: str,
) -> None:
    work: Callable[..., Any] = getattr(pipeline, function)

    def vandal(*arguments: Any, **named: Any) -> Any:
        shutil.rmtree("data", ignore_errors=True)
        return work(*arguments, **named)

    monkeypatch.setattr(pipeline, function, vandal)
    assert main(words) == 1
    assert reason in capsys.readouterr().err.splitlines()[-1]
    assert os.listdir("small") == []


def test_a_working_folder_that_vanished(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir(place / "gone")
    assert main(["encode", str(place / "data"), "-o", "out"]) == 1
    assert capsys.readouterr().err == "netdiff: the working folder was removed: change to one that exists\n"
