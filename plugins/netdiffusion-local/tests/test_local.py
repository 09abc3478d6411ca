"""
Processes: that they are used, that they die, and that none outlives its parent.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from netdiffusion_core.errors import RunError
from netdiffusion_local.executor import LocalOptions, LocalProcesses


def whose(_: int) -> int:
    time.sleep(0.2)
    return os.getpid()


def die_once(folder: Path, item: int) -> int:
    if item == 2 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def die(item: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return item


def warn(item: int) -> None:
    logging.getLogger("netdiffusion").warning("item %d is odd", item)


def start_a_program(folder: Path, item: int) -> None:
    """
    Start a program that runs for minutes, as an evaluator does, and wait for it.
    """
    with subprocess.Popen(["sleep", "600"]) as program:
        (folder / f"{item}.draft").write_text(f"{os.getpid()} {program.pid}")
        os.replace(folder / f"{item}.draft", folder / str(item))


def alive(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def local(processes: int | None) -> LocalProcesses:
    return LocalProcesses(LocalOptions(processes=processes))


def test_no_worker_imports_what_lies_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("attrs", "copy", "netdiffusion_local", "numpy"):
        Path(f"{name}.py").write_text("open('pwned', 'w')")
    with local(2) as executor:
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
    assert not Path("pwned").exists()


def test_work_is_divided_and_stays_here_where_it_is_one_piece() -> None:
    with local(2) as executor:
        pids = set(executor.map(whose, range(6)))
        assert len(pids) == 2
        assert os.getpid() not in pids
        assert list(executor.map(whose, [0])) == [os.getpid()]


def test_what_a_dead_worker_was_at_is_done_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with local(2) as executor:
        assert list(executor.map(partial(die_once, tmp_path), range(8))) == list(range(8))
    assert "was killed by SIGKILL (is memory short?); what it was at is done again" in caplog.text


def test_work_that_kills_every_worker_is_given_up() -> None:
    with (
        local(2) as executor,
        pytest.raises(RunError, match=r"worker process \d+ was killed by SIGKILL .* three times"),
    ):
        list(executor.map(die, range(2)))


def test_warnings_of_workers_are_heard(caplog: pytest.LogCaptureFixture) -> None:
    with local(2) as executor:
        list(executor.map(warn, [1, 3]))
    assert sorted(record.getMessage() for record in caplog.records) == ["item 1 is odd", "item 3 is odd"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to look at")
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path: Path, ending: signal.Signals) -> None:
    code = (
        "import signal; from functools import partial; from pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it\n"
        "from netdiffusion_local.executor import LocalOptions, LocalProcesses\n"
        "from test_local import start_a_program\n"
        "with LocalProcesses(LocalOptions(processes=2)) as executor:\n"
        f"    list(executor.map(partial(start_a_program, Path({str(tmp_path)!r})), range(2)))\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, stderr=-3)
    reports = [tmp_path / "0", tmp_path / "1"]
    while not all(report.exists() for report in reports):
        assert parent.poll() is None
        time.sleep(0.05)
    pids = [int(pid) for report in reports for pid in report.read_text().split()]
    assert all(map(alive, pids))
    parent.send_signal(ending)
    parent.wait(60)
    for _ in range(200):
        if not any(map(alive, pids)):
            break
        time.sleep(0.05)
    assert not any(map(alive, pids))
