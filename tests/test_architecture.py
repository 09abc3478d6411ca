"""
Who may import whom.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CORE = Path(__file__).parents[1] / "netdiffusion_core"
PLUGINS = Path(__file__).parents[1] / "plugins"
LIGHT = [
    "__init__",
    "errors",
    "gates",
    "specs",
    "context",
    "hookspecs",
    "plugins",
    "options",
    "config",
    "run_folder",
    "manifest",
    "scaffold",
]
HEAVY = {"numpy", "torch", "diffusers", "transformers", "scapy", "pandas", "sklearn", "scipy", "PIL", "jinja2"}


def imports(path: Path, top_level: bool = False) -> Iterator[str]:
    """
    Yield the modules that a file imports, relative ones as ``netdiffusion_core.x``; with `top_level` only those that
    are imported when the module itself is.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    if top_level:
        for node in ast.walk(tree):
            deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            if deferred or typing_only:
                skipped |= {id(inner) for inner in ast.walk(node)}
    package = ["netdiffusion_core", *path.relative_to(CORE).parts[:-1]] if path.is_relative_to(CORE) else []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{a.name}" for a in node.names] if node.module is None else [module]
            yield from (name if exists(name) else module for name in names)


def exists(module: str) -> bool:
    """
    Tell whether a dotted name is a module of the core, and no attribute of one.
    """
    path = CORE.parent.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_the_core_imports_no_plugin() -> None:
    for path in set(CORE.rglob("*.py")) - set(CORE.glob("templates/**/*.py")):
        wrong = [m for m in imports(path) if m.startswith("netdiffusion_") and m.split(".")[0] != "netdiffusion_core"]
        assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy(name: str) -> None:
    light = {f"netdiffusion_core.{n}" for n in LIGHT} | {"netdiffusion_core"}
    for module in imports(CORE / f"{name}.py", top_level=True):
        assert module.split(".")[0] not in HEAVY, f"{name} imports {module}"
        assert not module.startswith("netdiffusion_core") or module in light, f"{name} imports {module}"


def test_command_modules_import_nothing_heavy() -> None:
    light = {f"netdiffusion_core.{n}" for n in LIGHT}
    allowed = {m for n in (CORE / "cli").glob("*.py") for m in [f"netdiffusion_core.cli.{n.stem}"]} | light
    for path in (CORE / "cli").glob("*.py"):
        for module in imports(path, top_level=True):
            if path.stem == "progress":  # itself imported inside a function only
                continue
            assert module.split(".")[0] not in HEAVY | {"rich"}, f"{path.name} imports {module}"
            assert not module.startswith("netdiffusion_core.") or module in allowed, f"{path.name} imports {module}"


def test_only_tests_import_the_conformance_kit() -> None:
    """
    It imports pytest, which a user need not have.
    """
    for path in [*CORE.rglob("*.py"), *PLUGINS.glob("**/src/**/*.py")]:
        if path.parent.name not in ("testing", "tests"):
            wrong = [m for m in imports(path) if m.startswith(("netdiffusion_core.testing", "pytest"))]
            assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("folder", sorted(PLUGINS.glob("**/src/*/")), ids=lambda p: p.name)
def test_a_plugin_imports_the_core_and_no_other_plugin(folder: Path) -> None:
    for path in folder.rglob("*.py"):
        others = [m for m in imports(path) if m.startswith("netdiffusion_")]
        wrong = [m for m in others if m.split(".")[0] not in ("netdiffusion_core", folder.name)]
        assert not wrong, f"{path} imports {wrong}"


def test_plugins_and_templates_use_what_the_reference_calls_public() -> None:
    page = (CORE.parent / "docs" / "reference" / "hooks.md").read_text(encoding="utf-8")
    table = page[: page.index("## Hooks")]
    public = {"netdiffusion_core"}
    for name in re.findall(r"`(netdiffusion_\w+(?:\.\w+)*|\.\w+)`", table):
        public.add(f"netdiffusion_core{name}" if name.startswith(".") else name)
    templates = list(CORE.glob("templates/*/src/**/*.py"))
    assert templates
    for path in [*PLUGINS.glob("**/src/**/*.py"), *templates]:
        own = "netdiffusion_newplugin" if path in templates else path.relative_to(PLUGINS).parts[-2]
        used = {module for module in imports(path) if module.startswith("netdiffusion_") and own not in module}
        assert used <= public, f"{path} imports {used - public}, which docs/reference/hooks.md does not name"
