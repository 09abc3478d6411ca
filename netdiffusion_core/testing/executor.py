"""
What every executor must do.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from ..errors import DataError
from ..interfaces import Executor
from .component import Conformance, must_raise

ITEMS = 12
BEATS, BEAT_S = 40, 0.05


class ExecutorConformance(Conformance):
    """
    The checks of an executor. Set `options` so that it works in at least two workers.
    """

    kind: ClassVar[str] = "executor"

    def test_results_come_in_the_order_of_the_items(self) -> None:
        """
        The first result is that of the first item, even where others are done sooner; each item has one result.

        Mend: keep what comes early until it is its turn.
        """
        with self._started() as executor:
            found = list(executor.map(_slowest_first, range(ITEMS)))
            assert found == [i * i for i in range(ITEMS)], f"the results of 0 to {ITEMS - 1}, squared, are {found}"
            assert list(executor.map(_slowest_first, [])) == [], "there are results, and no items"

    def test_one_executor_works_again_and_again(self) -> None:
        """
        `map` can be called again with another function, also where the results of the call before were not all taken.

        Mend: forget, or end, what is still at work for a call whose iterator was closed.
        """
        with self._started() as executor:
            results = executor.map(_slowest_first, range(ITEMS))
            next(iter(results))
            close = getattr(results, "close", None)
            if close is not None:
                close()
            found = list(executor.map(partial(_add, 5), range(ITEMS)))
            assert found == list(range(5, ITEMS + 5)), f"the second call returns {found}"

    def test_an_error_comes_through_with_its_message(self) -> None:
        """
        An error of `netdiffusion_core.errors` in a worker is raised by `map` as it is: the user reads its sentence.
        Others are raised too, as what they are or as a RuntimeError with their words.

        Mend: send the exception back and raise it; do not wrap it.
        """
        with self._started() as executor:
            with must_raise(DataError, "a function that raises DataError", "item 3 cannot be used; give another"):
                list(executor.map(_refuse, range(ITEMS)))
            with must_raise(Exception, "a function that divides by zero", "division by zero"):
                list(executor.map(_divide, range(ITEMS)))
            assert list(executor.map(partial(_add, 1), [1, 2])) == [2, 3], "it cannot be used after an error"

    def test_work_is_the_same_wherever_it_is_done(self) -> None:
        """
        Files that pieces of work write are there when their results are, the same bytes as if this process had written
        them.

        Mend: yield a result when the piece is done, not when it was sent.
        """
        with TemporaryDirectory() as folder, self._started() as executor:
            for path in executor.map(partial(_write, Path(folder)), range(ITEMS)):
                assert path.read_bytes() == _content(int(path.name)), f"{path.name} holds something else"

    def test_nothing_is_left_at_work(self) -> None:
        """
        Leaving the ``with`` statement stops workers at once, though they are busy.

        Mend: kill in ``__exit__`` what is at work; do not wait for it.
        """
        with TemporaryDirectory() as folder:
            with self._started() as executor:
                next(iter(executor.map(partial(_beat, Path(folder)), range(4))))
            time.sleep(1.5 * BEATS * BEAT_S)
            traces = [path.stat().st_size for path in Path(folder).iterdir()]
            assert max(traces, default=0) < BEATS, "a worker went on to the end"

    def _started(self) -> Executor:
        component: Executor = self.component()
        return component


def _slowest_first(item: int) -> int:
    time.sleep(0.05 if item % 4 == 0 else 0)
    return item * item


def _add(more: int, item: int) -> int:
    return item + more


def _refuse(item: int) -> int:
    if item == 3:
        raise DataError("item 3 cannot be used; give another")
    return item


def _divide(item: int) -> float:
    return 1 / (item - 3)


def _content(item: int) -> bytes:
    return bytes(range(item)) * 1000


def _write(folder: Path, item: int) -> Path:
    path = folder / str(item)
    path.write_bytes(_content(item))
    return path


def _beat(folder: Path, item: int) -> None:
    """
    Return at once for the first item; for others go on for seconds, and leave a trace of it.
    """
    for _ in range(BEATS if item else 0):
        with (folder / str(item)).open("ab") as trace:
            trace.write(b".")
        time.sleep(BEAT_S)
