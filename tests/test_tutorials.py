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
    "NETDIFFUSION_BACKEND": "bernoulli",
    "NETDIFFUSION_COMPARE": "",
    "NETDIFFUSION_EVALUATORS": "timing",
    "NETDIFFUSION_MAX_PACKETS": "8",
}
"""
Settings that the tutorials leave alone, for a test that takes seconds: the default model is tested from end to end
elsewhere.
"""


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


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """
    An environment in which a tutorial may install: it sees all that this one has, and leaves it alone.
    """
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path and Path(path).is_dir()))
    netdiff = folder / "bin" / "netdiff"
    netdiff.write_text(f"#!{folder}/bin/python\nfrom netdiffusion_core.cli import main\nraise SystemExit(main())\n")
    netdiff.chmod(0o755)
    return folder


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_does_what_it_says(page: Path, environment: Path, alone: None, tmp_path: Path) -> None:
    here = tmp_path / "empty"
    here.mkdir()
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script(page)],
        cwd=here,
        env={**os.environ, **SMALL, **offline, "PATH": path, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if page.stem == "first-plugin":
        assert "netdiffusion-far-server 0.1.0" in done.stdout
        near, far, farther = (sorted(here.glob(f"{name}/synthetic/*/*.pcap")) for name in ("near", "far", "farther"))
        assert len(near) == len(far) == len(farther) == 10
        for one, other in ((near, far), (far, farther)):
            assert all(a.read_bytes() != b.read_bytes() for a, b in zip(one, other, strict=True))
