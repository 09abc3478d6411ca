"""
netdiff config show
"""

from __future__ import annotations

import typer

from .common import Session, cell, command, print_table

KEYS = {"encoder": "encoder.name", "backend": "backend.name", "rules_off": "rules.off"}
"""Of settings that have an attribute of another name."""


def add_commands(app: typer.Typer) -> None:
    """
    Add this group's commands.
    """
    command(app, "show")(show_config)


def show_config(session: Session) -> None:
    """
    Show all settings, and where each value comes from.

    Example: netdiff config show --set backend.steps=300
    """
    import attrs
    from rich.table import Table

    config, given = session.settings()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("setting", "value", "from"):
        table.add_column(column, overflow="fold")
    rows = {
        KEYS.get(f.name, f.name): getattr(config, f.name)
        for f in attrs.fields(type(config))
        if not f.name.endswith("_options")
    }
    for key in sorted(rows | given):
        value = given[key].value if key in given else rows[key]
        shown = ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
        table.add_row(cell(key), cell(shown), cell(given[key].source if key in given else "default"))
    print_table(table)
