"""
manifest.json: what a run was made from, with what, and how long it took.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from . import __version__
from .config import RunConfig, plain
from .plugins import Plugins

FORMAT = 1


def file_digest(path: Path) -> str:
    """
    Return the SHA-256 of one file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_digest(paths: Iterable[Path], base: Path) -> str:
    """
    Return one SHA-256 over names (relative to `base`) and contents of files, in the order of their names.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(base)}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def folder_digest(folder: Path) -> str:
    """
    Return one SHA-256 over names and contents of all files below a folder.
    """
    return files_digest((p for p in folder.rglob("*") if p.is_file()), folder)


def versions(plugins: Plugins) -> dict[str, str]:
    """
    Return the version of every distribution that offers a component.
    """
    found = {o.origin.distribution: o.origin.version for o in plugins.offers}
    return {"netdiffusion-core": __version__} | dict(sorted(found.items()))


def build(
    *,
    config: RunConfig,
    plugins: Plugins,
    components: Mapping[str, Any],
    inputs: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    started: datetime,
) -> dict[str, Any]:
    """
    Return the manifest of a run as JSON's own types. Its times enter no other file but the report.
    """
    return {
        "format": FORMAT,
        "seed": config.seed,
        "config": plain(attrs.asdict(config)),
        "config_sha256": config.digest(),
        "components": dict(components),
        "inputs": dict(inputs),
        "stages": [dict(stage) for stage in stages],
        "versions": versions(plugins) | {"python": platform.python_version()},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
