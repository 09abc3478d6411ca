"""
The executor: as many worker processes as cores, each joined to this one by a socket.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any, TypeVar

import attrs

from netdiffusion_core.errors import RunError
from netdiffusion_core.interfaces import Executor

from .worker import ERROR, FUNCTION, LOG, PIECE, WorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")

TRIES = 3
"""How often a piece of work is given to a worker before it is given up."""

_AHEAD = 4  # pieces a worker that may be done before the result that the caller waits for

log = logging.getLogger("netdiffusion")


@attrs.frozen(kw_only=True)
class LocalOptions:
    """
    Options of the executor ``local``.
    """

    processes: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional([attrs.validators.instance_of(int), attrs.validators.ge(1)]),
        metadata={"help": "processes to work in; none: one for each core; 1: no other process is started"},
    )


class LocalProcesses(Executor):
    """
    Work in processes of this machine, begun when there is more than one piece to do.
    """

    Options = LocalOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._workers: list[_Worker] = []

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """
        See `interfaces.Executor.map`. A worker that dies is named in a warning, and another one does its piece again,
        `TRIES` times in all.
        """
        pieces = list(items)
        processes = min(self.options.processes or cores(), len(pieces))
        if processes < 2:
            yield from map(function, pieces)
            return
        while len(self._workers) < processes:
            self._workers.append(_Worker())
        crew = self._workers[:processes]
        for worker in crew:
            worker.learn(function)
        waiting, done, lost = deque(range(len(pieces))), dict[int, Any](), Counter[int]()
        try:
            for number in range(len(pieces)):
                while number not in done:
                    for worker in crew:
                        if worker.piece is None and waiting and waiting[0] < number + _AHEAD * processes:
                            worker.begin(waiting[0], pieces[waiting.popleft()])
                    for worker in _heard(crew):
                        try:
                            worker.hear(done)
                        except (EOFError, OSError):
                            piece = worker.piece
                            _mourn(worker, lost, piece)
                            self._replace(worker, crew, function)
                            if piece is not None:
                                waiting.appendleft(piece)
                yield done.pop(number)
        finally:
            for worker in [w for w in crew if w.piece is not None]:  # nobody waits for what it does
                worker.stop()
                self._workers.remove(worker)

    def _replace(self, worker: _Worker, crew: list[_Worker], function: Callable[..., Any]) -> None:
        new = _Worker()
        for workers in (crew, self._workers):
            workers[workers.index(worker)] = new
        new.learn(function)

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers.clear()


class _Worker:
    """
    A process that does one piece after another.

    piece  the number of the piece that it is at; None where it has nothing to do
    """

    def __init__(self) -> None:
        self.piece: int | None = None
        self.connection, theirs = Pipe()
        paths = os.pathsep.join(path for path in sys.path if path)
        # -P: no module of the working folder is imported, which may hold anything. The session is its own, so that
        # Ctrl-C reaches this process alone, which stops the worker and all that it has started.
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "netdiffusion_local.worker", str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": paths},
                stdin=subprocess.PIPE,
                stdout=2,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def learn(self, function: Callable[..., Any]) -> None:
        """
        Tell it what to do with each piece to come.
        """
        with contextlib.suppress(OSError):  # it has died: `hear` will tell
            self.connection.send((FUNCTION, (function, log.getEffectiveLevel())))

    def begin(self, number: int, piece: Any) -> None:
        """
        Give it a piece.
        """
        self.piece = number
        with contextlib.suppress(OSError):
            self.connection.send((PIECE, piece))

    def hear(self, done: dict[int, Any]) -> None:
        """
        Put its result to the others. Raises what the function raised; EOFError or OSError when it has died.
        """
        kind, content = self.connection.recv()
        if kind == LOG:
            log.log(*content)
            return
        number, self.piece = self.piece, None
        if kind == ERROR:
            error, where = content
            raise error from WorkerError(where)
        assert number is not None
        done[number] = content

    def stop(self) -> None:
        """
        Kill it and what it has started.
        """
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()
        if self.process.stdin:
            self.process.stdin.close()


def cores() -> int:
    """
    Return on how many cores this process may work.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _heard(crew: list[_Worker]) -> list[_Worker]:
    """
    Wait until workers have something to say, and return them.
    """
    ready = wait([worker.connection for worker in crew])
    return [worker for worker in crew if worker.connection in ready]


def _mourn(worker: _Worker, lost: Counter[int], piece: int | None) -> None:
    """
    Say how a worker ended. Raises RunError when its piece was lost too often.
    """
    worker.stop()
    code = worker.process.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    said = f"worker process {worker.process.pid} {how}"
    if code == -signal.SIGKILL:
        said += " (is memory short?)"
    lost[-1 if piece is None else piece] += 1
    if max(lost.values()) == TRIES:
        raise RunError(f"{said}, and so its piece of work was lost three times: try --set executor.processes=1")
    log.warning("%s; what it was at is done again", said)
