"""
What a stage is given besides its data: a seed of its own, progress, and the encoder that evaluators see bits by.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from .interfaces import Encoder, RuleSet

Advance = Callable[..., None]
"""Call ``advance(steps=1, note="")`` as work gets done; the note (a loss, say) is shown beside the bar."""


@contextmanager
def silent(title: str, total: int) -> Iterator[Advance]:
    """
    Show no progress: the default for use from Python.
    """
    yield lambda steps=1, note="": None


def stream_seed(seed: int, name: str) -> int:
    """
    Derive the seed of one named random stream, so that no stage's draws move another's.
    """
    import numpy as np  # here, because the command line's progress imports this module for `netdiff plugins list`

    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1, np.uint64)[0] >> 1)


def slice_seed(seed: int, number: int) -> int:
    """
    Derive the seed of one slice of flows; that of slice 0 is the seed itself.
    """
    return stream_seed(seed, f"slice {number}") if number else seed


@attrs.frozen(kw_only=True)
class Context:
    """
    seed         the run's seed; take `rng` or `stream_seed` of it, never the bare number
    progress     ``with context.progress("fit", total=steps) as advance: advance(note="loss 0.31")``
    encoder      the run's encoder, for evaluators that look at bits
    rules        the run's rule sets in order, for evaluators that look at compliance
    checkpoints  a folder to make, where a backend may keep the state of its training; what it finds there is its own
                 state from before an interruption. None: nothing is kept
    """

    seed: int = 0
    progress: Callable[[str, int], AbstractContextManager[Advance]] = silent
    encoder: Encoder | None = None
    rules: tuple[tuple[str, RuleSet], ...] = ()
    checkpoints: Path | None = None

    def rng(self, name: str) -> np.random.Generator:
        """
        Return the random stream of this name.
        """
        import numpy as np

        return np.random.default_rng(stream_seed(self.seed, name))

    def of_slice(self, number: int) -> Context:
        """
        Return the context of one slice of flows, whose streams are its own: those of slice 0 are these.
        """
        return attrs.evolve(self, seed=slice_seed(self.seed, number))

    def __reduce__(self) -> tuple[Any, ...]:
        # In another process there is no bar to move.
        return _sent, (self.seed, self.encoder, self.rules)


def _sent(seed: int, encoder: Encoder | None, rules: tuple[tuple[str, RuleSet], ...]) -> Context:
    return Context(seed=seed, encoder=encoder, rules=rules)
