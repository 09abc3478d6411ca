"""
report.html: one file without any outside resource, for people.

This module turns scores into table cells and drawing.py flows into SVG paths; template.html holds every word, style and
tag, with autoescaping on, so that a label with markup in it is shown as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import jinja2
import numpy as np

from .. import __version__
from ..model import Encoded, Score, Violation
from .drawing import BOX, PACKETS_SHOWN, Side, class_view, distributions, headers
from .verdict import ARROWS, RULE, axes, figures, grade, graded, number, violation_summary

BARS_SHOWN = 12
TEXT_SHOWN = 400


def report_html(
    rows: Mapping[str, Sequence[Score]],
    real: Encoded,
    synthetic: Encoded,
    violations: Sequence[Violation],
    repairs: Sequence[Mapping[str, Any]],
    manifest: Mapping[str, Any],
    classes: Sequence[Mapping[str, Any]],
) -> str:
    """
    Return the report as one HTML document.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("netdiffusion_core.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=number, cell=cell, columns=columns)
    backends = list(rows)
    ours = backends[0] if backends else ""
    sides = {"real": Side.of(real), "synthetic": Side.of(synthetic)}
    labels = sorted({*real.labels.tolist(), *synthetic.labels.tolist()})
    plots = distributions(sides)
    return environment.get_template("template.html").render(
        version=__version__,
        ours=ours,
        baselines=backends[1:],
        axes=[{**attrs.asdict(axis), "scale": scale(axis.values, axis.floor, axis.ideal)} for axis in axes(rows)],
        rule=RULE,
        figures=figure_table(rows),
        labels=labels,
        per_class=per_class(rows, labels),
        details=[d for score in rows.get(ours, ()) if (d := detail(score))["keys"]],
        layout=real.layout,
        headers=headers(real.layout),
        packets_shown=PACKETS_SHOWN,
        box=BOX,
        sides={name: {"flows": len(side.encoded), "packets": len(side.encoded.rows)} for name, side in sides.items()},
        classes=[
            class_view(label, sides, plots) | {"rankings": rankings(rows.get(ours, ()), label)} for label in labels
        ],
        repairs=repairs,
        violations=violation_summary(violations),
        data=classes,
        manifest={key: section(value) for key, value in manifest.items()},
    )


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
                "values": [scores[b].value if b in scores else None for b in rows],
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
    class by class is shown there.
    """
    charts: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    pairs: list[tuple[str, str]] = []
    for key, value in score.detail.items():
        if is_numbers(value):
            charts[key] = bars(value)
        elif is_table(value):
            tables[key] = value
        elif key != "per_class" and is_nested(value) and not is_rankings(value):
            tables[key] = [{"": name, **inner} for name, inner in value.items()]
        elif key != "per_class" and not is_rankings(value):
            pairs += [(name, text[:TEXT_SHOWN]) for name, text in flatten(value, key) if text]
    names = dict.fromkeys([*charts, *tables, *(name.split(".")[0] for name, _ in pairs)])
    return {"name": score.name, "keys": list(names), "charts": charts, "tables": tables, "pairs": pairs}


def rankings(scores: Sequence[Score], label: str) -> dict[str, list[dict[str, Any]]]:
    """
    Return what evaluators rank for one class, as bars by title.
    """
    return {
        f"{score.name}: {key.replace('_', ' ')}": bars(value[label])
        for score in scores
        for key, value in score.detail.items()
        if is_rankings(value) and label in value
    }


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
