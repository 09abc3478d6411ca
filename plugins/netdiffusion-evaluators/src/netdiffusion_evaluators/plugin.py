"""
Registers the evaluators.
"""

from __future__ import annotations

from collections.abc import Sequence

from netdiffusion_core import hookimpl
from netdiffusion_core.specs import EvaluatorSpec

_SUMMARIES = {
    "fidelity": "are the bits and the order of packets distributed as in real traffic?",
    "utility": "does a classifier trained on synthetic flows recognise real ones?",
    "detectability": "can a classifier tell synthetic flows from real ones, and by what?",
    "compliance": "would a receiver accept the packets?",
    "timing": "are inter-arrival times, sizes and durations distributed as in real traffic?",
    "novelty": "are the flows new and different from one another, or copies?",
    "interop": "do tshark, tcptrace, tcpreplay, nDPI, Zeek and Suricata see the flows that are there?",
}


@hookimpl
def netdiffusion_register_evaluators() -> Sequence[EvaluatorSpec]:
    """
    Offer the evaluators.
    """
    return [
        EvaluatorSpec(name=name, target=f"netdiffusion_evaluators.{name}:{name.title()}", summary=summary)
        for name, summary in _SUMMARIES.items()
    ]
