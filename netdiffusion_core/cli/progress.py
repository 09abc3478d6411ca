"""
Progress on stderr: bars with rate and time left on a terminal, one line a finished stage anywhere else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..context import Advance
from ..errors import visible
from ..hookspecs import hookimpl


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each", style="progress.data.speed")


class Terminal:
    """
    Draws bars and prints messages, so that neither garbles the other. It observes a run by the same hooks that any
    plugin may use.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.quiet = quiet
        self._bars: Progress | None = None
        self._open = 0
        self._in_run = False

    def say(self, message: str) -> None:
        """
        Print one line on stderr, above the bars.
        """
        self.console.print(visible(message), markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        """
        Show a bar while the work goes on; see `context.Context.progress`.
        """
        if self.quiet:
            yield lambda steps=1, note="": None
            return
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description:<18}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}", markup=False),
                console=self.console,
                transient=True,
                disable=not self.console.is_terminal,
            )
            self._bars.start()
        bars = self._bars
        task = bars.add_task(title, total=total or None, note="")
        start, done, last = time.perf_counter(), 0, ""

        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal done, last
            done, last = done + steps, visible(note) or last
            bars.update(task, advance=steps, note=last)

        self._open += 1
        try:
            yield advance
            finished = True
        except BaseException:
            finished = False
            raise
        finally:
            self._open -= 1
            bars.remove_task(task)
            if not self._open:
                bars.stop()
                self._bars = None
        if finished and not self._in_run:
            self._line(title, time.perf_counter() - start, f"{done} of {total}  {last}" if total > 1 else last)

    def _line(self, title: str, seconds: float, note: str = "") -> None:
        if not self.quiet:
            self.say(f"{title:<24} {seconds:8.1f} s  {note}".rstrip())

    @hookimpl
    def netdiffusion_stage_started(self, stage: str) -> None:
        self._in_run = True

    @hookimpl
    def netdiffusion_stage_finished(self, stage: str, seconds: float) -> None:
        self._in_run = False
        self._line(stage, seconds)

    @hookimpl
    def netdiffusion_run_finished(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        if not self.quiet:
            self.say(f"pcaps: {folder}/synthetic   report: {folder}/report.html")
