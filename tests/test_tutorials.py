"""
The tutorials do what they say: their commands run in order, and their files are written, in an empty folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "docs" / "tutorial").glob("*.md"))

SMALL = {
    "NETDIFFUSION_BACKEND": "stable-diffusion",
    "NETDIFFUSION_BACKEND__STEPS": "1",
    "NETDIFFUSION_BACKEND__SAMPLING_STEPS": "1",
    "NETDIFFUSION_BACKEND__ROWS_PER_STEP": "64",
    "NETDIFFUSION_MAX_PACKETS": "8",
    "NETDIFFUSION_EVALUATORS": "compliance",
    "NETDIFFUSION_COMPARE": "bernoulli",
}
"""Settings that a tutorial leaves alone; what it sets, it sets."""


def script(page: Path) -> str:
    """
    Return the page as a shell script: ``sh`` blocks as they are; blocks that begin with a comment ``# path`` become
    files.
    """
    lines = ["set -euo pipefail"]
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S):
        if language == "sh":
            lines.append(text)
        elif path := re.match(r"# (\S+\.\w+)\n", text):
            lines.append(f"cat > {path.group(1)} <<'END-OF-FILE'\n{text}END-OF-FILE")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    An environment in which a tutorial may install: it sees all that this one has, and leaves it alone.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path and Path(path).is_dir()))
    netdiff = folder / "bin" / "netdiff"
    netdiff.write_text(f"#!{folder}/bin/python\nfrom netdiffusion_core.cli import main\nraise SystemExit(main())\n")
    netdiff.chmod(0o755)
    return folder


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_does_what_it_says(page: Path, environment: Path, alone: None, tmp_path: Path) -> None:
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script(page)],
        cwd=tmp_path,
        env={**os.environ, **SMALL, **offline, "PATH": path, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if page.stem == "first-plugin":
        near, far = done.stdout.split("far-server.answer", 1)[0], done.stdout
        assert "netdiffusion-far-server 0.1.0" in far
        assert near != far
        pcaps = {name: sorted(tmp_path.glob(f"{name}/synthetic/*/*.pcap")) for name in ("near", "far", "farther")}
        contents = [{p.read_bytes() for p in found} for found in pcaps.values()]
        assert all(len(found) == 10 for found in pcaps.values())
        assert not contents[0] & contents[1]
