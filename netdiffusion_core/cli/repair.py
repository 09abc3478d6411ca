"""
netdiff repair
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Output, Overwrite, RuleNames, RulesOff, Seed, Session, print_rows


def repair(
    session: Session,
    captures: Annotated[Path, typer.Argument(help="A capture, or a folder of captures.", show_default=False)],
    output: Output,
    rules: RuleNames = None,
    rules_off: RulesOff = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
) -> None:
    """
    Mend lengths, checksums and whatever else the rules know; each file keeps its name.

    Example: netdiff repair broken/ -o mended --rules tcp,udp
    """
    config = session.config(rules=rules, seed=seed, rules_off=rules_off)
    from .. import pipeline, repairs
    from ..capture import write_capture
    from ..context import Context
    from ..errors import DataError
    from ..run_folder import new_folder

    tally, mended_files = repairs.Tally(), 0
    with new_folder(output, overwrite, inputs=[captures]) as folder:
        chosen, config = pipeline.prepare_rules(config, session.plugins)
        context = Context(seed=config.seed, rules=chosen)
        files = pipeline.capture_files(captures)
        with session.terminal.progress("repair", len(files)) as advance:
            for name, path in files.items():
                broken = pipeline.read(path, session.plugins)
                mended, changes = pipeline.repair(broken, chosen, context)
                tally += repairs.Tally.of(changes, len(broken))
                mended_files += bool(changes)
                target = (folder / name).with_suffix(".pcap")
                if target.exists():
                    raise DataError(f"{captures / name} would be written over another: rename it, both end as {target}")
                target.parent.mkdir(parents=True, exist_ok=True)
                write_capture(target, mended)
                advance(note=name)
    if rows := repairs.summary(tally, pipeline.all_rules(chosen)):
        print_rows(rows)
    session.terminal.say(f"mended {mended_files} of {len(files)} files")
