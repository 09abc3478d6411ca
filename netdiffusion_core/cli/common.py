"""
What the commands share: flags, the session, messages.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from .. import config as settings
from ..errors import visible
from ..options import Text
from ..plugins import Plugins

if TYPE_CHECKING:
    from ..config import RunConfig
    from .progress import Terminal

logger = logging.getLogger("netdiffusion")


def _complete(kind: str) -> Callable[[str], list[str]]:
    """
    Complete the last of several component names, separated by commas.
    """

    def complete(incomplete: str) -> list[str]:
        head, comma, last = incomplete.rpartition(",")
        return [f"{head}{comma}{name}" for name in Plugins.discover().names(kind) if name.startswith(last)]

    return complete


Data = Annotated[
    Path | None,
    typer.Argument(metavar="DATA", help="Folder LABEL/*.pcap, folder of captures, or one capture.", show_default=False),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run of this output ended.")]
Labels = Annotated[Path | None, typer.Option("--labels", help="CSV that labels flows (5-tuple) or files.")]
Classes = Annotated[str | None, typer.Option("--classes", help="Use these classes only, by comma.")]
Flows = Annotated[int | None, typer.Option("--flows", help="Synthetic flows a class.")]
MaxPackets = Annotated[int | None, typer.Option("--max-packets", help="Cut longer flows to their first packets.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same machine: same pcaps.")]
EncoderName = Annotated[
    str | None, typer.Option("--encoder", help="Traffic to bits and back.", autocompletion=_complete("encoder"))
]
BackendName = Annotated[
    str | None, typer.Option("--backend", help="The generative model.", autocompletion=_complete("backend"))
]
RuleNames = Annotated[
    str | None,
    typer.Option("--rules", help="Rule sets by comma; what they require is added.", autocompletion=_complete("rules")),
]
RulesOff = Annotated[str | None, typer.Option("--rules-off", help="Ids of single rules to leave out, by comma.")]
Payload = Annotated[
    str | None, typer.Option("--payload", help="Bytes behind generated headers: zeros, random, none (cut there).")
]
ClientNet = Annotated[
    str | None, typer.Option("--client-net", help="Networks of initiators, such as 10.0.0.0/8,fd00::/8.")
]
ServerNet = Annotated[str | None, typer.Option("--server-net", help="Networks of responders.")]
EvaluatorNames = Annotated[
    str | None, typer.Option("--evaluators", help="Evaluators by comma.", autocompletion=_complete("evaluator"))
]
ExecutorName = Annotated[
    str | None, typer.Option("--executor", help="Who does the work.", autocompletion=_complete("executor"))
]
Gate = Annotated[
    list[str] | None,
    typer.Option("--gate", metavar="GATE", help="Exit with 1 unless it holds, such as utility.macro_f1>=0.8."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

_CONFIG = Annotated[Path | None, typer.Option("--config", "-c", help="Configuration instead of ./netdiff.toml.")]
_SET = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set anything, such as backend.steps=300.")
]
_PLUGIN = Annotated[list[Path] | None, typer.Option("--plugin", metavar="FILE", help="Also load a plugin from a file.")]
_QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
_VERBOSE = Annotated[bool, typer.Option("--verbose", "-v", help="More messages.")]
_TRACEBACK = Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")]

_SHARED: Mapping[str, tuple[Any, Any]] = {
    "config_file": (_CONFIG, None),
    "assignments": (_SET, None),
    "plugin_files": (_PLUGIN, None),
    "quiet": (_QUIET, False),
    "verbose": (_VERBOSE, False),
    "traceback": (_TRACEBACK, False),
}

SETTINGS_OF_FLAGS = {
    "rules_off": "rules.off",
    "payload": "encoder.payload",
    "client_net": "encoder.client_net",
    "server_net": "encoder.server_net",
    "nprint_args": "encoder.nprint_args",
}
"""Of flags that are called otherwise than their setting."""


@attrs.frozen(kw_only=True)
class Session:
    """
    What a command is given besides its own flags.
    """

    plugins: Plugins
    terminal: Terminal
    config_file: Path | None
    assignments: tuple[str, ...]

    def config(self, **flags: Any) -> RunConfig:
        """
        Merge netdiff.toml, the environment, these flags (None: not given) and `--set`.
        """
        return self.settings(**flags)[0]

    def settings(self, **flags: Any) -> tuple[RunConfig, dict[str, settings.Setting]]:
        """
        Like `config`, with each setting and its source.
        """
        if broken := ", ".join(b.origin.entry_point for b in self.plugins.broken):
            logger.warning("broken plugins are left out: %s; see netdiff plugins list", broken)
        texts = {SETTINGS_OF_FLAGS.get(k, k): Text(v) if isinstance(v, str) else v for k, v in flags.items()}
        return settings.load(self.config_file, flags=texts, assignments=self.assignments)


def command(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., Any]], None]:
    """
    Add a function ``f(session, ...flags)`` to the app, with the flags that every command has.
    """

    def add(function: Callable[..., Any]) -> None:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        shared = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for key, (annotation, default) in _SHARED.items()
        ]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]

        @functools.wraps(function)
        def body(**arguments: Any) -> Any:
            found = {key: arguments.pop(key) for key in _SHARED}
            installed: Plugins = arguments.pop("context").obj
            with _session(installed, **found) as session:
                return function(session, **arguments)

        body.__signature__ = inspect.Signature([context, *own, *shared])  # type: ignore[attr-defined]
        text, _, example = inspect.cleandoc(function.__doc__ or "").partition("\n\nExample: ")
        short = re.split("[:;]", text)[0]
        app.command(
            name,
            help=text,
            short_help=short,
            epilog=f"Example: {example}" if example else None,
            context_settings=_CONTEXT,
        )(body)

    return add


_CONTEXT = {"help_option_names": ["-h", "--help"]}


def print_json(document: Any) -> None:
    """
    Print JSON on stdout.
    """
    print(visible(json.dumps(document, indent=2, ensure_ascii=False)))


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """
    Print rows of the same keys as a table; numbers stand to the right.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, value in rows[0].items():
        table.add_column(name, overflow="fold", justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        table.add_row(*(cell(value) for value in row.values()))
    print_table(table)


def exit_code(judged: Sequence[Mapping[str, Any]]) -> int:
    """
    Say which gates were missed, and return the exit code; see `gates.judge`.
    """
    missed = [row["sentence"] for row in judged if not row["holds"]]
    for sentence in missed:
        logger.error("%s", sentence)
    return 1 if missed else 0


def cell(value: Any) -> Any:
    """
    Return a value as a cell of a table that shows it as it is: neither markup nor escapes do anything.
    """
    from rich.text import Text

    return Text(visible(str(value)))


def print_table(table: Any) -> None:
    """
    Print a rich table on stdout: as wide as it must be when nobody's terminal limits it.
    """
    from rich.console import Console

    wide = None if sys.stdout and sys.stdout.isatty() else 200
    Console(width=wide, soft_wrap=wide is not None).print(table)


@contextmanager
def _session(
    installed: Plugins,
    *,
    config_file: Path | None,
    assignments: list[str] | None,
    plugin_files: list[Path] | None,
    quiet: bool,
    verbose: bool,
    traceback: bool,
) -> Iterator[Session]:
    """
    Send messages and progress to the terminal while a command runs, and leave no trace in the process behind it.
    """
    from .progress import Terminal

    plugins = Plugins.discover(files=plugin_files) if plugin_files else installed
    terminal = Terminal(quiet=quiet)
    messages = _Messages(terminal)
    before = logger.level, logger.propagate
    logger.addHandler(messages)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    logger.propagate = False
    plugins.manager.register(terminal)
    try:
        with warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")  # those of libraries; ours are logged
            yield Session(
                plugins=plugins, terminal=terminal, config_file=config_file, assignments=tuple(assignments or ())
            )
    finally:
        plugins.manager.unregister(terminal)
        logger.removeHandler(messages)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _Messages(logging.Handler):
    """
    Shows log records as single lines on stderr.
    """

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self.terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self.terminal.say(f"netdiff: {level}{' '.join(record.getMessage().split())}")
