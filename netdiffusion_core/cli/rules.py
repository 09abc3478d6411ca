"""
netdiff rules list
"""

from __future__ import annotations

import typer

from .common import Json, RuleNames, Session, command, print_json, print_rows


def add_commands(app: typer.Typer) -> None:
    """
    Add this group's commands.
    """
    command(app, "list")(list_rules)


def list_rules(session: Session, rules: RuleNames = None, json: Json = False) -> None:
    """
    List single rules: what must hold, how bad it is when it does not, and where that is written; by default of all
    rule sets. Any of them can be switched off by its id with --rules-off.

    Example: netdiff rules list --rules tcp
    """
    import attrs

    from ..pipeline import all_rules

    names = session.plugins.names("rules") if rules is None else [n.strip() for n in rules.split(",") if n.strip()]
    found = all_rules([(name, session.plugins.create("rules", name)) for name in names])
    if json:
        print_json([attrs.asdict(rule) for rule in found])
        return
    print_rows(
        [
            {
                "id": rule.id,
                "severity": rule.severity,
                "mended": "yes" if rule.repairable else "no",
                "what must hold": rule.summary,
                "source": rule.source,
            }
            for rule in found
        ]
    )
