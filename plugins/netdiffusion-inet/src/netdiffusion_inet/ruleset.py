"""
What the rule sets of this distribution have in common.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.interfaces import Record, RuleSet, forget
from netdiffusion_core.model import Encoded, Traffic, Violation

from .bits import Bits
from .headers import Draft, has, headers_of, own_bytes
from .rules import RULES


class InetRules(RuleSet):
    """
    A rule set that says what its three parts do to bits, to packets, and find in packets.

    name       the first part of its rules' ids
    header     the header whose bits it settles; "" for none
    protocol   whose packets it mends; "" for all
    checksums  the headers whose checksums it mends
    """

    name: ClassVar[str]
    header: ClassVar[str] = ""
    protocol: ClassVar[str] = ""
    checksums: ClassVar[tuple[str, ...]] = ()

    def constrain(self, encoded: Encoded) -> Encoded:
        """
        Mend bits; see `settle`.
        """
        bits = Bits(encoded)
        if self.header in bits.spans and f"{self.name}.bits" not in self.off:
            self.settle(bits)
        return bits.encoded()

    def repair(self, traffic: Traffic, rng: np.random.Generator, record: Record = forget) -> Traffic:
        """
        Mend packets; see `mend`.
        """
        if self.protocol and not has(headers_of(traffic), self.protocol).any():
            return traffic
        draft = Draft(own_bytes(traffic), self.off, record, self.checksums)
        self.mend(draft, rng)
        return draft.finish()

    def check(self, traffic: Traffic) -> Iterator[Violation]:
        """
        Yield a violation of each packet that breaks a rule which is not off.
        """
        for rule, packets in self.faults(Draft(traffic)):
            if rule not in self.off:
                yield from RULES[rule].broken(traffic, packets)

    def settle(self, bits: Bits) -> None:
        """
        Mend what is only visible in bits.
        """

    @abstractmethod
    def mend(self, draft: Draft, rng: np.random.Generator) -> None:
        """
        Mend packets.
        """

    @abstractmethod
    def faults(self, draft: Draft) -> Iterable[tuple[str, NDArray[Any]]]:
        """
        Yield rules and the packets (int indices) that break them.
        """
