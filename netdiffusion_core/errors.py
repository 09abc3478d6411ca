"""
Every error a user can cause, with the exit code that the command line returns for it.

The command line prints ``str(error)`` and nothing else, so each message says what was wrong, where, and what to do.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import ClassVar


class NetDiffusionError(Exception):
    """
    Base of all errors that are a user's or a plugin's, not a bug of the core.
    """

    exit_code: ClassVar[int] = 1


class DataError(NetDiffusionError):
    """
    A capture, a label file or an array cannot be used.
    """


class RunError(NetDiffusionError):
    """
    A stage could not finish: no space left, an output that stands already, a gate that was missed.
    """


class NotFittedError(RunError):
    """
    `Backend.sample` was called before `Backend.fit` or `Backend.load`.
    """


class ConfigError(NetDiffusionError):
    """
    An option, a configuration file or a combination of them is wrong.
    """

    exit_code = 2


class UnknownComponentError(ConfigError):
    """
    No plugin offers a component of this name.
    """


class PluginError(NetDiffusionError):
    """
    A plugin that was asked for is broken or breaks its contract.
    """

    exit_code = 3


def visible(text: str) -> str:
    """
    Return a text fit for a terminal: what is no printable character (an escape sequence in the name of a file) is
    written as JSON would, ``\\u001b``. Lines stay lines.
    """
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """
    Return `` Did you mean 'tcp'?`` for a near miss, else an empty string.
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
