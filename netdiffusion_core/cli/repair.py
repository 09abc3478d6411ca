"""
netdiff repair
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Output, Overwrite, RuleNames, Seed, Session


def repair(
    session: Session,
    captures: Annotated[Path, typer.Argument(help="A capture, or a folder of captures.", show_default=False)],
    output: Output,
    rules: RuleNames = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
) -> None:
    """
    Mend lengths, checksums and whatever else the rules know; each file keeps its name.

    Example: netdiff repair broken/ -o mended --rules tcp,udp
    """
    config = session.config(rules=rules, seed=seed)
    from .. import pipeline
    from ..capture import write_capture
    from ..context import Context
    from ..run_folder import new_folder

    changed = {}
    with new_folder(output, overwrite, inputs=[captures]) as folder:
        chosen, config = pipeline.prepare_rules(config, session.plugins)
        context = Context(seed=config.seed, rules=chosen)
        files = pipeline.capture_files(captures)
        with session.terminal.progress("repair", len(files)) as advance:
            for name, path in files.items():
                mended, changes = pipeline.repair(pipeline.read(path, session.plugins), chosen, context)
                changed[name] = sum(c["packets_changed"] for c in changes.values())
                target = (folder / name).with_suffix(".pcap")
                target.parent.mkdir(parents=True, exist_ok=True)
                write_capture(target, mended)
                advance(note=name)
    session.terminal.say(f"mended {sum(n > 0 for n in changed.values())} of {len(changed)} files")
