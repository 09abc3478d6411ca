"""
A worker process: takes a function, then pieces of work, and sends back what becomes of each.

Its standard input is the leash: when that ends, the process that began it is gone, and so is this one.
"""

from __future__ import annotations

import copy
import logging
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from netdiffusion_core.errors import NetDiffusionError

FUNCTION, PIECE = "function", "piece"
RESULT, ERROR, LOG = "result", "error", "log"


class WorkerError(Exception):
    """
    Where in a worker an error was raised; what it says is a traceback.
    """

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Messages(logging.Handler):
    """
    Sends log messages to the process that has a terminal.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        self._connection.send((LOG, (record.levelno, "%s", record.getMessage())))


def main() -> None:
    """
    Work until the connection ends.
    """
    threading.Thread(target=_leash, daemon=True).start()
    connection = Connection(int(sys.argv[1]))
    log = logging.getLogger("netdiffusion")
    log.addHandler(_Messages(connection))
    log.propagate = False
    function: Any = None
    while True:
        try:
            kind, content = connection.recv()
            if kind == FUNCTION:
                function, level = content
                log.setLevel(level)
                continue
        except (EOFError, ConnectionError):
            return
        except Exception as error:  # what came cannot be built here
            answer = _failure(error)
        else:
            try:
                answer = RESULT, function(content)
            except Exception as error:
                answer = _failure(error)
        try:
            connection.send(answer)
        except ConnectionError:
            return


def _leash() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def _failure(error: Exception) -> tuple[str, Any]:
    return ERROR, (_sendable(error), traceback.format_exc())


def _sendable(error: Exception) -> Exception:
    """
    Return an error that can be built anew from what it holds: itself, or one that says the same.
    """
    try:
        if isinstance(error, NetDiffusionError) or type(error).__module__ == "builtins":
            copy.copy(error)
            return error
    except Exception:
        pass
    return RuntimeError("".join(traceback.format_exception_only(error)).strip())


if __name__ == "__main__":
    main()
