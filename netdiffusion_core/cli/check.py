"""
netdiff check
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import visible
from .common import ExecutorName, Json, RuleNames, RulesOff, Session, logger, print_json, print_rows


def check(
    session: Session,
    captures: Annotated[Path, typer.Argument(help="A capture, or a folder of captures.", show_default=False)],
    rules: RuleNames = None,
    rules_off: RulesOff = None,
    executor: ExecutorName = None,
    each: Annotated[bool, typer.Option("--each", help="A line for each place, not a table of rules.")] = False,
    json: Json = False,
) -> int:
    """
    Look for packets that break a protocol's rules; by default with the rule sets of a run, IP, TCP, UDP and ICMP. Exit
    code 1 when there are errors, or captures that cannot be read. Packets count from 1 as in Wireshark, in JSON from 0.

    Example: netdiff check first-run/synthetic --rules tcp,udp --json
    """
    config = session.config(rules=rules, rules_off=rules_off, executor=executor)
    from .. import pipeline
    from ..context import Context
    from ..errors import DataError
    from ..files import Check, divided

    chosen, _ = pipeline.prepare_rules(config, session.plugins)
    files = pipeline.capture_files(captures)
    found: list[dict[str, Any]] = []
    counts: Counter[tuple[str, str]] = Counter()  # by rule and severity
    unread = 0
    work = Check(plugins=session.plugins, context=Context(rules=chosen), every=each or json)
    some = list(divided(files))
    with (
        pipeline.prepare_executor(config, session.plugins) as workers,
        session.terminal.progress("check", len(files)) as advance,
    ):
        for piece, (violations, counted, reasons) in zip(some, workers.map(work, some), strict=True):
            for reason in reasons:
                if len(files) == 1:
                    raise DataError(reason)
                logger.warning("left out: %s", reason)
            unread += len(reasons)
            found += violations
            counts += counted
            advance(len(piece), note=piece[-1][0])
    errors = sum(n for (_, severity), n in counts.items() if severity == "error")
    if json:
        summary = {"files": len(files), "unread": unread, "rules": [n for n, _ in chosen], "errors": errors}
        print_json({**summary, "violations": found})
        return 1 if errors or unread else 0
    if each:
        for v in found:
            print(visible(f"{v['file']}: {_place(v)}: {v['severity']}: {v['rule']}: {v['message']}"))
    elif found:
        print_rows(_by_rule(found, counts))
    numbers = ((errors, "error"), (counts.total() - errors, "warning"), (len(files) - unread, "file"))
    said = [f"{count} {noun}" if count == 1 else f"{count} {noun}s" for count, noun in numbers]
    session.terminal.say(f"{said[0]} and {said[1]} in {said[2]}")
    return 1 if errors or unread else 0


def _place(violation: dict[str, Any]) -> str:
    packet = violation["packet"]
    return f"flow {violation['flow']}" if packet is None else f"packet {packet + 1}"


def _by_rule(found: list[dict[str, Any]], counts: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    """
    Sum up violations by rule, errors first.
    """
    first = {v["rule"]: v for v in reversed(found)}
    rows = [
        {
            "rule": rule,
            "severity": example["severity"],
            "places": sum(n for (counted, _), n in counts.items() if counted == rule),
            "for example": f"{example['file']}: {_place(example)}",
            "what": example["message"],
        }
        for rule, example in first.items()
    ]
    return sorted(rows, key=lambda row: (row["severity"], -row["places"]))
