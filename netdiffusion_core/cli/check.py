"""
netdiff check
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, RuleNames, Session, print_json


def check(
    session: Session,
    captures: Annotated[Path, typer.Argument(help="A capture, or a folder of captures.", show_default=False)],
    rules: RuleNames = None,
    json: Json = False,
) -> int:
    """
    Look for packets that break a protocol's rules; by default with all rule sets. Exit code 1 when there are errors.

    Example: netdiff check first-run/synthetic --rules tcp,udp --json
    """
    config, given = session.settings(rules=rules)
    import attrs

    from .. import pipeline

    if "rules.names" not in given:
        config = attrs.evolve(config, rules=session.plugins.names("rules"))
    chosen, _ = pipeline.prepare_rules(config, session.plugins)
    files = pipeline.capture_files(captures)
    found: list[dict[str, Any]] = []
    with session.terminal.progress("check", len(files)) as advance:
        for name, path in files.items():
            violations = pipeline.check(pipeline.read(path, session.plugins), chosen)
            found += [{"file": name, **attrs.asdict(v)} for v in violations]
            advance(note=name)
    errors = sum(v["severity"] == "error" for v in found)
    if json:
        print_json({"files": len(files), "rules": [n for n, _ in chosen], "errors": errors, "violations": found})
    else:
        for v in found:
            place = f"flow {v['flow']}" if v["packet"] is None else f"packet {v['packet'] + 1}"
            print(f"{v['file']}: {place}: {v['severity']}: {v['rule']}: {v['message']}")
        counts = ((errors, "error"), (len(found) - errors, "warning"), (len(files), "file"))
        said = [f"{count} {noun}" if count == 1 else f"{count} {noun}s" for count, noun in counts]
        session.terminal.say(f"{said[0]} and {said[1]} in {said[2]}")
    return 1 if errors else 0
