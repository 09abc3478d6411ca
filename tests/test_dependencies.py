"""
Stated lower bounds, tested oldest and newest versions: three lists that must agree.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECTS = [ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/netdiffusion-*/pyproject.toml"))]

TOOLS = {"editables", "hatchling", "mkdocs-material", "mypy", "ruff"}
"""Of the extra dev: they build and check, and are not needed to run the tests on the oldest versions."""


def pins(file: str) -> dict[str, Version]:
    lines = (ROOT / file).read_text().split()
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


def requirements(project: Path) -> Iterator[Requirement]:
    table = tomllib.loads(project.read_text())["project"]
    optional = table.get("optional-dependencies", {})
    texts = [
        *table["dependencies"],
        *optional.get("testing", ()),
        *optional.get("interop", ()),
        *optional.get("dev", ()),
    ]
    found = (r for r in map(Requirement, texts) if not r.name.startswith("netdiffusion"))
    yield from (r for r in found if r.name not in TOOLS)


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.parent.name)
def test_lower_bounds_are_those_that_are_tested(project: Path) -> None:
    oldest, newest = pins("constraints-oldest.txt"), pins("constraints.txt")
    for requirement in requirements(project):
        name = canonicalize_name(requirement.name)
        (bound,) = requirement.specifier
        assert bound.operator == ">=", requirement
        assert Version(bound.version) == oldest[name], f"{requirement} and constraints-oldest.txt differ"
        assert newest[name] in requirement.specifier, f"{requirement} and constraints.txt differ"


def test_nothing_is_pinned_that_nobody_asks_for() -> None:
    asked = {canonicalize_name(r.name) for project in PROJECTS for r in requirements(project)}
    assert pins("constraints-oldest.txt").keys() == asked
