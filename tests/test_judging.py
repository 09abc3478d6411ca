"""
Judging traffic from anywhere: netdiff evaluate --output, netdiff compare, --gate.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netdiffusion_core import gates
from netdiffusion_core.cli import main
from netdiffusion_core.plugins import Plugins

pytestmark = pytest.mark.usefixtures("alone")

TOY = ("--encoder", "toy", "--backend", "toy-model", "--rules", "toy-ttl")
FIGURE = "toy-eye.ttl"

Netdiff = Callable[..., tuple[int, str, str]]


@pytest.fixture
def netdiff(toy: Plugins, capsys: pytest.CaptureFixture[str]) -> Netdiff:
    """
    Run the command line with the toy plugin alone; return exit code, stdout and stderr.
    """

    def call(*words: Any) -> tuple[int, str, str]:
        code = main([str(w) for w in words], installed=toy)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def data(make_data: Callable[..., Path]) -> Path:
    return make_data({"web": 7, "dns": 5})


def values(folder: Path, backend: str = "toy-model", figure: str = FIGURE) -> tuple[float, float]:
    """
    Return a figure and its floor from a run's report.json.
    """
    scores = json.loads((folder / "report.json").read_text())["scores"][backend]
    return next((s["value"], s["floor"]) for s in scores if s["name"] == figure)


# --- gates ------------------------------------------------------------------------------------------------------


def test_a_missed_gate_is_one_sentence_and_exit_code_1_and_everything_is_written(netdiff: Netdiff, data: Path) -> None:
    code, out, err = netdiff("run", data, "-o", "out", *TOY, "--gate", f"{FIGURE}<200", "--gate", f"{FIGURE}>=254.5")
    assert code == 1
    assert err.splitlines()[-1].startswith(f"netdiff: error: {FIGURE} is ")
    assert err.splitlines()[-1].endswith(f"misses the gate {FIGURE} >= 254.5")
    assert err.count("misses") == 1
    assert FIGURE in out
    gates = json.loads(Path("out/report.json").read_text())["gates"]
    assert [(g["gate"], g["holds"]) for g in gates] == [(f"{FIGURE} < 200", True), (f"{FIGURE} >= 254.5", False)]
    assert "misses the gate" in Path("out/report.html").read_text()
    assert len(list(Path("out/synthetic").rglob("*.pcap"))) > 0


def test_a_gate_on_nothing_is_refused_before_any_work(netdiff: Netdiff, data: Path) -> None:
    code, _, err = netdiff("run", data, "-o", "out", *TOY, "--gate", "toy-eye.tll<9")
    assert code == 2
    assert f"there is no figure 'toy-eye.tll'. Did you mean '{FIGURE}'?" in err
    assert "fit" not in err
    assert [p.name for p in Path().iterdir()] == ["data"]
    for text in (f"{FIGURE}", f"{FIGURE}=3", f"{FIGURE}>many", "<3", f"{FIGURE}>=nan"):
        code, _, err = netdiff("run", data, "-o", "out", *TOY, "--gate", text)
        assert (code, "write it like 'utility.macro_f1>=0.8'" in err) == (2, True), text


def test_gates_may_stand_in_the_configuration_and_change_no_result(netdiff: Netdiff, data: Path) -> None:
    Path("netdiff.toml").write_text(f'gate = ["{FIGURE}>=254.5", "repairs.bits<100"]\n')
    assert netdiff("run", data, "-o", "gated", *TOY)[0] == 1
    Path("netdiff.toml").unlink()
    assert netdiff("run", data, "-o", "free", *TOY)[0] == 0
    gated, free = (json.loads(Path(name, "manifest.json").read_text()) for name in ("gated", "free"))
    assert gated["config"]["gate"] == [f"{FIGURE}>=254.5", "repairs.bits<100"]
    assert gated["config_sha256"] == free["config_sha256"]


def test_what_was_not_measured_misses_every_gate() -> None:
    for relation in ("<", "<=", ">", ">="):
        (row,) = gates.judge([f"a.b{relation}1e3"], {"a.b": math.nan})
        assert (row["holds"], "was not measured" in row["sentence"]) == (False, True)
    assert [r["holds"] for r in gates.judge(["a.b>=.5", "a.b > 0.5", "a.b<=5e-1"], {"a.b": 0.5})] == [True, False, True]


# --- evaluate ---------------------------------------------------------------------------------------------------


def test_evaluate_writes_a_report_of_captures_from_anywhere(
    netdiff: Netdiff, data: Path, make_data: Callable[..., Path]
) -> None:
    other = make_data({"dns": 3, "unknown": 2}, name="other")
    words = ("evaluate", data, other, "--encoder", "toy", "--rules", "toy-ttl")
    code, out, err = netdiff(*words, "-o", "judged", "--compare", "toy-baseline", "--gate", f"{FIGURE}<1")
    assert code == 1  # the only class of both has other TTLs: 40 against 100
    assert "no synthetic flows of web: not measured" in err
    assert "no real flows of unknown: left out" in err
    assert "toy-baseline" in out
    assert sorted(p.name for p in Path("judged").iterdir()) == ["manifest.json", "report.html", "report.json"]
    document = json.loads(Path("judged/report.json").read_text())
    assert list(document["scores"]) == ["synthetic", "toy-baseline"]
    assert document["flows"]["synthetic"] == {"dns": 3}
    assert document["repairs"] is None
    assert document["violations"][0]["rule"] == "toy.ttl"  # 40 is even, and nobody mended it
    assert "backend" not in document["manifest"]["config"]
    assert f"3 flows from <b>{other}</b>" in Path("judged/report.html").read_text()

    code, _, err = netdiff(*words, "-o", "judged")
    assert (code, "judged exists already" in err) == (2, True)
    scores = json.loads(netdiff(*words, "--json", "-q")[1])
    assert [(s["backend"], s["name"]) for s in scores] == [("synthetic", FIGURE)]


def test_evaluate_needs_a_class_in_both(netdiff: Netdiff, data: Path, make_data: Callable[..., Path]) -> None:
    other = make_data({"DNS": 3}, name="other")
    code, _, err = netdiff("evaluate", data, other, "--encoder", "toy", "--rules", "", "-o", "judged")
    assert code == 1
    assert "no class is in both: the real captures have dns, web; the synthetic ones have DNS" in err
    assert not Path("judged").exists()


# --- compare ----------------------------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seed_are_one_column(netdiff: Netdiff, data: Path) -> None:
    for seed in (1, 2, 3):
        assert netdiff("run", data, "-o", f"seed-{seed}", *TOY, "--seed", seed)[0] == 0
    assert netdiff("run", data, "-o", "wild", *TOY, "--seed", 1, "--set", "backend.spread=30")[0] == 0
    runs = ("seed-1", "seed-2", "seed-3", "wild")
    code, out, err = netdiff("compare", *runs, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    columns = [(c["kind"], c["title"], c["runs"], c["seeds"]) for c in document["columns"]]
    assert columns == [
        ("ours", "toy-model", ["seed-1", "seed-2", "seed-3"], [1, 2, 3]),
        ("ours", "toy-model", ["wild"], [1]),
        ("floor", "floor", list(runs), [1, 2, 3]),
        ("baseline", "toy-baseline", list(runs), [1, 2, 3]),
    ]
    line = next(f for f in document["figures"] if f["name"] == FIGURE)
    of_seeds = [values(Path(name)) for name in runs[:3]]
    for i, which in ((0, 0), (2, 1)):
        numbers = [pair[which] for pair in of_seeds]
        assert line["cells"][i]["mean"] == pytest.approx(statistics.mean(numbers))
        assert line["cells"][i]["deviation"] == pytest.approx(statistics.stdev(numbers))
    assert line["cells"][1] == {"mean": values(Path("wild"))[0], "deviation": None, "count": 1}
    means = [line["cells"][i]["mean"] for i in (0, 1, 3)]
    assert [(0, 1, 3)[i] for i, mean in enumerate(means) if mean == min(means)] == line["best"]

    code, out, err = netdiff("compare", *runs, "--html", "page.html", "--gate", f"{FIGURE}>=254.5")
    assert code == 1
    assert err.count("misses the gate") == 2  # the seeds' mean, and the other run
    assert "seed-1 … seed-3, 3 seeds" in out
    page = Path("page.html").read_text()
    assert out.count("★") == page.count("★ ") > 0
    assert "://" not in page
    assert netdiff("compare", "wild", "--html", "page.html")[0] == 2


def test_runs_that_are_not_measured_alike_are_kept_apart(
    netdiff: Netdiff, data: Path, make_data: Callable[..., Path]
) -> None:
    other = make_data({"web": 6, "dns": 6}, name="other")
    assert netdiff("run", data, "-o", "one", *TOY, "--flows", 3)[0] == 0
    assert netdiff("run", other, "-o", "two", *TOY, "--flows", 3, "--seed", 4)[0] == 0
    code, out, err = netdiff("compare", "one", "two", "--json")
    assert code == 0
    assert "the runs differ in data: their figures are not measured alike" in err
    kinds = [(c["kind"], c["note"]) for c in json.loads(out)["columns"]]
    assert kinds == [(kind, run) for run in ("one", "two") for kind in ("ours", "floor", "baseline")]


def test_folders_that_are_no_runs_are_named(netdiff: Netdiff, data: Path) -> None:
    assert netdiff("run", data, "-o", "old", *TOY)[0] == 0
    shutil.copytree("old", "damaged")
    document = json.loads(Path("old/report.json").read_text())
    Path("old/report.json").write_text(json.dumps(document | {"format": 99}))
    document["scores"]["toy-model"] = [{"name": "x"}]
    Path("damaged/report.json").write_text(json.dumps(document))
    for folder, message in (
        ("nowhere", "there is no folder"),
        ("data", "it has no report.json"),
        ("old", "it has format 99, and this one reads 1"),
        ("damaged", "is damaged"),
    ):
        code, out, err = netdiff("compare", folder)
        assert (code, out) == (1, "")
        assert message in err
        assert err.count("\n") == 1
