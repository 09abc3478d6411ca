"""
Write the generated parts of docs/reference: what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` there
comes from docstrings, from the command line, and from what the default plugins declare. A test compares.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import typer

from netdiffusion_core import capture, context, hookspecs, interfaces, model, specs
from netdiffusion_core.capture import payload
from netdiffusion_core.capture.dissect import uint
from netdiffusion_core.cli import build_app
from netdiffusion_core.cli.common import _SHARED as SHARED
from netdiffusion_core.config import MANY, ONE, RunConfig
from netdiffusion_core.options import describe
from netdiffusion_core.plugins import Plugins
from netdiffusion_core.testing import example_traffic
from netdiffusion_inet.headers import FIELDS, Draft, own_bytes

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
DEFAULT = ("baselines", "evaluators", "inet", "local", "nprint", "stable-diffusion")
"""The entry points of the default set: what else is installed must not change the pages."""

Lines = Iterator[str]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Lines:
    """
    Yield a Markdown table.
    """
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in row) + " |"


def fields(text: str) -> dict[str, str]:
    """
    Return what a paragraph of a docstring says of each field: ``name  what it is``, the name once for several.
    """
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        head = re.match(r"(\w+(?:, \w+)*)\s{2,}(\S.*)", line)
        names = head.group(1).split(", ") if head else names
        for name in names:
            part = re.sub(r"\s{2,}", ": ", head.group(2)) if head else line.strip()
            found[name] = f"{found.get(name, '')} {part}".strip()
    return found


def is_table(paragraph: str) -> bool:
    lines = paragraph.splitlines()  # code begins with blanks, a table with a name
    return not paragraph.startswith(" ") and all(re.match(r"\w+(, \w+)*\s{2,}\S|\s{2,}", line) for line in lines)


def prose(thing: Any) -> Lines:
    """
    Yield a docstring as Markdown; a paragraph of fields becomes a table.
    """
    for paragraph in (inspect.getdoc(thing) or "").replace("``", "`").split("\n\n"):
        if is_table(paragraph):
            yield from table(("", ""), ((f"`{name}`", text) for name, text in fields(paragraph).items()))
        else:
            yield paragraph
        yield ""


def signature(function: Callable[..., Any], name: str) -> str:
    """
    Return ``name(argument: Type) -> Type`` as it stands in the source.
    """
    told = re.sub(r"<function (\w+) at \w+>", r"\1", str(inspect.signature(function)))
    return name + told.replace("''", '""').replace("'", "")


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def functions(*things: Callable[..., Any], within: str = "") -> Lines:
    """
    Yield functions: name, signature and docstring.
    """
    for function in things:
        yield f"### `{within}{function.__name__}`"
        yield ""
        yield f"`{signature(function, function.__name__)}`"
        yield ""
        yield from prose(function)


def hooks() -> Lines:
    yield from functions(*(hook for name, hook in vars(hookspecs).items() if name.startswith("netdiffusion_")))


def captures() -> Lines:
    yield from functions(capture.read_capture, capture.assemble, capture.write_capture, capture.dissect)
    yield from described(capture.Dissection)
    yield from functions(uint, payload.writable, payload.write_payloads)


def drafts() -> Lines:
    yield from prose(Draft)
    yield f"The fields: {', '.join(f'`{name}`' for name in FIELDS)}."
    yield ""
    yield from functions(Draft.get, Draft.put, Draft.turn, Draft.cut, Draft.finish, within="Draft.")
    yield from functions(own_bytes)


def described(thing: type[Any]) -> Lines:
    """
    Yield a class: its docstring, its fields' defaults and its public methods.
    """
    abstract = getattr(thing, "__abstractmethods__", frozenset())
    yield f"### `{thing.__name__}`"
    yield ""
    yield from prose(thing)
    for name, member in vars(thing).items():
        if isinstance(member, property):
            told = f"{name} -> {member.fget.__annotations__['return']}"
        elif inspect.isfunction(getattr(thing, name)) or inspect.ismethod(getattr(thing, name)):
            told = signature(getattr(thing, name), name)
        else:
            continue
        if name == "__call__" or not name.startswith("_"):
            yield f"#### `{told}`{' — required' if name in abstract else ''}"
            yield ""
            yield from prose(member.__func__ if isinstance(member, classmethod) else member)


def of(*things: type[Any]) -> Callable[[], Lines]:
    return lambda: (line for thing in things for line in described(thing))


def walk(command: Any, name: str, parent: Any = None) -> Iterator[tuple[Any, Any]]:
    """
    Yield ``(context, command)`` of a command and all below it.
    """
    here = command.make_context(name, [], parent=parent, resilient_parsing=True)
    yield here, command
    for key, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, key, here)


def all_commands() -> list[tuple[Any, Any]]:
    app = build_app()
    plugins().notify("netdiffusion_register_commands", app=app)
    return list(walk(typer.main.get_command(app), "netdiff"))


def options(here: Any, parameters: Iterable[Any]) -> Lines:
    records = [parameter.get_help_record(here) for parameter in parameters]
    yield from table(("", ""), ((f"`{words}`", help_text) for words, help_text in records))
    yield ""


def shared_options() -> Lines:
    here, run = next((here, c) for here, c in all_commands() if here.command_path == "netdiff run")
    yield from options(here, [p for p in run.get_params(here) if p.name in SHARED or p.name == "help"])


def commands() -> Lines:
    for here, command in all_commands():
        yield f"## {here.command_path}"
        yield ""
        yield command.help.replace("\n\n", "\n")
        yield ""
        own = [p for p in command.get_params(here) if p.name not in SHARED and p.name != "help"]
        if own:
            yield from options(here, own)
        if getattr(command, "commands", None):
            inner = command.commands.items()
            rows = ((f"`{here.command_path} {name}`", below.get_short_help_str(200)) for name, below in inner)
            yield from table(("command", ""), rows)
            yield ""
        if command.epilog:
            yield f"`{command.epilog.partition(': ')[2]}`"
            yield ""


def settings() -> Lines:
    told = fields((inspect.getdoc(RunConfig) or "").partition("\n\n")[2])
    rows = []
    for row in describe(RunConfig):
        if row.name.endswith("_options"):
            continue
        key = {"rules_off": "rules.off"}.get(row.name, row.name)
        key += ".name" if key in ONE else ".names" if key in MANY else ""
        variable = "NETDIFFUSION_" + key.removesuffix(".name").removesuffix(".names").upper().replace(".", "__")
        text = told[row.name].replace("``", "`")
        rows.append((f"`{key}`", f"`{variable}`", row.type, code(row.default), text))
    yield from table(("netdiff.toml", "environment", "type", "default", ""), rows)
    yield ""


def component_options() -> Lines:
    found = plugins()
    for kind in specs.KINDS:
        for name in found.names(kind):
            rows = describe(found.load(kind, name).Options)
            if rows:
                table_name = {"rules": f"rules.{name}", "evaluator": f"evaluators.{name}"}.get(kind, kind)
                yield f"### {kind} {name}"
                yield ""
                head = (f"`[{table_name}]`", "type", "default", "")
                yield from table(head, ((f"`{r.name}`", r.type, code(r.default), r.help) for r in rows))
                yield ""


def layouts() -> Lines:
    layout = plugins().create("encoder", "nprint", {"layout": "trace"}).layout
    yield f"`{layout.name}`, version {layout.version}, {layout.width} columns:"
    yield ""
    for header in layout.headers:
        span = layout.span(header)
        yield f"### {header}: columns {span.start} to {span.stop - 1}"
        yield ""
        inner = [name for name, _ in layout.fields if name.startswith(f"{header}.")]
        spans = [layout.span(name) for name in inner]
        rows = ((f"`{n}`", s.stop - s.start, f"{s.start} to {s.stop - 1}") for n, s in zip(inner, spans, strict=True))
        yield from table(("field", "bits", "columns"), rows)
        yield ""


def scores() -> Lines:
    found, traffic = plugins(), example_traffic()
    rules = tuple((name, found.create("rules", name)) for name in found.resolve_rules(RunConfig().rules)[0])
    given = context.Context(encoder=found.create("encoder", "nprint"), rules=rules)
    for name in found.names("evaluator"):
        evaluator = found.create("evaluator", name)
        yield f"### {name}"
        yield ""
        figures = evaluator.evaluate(interfaces.RealTraffic(train=traffic, test=traffic), traffic, given)
        better = {"minimize": "lower", "maximize": "higher", "none": "—"}
        rows = ((f"`{s.name}`", better[s.goal], f"{s.lower:g} to {s.upper:g}", s.summary) for s in figures)
        yield from table(("figure", "better", "range", ""), rows)
        yield ""


def plugins() -> Plugins:
    return Plugins.discover({"NETDIFFUSION_PLUGINS": ",".join(DEFAULT), "NETDIFFUSION_STRICT": "1"})


PARTS: dict[str, Callable[[], Lines]] = {
    "hooks": hooks,
    "specs": of(specs.Spec, *specs.KINDS.values()),
    "interfaces": of(
        interfaces.Component, interfaces.Encoder, interfaces.Backend, interfaces.RuleSet, interfaces.Evaluator,
        interfaces.Executor, interfaces.RealTraffic, interfaces.Record, context.Context,
    ),
    "data": of(*(thing for thing in vars(model).values() if attrs.has(thing) and isinstance(thing, type))),
    "captures": captures,
    "drafts": drafts,
    "shared options": shared_options,
    "commands": commands,
    "settings": settings,
    "component options": component_options,
    "layouts": layouts,
    "scores": scores,
}  # fmt: skip


def filled(page: str) -> str:
    """
    Return a page with all its generated parts made anew.
    """

    def fill(match: re.Match[str]) -> str:
        made = "\n".join(PARTS[match.group(1)]()).strip()
        return f"<!-- begin {match.group(1)} -->\n\n{made}\n\n<!-- end {match.group(1)} -->"

    return re.sub(r"<!-- begin ([\w ]+) -->.*?<!-- end \1 -->", fill, page, flags=re.DOTALL)


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.md")):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
