"""
`netdiff plugins new`: what it writes is built, installed into a clean environment, tested by its own conformance test
and used.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netdiffusion_core.cli import main
from netdiffusion_core.plugins import Plugins

ROOT = Path(__file__).parents[1]
KINDS = ("encoder", "backend", "rules", "evaluator")

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    A folder with one new plugin of each kind, ``netdiffusion-new-KIND``.
    """
    folder = tmp_path_factory.mktemp("made")
    for kind in KINDS:
        words = ["plugins", "new", f"new-{kind}", "--kind", kind, "-q", "-o", f"{folder}/netdiffusion-new-{kind}"]
        assert main(words, installed=Plugins.of()) == 0
    return folder


@pytest.fixture(scope="module")
def environment(made: Path, install: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    An environment of wheels of the core, of netdiffusion-inet and of the new plugins.
    """
    sources = [ROOT, ROOT / "plugins" / "netdiffusion-inet", *sorted(made.iterdir())]
    new = [f"netdiffusion-new-{kind}" for kind in KINDS]
    return install(tmp_path_factory.mktemp("environment"), sources, "netdiffusion-inet", *new)


@pytest.fixture
def python(environment: Path) -> Callable[..., str]:
    """
    Run the environment's Python with these plugins only, and return what it prints.
    """

    def run(*words: Any) -> str:
        settings = {"NETDIFFUSION_PLUGINS": ",".join(["inet", *(f"new-{kind}" for kind in KINDS)]), "PYTHONPATH": ""}
        done = subprocess.run(
            [environment / "bin" / "python", *map(str, words)],
            capture_output=True,
            text=True,
            env={**os.environ, **settings},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_new_plugins_install_pass_their_conformance_test_and_run(
    made: Path, python: Callable[..., str], environment: Path, make_data: Callable[..., Path]
) -> None:
    where = python(
        "-c", "import netdiffusion_core as c, netdiffusion_new_rules.rules as r; print(c.__file__, r.__file__)"
    )
    assert where.count(str(environment)) == 2
    listed = python("-m", "netdiffusion_core", "plugins", "list")
    assert "broken" not in listed
    assert all(f"netdiffusion-new-{kind} 0.1.0" in listed for kind in KINDS)

    tests = sorted(made.glob("*/tests"))
    told = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *tests).splitlines()[-1]
    assert "passed" in told
    assert "skipped" not in told

    data = make_data({"web": 7, "dns": 5})
    components = [
        "--encoder",
        "new-encoder",
        "--backend",
        "new-backend",
        "--rules",
        "",
        "--evaluators",
        "new-evaluator",
    ]
    python("-m", "netdiffusion_core", "run", data, "-o", "out", *components, "--flows", 3, "-q")
    assert len(list(Path("out/synthetic").glob("*/*.pcap"))) == 6


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["Big"], "cannot be the name"),
        (["a--b"], "cannot be the name"),
        (["netdiffusion-mine"], "leave the prefix out"),
        (["core"], "netdiffusion-core is installed already"),
        (["toy-ip"], "offers rules 'toy-ip' already"),
        (["mine", "--kind", "ruls"], "Did you mean 'rules'?"),
        (["mine", "--output", "there"], "there exists already"),
    ],
)
def test_what_cannot_be_made_is_said_and_nothing_is_touched(
    toy: Plugins, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "README.md").write_text("mine")
    kind = [] if "--kind" in words else ["--kind", "rules"]
    assert main(["plugins", "new", *words, *kind], installed=toy) == 2
    assert says in capsys.readouterr().err
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["there", "there/README.md"]
    assert (tmp_path / "there" / "README.md").read_text() == "mine"
