"""
What this distribution offers. Imported whenever `netdiff` starts: keep NumPy and the like out of here.
"""

from __future__ import annotations

from collections.abc import Sequence

from netdiffusion_core import hookimpl
from netdiffusion_core.specs import EvaluatorSpec

NEWPLUGIN = EvaluatorSpec(
    name="newplugin",
    target="netdiffusion_newplugin.evaluator:NewpluginEvaluator",
    summary="do flows have as many packets as real ones?",
)


@hookimpl
def netdiffusion_register_evaluators() -> Sequence[EvaluatorSpec]:
    """
    Offer the evaluator ``newplugin``.
    """
    return [NEWPLUGIN]
