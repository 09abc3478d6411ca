"""
report.html: one file without any outside resource, for people.

This module turns scores into table cells and drawing.py flows into pictures; the folder ``page`` holds every word,
style and tag, with autoescaping on, so that a label with markup in it is shown as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import attrs
import jinja2
import numpy as np

from .. import __version__
from ..model import Encoded, Score, Traffic, Violation, counts_by_label
from .compare import Comparison
from .drawing import BOX, PACKETS_SHOWN, Side, class_view, distributions, headers
from .verdict import ARROWS, RULE, axes, figures, grade, graded, number, plus_minus, spread, violation_summary

BARS_SHOWN = 12
TEXT_SHOWN = 400
ROWS_SHOWN = 200
"""Of a table that an evaluator adds to a figure; report.json has them all."""


@attrs.frozen
class Totals:
    """
    flows    by label
    packets  of all of them
    """

    flows: Mapping[str, int]
    packets: int

    @classmethod
    def of(cls, data: Encoded | Traffic) -> Totals:
        """
        Count flows and packets.
        """
        if isinstance(data, Encoded):
            return cls(counts_by_label(data.labels), len(data.rows))
        return cls(counts_by_label(data.flows.labels), len(data))


def report_html(
    rows: Mapping[str, Sequence[Score]],
    real: Encoded,
    synthetic: Encoded,
    violations: Sequence[Violation],
    repairs: Sequence[Mapping[str, Any]] | None,
    manifest: Mapping[str, Any],
    classes: Sequence[Mapping[str, Any]],
    gates: Sequence[Mapping[str, Any]],
    totals: Mapping[str, Totals],
) -> str:
    """
    Return the report as one HTML document.
    """
    backends = list(rows)
    ours = backends[0] if backends else ""
    sides = {"real": Side.of(real), "synthetic": Side.of(synthetic)}
    labels = sorted({*real.labels.tolist(), *synthetic.labels.tolist()})
    plots, table = distributions(sides), figures(rows)
    ours_scores = rows.get(ours, ())
    return render(
        "report.html",
        captures=manifest.get("inputs", {}).get("synthetic", {}).get("data"),
        gates=gates,
        ours=ours,
        baselines=backends[1:],
        axes=[
            {
                **attrs.asdict(axis),
                "scale": scale(axis.values, axis.floor, axis.ideal),
                "spreads": {b: spread(table[axis.headline][b]) for b in backends if b in table[axis.headline]},
            }
            for axis in axes(rows)
        ],
        rule=RULE,
        figures=figure_table(rows),
        labels=labels,
        per_class=per_class(rows, labels),
        details=[d for score in ours_scores if (d := detail(score))["keys"]],
        telltales=rankings(ours_scores, labels),
        layout=real.layout,
        headers=headers(real.layout),
        packets_shown=PACKETS_SHOWN,
        box=BOX,
        sides={name: {"flows": sum(t.flows.values()), "packets": t.packets} for name, t in totals.items()},
        classes=[class_view(label, sides, plots) | {"rankings": rankings(ours_scores, [label])} for label in labels],
        repairs=repairs,
        violations=violation_summary(violations),
        data=classes,
        manifest={key: section(value) for key, value in manifest.items() if value not in ([], {}, None)},
    )


def comparison_html(comparison: Comparison) -> str:
    """
    Return a comparison of runs as one HTML document.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for figure in comparison.figures:
        axis, _, rest = figure.name.partition(".")
        cells = [str(column.cells.get(figure.name, "–")) for column in comparison.columns]
        line = {**attrs.asdict(figure), "short": rest or axis, "arrow": ARROWS[figure.goal], "cells": cells}
        groups.setdefault(axis, []).append(line)
    return render("compare.html", comparison=comparison, groups=groups)


def render(template: str, **values: Any) -> str:
    """
    Fill in a template of the folder ``page``.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("netdiffusion_core.report", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=number, cell=cell, columns=columns, plus_minus=plus_minus)
    return environment.get_template(template).render(version=__version__, **values)


# --- words and tables -------------------------------------------------------------------------------------------


def cell(value: Any) -> str:
    """
    Write any value for a table: numbers for reading, the rest as text.
    """
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    return number(float(value)) if isinstance(value, (float, np.floating)) else str(value)


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """
    Return the keys of all rows, each once, in order of appearance.
    """
    return list(dict.fromkeys(key for row in rows for key in row))


def is_table(value: Any) -> bool:
    """
    Tell whether a value is rows with names.
    """
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(v, Mapping) for v in value)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """
    Yield ``("torch.version", "2.15")`` pairs of a nested value.
    """
    if isinstance(value, (list, tuple)) and any(isinstance(v, (Mapping, list, tuple)) for v in value):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def section(value: Any) -> dict[str, Any]:
    """
    One part of the manifest: rows where it is a table, else names and values.
    """
    return {"table": value} if is_table(value) else {"pairs": list(flatten(value))}


def figure_table(rows: Mapping[str, Sequence[Score]]) -> dict[str, list[dict[str, Any]]]:
    """
    Return the lines of the full score table by axis.
    """
    grades = graded(rows)
    table: dict[str, list[dict[str, Any]]] = {}
    for name, scores in figures(rows).items():
        some = next(iter(scores.values()))
        axis, _, rest = name.partition(".")
        table.setdefault(axis, []).append(
            {
                "name": rest or name,
                "arrow": ARROWS[some.goal],
                "grade": grades.get(name, "none"),
                "values": [plus_minus(scores[b].value, spread(scores[b])) if b in scores else "–" for b in rows],
                "floor": some.floor,
                "bounds": f"{some.lower:g} … {some.upper:g}".replace("inf", "∞"),
                "summary": some.summary,
            }
        )
    return table


def per_class(rows: Mapping[str, Sequence[Score]], labels: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """
    Return those of our figures that tell their value of each class (``detail["per_class"]``: a number, or ``value`` and
    ``floor``), one line a figure with one cell a class; a cell is graded where the class has a floor of its own.
    """
    lines = {}
    for name, scores in figures(rows).items():
        by_backend = [class_scores(scores[b], labels) if b in scores else {} for b in rows]
        if by_backend[0]:
            lines[name] = [
                {
                    "value": one.value,
                    "floor": one.floor,
                    "grade": "none" if one.floor is None else grade(one, [o[label].value for o in by_backend[1:] if o]),
                }
                for label, one in by_backend[0].items()
            ]
    return lines


def class_scores(score: Score, labels: Sequence[str]) -> dict[str, Score]:
    """
    Return the figure of each class; nothing when the evaluator does not tell.
    """
    by_label = score.detail.get("per_class")
    if not isinstance(by_label, Mapping):
        return {}
    entries = {label: by_label.get(label) for label in labels}
    pairs = {k: (e.get("value"), e.get("floor")) if isinstance(e, Mapping) else (e, None) for k, e in entries.items()}
    return {k: attrs.evolve(score, value=np.nan if v is None else v, floor=floor) for k, (v, floor) in pairs.items()}


def is_numbers(value: Any) -> bool:
    """
    Tell whether a value is named numbers.
    """
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, (int, float)) for v in value.values())


def is_nested(value: Any) -> bool:
    """
    Tell whether a value is named numbers by name.
    """
    return isinstance(value, Mapping) and bool(value) and all(map(is_numbers, value.values()))


def is_rankings(value: Any) -> bool:
    """
    Tell whether a value ranks other things for each name, such as the features that give a class away.
    """
    return is_nested(value) and len({frozenset(inner) for inner in value.values()}) > 1


def bars(numbers: Mapping[str, float]) -> list[dict[str, Any]]:
    """
    Return named numbers as bars, the largest first.
    """
    known = [(name, v) for name, v in numbers.items() if v and np.isfinite(v)]
    largest = sorted(known, key=lambda item: -abs(item[1]))[:BARS_SHOWN]
    top = max((abs(v) for _, v in largest), default=1)
    return [{"name": name, "value": v, "share": round(100 * abs(v) / top, 1)} for name, v in largest]


def detail(score: Score) -> dict[str, Any]:
    """
    Return what an evaluator adds to a figure: named numbers as bars, rows as tables, the rest as text. What is told
    class by class is shown there, a spread beside the figure.
    """
    charts: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    pairs: list[tuple[str, str]] = []
    for key, value in score.detail.items():
        if key in ("per_class", "spread") or is_rankings(value):
            continue
        if is_numbers(value):
            charts[key] = bars(value)
        elif is_table(value):
            tables[key] = value[:ROWS_SHOWN]
        elif is_nested(value):
            tables[key] = [{"": name, **inner} for name, inner in islice(value.items(), ROWS_SHOWN)]
        else:
            pairs += [(name, text[:TEXT_SHOWN]) for name, text in islice(flatten(value, key), ROWS_SHOWN) if text]
    names = dict.fromkeys([*charts, *tables, *(name.split(".")[0] for name, _ in pairs)])
    return {"name": score.name, "keys": list(names), "charts": charts, "tables": tables, "pairs": pairs}


def rankings(scores: Sequence[Score], labels: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """
    Return what evaluators rank for each class, the mean over these classes, as bars by title.
    """
    found = {}
    for score in scores:
        for key, value in score.detail.items():
            told = [value[label] for label in labels if label in value] if is_rankings(value) else []
            if told:
                means = {name: sum(t.get(name, 0) for t in told) / len(told) for t in told for name in t}
                found[f"{score.name}: {key.replace('_', ' ')}"] = bars(means)
    return found


def scale(values: Mapping[str, float | None], floor: float | None, best: float | None) -> list[dict[str, Any]]:
    """
    Place ours, the floor and the baselines on a line from the ideal (0) to the farthest of them (100 %).
    """
    marks = {"floor": floor, **values}
    known = {name: v for name, v in marks.items() if v is not None and np.isfinite(v)}
    if best is None or not known:
        return []
    far = max(abs(v - best) for v in known.values()) or 1.0
    ours = next(iter(values))
    return [
        {
            "name": name,
            "kind": "floor" if name == "floor" else "ours" if name == ours else "baseline",
            "at": round(100 * abs(v - best) / far, 1),
            "value": v,
        }
        for name, v in known.items()
    ]
