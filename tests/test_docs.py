"""
The documentation agrees with the code: references are what the code says, and links lead somewhere.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netdiffusion_core.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("plugins/**/README.md")),
    *sorted(ROOT.glob("netdiffusion_core/templates/**/README.md")),
]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """
    Return the anchors of a page's headings, as GitHub and MkDocs make them.
    """
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("http:", "https:", "mailto:")):
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            assert target.exists(), f"{name(page)}: {link} leads nowhere"
            assert not anchor or anchor in anchors(target), f"{name(page)}: {link} has no such heading"


def commands(page: Path) -> Iterator[list[str]]:
    """
    Yield the words of each ``netdiff ...`` in the code blocks of a page, those behind a pipe or a semicolon left out.
    """
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for line in "".join(blocks).replace("\\\n", "").splitlines():
        if found := re.search(r"(?:^|^\$ |=\S* |; do )netdiff ([^…]*)$", line):
            words = shlex.shlex(found[1], posix=True, punctuation_chars=True)
            words.whitespace_split = True
            yield list(itertools.takewhile(lambda word: not word or not set(word) <= set(";|&<>"), words))


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands(page))], ids=name)
def test_commands_have_the_options_that_pages_give_them(
    page: Path, alone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in commands(page):
        assert main([*words, "--help"]) == 0, f"netdiff {' '.join(words)}: {capsys.readouterr().err}"


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """
    Every page is in the menu, and every link inside leads somewhere.
    """
    pytest.importorskip("mkdocs", reason="mkdocs-material is not installed (make dev)")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "tutorial/first-run.html" in page
    assert not re.search(r'<(?:script|link)[^>]+"https?:', page), "the site fetches something from elsewhere"


def test_references_say_what_the_code_says(monkeypatch: pytest.MonkeyPatch, alone: None) -> None:
    """
    So a hook, an argument, an option or a figure that is not in the pages fails here.
    """
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    made = set()
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        made |= set(re.findall(r"<!-- begin ([\w ]+) -->", text))
        assert reference.filled(text) == text, f"{name(page)} is out of date: make docs"
    assert made == set(reference.PARTS)
