"""
netdiff repair
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import ExecutorName, Output, Overwrite, RuleNames, RulesOff, Seed, Session, print_rows


def repair(
    session: Session,
    captures: Annotated[Path, typer.Argument(help="A capture, or a folder of captures.", show_default=False)],
    output: Output,
    rules: RuleNames = None,
    rules_off: RulesOff = None,
    seed: Seed = None,
    executor: ExecutorName = None,
    overwrite: Overwrite = False,
) -> None:
    """
    Mend lengths, checksums and whatever else the rules know; each file keeps its name.

    Example: netdiff repair broken/ -o mended --rules tcp,udp
    """
    config = session.config(rules=rules, seed=seed, rules_off=rules_off, executor=executor)
    from .. import files, pipeline, repairs
    from ..context import Context
    from ..errors import DataError
    from ..run_folder import new_folder

    tally, mended_files = repairs.Tally(), 0
    with (
        new_folder(output, overwrite, inputs=[captures]) as folder,
        pipeline.prepare_executor(config, session.plugins) as workers,
    ):
        chosen, config = pipeline.prepare_rules(config, session.plugins)
        context = Context(seed=config.seed, rules=chosen)
        found = pipeline.capture_files(captures)
        targets: dict[Path, str] = {}
        for name in found:
            target = (output / name).with_suffix(".pcap")
            if targets.setdefault(target, name) != name:
                raise DataError(f"{captures / name} would be written over another: rename it, both end as {target}")
        work = files.Repair(plugins=session.plugins, context=context, folder=folder)
        some = list(files.divided(found))
        with session.terminal.progress("repair", len(found)) as advance:
            for piece, (changed, mended) in zip(some, workers.map(work, some), strict=True):
                tally, mended_files = tally + changed, mended_files + mended
                advance(len(piece), note=piece[-1][0])
    if rows := repairs.summary(tally, pipeline.all_rules(chosen)):
        print_rows(rows)
    session.terminal.say(f"mended {mended_files} of {len(found)} files")
