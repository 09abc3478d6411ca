"""
The conformance kit: what every plugin must do, as tests. Subclass the class of your kind, give it your spec, and pytest
does the rest::

    from netdiffusion_core.testing import RuleSetConformance

    from netdiffusion_mine.plugin import MINE

    class TestMine(RuleSetConformance):
        spec = MINE

The docstring of each check says what it means and how to mend what it finds; ``pytest -v`` names them. Needs pytest:
``pip install 'netdiffusion-core[testing]'``.
"""

from .backend import BackendConformance
from .component import Conformance
from .encoder import EncoderConformance
from .evaluator import EvaluatorConformance
from .examples import damaged, example_bits, example_traffic, no_flow, no_packets
from .executor import ExecutorConformance
from .rules import RuleSetConformance

__all__ = [
    "BackendConformance",
    "Conformance",
    "EncoderConformance",
    "EvaluatorConformance",
    "ExecutorConformance",
    "RuleSetConformance",
    "damaged",
    "example_bits",
    "example_traffic",
    "no_flow",
    "no_packets",
]
