"""
Every distribution: its source archive is complete, its wheel is made from that alone, and all wheels install together.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
META = ROOT / "plugins" / "netdiffusion"
DEFAULT = [ROOT, *sorted(ROOT.glob("plugins/netdiffusion-*"))]
EXTRA = sorted(ROOT.glob("plugins/extra/netdiffusion-*"))
EVERY = [*DEFAULT, META, *EXTRA]


def project(folder: Path) -> dict[str, Any]:
    """
    Return the table ``[project]`` of a distribution.
    """
    table: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def names(requirements: list[str]) -> set[str]:
    return {requirement.partition(">")[0] for requirement in requirements}


@pytest.fixture(scope="module")
def environment(install: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The meta distribution and its extras, installed from wheels that were built from unpacked source archives.
    """
    folder = tmp_path_factory.mktemp("packaging")
    for source in EVERY:
        build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder / "sdists"]
        subprocess.run(build, cwd=source, check=True, capture_output=True)
    for archive in folder.glob("sdists/*.tar.gz"):
        with tarfile.open(archive) as file:
            file.extractall(folder / "sources", filter="data")
    sources = sorted(folder.glob("sources/*"))
    assert len(sources) == len(EVERY)
    extras = ",".join(project(path)["name"].removeprefix("netdiffusion-") for path in EXTRA)
    return install(folder, sources, f"netdiffusion[{extras}]")


def test_all_of_it_installs_from_wheels_alone(environment: Path, alone: None) -> None:
    listing = [environment / "bin" / "netdiff", "plugins", "list"]
    listed = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    assert "broken" not in listed
    assert "duplicate" not in listed
    for folder in [*DEFAULT[1:], *EXTRA]:
        assert f"{folder.name} {project(folder)['version']}" in listed


def test_a_wheel_has_what_a_user_looks_for(environment: Path) -> None:
    wheels = sorted(environment.parent.glob("wheels/*.whl"))
    assert len(wheels) == len(EVERY)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as file:
            files = file.namelist()
            metadata: Message = BytesParser().parsebytes(file.read(next(f for f in files if f.endswith("/METADATA"))))
            licence = next(f for f in files if f.endswith("/licenses/LICENSE"))
            assert file.read(licence) == (ROOT / "LICENSE").read_bytes(), wheel.name
        assert metadata["License-Expression"] == "Apache-2.0"
        assert str(metadata.get_payload()).startswith("#"), f"{wheel.name} has no README"
        assert {"Development Status :: 3 - Alpha", "Topic :: System :: Networking"} <= set(
            metadata.get_all("Classifier", [])
        )
        if metadata["Name"] != "netdiffusion":
            assert sum(f.endswith("/py.typed") and f.count("/") == 1 for f in files) == 1, wheel.name


def test_the_meta_distribution_names_every_other() -> None:
    meta = project(META)
    assert names(meta["dependencies"]) == {project(folder)["name"] for folder in DEFAULT}
    extras = meta["optional-dependencies"]
    assert {folder.name for folder in EXTRA} <= {name for extra in extras.values() for name in names(extra)}
    assert all(names(extra) == {f"netdiffusion-{name}"} for name, extra in extras.items())


def test_all_distributions_have_one_version_and_a_changelog_entry() -> None:
    [version] = {project(folder)["version"] for folder in EVERY}
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
