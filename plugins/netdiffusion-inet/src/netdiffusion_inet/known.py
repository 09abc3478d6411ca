"""
What was worked out about a frozen object, for as long as that object lives.

Each rule set is given what the one before it returned, and needs to know the same of it: where the headers are, which
flow a packet belongs to. The key is the object itself, not its value.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Known(Generic[T]):
    """
    A memory of one fact about each of many objects.
    """

    def __init__(self) -> None:
        self._facts: dict[int, tuple[weakref.ref[Any], T]] = {}

    def get(self, of: Any, work: Callable[[Any], T]) -> T:
        """
        Return what is known of this object, or what this work finds out about it.
        """
        if id(of) in self._facts:
            reference, fact = self._facts[id(of)]
            if reference() is of:
                return fact
        return self.put(of, work(of))

    def put(self, of: Any, fact: T) -> T:
        """
        Remember and return a fact.
        """
        key = id(of)
        self._facts[key] = weakref.ref(of, lambda _: self._facts.pop(key, None)), fact
        return fact
