"""
From figures to a verdict: how near each figure comes to what real traffic itself would get.

**The rule.** Every figure has a floor, the same figure for real against real traffic, and an ideal, its best bound. Its
span is the way from the floor to the worst baseline. A figure is

- *good* when it is worse than the floor by at most 2 % of the span, or a quarter of the floor's own distance from the
  ideal, whichever is more;
- *fair* when it is worse by at most 25 % of the span, or that whole distance;
- *poor* otherwise.

So a divergence that looks tiny is poor all the same where drawing bits by coin does better. Where the floor is ideal
and no baseline is worse, a tenth of the range of possible values is the span. Without a floor the ideal takes its
place; a figure with neither has no grade.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs
import numpy as np

from ..model import Score, Violation

Grade = Literal["good", "fair", "poor", "none"]
RULE = (
    "Good: worse than the floor by at most 2 % of the way from there to the worst baseline, or by a quarter of the "
    "floor's own distance from the ideal. Fair: by at most 25 % of that way, or by that whole distance. Poor: anything "
    "beyond."
)
ARROWS = {"maximize": "↑", "minimize": "↓", "none": ""}


@attrs.frozen(kw_only=True)
class Axis:
    """
    One line of the verdict: all figures that share the first part of their name, spoken for by the evaluator's first.

    headline   the figure's full name
    values     the figure of each backend, ours first; None where it was not measured
    better     the baselines that do better than ours
    counts     how many figures of the axis are good, fair, poor, and not measured
    """

    name: str
    headline: str
    goal: str
    values: dict[str, float | None]
    floor: float | None
    ideal: float | None
    grade: Grade
    better: tuple[str, ...]
    counts: dict[str, int]
    sentence: str


def number(value: float | None) -> str:
    """
    Write a figure for reading: three significant digits, thousands separated, ``–`` for what is missing.
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size and size < 5e-5:
        text = f"{value:.1e}"
    elif size < 0.01:
        text = f"{value:.4f}" if size else "0"
    elif float(value).is_integer() and size >= 10:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"
    return text.replace("-", "−", 1) if value < 0 else text


def plus_minus(value: float | None, deviation: float | None) -> str:
    """
    Write a figure and its standard deviation, where that is known, to the same digit: ``0.812 ± 0.013``.
    """
    text = number(value)
    if deviation is None:
        return text
    decimals = len(text.partition(".")[2])
    return f"{text} ± {deviation:{'.1e' if 'e' in text else f',.{decimals}f'}}"


def spread(score: Score) -> float | None:
    """
    Return the standard deviation over repeats of the measurement, ``detail["spread"]``, where the evaluator tells it.
    """
    told = score.detail.get("spread")
    return float(told) if isinstance(told, (int, float)) and math.isfinite(told) else None


def ideal(score: Score) -> float | None:
    """
    Return the best value that the figure could have, None where that is unbounded or there is no goal.
    """
    best = {"minimize": score.lower, "maximize": score.upper, "none": math.nan}[score.goal]
    return best if math.isfinite(best) else None


def grade(score: Score, baselines: Iterable[float] = ()) -> Grade:
    """
    Apply the rule above to one figure; `baselines` are the values that it has for trivial generators.
    """
    best = ideal(score)
    floor = best if score.floor is None or not math.isfinite(score.floor) else score.floor
    if score.goal == "none" or floor is None or math.isnan(score.value):
        return "none"
    sign = 1 if score.goal == "minimize" else -1
    distance = abs(floor - (0.0 if best is None else best))
    span = max((sign * (b - floor) for b in baselines if math.isfinite(b)), default=0.0)
    if span <= 0 and distance == 0 and math.isfinite(score.upper - score.lower):
        span = (score.upper - score.lower) / 10
    worse = sign * (score.value - floor)
    if worse <= max(0.02 * span, distance / 4):
        return "good"
    return "fair" if worse <= max(0.25 * span, distance) else "poor"


def figures(rows: Mapping[str, Sequence[Score]]) -> dict[str, dict[str, Score]]:
    """
    Turn scores by backend into scores by figure, in the order in which they first appear.
    """
    table: dict[str, dict[str, Score]] = defaultdict(dict)
    for backend, scores in rows.items():
        for score in scores:
            table[score.name][backend] = score
    return dict(table)


def graded(rows: Mapping[str, Sequence[Score]]) -> dict[str, Grade]:
    """
    Grade each of our figures.
    """
    ours = next(iter(rows), None)
    return {
        name: grade(scores[ours], [s.value for backend, s in scores.items() if backend != ours])
        for name, scores in figures(rows).items()
        if ours in scores
    }


def axes(rows: Mapping[str, Sequence[Score]]) -> list[Axis]:
    """
    Sum up each axis of our scores (``utility.accuracy`` is of the axis utility).

    The headline is the evaluator's first figure that has a goal and was measured; failing that, its first.
    """
    if not rows:
        return []
    ours, *baselines = rows
    table, grades = figures(rows), graded(rows)
    groups: dict[str, list[Score]] = defaultdict(list)
    for score in rows[ours]:
        groups[score.name.split(".")[0]].append(score)
    result = []
    for name, scores in groups.items():
        head = next((s for s in scores if s.goal != "none" and not math.isnan(s.value)), scores[0])
        values = {b: table[head.name][b].value if b in table[head.name] else None for b in (ours, *baselines)}
        sign = {"maximize": 1, "minimize": -1, "none": 0}[head.goal]
        counts = Counter(grades[s.name] for s in scores)
        result.append(
            Axis(
                name=name,
                headline=head.name,
                goal=head.goal,
                values=values,
                floor=head.floor,
                ideal=ideal(head),
                grade=grades[head.name],
                better=tuple(b for b in baselines if (v := values[b]) is not None and sign * (v - head.value) > 0),
                counts={g: counts[g] for g in ("good", "fair", "poor")}
                | {"not measured": sum(math.isnan(s.value) for s in scores)},
                sentence=_sentence(head),
            )
        )
    return result


def _sentence(score: Score) -> str:
    """
    Say the figure in words: what was measured, ours, what real traffic gets.
    """
    text = f"{score.summary.strip().rstrip('.') or score.name}: {number(score.value)}"
    if math.isnan(score.value):
        return f"{text}, not measured: {score.detail.get('reason', 'the evaluator gave no reason')}."
    aside = [] if score.floor is None else [f"real against real: {number(score.floor)}"]
    if (best := ideal(score)) is not None:
        aside.append(f"ideal: {best:g}")
    return f"{text} ({', '.join(aside)})." if aside else f"{text}."


def violation_summary(violations: Sequence[Violation]) -> list[dict[str, Any]]:
    """
    Count violations by rule, the most frequent first, each with the number of flows hit and one example.
    """
    groups: dict[tuple[str, str], list[Violation]] = defaultdict(list)
    for violation in violations:
        groups[violation.rule, violation.severity].append(violation)
    return [
        {
            "rule": rule,
            "severity": severity,
            "count": len(group),
            "flows": len(np.unique([v.flow for v in group])),
            "repairable": all(v.repairable for v in group),
            "example": group[0].message,
        }
        for (rule, severity), group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
