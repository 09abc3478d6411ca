"""
The command `netdiff`: exit codes, sentences, streams, and what `--help` imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

import netdiffusion_core
from netdiffusion_core import columns, dataset, files, flow_files, slices
from netdiffusion_core.capture import read_capture, write_capture
from netdiffusion_core.cli import main
from netdiffusion_core.hookspecs import hookimpl
from netdiffusion_core.manifest import folder_digest
from netdiffusion_core.model import concatenate
from netdiffusion_core.plugins import Broken, Origin, Plugins

pytestmark = pytest.mark.usefixtures("alone")

TOY = ("--encoder", "toy", "--backend", "toy-model", "--rules", "toy-ttl")


@attrs.frozen
class Answer:
    code: int
    out: str
    err: str


Netdiff = Callable[..., Answer]


@pytest.fixture
def netdiff(toy: Plugins, capsys: pytest.CaptureFixture[str]) -> Netdiff:
    """
    Run the command line with the toy plugin alone.
    """

    def call(*words: Any, plugins: Plugins = toy) -> Answer:
        code = main([str(w) for w in words], installed=plugins)
        return Answer(code, *capsys.readouterr())

    return call


@pytest.fixture
def data(make_data: Callable[..., Path]) -> Path:
    return make_data({"web": 7, "dns": 5})


def sentence(answer: Answer) -> str:
    """
    Return the last line of stderr, which must be netdiff's only word about a failure.
    """
    assert "Traceback" not in answer.err
    lines = [line for line in answer.err.splitlines() if line.startswith("netdiff: ")]
    assert answer.err.splitlines()[-1:] == lines[-1:]
    return lines[-1]


def test_run_prints_scores_on_stdout_and_progress_on_stderr(netdiff: Netdiff, data: Path) -> None:
    answer = netdiff("run", data, "-o", "out", *TOY, "--flows", 4)
    assert answer.code == 0
    assert "toy-eye.ttl" in answer.out
    assert "toy-baseline" in answer.out
    assert "toy-ip added" in answer.err
    assert [line.split()[0] for line in answer.err.splitlines() if " s" in line][:4] == [
        "load",
        "split",
        "encode",
        "fit",
    ]
    assert answer.err.splitlines()[-1] == "pcaps: out/synthetic   report: out/report.html"
    again = netdiff("run", data, "-o", "again", *TOY, "--flows", 4, "--json", "-q")
    assert json.loads(again.out)["ours"] == "toy-model"
    assert again.err == ""
    assert folder_digest(Path("out/synthetic")) == folder_digest(Path("again/synthetic"))


def test_the_stages_one_by_one(netdiff: Netdiff, data: Path) -> None:
    """
    encode > decode and fit > generate > check > repair > evaluate > render, each from the files of the one before.
    """
    assert netdiff("encode", data, "-o", "bits", "--encoder", "toy").code == 0
    assert netdiff("decode", "bits", "-o", "decoded").code == 0
    assert len(dataset.load(Path("decoded")).flows) == 12

    assert netdiff("fit", data, "-o", "model", "--encoder", "toy", "--backend", "toy-model").code == 0
    for rules, folder in (("", "raw"), ("toy-ttl", "clean")):
        answer = netdiff("generate", "model", "-o", folder, "--classes", "web", "--flows", 20, "--rules", rules)
        assert answer.code == 0, answer.err
    assert sorted(p.name for p in Path("clean/web").iterdir())[::19] == ["00001.pcap", "00020.pcap"]
    netdiff("run", data, "-o", "out", *TOY)
    assert netdiff("generate", "out/model", "-o", "same", "--rules", "toy-ttl").code == 0
    assert folder_digest(Path("same")) == folder_digest(Path("out/synthetic"))

    dirty = netdiff("check", "raw", "--rules", "toy-ttl", "--json")
    document = json.loads(dirty.out)
    assert dirty.code == 1
    assert document["errors"] == len(document["violations"]) > 0
    assert document["violations"][0]["file"].startswith("web/000")
    text = netdiff("check", "raw", "--rules", "toy-ttl", "--each")
    assert text.code == 1
    assert "error: toy.ttl: the TTL" in text.out.splitlines()[0]
    table = netdiff("check", "raw", "--rules", "toy-ttl")
    assert table.code == 1
    assert table.out.splitlines()[1].split()[:3] == ["toy.ttl", "error", str(document["errors"])]
    assert netdiff("check", "raw", "--rules", "toy-ttl", "--rules-off", "toy.ttl").code == 0
    Path("mixed").mkdir()
    Path("mixed/good.pcap").write_bytes(next(Path("clean").rglob("*.pcap")).read_bytes())
    Path("mixed/bad.pcap").write_bytes(Path("mixed/good.pcap").read_bytes()[:24] + b"\xff" * 16)
    mixed = netdiff("check", "mixed", "--rules", "toy-ttl")
    assert mixed.code == 1
    assert "left out: mixed/bad.pcap is damaged" in mixed.err
    assert "0 errors and 0 warnings in 1 file" in mixed.err
    unknown = netdiff("check", "raw", "--rules", "toy-ttl", "--rules-off", "toy.tll")
    assert (unknown.code, "Did you mean 'toy.ttl'?" in unknown.err) == (2, True)
    Path("netdiff.toml").write_text('[rules]\nnames = ["toy-ttl"]\n')
    assert "toy.ttl" in netdiff("check", "raw").out
    Path("netdiff.toml").unlink()
    assert netdiff("check", "clean", "--rules", "toy-ttl").code == 0
    assert netdiff("repair", "raw", "-o", "mended", "--rules", "toy-ttl").code == 0
    assert sorted(p.relative_to("mended") for p in Path("mended").rglob("*.pcap")) == [
        p.relative_to("raw") for p in sorted(Path("raw").rglob("*.pcap"))
    ]
    assert netdiff("check", "mended", "--rules", "toy-ttl").code == 0

    scores = netdiff("evaluate", data, "same", "--encoder", "toy", "--rules", "toy-ttl", "--json")
    assert [s["name"] for s in json.loads(scores.out)] == ["toy-eye.ttl"]
    for source in ("bits", "same"):
        assert netdiff("render", source, "-o", f"png-{source}", "--encoder", "toy", "--flows", 2).code == 0
        assert len(list(Path(f"png-{source}").glob("*/*.png"))) == 4


def test_configuration_comes_from_everywhere_and_says_from_where(
    netdiff: Netdiff, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("netdiff.toml").write_text(
        'data = "data"\noutput = "from-toml"\ncompare = []\nrules = []\n[encoder]\nname = "toy"\n'
        '[backend]\nname = "toy-model"\nsteps = 2\n'
    )
    monkeypatch.setenv("NETDIFFUSION_BACKEND__SPREAD", "1.5")
    shown = netdiff("config", "show", "--set", "backend.steps=9").out
    assert [line.split() for line in shown.splitlines() if line.startswith("backend")] == [
        ["backend.name", "toy-model", "netdiff.toml"],
        ["backend.spread", "1.5", "NETDIFFUSION_BACKEND__SPREAD"],
        ["backend.steps", "9", "--set"],
    ]
    assert netdiff("run", "--set", "backend.steps=9").code == 0
    assert "steps = 9\nmood" in Path("from-toml/config.toml").read_text()
    assert "spread = 1.5" in Path("from-toml/config.toml").read_text()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run"], 2, "no DATA: give a folder"),
        (
            ["run", "data", "--backend", "toy-modl"],
            2,
            r"no plugin offers the backend 'toy-modl'. Did you mean 'toy-model'?",
        ),
        (["run", "data", "--rules", "tpc"], 2, "no plugin offers the rules 'tpc'."),
        (["run", "data", "--encoder", "nprint"], 2, "Available: toy. Install it: pip install netdiffusion-nprint"),
        (["run", "data", "--set", "backend.steps=many"], 2, "backend.steps is 'many'; it must be a whole number"),
        (["run", "data", "--set", "backend.stps=1"], 2, "backend has no option 'stps'. Did you mean 'steps'?"),
        (["run", "data", "--set", "toy-ttl.x=1"], 2, "gate. Options of components are written like backend.steps"),
        (["run", "data", "--set", "sede=1"], 2, "--set: there is no setting 'sede'. Did you mean 'seed'?"),
        (["run", "data", "--config", "none.toml"], 2, "there is no configuration file none.toml"),
        (["run", "data", "--seed", "x"], 2, "--seed"),
        (["run", "data", "--frobnicate"], 2, "No such option"),
        (["rnu"], 2, "No such command 'rnu'"),
        (["run", "nowhere"], 1, "nowhere"),
        (["run", "data", "--classes", "wbe"], 1, "wbe"),
        (["run", "lonely"], 1, "class 'rare' has 1 flow; at least 2 to train on"),
        (["decode", "data", "-o", "out"], 1, "data was not made by netdiff encode: it has no encoded.json"),
        (["generate", "nowhere", "-o", "out"], 1, "there is no folder nowhere"),
        (["generate", "data", "-o", "out"], 1, "data was not made by netdiff fit: it has no model.json"),
        (["check", "nowhere", "--rules", ""], 1, "there is no file or folder nowhere"),
        (["repair", "empty", "-o", "out", "--rules", "toy-ttl"], 1, "empty holds no capture"),
        (["plugins", "show", "toy-modle"], 2, "no plugin offers 'toy-modle'. Did you mean 'toy-model'?"),
        (["plugins", "list", "--kind", "rule"], 2, "there is no kind 'rule'. Did you mean 'rules'?"),
        (["run", "data", "--plugin", "none.py"], 3, "the plugin file none.py cannot be used: there is no such file"),
    ],
)
def test_mistakes_get_one_sentence_and_the_right_code(
    netdiff: Netdiff, make_data: Callable[..., Path], words: list[str], code: int, message: str
) -> None:
    make_data({"web": 4})
    make_data({"web": 4, "rare": 1}, name="lonely")
    Path("empty").mkdir()
    before = sorted(os.listdir())
    defaults = (
        []
        if words[0] != "run"
        else [w for o, n in zip(TOY[::2], TOY[1::2], strict=True) if o not in words for w in (o, n)]
    )
    answer = netdiff(*words, *defaults)
    assert message in sentence(answer)
    assert answer.code == code
    assert answer.out == ""
    assert sorted(os.listdir()) == before  # nothing written, nothing lost, no temporary folder


def test_an_existing_output_is_refused_and_kept(netdiff: Netdiff, data: Path) -> None:
    Path("out").mkdir()
    Path("out/precious").write_text("mine")
    for words in (["run", data, *TOY], ["encode", data, "--encoder", "toy"], ["fit", data], ["repair", data]):
        answer = netdiff(*words, "-o", "out")
        assert answer.code == 2
        assert "out exists already; choose another output, or replace it with --overwrite" in sentence(answer)
    assert os.listdir("out") == ["precious"]
    assert netdiff("encode", data, "--encoder", "toy", "-o", "out", "--overwrite").code == 0
    assert not Path("out/precious").exists()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root on Linux")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(netdiff: Netdiff, make_data: Callable[..., Path]) -> None:
    """
    A disk of 64 KiB holds the output folder.
    """
    data = make_data({"web": 20}, packets=900)
    Path("small").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "small"]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mount is not permitted here")
    try:
        answer = netdiff("run", data, "-o", "small/out", *TOY)
        assert answer.code == 1
        assert "no space left on the device of" in sentence(answer)
        assert os.listdir("small") == []
    finally:
        subprocess.run(["umount", "small"], check=True)


def test_no_space_while_a_capture_is_written(netdiff: Netdiff, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(slices, "write_capture", full)
        answer = netdiff("run", data, "-o", "out", *TOY)
    assert answer.code == 1
    assert "no space left on the device of" in answer.err
    assert "what was finished is kept: go on with --resume" in answer.err
    assert netdiff("run", data, "-o", "out", *TOY, "--resume").code == 0
    assert sorted(os.listdir()) == ["data", "out"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "netdiff: interrupted"),
        (MemoryError(), 1, "netdiff: out of memory"),
        (ValueError("shapes\ndiffer"), 1, "this should not have happened: ValueError: shapes differ in stage fit"),
    ],
)
def test_even_a_bug_shows_no_traceback_unless_asked(
    netdiff: Netdiff,
    toy: Plugins,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(toy.load("backend", "toy-model"), "fit", fail)
    answer = netdiff("run", data, "-o", "out", *TOY)
    assert (answer.code, message in sentence(answer)) == (code, True)
    assert os.listdir() == ["data"]
    if isinstance(error, ValueError):
        with pytest.raises(ValueError, match="shapes"):
            netdiff("run", data, "-o", "out", *TOY, "--traceback")


CRASHING = """
from netdiffusion_core import hookimpl
from netdiffusion_core.interfaces import RuleSet
from netdiffusion_core.specs import RuleSetSpec

class Crash(RuleSet):
    def check(self, traffic):
        WHAT

@hookimpl
def netdiffusion_register_rules():
    return [RuleSetSpec(name="crash", target=f"{__name__}:Crash", summary="")]
"""


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("1 / 0", "the plugin file (line 8 of crash.py) failed: ZeroDivisionError: division by zero. Run again with"),
        ("pass", "rule set 'crash': check returned NoneType; it must return Iterable"),
    ],
)
def test_a_plugin_that_fails_is_named(netdiff: Netdiff, data: Path, tmp_path: Path, what: str, says: str) -> None:
    (tmp_path / "crash.py").write_text(CRASHING.replace("WHAT", what))
    answer = netdiff("check", data, "--rules", "crash", "--plugin", tmp_path / "crash.py", "-q")
    assert (answer.code, says in sentence(answer)) == (3, True), answer.err


def test_plugins_list_and_show(netdiff: Netdiff, toy: Plugins) -> None:
    broken = Broken(
        origin=Origin(entry_point="sad", distribution="sad-dist", version="2"), reason="ImportError: no luck"
    )
    plugins = attrs.evolve(toy, broken=(broken,))
    listed = netdiff("plugins", "list", plugins=plugins)
    assert listed.code == 0
    assert listed.out.splitlines()[-1] == "broken: sad (sad-dist 2): ImportError: no luck"
    assert [line.split()[:2] for line in listed.out.splitlines()[1:3]] == [
        ["encoder", "toy"],
        ["backend", "toy-baseline"],
    ]
    rules = json.loads(netdiff("plugins", "list", "--kind", "rules", "--json", plugins=plugins).out)
    assert [(c["name"], c["requires"]) for c in rules["components"]] == [("toy-ip", []), ("toy-ttl", ["toy-ip"])]
    assert rules["broken"][0]["reason"] == "ImportError: no luck"
    assert {c["entry_point"] for c in rules["components"]} == {"toy_plugin"}
    assert all(Path(c["file"]).name == "toy_plugin.py" and c["version"] == "" for c in rules["components"])
    assert rules["duplicates"] == []
    twice = netdiff("plugins", "list", plugins=attrs.evolve(toy, offers=toy.offers + toy.offers[:1])).out
    assert twice.splitlines()[-1].startswith("duplicate: Encoder 'toy' is offered more than once: by ")
    shown = netdiff("plugins", "show", "toy-model").out
    assert "spread  a number        4.0      standard deviation of the TTL" in shown
    assert "calm or wild" in shown


def test_rules_list_says_what_must_hold_and_where_it_is_written(netdiff: Netdiff) -> None:
    assert netdiff("rules", "list").out.splitlines()[1].split("  ")[0] == "toy.ttl"
    (rule,) = json.loads(netdiff("rules", "list", "--rules", "toy-ttl", "--json").out)
    assert rule == {
        "id": "toy.ttl", "field": "ipv4.ttl", "severity": "error", "summary": "the TTL is odd", "source": "this test",
        "repairable": True,
    }  # fmt: skip
    assert netdiff("rules", "list", "--rules", "nobody").code == 2


def test_version_help_and_no_words_at_all(netdiff: Netdiff) -> None:
    assert netdiff("--version").out.startswith("netdiff 0.")
    assert "Example: netdiff run my_pcaps/" in netdiff("run", "-h").out
    nothing = netdiff()
    assert (nothing.code, nothing.out) == (2, "")
    assert nothing.err.startswith("Usage: netdiff")


def test_a_broken_plugin_is_one_line_elsewhere(netdiff: Netdiff, toy: Plugins, data: Path) -> None:
    broken = Broken(origin=Origin(entry_point="sad", distribution="sad-dist"), reason="ImportError: no luck")
    answer = netdiff("check", data, "--rules", "toy-ttl", plugins=attrs.evolve(toy, broken=(broken,)))
    assert [line for line in answer.err.splitlines() if "sad" in line] == [
        "netdiff: warning: broken plugins are left out: sad; see netdiff plugins list"
    ]


def test_a_plugin_can_add_a_command_and_a_bad_one_harms_nobody(netdiff: Netdiff, toy_file: Path) -> None:
    class Adds:
        @hookimpl
        def netdiffusion_register_commands(self, app: Any) -> None:
            app.command("hello")(lambda: sys.stdout.write("hello\n"))

    class Fails:
        @hookimpl
        def netdiffusion_register_commands(self, app: Any) -> None:
            raise ImportError("no torch")

    assert netdiff("hello", plugins=Plugins.of(Adds(), Fails())).out == "hello\n"


def test_help_and_plugins_list_import_nothing_heavy(toy_file: Path) -> None:
    """
    With every installed plugin.
    """
    for words in (["--help"], ["run", "--help"], ["plugins", "list"], ["config", "show"]):
        code = (
            "import sys; from netdiffusion_core.cli import main; main(sys.argv[1:]);"
            "heavy = {'torch', 'diffusers', 'transformers', 'scapy', 'pandas', 'sklearn', 'scipy', 'numpy', 'PIL'};"
            "sys.exit(' '.join(sorted(heavy & set(sys.modules))) or 0)"
        )
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"netdiff {' '.join(words)} imports {done.stderr}"


def test_as_a_process_with_a_plugin_file_no_colour_and_a_reader_that_leaves(toy_file: Path, data: Path) -> None:
    environ = os.environ | {"NETDIFFUSION_PLUGINS": "", "NO_COLOR": "1", "TERM": "xterm-256color", "FORCE_COLOR": ""}
    command = [sys.executable, "-m", "netdiffusion_core"]
    words = ["run", str(data), "-o", "out", "--plugin", str(toy_file), *TOY]
    done = subprocess.run([*command, *words], capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    many = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m netdiffusion_core check {data} --plugin {toy_file} | head -n 1"],
        capture_output=True, text=True, env=environ, check=False,
    )  # fmt: skip
    assert "Traceback" not in many.stderr
    assert "BrokenPipe" not in many.stderr


@pytest.mark.parametrize("capture", ["dns/train.pcap", "https-page/test.pcap"])
def test_a_large_capture_is_checked_a_slice_at_a_time(
    capture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("netdiffusion_inet", reason="netdiffusion-inet is not installed")
    words = ["check", str(Path(netdiffusion_core.__file__).parent / "samples/lab" / capture), "--json"]
    said = []
    for flows in (1000, 3):
        monkeypatch.setattr(flow_files, "SLICE_FLOWS", flows)
        main(words)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


@pytest.mark.parametrize("step", [1, -1])
def test_a_large_capture_is_mended_a_slice_at_a_time(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The captures of a sample are one here: as they came, and backwards.
    """
    pytest.importorskip("netdiffusion_inet", reason="netdiffusion-inet is not installed")
    monkeypatch.chdir(tmp_path)
    sample = Path(netdiffusion_core.__file__).parent / "samples/lab"
    traffic = concatenate([read_capture(path) for path in sorted(sample.glob("*/test.pcap"))])
    write_capture(Path("broken.pcap"), traffic, np.arange(len(traffic))[::step])
    assert main(["repair", "broken.pcap", "-o", "whole", "-q"]) == 0
    monkeypatch.setattr(files, "WHOLE_PACKETS", 0)
    monkeypatch.setattr(flow_files, "SLICE_FLOWS", 3)
    monkeypatch.setattr(columns, "PIECE_ROWS", 1000)
    assert main(["repair", "broken.pcap", "-o", "in slices", "-q"]) == 0
    mended = [Path(folder, "broken.pcap").read_bytes() for folder in ("whole", "in slices")]
    assert mended[0] == mended[1] != Path("broken.pcap").read_bytes()
