"""
The executor: Ray actors, one for each core of the cluster, that do one piece of work after another.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import attrs
import ray
from ray.exceptions import RayError, RayTaskError

from netdiffusion_core.errors import ConfigError, RunError
from netdiffusion_core.interfaces import Executor

Item = TypeVar("Item")
Result = TypeVar("Result")
Message = tuple[int, str]

TRIES = 4
"""How often a piece of work is given to a worker before it is given up."""

_AHEAD = 4  # pieces a worker that may be done before the result that the caller waits for

log = logging.getLogger("netdiffusion")


@attrs.frozen(kw_only=True)
class RayOptions:
    """
    Options of the executor ``ray``.
    """

    address: str | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(attrs.validators.instance_of(str)),
        metadata={"help": "address of the cluster, such as auto or head:6379; none: one is started on this machine"},
    )
    cpus: float = attrs.field(
        default=1.0, validator=attrs.validators.gt(0), metadata={"help": "cores that a piece of work takes"}
    )
    gpus: float = attrs.field(
        default=0.0,
        validator=attrs.validators.ge(0),
        metadata={"help": "GPUs that sampling from a model takes; 0.5: two workers share one"},
    )


class RayCluster(Executor):
    """
    Work on a Ray cluster. All its machines see the run folder under the same path, and have the same distributions.
    """

    Options = RayOptions
    samples = True

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._ours = False
        self._crew: list[Any] = []
        self._needs: dict[str, float] = {}

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """
        See `interfaces.Executor.map`. A piece whose worker is lost is done by another, `TRIES` times in all.
        """
        pieces = list(items)
        if not pieces:
            return
        self._connect()
        self._hire(len(pieces), self.options.gpus if getattr(function, "samples", False) else 0.0)
        sent = [ray.put(function)]  # in a list, so that each worker takes it once and not each piece
        waiting, done, lost = deque(range(len(pieces))), dict[int, Any](), Counter[int]()
        idle, flying = deque(self._crew), dict[Any, tuple[Any, int]]()
        try:
            for number in range(len(pieces)):
                while number not in done:
                    while idle and waiting and waiting[0] < number + _AHEAD * len(self._crew):
                        worker, piece = idle.popleft(), waiting.popleft()
                        flying[worker.do.remote(sent, pieces[piece])] = worker, piece
                    (ready,), _ = ray.wait(list(flying), num_returns=1)
                    worker, piece = flying.pop(ready)
                    try:
                        result, messages = ray.get(ready)
                    except RayTaskError as error:
                        raise error.cause from error
                    except RayError as error:
                        lost[piece] += 1
                        if lost[piece] == TRIES:
                            raise RunError(
                                f"workers of the Ray cluster were lost {TRIES} times: {_line(error)}"
                            ) from error
                        log.warning("a worker was lost, and what it was at is done again: %s", _line(error))
                        waiting.appendleft(piece)
                        self._crew.remove(worker)
                        self._crew.append(worker := self._worker())
                    else:
                        for level, message in messages:
                            log.log(level, "%s", message)
                        done[piece] = result
                    idle.append(worker)
                yield done.pop(number)
        finally:
            for worker, _ in flying.values():  # nobody waits for what it does
                ray.kill(worker)
                self._crew.remove(worker)

    def _hire(self, pieces: int, gpus: float) -> None:
        """
        Have as many workers as there is room and work for, with what they need.
        """
        needs = {"num_cpus": self.options.cpus, "num_gpus": gpus}
        if needs != self._needs:
            self._dismiss()
            self._needs = needs
        there = ray.cluster_resources()
        room = min(there.get(name, 0.0) / n for name, n in (("CPU", needs["num_cpus"]), ("GPU", gpus)) if n)
        if room < 1:
            raise ConfigError(f"no machine of the Ray cluster has {needs}: set executor.cpus and executor.gpus lower")
        while len(self._crew) < min(int(room), pieces):
            self._crew.append(self._worker())

    def _worker(self) -> Any:
        return _Worker.options(**self._needs).remote()

    def _dismiss(self) -> None:
        for worker in self._crew:
            ray.kill(worker)
        self._crew.clear()

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        address = self.options.address or "local"
        try:
            ray.init(address=address, include_dashboard=None, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"executor.address: there is no Ray cluster at {address}: {error}") from error
        self._ours = True

    def __exit__(self, *_: object) -> None:
        self._dismiss()
        if self._ours:
            ray.shutdown()
            self._ours = False


class _Heard(logging.Handler):
    """
    Keeps log messages of a piece, for the process that has a terminal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Message] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append((record.levelno, record.getMessage()))


@ray.remote
class _Worker:
    """
    Does pieces of work; what a function has built or loaded stays until another function comes.
    """

    def __init__(self) -> None:
        self._key = ""
        self._function: Callable[[Any], Any] = repr

    def do(self, sent: list[Any], item: Any) -> tuple[Any, list[Message]]:
        """
        Return a result, and what was logged meanwhile.
        """
        if self._key != sent[0].hex():
            self._key, self._function = sent[0].hex(), ray.get(sent[0])
        heard = _Heard()
        log.addHandler(heard)
        try:
            return self._function(item), heard.messages
        finally:
            log.removeHandler(heard)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
