"""
What a run says about itself: a table for the terminal, report.json for scripts, report.html for people, and packet
images.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..model import Encoded, Score, Violation
from .compare import Comparison, read_runs
from .html import Totals, comparison_html, report_html
from .image import render_png
from .json import report_json
from .table import comparison_table, score_table

__all__ = [
    "Comparison",
    "Totals",
    "comparison_html",
    "comparison_table",
    "read_runs",
    "render_png",
    "score_table",
    "write_report",
]


def write_report(
    folder: Path,
    *,
    rows: Mapping[str, Sequence[Score]],
    real: Encoded,
    synthetic: Encoded,
    violations: Sequence[Violation],
    repairs: Sequence[Mapping[str, Any]] | None,
    manifest: Mapping[str, Any],
    classes: Sequence[Mapping[str, Any]] = (),
    gates: Sequence[Mapping[str, Any]] = (),
    totals: Mapping[str, Totals] | None = None,
) -> None:
    """
    Write report.json and report.html into an existing folder: both whole, or neither.

    rows        the scores of each backend by its name: ours first, baselines behind it
    real        the held-out real flows that pictures and distributions show
    synthetic   the generated flows, in the same layout
    violations  what the rule sets still find in the synthetic traffic
    repairs     one row a rule that changed something, see `repairs.summary`; None: no rule was applied
    manifest    configuration, versions, digests, timings: shown as it is
    classes     one row a class of the data table: ``label``, numbers of flows and packets
    gates       what figures had to reach, see `gates.judge`
    totals      of ``real`` and ``synthetic``, where only some flows are shown

    Raises RunError when the folder cannot be written.
    """
    totals = totals or {"real": Totals.of(real), "synthetic": Totals.of(synthetic)}
    flows = {side: total.flows for side, total in totals.items()}
    texts = {
        "report.json": report_json(rows, flows, violations, repairs, manifest, classes, gates),
        "report.html": report_html(rows, real, synthetic, violations, repairs, manifest, classes, gates, totals),
    }
    drafts = {folder / name: folder / f".{name}.partial" for name in texts}
    try:
        for draft, text in zip(drafts.values(), texts.values(), strict=True):
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")
        for final, draft in drafts.items():
            os.replace(draft, final)
    except OSError as error:
        raise RunError(
            f"the report could not be written into {folder}: {error.strerror or error}; "
            "free some space or choose another output folder"
        ) from error
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
