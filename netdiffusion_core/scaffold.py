"""
Write a new plugin: a distribution made of the files in `templates`, with a name of its own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from .plugins import Plugins

PLACEHOLDER = "newplugin"
"""The name that stands in the templates, in all its forms: netdiffusion_newplugin, NewpluginRules."""

KINDS = ("encoder", "backend", "rules", "evaluator")
"""Those that there are templates of."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def write_plugin(name: str, kind: str, folder: Path, plugins: Plugins) -> list[Path]:
    """
    Write a distribution that offers one component `name` of this kind into a new folder, and return its files.

    Raises ConfigError for a name that is no name or is taken, an unknown kind, and a folder that is there already.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind {kind!r}.{did_you_mean(kind, list(KINDS))} The kinds: {', '.join(KINDS)}.")
    if name.startswith("netdiffusion"):
        raise ConfigError(f"leave the prefix out of {name!r}: the name is what users type, such as --{kind} mine")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name; write lower-case letters and digits, words joined by a dash: 'flow-label'"
        )
    taken = {o.origin.distribution for o in plugins.offers} | {b.origin.distribution for b in plugins.broken}
    if f"netdiffusion-{name}" in {"netdiffusion-core", *taken}:
        raise ConfigError(f"the distribution netdiffusion-{name} is installed already; choose another name")
    if name in plugins.names(kind):
        raise ConfigError(f"{plugins.origin(kind, name)} offers {kind} {name!r} already; choose another name")
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} exists already; choose another folder with --output")
    from importlib.resources import files

    templates = files(__package__) / "templates"
    texts = {**_texts(templates / "common"), **_texts(templates / kind)}
    written = []
    for path, text in texts.items():
        target = folder / _renamed(path, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_renamed(text, name), encoding="utf-8")
        written.append(target)
    return sorted(written)


def _texts(folder: Traversable, below: str = "") -> dict[str, str]:
    """
    Return the content of every template in a folder, by path.
    """
    texts: dict[str, str] = {}
    for entry in folder.iterdir():
        path = f"{below}{entry.name}"
        if entry.is_dir():
            if entry.name != "__pycache__":
                texts |= _texts(entry, f"{path}/")
        else:
            texts[path] = entry.read_text(encoding="utf-8")
    return texts


def _renamed(text: str, name: str) -> str:
    """
    Put the name in the placeholder's place: as part of a module, of a class, of a constant, and by itself.
    """
    module = name.replace("-", "_")
    for old, new in (
        (f"netdiffusion_{PLACEHOLDER}", f"netdiffusion_{module}"),
        (PLACEHOLDER.title(), "".join(word.title() for word in name.split("-"))),
        (PLACEHOLDER.upper(), module.upper()),
        (PLACEHOLDER, name),
    ):
        text = text.replace(old, new)
    return text
