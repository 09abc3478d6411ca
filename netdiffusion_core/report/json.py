"""
report.json: everything that report.html says in words, for scripts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from ..model import Score, Violation
from .verdict import axes, violation_summary

FORMAT = 1
"""Raised when a key is removed or changes its meaning; new keys may come at any time."""


def plain(value: Any) -> Any:
    """
    Return the value in JSON's own types: arrays as lists, NaN and infinities as None, anything unknown as text.
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def report_json(
    rows: Mapping[str, Sequence[Score]],
    flows: Mapping[str, Any],
    violations: Sequence[Violation],
    repairs: Sequence[Mapping[str, Any]] | None,
    manifest: Mapping[str, Any],
    classes: Sequence[Mapping[str, Any]],
    gates: Sequence[Mapping[str, Any]],
) -> str:
    """
    Return the report as JSON text. Keys come in a fixed order: ours first, figures in the evaluators' order.
    """
    document = {
        "format": FORMAT,
        "ours": next(iter(rows), None),
        "verdict": [attrs.asdict(axis) for axis in axes(rows)],
        "gates": gates,
        "flows": flows,
        "scores": {backend: [attrs.asdict(s) for s in scores] for backend, scores in rows.items()},
        "violations": violation_summary(violations),
        "repairs": repairs,
        "classes": classes,
        "manifest": manifest,
    }
    return json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
