"""
netdiff compare
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Gate, Json, Session, exit_code, logger, print_json, print_table


def compare(
    session: Session,
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of netdiff run or netdiff evaluate --output.")
    ],
    html: Annotated[Path | None, typer.Option("--html", help="Also write the table as a page.")] = None,
    gate: Gate = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page if it exists.")] = False,
    json: Json = False,
) -> int:
    """
    Put runs, backends and baselines side by side; runs that differ only in their seed are one column, mean ± standard
    deviation.

    Example: netdiff compare runs/seed-* runs/bernoulli --html comparison.html
    """
    config = session.config(gate=gate)
    from contextlib import nullcontext

    from .. import gates
    from ..report import Comparison, comparison_html, comparison_table, read_runs
    from ..report.json import plain
    from ..run_folder import new_file

    target = new_file(html, overwrite) if html else nullcontext()
    with target as page:
        found = Comparison.of(read_runs(runs))
        gates.require_figures(config.gate, [f.name for f in found.figures])
        if found.differences:
            differences = ", ".join(found.differences)
            logger.warning("the runs differ in %s: their figures are not measured alike", differences)
        if page:
            page.write_text(comparison_html(found), encoding="utf-8", errors="backslashreplace")
    if json:
        print_json(plain(found.document()))
    else:
        print_table(comparison_table(found))
    judged = []
    for column in found.columns:
        if column.kind == "ours":
            rows = gates.judge(config.gate, {name: cell.mean for name, cell in column.cells.items()})
            judged += [{**row, "sentence": f"{column.note}: {row['sentence']}"} for row in rows]
    return exit_code(judged)
