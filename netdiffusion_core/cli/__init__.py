"""
The command `netdiff`: a thin shell over the Python functions, one module a command.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 ok, 1 the work failed or found errors, 2 usage or
configuration, 3 plugin error, 130 interrupted. Command bodies import what they need, so that `--help` imports nothing
heavy.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer

from .. import __version__
from ..errors import NetDiffusionError, visible
from ..plugins import Plugins
from . import check, compare, config, decode, encode, evaluate, fit, generate, plugins, render, repair, rules, run
from .common import command


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"netdiff {__version__}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """
    Return the app with all commands of the core.
    """
    app = typer.Typer(
        name="netdiff",
        help="Synthetic network traffic from labelled captures: train, generate, repair, check, evaluate.",
        epilog="Start with: netdiff run DATA, where DATA is a folder with one folder of captures a class.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root(
        version: bool = typer.Option(
            False, "--version", help="Show the version and exit.", is_eager=True, callback=_show_version
        ),
    ) -> None:
        pass

    command(app)(run.run)
    command(app)(encode.encode)
    command(app)(decode.decode)
    command(app)(fit.fit)
    command(app)(generate.generate)
    command(app)(repair.repair)
    command(app)(check.check)
    command(app)(evaluate.evaluate)
    command(app)(compare.compare)
    command(app)(render.render)
    for name, module, text in (
        ("plugins", plugins, "See what is installed."),
        ("rules", rules, "See what the rule sets know."),
        ("config", config, "See what a run would be asked to do."),
    ):
        group = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)
        app.add_typer(group, name=name)
        module.add_commands(group)
    return app


def main(arguments: Sequence[str] | None = None, installed: Plugins | None = None) -> int:
    """
    Run the command line and return its exit code; never raises but with `--traceback`.

    installed  the plugins to use instead of the installed ones (for tests)
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    wants_traceback = "--traceback" in words
    with contextlib.suppress(ValueError):  # not in the main thread
        # So that work that is told to stop removes what is half-written, and says what it has kept.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = Plugins.of()
    try:
        found = installed or Plugins.discover()
        app = build_app()
        found.notify("netdiffusion_register_commands", app=app)
        code = typer.main.get_command(app)(words, prog_name="netdiff", obj=found, standalone_mode=False)
        if code == 130:  # the app turns a KeyboardInterrupt into an exit
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        # The reader of our output has gone (`netdiff ... | head`): nothing to say, and nobody to say it to.
        sys.stdout = None
        return 1
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception as error:
        if wants_traceback:
            raise
        return _explain(error, found)


def _explain(error: Exception, plugins: Plugins) -> int:
    """
    Print one sentence for any exception, and return the exit code.
    """
    from ..run_folder import explain

    if isinstance(error, typer.Abort):
        return _fail("interrupted", 130)
    if isinstance(error, NetDiffusionError):
        return _fail(str(error), error.exit_code)
    usage: Any = getattr(error, "format_message", None)
    if usage is not None:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(usage(), file=sys.stderr)
            return 2
        context = getattr(error, "ctx", None)
        hint = f" See: {context.command_path} --help" if context is not None else ""
        return _fail(f"{usage()}{hint}", 2)
    if isinstance(error, OSError):
        if error.filename:
            return _fail(explain(error), 1)
        if isinstance(error, FileNotFoundError):
            return _fail("the working folder was removed: change to one that exists", 1)
        return _fail(f"what was to be printed could not be written whole: {explain(error)}", 1)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search("allocate memory|out of memory", str(error))  # torch's
    ):
        return _fail("out of memory: use fewer flows, a smaller --max-packets, or a smaller batch", 1)
    reason = " ".join("".join(traceback.format_exception_only(type(error), error)).split())
    if culprit := plugins.culprit(error):
        return _fail(f"{culprit} failed: {reason}. Run again with --traceback to see more, and tell its author", 3)
    return _fail(f"this should not have happened: {reason}. Run again with --traceback to see where, and report it", 1)


def _fail(message: str, code: int) -> int:
    if len(message) > 2000:
        message = f"{message[:1500]} ... {message[-400:]}"
    sentence = visible(message).replace("\n", "\\n")
    print(f"netdiff: {sentence}", file=sys.stderr)
    return code


__all__ = ["build_app", "main"]
