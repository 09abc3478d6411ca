"""
What was computed from traffic is computed once: several evaluators look at the same flows, and a run compares ours and
each baseline with the same real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from weakref import finalize

T = TypeVar("T")

_known: dict[int, dict[Hashable, Any]] = {}


def once(owner: Any, key: Hashable, compute: Callable[[], T]) -> T:
    """
    Return ``compute()``, or what it returned before for this very owner (a `Traffic` or `RealTraffic`: both are frozen)
    and key. It is kept as long as the owner is, so it must not refer to the owner.
    """
    if id(owner) not in _known:
        _known[id(owner)] = {}
        finalize(owner, _known.pop, id(owner))
    answers = _known[id(owner)]
    if key not in answers:
        answers[key] = compute()
    return answers[key]
