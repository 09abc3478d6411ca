"""
netdiff plugins list | show | new
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError, UnknownComponentError, did_you_mean
from ..plugins import Offer
from ..scaffold import KINDS as TEMPLATES
from ..specs import KINDS
from .common import Json, Session, command, print_json, print_table

Kind = Annotated[str | None, typer.Option("--kind", help=f"Only this kind: {', '.join(KINDS)}.")]


def add_commands(app: typer.Typer) -> None:
    """
    Add this group's commands.
    """
    command(app, "list")(list_plugins)
    command(app, "show")(show_plugin)
    command(app, "new")(new_plugin)


def list_plugins(session: Session, kind: Kind = None, json: Json = False) -> None:
    """
    List every component and the distribution it comes from; broken plugins and names given twice, with the reasons.

    Example: netdiff plugins list --kind rules
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"there is no kind {kind!r}.{did_you_mean(kind, list(KINDS))} The kinds: {', '.join(KINDS)}.")
    order = list(KINDS)
    offers = sorted(
        (o for o in session.plugins.offers if kind in (None, o.kind)),
        key=lambda o: (order.index(o.kind), o.spec.name),
    )
    if json:
        import attrs

        broken = [{**attrs.asdict(b.origin), "reason": b.reason} for b in session.plugins.broken]
        rows = [_row(o) for o in offers]
        print_json({"components": rows, "broken": broken, "duplicates": list(session.plugins.duplicates)})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kind", "name", "what it does", "from"):
        table.add_column(column, overflow="fold")
    for offer in offers:
        table.add_row(offer.kind, offer.spec.name, offer.spec.summary, str(offer.origin))
    print_table(table)
    if not offers and not session.plugins.broken:
        session.terminal.say(
            "no plugins are installed; in a clone: make dev; else: pip install netdiffusion-nprint ..."
        )
    for sentence in session.plugins.duplicates:
        print(f"duplicate: {sentence}")
    for b in session.plugins.broken:
        print(f"broken: {b.origin.entry_point} ({b.origin}): {b.reason}")


def show_plugin(
    session: Session,
    name: Annotated[str, typer.Argument(help="Name of a component.", show_default=False)],
    kind: Kind = None,
    json: Json = False,
) -> None:
    """
    Show one component and its options.

    Example: netdiff plugins show nprint
    """
    from ..options import describe

    offers = [o for o in session.plugins.offers if o.spec.name == name and kind in (None, o.kind)]
    if not offers:
        known = sorted({o.spec.name for o in session.plugins.offers if kind in (None, o.kind)})
        raise UnknownComponentError(
            f"no plugin offers {name!r}.{did_you_mean(name, known)} Available: {', '.join(known) or 'nothing'}."
        )
    rows = {o.kind: describe(session.plugins.load(o.kind, name).Options) for o in offers}
    if json:
        import attrs

        options = {k: [attrs.asdict(row) for row in rows[k]] for k in rows}
        print_json([{**_row(o), "options": options[o.kind]} for o in offers])
        return
    from rich.table import Table

    for offer in offers:
        print(f"{offer.kind} {name}: {offer.spec.summary}")
        print(f"from {offer.origin}, entry point {offer.origin.entry_point}, {offer.spec.target}")
        if requires := getattr(offer.spec, "requires", ()):
            print(f"requires {', '.join(requires)}")
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("option", "type", "default", "help"):
            table.add_column(column, overflow="fold")
        for row in rows[offer.kind]:
            table.add_row(row.name, row.type, row.default, row.help)
        if rows[offer.kind]:
            print_table(table)
        else:
            print("no options")


def new_plugin(
    session: Session,
    name: Annotated[str, typer.Argument(help="What users will type, such as flow-label.", show_default=False)],
    kind: Annotated[str, typer.Option("--kind", help=f"One of {', '.join(TEMPLATES)}.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New folder to write, else ./netdiffusion-NAME.")
    ] = None,
) -> None:
    """
    Write a new plugin: a distribution that installs, passes the conformance kit and does something small to start from.

    Example: netdiff plugins new flow-label --kind rules
    """
    from ..scaffold import write_plugin

    folder = Path(f"netdiffusion-{name}") if output is None else output
    for path in write_plugin(name, kind, folder, session.plugins):
        print(path)
    session.terminal.say(
        f"next: cd {folder}; python -m pip install -e '.[testing]'; python -m pytest; netdiff plugins show {name}"
    )


def _row(offer: Offer) -> dict[str, Any]:
    import attrs

    return {"kind": offer.kind, **attrs.asdict(offer.spec), **attrs.asdict(offer.origin)}
