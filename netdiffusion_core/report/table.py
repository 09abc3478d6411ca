"""
The scores as a table for the terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from ..model import Score
from .compare import Comparison
from .verdict import ARROWS, figures, graded, number, plus_minus, spread

STYLES = {"good": "bold green", "fair": "bold yellow", "poor": "bold red", "none": "bold"}


def score_table(rows: Mapping[str, Sequence[Score]]) -> Table:
    """
    Return one line a figure: which way is better, ours coloured by its grade, the floor, the baselines.
    """
    backends, grades = list(rows), graded(rows)
    table = Table(caption="↑ more is better, ↓ less is better; floor: real against real", caption_justify="left")
    table.add_column("figure")
    table.add_column()
    for title in [*backends[:1], "floor", *backends[1:]]:
        table.add_column(Text(title), justify="right")
    for name, scores in figures(rows).items():
        some = next(iter(scores.values()))
        cells = [Text(plus_minus(scores[b].value, spread(scores[b])) if b in scores else "–") for b in backends]
        if name in grades:
            cells[0].stylize(STYLES[grades[name]])
        table.add_row(Text(name), ARROWS[some.goal], *cells[:1], Text(number(some.floor), "dim"), *cells[1:])
    return table


def comparison_table(comparison: Comparison) -> Table:
    """
    Return one line a figure and one column a way to make flows; the best ones are starred.
    """
    caption = "↑ more is better, ↓ less is better; ★ the best; floor: real against real; ±: standard deviation"
    table = Table(caption=caption, caption_justify="left")
    table.add_column("figure")
    table.add_column()
    for column in comparison.columns:
        table.add_column(Text(f"{column.title}\n{column.note}".strip()), justify="right")
    for figure in comparison.figures:
        cells = [Text(str(column.cells.get(figure.name, "–"))) for column in comparison.columns]
        for i, column in enumerate(comparison.columns):
            if i in figure.best:
                cells[i] = Text(f"★ {cells[i]}", "bold green")
            elif column.kind == "floor":
                cells[i].stylize("dim")
        table.add_row(Text(figure.name), ARROWS[figure.goal], *cells)
    return table
