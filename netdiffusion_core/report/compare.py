"""
Runs, backends and baselines side by side, read from the report.json of each run.

**The rule.** What was made in the same way but for the seed is one column: the mean over its seeds, and ± their
standard deviation (of a sample, n - 1). The same way means: the same configuration, the same data (by digest), as many
flows and the same versions; for a baseline and for the floor, the backend's own settings do not count. A seed counts
once.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from ..errors import DataError
from ..model import Score
from ..storage import read_json
from .json import FORMAT
from .verdict import plus_minus, spread

_NO_PART = ("seed", "output", "gate", "compare", "data", "labels", "flows", "executor", "executor_options")
"""Settings that do not tell one way of making flows from another: data counts by its digest, flows by their number."""

_MAKING = ("backend", "backend_options", "synthetic")
"""What the floor and the baselines do not depend on."""

_UNBOUNDED = {"value": math.nan, "lower": -math.inf, "upper": math.inf}
"""What JSON's null stands for."""


@attrs.frozen(kw_only=True)
class Report:
    """
    What one run says of itself.

    rows     the scores of each backend by its name
    recipe   everything that the figures of `ours` depend on but the seed
    """

    name: str
    ours: str
    seed: int
    rows: Mapping[str, Sequence[Score]]
    recipe: Mapping[str, Any]

    @property
    def yardstick(self) -> Mapping[str, Any]:
        """
        The part of the recipe that baselines and floors depend on.
        """
        return {key: value for key, value in self.recipe.items() if key not in _MAKING}


@attrs.frozen
class Cell:
    """
    A figure of one column: mean and standard deviation (None: one value, of unknown spread) over `count` measurements.
    """

    mean: float
    deviation: float | None
    count: int

    def __str__(self) -> str:
        return plus_minus(self.mean, self.deviation)


@attrs.frozen(kw_only=True)
class Column:
    """
    One way to make flows.

    kind   ``ours`` for the backend that a run is about, ``floor`` for real against real, ``baseline``
    title  the backend's name, and `note` the runs and how many seeds
    cells  by figure
    """

    kind: str
    title: str
    note: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: Mapping[str, Cell]


@attrs.frozen(kw_only=True)
class Figure:
    """
    One line: a figure, which way is better, and which columns are best.
    """

    name: str
    goal: str
    summary: str
    best: tuple[int, ...]


@attrs.frozen(kw_only=True)
class Comparison:
    """
    The table. `differences` names what runs differ in that all their figures depend on: then floors differ too, and
    figures of one are not measured like those of another.
    """

    columns: tuple[Column, ...]
    figures: tuple[Figure, ...]
    differences: tuple[str, ...]

    @classmethod
    def of(cls, reports: Sequence[Report]) -> Comparison:
        """
        Put reports into columns: runs in the order given, their floor, their baselines; so for each yardstick.
        """
        yards = _groups(reports, lambda report: report.yardstick)
        blocks = [_block(yard, yard[0].name if len(yards) > 1 else "") for yard in yards]
        every = [score for report in reports for scores in report.rows.values() for score in scores]
        known = {score.name: score for score in reversed(every)}
        keys = dict.fromkeys(key for report in reports for key in report.yardstick)
        differs = [key for key in keys if len({_canonical(r.yardstick.get(key)) for r in reports}) > 1]
        return cls(
            columns=tuple(column for block in blocks for column in block),
            figures=tuple(
                Figure(name=name, goal=known[name].goal, summary=known[name].summary, best=_best(known[name], blocks))
                for name in dict.fromkeys(score.name for score in every)
            ),
            differences=tuple(differs),
        )

    def document(self) -> dict[str, Any]:
        """
        Return the table for JSON: the cells stand with the figures, in the order of the columns.
        """
        cells = {f.name: [c.cells.get(f.name) for c in self.columns] for f in self.figures}
        return {
            "format": FORMAT,
            "columns": [attrs.asdict(c, filter=lambda field, _: field.name != "cells") for c in self.columns],
            "differences": self.differences,
            "figures": [
                {**attrs.asdict(f), "cells": [cell and attrs.asdict(cell) for cell in cells[f.name]]}
                for f in self.figures
            ],
        }


def read_runs(folders: Sequence[Path]) -> list[Report]:
    """
    Read the reports of run folders, or of folders of ``netdiff evaluate --output``, each once.

    Raises DataError for a folder that is none, or whose report is damaged or of another format.
    """
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    names = Counter(folder.name for folder in folders)
    return [_read(folder, folder.name if names[folder.name] == 1 else str(folder)) for folder in folders]


def _read(folder: Path, name: str) -> Report:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give the folders of netdiff run or netdiff evaluate --output")
    path = folder / "report.json"
    keys = ("ours", "scores", "flows", "manifest")
    document = read_json(path, keys, "netdiff run or netdiff evaluate --output", FORMAT)
    try:
        manifest = document["manifest"]
        config = {key: value for key, value in manifest["config"].items() if key not in _NO_PART}
        inputs = manifest["inputs"]
        return Report(
            name=name,
            ours=document["ours"],
            seed=manifest["seed"],
            rows={b: [_score(s) for s in scores] for b, scores in document["scores"].items()},
            recipe={
                **config,
                "data": inputs["sha256"],
                "synthetic": inputs.get("synthetic", {}).get("sha256"),
                "flows": document["flows"]["synthetic"],
                "versions": manifest["versions"],
            },
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}); run netdiff run again") from None


def _block(reports: Sequence[Report], note: str) -> list[Column]:
    """
    Return the columns of reports that are measured alike: the runs, their floor, their baselines.
    """
    columns = []
    for same in _groups(reports, lambda report: {"ours": report.ours, **report.recipe}):
        columns.append(_column("ours", same[0].ours, _run_names(same), [(r, r.rows[r.ours]) for r in same]))
    columns.append(_column("floor", "floor", note, [(r, _floors(r.rows[r.ours])) for r in reports]))
    for name in dict.fromkeys(name for r in reports for name in r.rows if name != r.ours):
        scores = [(r, r.rows[name]) for r in reports if name in r.rows and name != r.ours]
        columns.append(_column("baseline", name, note, scores))
    return columns


def _score(document: Mapping[str, Any]) -> Score:
    values: dict[str, Any] = {k: _UNBOUNDED.get(k) if v is None else v for k, v in document.items()}
    return Score(**values)


def _floors(scores: Iterable[Score]) -> list[Score]:
    """
    Return the floors as scores of their own.
    """
    return [attrs.evolve(s, value=math.nan if s.floor is None else s.floor, detail={}) for s in scores]


def _column(kind: str, title: str, note: str, scores: Sequence[tuple[Report, Sequence[Score]]]) -> Column:
    """
    Sum up the scores of several runs, the first of each seed.
    """
    by_seed = {report.seed: found for report, found in reversed(scores)}
    names = dict.fromkeys(s.name for found in by_seed.values() for s in found)
    measured = {name: [s for found in by_seed.values() for s in found if s.name == name] for name in names}
    seeds = tuple(sorted(by_seed))
    notes = [note] * bool(note) + [f"{len(seeds)} seeds"] * (len(seeds) > 1)
    return Column(
        kind=kind,
        title=title,
        note=", ".join(notes),
        runs=tuple(report.name for report, _ in scores),
        seeds=seeds,
        cells={name: _cell(found) for name, found in measured.items()},
    )


def _cell(scores: Sequence[Score]) -> Cell:
    values = [s.value for s in scores if not math.isnan(s.value)]
    if len(values) > 1:
        return Cell(float(np.mean(values)), float(np.std(values, ddof=1)), len(values))
    return Cell(values[0], spread(scores[0]), 1) if values else Cell(math.nan, None, 0)


def _best(score: Score, blocks: Sequence[Sequence[Column]]) -> tuple[int, ...]:
    """
    Return which columns have the best mean of this figure among those that are measured alike; none where no way is
    better, or nothing is to be chosen from.
    """
    best, before = [], 0
    for block in blocks:
        cells = {i: c.cells[score.name] for i, c in enumerate(block, before) if score.name in c.cells}
        means = {i: cell.mean for i, cell in cells.items() if block[i - before].kind != "floor" and cell.count}
        if score.goal != "none" and len(means) > 1:
            top = max(means.values()) if score.goal == "maximize" else min(means.values())
            best += [i for i, mean in means.items() if mean == top]
        before += len(block)
    return tuple(best)


def _groups(reports: Iterable[Report], key: Any) -> list[list[Report]]:
    found: dict[str, list[Report]] = {}
    for report in reports:
        found.setdefault(_canonical(key(report)), []).append(report)
    return list(found.values())


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _run_names(reports: Sequence[Report]) -> str:
    first, *rest = (report.name for report in reports)
    return f"{first} … {rest[-1]}" if rest else first
