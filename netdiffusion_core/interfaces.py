"""
What a component does: five small base classes, one a kind.

They are base classes and not protocols, so that a new optional method breaks no third party and a forgotten
abstract one is named when the class is first used. A component is built once a run with its `Options`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import attrs
import numpy as np
from numpy.typing import NDArray

from .context import Context
from .model import Encoded, Layout, Rule, SampleRequest, Score, Traffic, Violation

Item = TypeVar("Item")
Result = TypeVar("Result")


@attrs.frozen(kw_only=True)
class NoOptions:
    """
    For components without options.
    """


class Component:
    """
    What the five kinds share: an attrs class of options (units in the names, a ``help`` text in each field's
    metadata, validators), read from ``[encoder]`` and the like in netdiff.toml or from ``--set encoder.key=value``.
    """

    Options: ClassVar[type] = NoOptions

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options


class Encoder(Component, ABC):
    """
    Turns traffic into rows of bits and back.

    formats  file formats of other tools that `write` knows, and the suffix of each: ``{"nprint": ".npt"}``
    """

    formats: ClassVar[Mapping[str, str]] = {}

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """
        The layout that `encode` writes and `decode` reads.
        """

    @abstractmethod
    def encode(self, traffic: Traffic) -> Encoded:
        """
        Return one group of rows a flow, in the order of ``traffic.flows``; packets of no flow are left out.
        """

    @abstractmethod
    def decode(self, encoded: Encoded, rng: np.random.Generator) -> Traffic:
        """
        Return packets whose headers hold exactly the encoded bits, grouped by flow. What the layout does not carry
        (addresses, payload) is drawn from `rng`. Nothing is repaired here: that is the rules' work.
        """

    def write(self, traffic: Traffic, path: Path, form: str) -> None:
        """
        Write packets, in the order given, as a new file in one of `formats`. The packets need belong to no flow.
        """
        raise KeyError(form)


class Backend(Component, ABC):
    """
    Learns encoded flows and generates new ones.
    """

    @abstractmethod
    def fit(self, data: Encoded, context: Context) -> None:
        """
        Learn from flows and their labels. Training never sees anything else.
        """

    @abstractmethod
    def sample(self, request: SampleRequest, context: Context) -> Encoded:
        """
        Generate one flow a requested label, in the order given, in the layout of the training data.

        Raises NotFittedError before `fit` or `load`, DataError for a label that was never learned.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """
        Write what was learned into an existing, empty folder: safetensors, npy, JSON or TOML, never pickle.
        """

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, options: Any = None) -> Self:
        """
        Read what `save` wrote. Raises DataError for a folder that it cannot use.
        """


class Record(Protocol):
    """
    Takes note of what a rule changed.
    """

    def __call__(
        self,
        rule: str,
        field: str,
        packets: NDArray[Any],
        before: NDArray[Any],
        after: NDArray[Any],
        bits: NDArray[Any] | None = None,
    ) -> None:
        """
        Note that a rule changed a field of these packets (indices into the traffic that `RuleSet.repair` was given)
        from one value to another. `bits` says how many bits differ, where that does not follow from the values.
        """


def forget(*_: Any, **__: Any) -> None:
    """
    The `Record` of somebody who does not want to know.
    """


class RuleSet(Component, ABC):
    """
    Knows what one protocol allows.

    rules  what it checks, for ``netdiff rules list``
    off    ids of rules that the user has switched off: neither checked nor repaired; set by the core
    """

    rules: ClassVar[tuple[Rule, ...]] = ()
    off: frozenset[str] = frozenset()

    def constrain(self, encoded: Encoded) -> Encoded:
        """
        Mend what is only visible in bits, before decoding (which headers are present, for instance). Optional.
        """
        return encoded

    def repair(self, traffic: Traffic, rng: np.random.Generator, record: Record = forget) -> Traffic:
        """
        Return traffic in which `check` finds no repairable violation; what was valid stays byte-identical. Each change
        is told to `record`. Optional.
        """
        return traffic

    @abstractmethod
    def check(self, traffic: Traffic) -> Iterable[Violation]:
        """
        Yield each violation of the rules of this set. Works on any real capture.
        """


class Evaluator(Component, ABC):
    """
    Measures synthetic against real traffic.
    """

    @abstractmethod
    def evaluate(self, real: RealTraffic, synthetic: Traffic, context: Context) -> Iterable[Score]:
        """
        Yield scores named ``<evaluator>.<figure>``.
        """


class Executor(Component, ABC):
    """
    Does one piece of work for each of many items: here, in other processes, on other machines. The pieces do not depend
    on it, so neither do the results. It is used in a ``with`` statement; what it has started is stopped at the end, at
    once where that is an error.

    samples  whether models sample there too, and not in the main process alone
    """

    samples: ClassVar[bool] = False

    @abstractmethod
    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """
        Yield ``function(item)`` for each item, in the order of the items. Function, items and results may be copied to
        where the work is done: they are small, and say where files are. A piece may be done twice, where a worker was
        lost half-way: it writes the same again.

        Raises what the function raises, the errors of `errors` with their own message; RunError when workers are lost
        again and again.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """
        Stop all workers at once.
        """


@attrs.frozen(kw_only=True)
class RealTraffic:
    """
    The two halves of the real flows. Synthetic flows come from a model that has seen `train` only, so every figure
    compares them with `test`, and the floor of a figure compares `train` with `test`.
    """

    train: Traffic
    test: Traffic
