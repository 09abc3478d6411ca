"""
netdiff evaluate
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import (
    Classes,
    EncoderName,
    EvaluatorNames,
    ExecutorName,
    Gate,
    Json,
    Labels,
    MaxPackets,
    Overwrite,
    RuleNames,
    Seed,
    Session,
    exit_code,
    logger,
    print_json,
    print_table,
)


def evaluate(
    session: Session,
    real: Annotated[Path, typer.Argument(help="Labelled real captures, as for netdiff run.", show_default=False)],
    synthetic: Annotated[Path, typer.Argument(help="Folder LABEL/*.pcap of synthetic ones.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write report.html and report.json into.")
    ] = None,
    labels: Labels = None,
    classes: Classes = None,
    encoder: EncoderName = None,
    rules: RuleNames = None,
    evaluators: EvaluatorNames = None,
    compare: Annotated[
        str | None, typer.Option("--compare", help="Backends to train on REAL for comparison rows, by comma.")
    ] = None,
    gate: Gate = None,
    max_packets: MaxPackets = None,
    seed: Seed = None,
    executor: ExecutorName = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> int:
    """
    Score synthetic against real captures, wherever they come from.

    Example: netdiff evaluate my_pcaps/ other-generator/ -o judged --compare bernoulli,bootstrap
    """
    config = session.config(
        data=real,
        labels=labels,
        classes=classes,
        encoder=encoder,
        rules=rules,
        evaluators=evaluators,
        compare=compare,
        gate=gate,
        max_packets=max_packets,
        seed=seed,
        executor=executor,
    )
    from contextlib import nullcontext

    import attrs

    from .. import pipeline
    from ..report import score_table
    from ..report.json import plain
    from ..run_folder import new_folder

    target = new_folder(output, overwrite, inputs=[real, synthetic]) if output else nullcontext()
    with target as folder:
        found = pipeline.judge(config, synthetic, session.plugins, session.terminal.progress, folder)
    if json:
        print_json(plain([{"backend": b, **attrs.asdict(s)} for b, scores in found.scores.items() for s in scores]))
    else:
        print_table(score_table(found.scores))
    if output:
        logger.info("report: %s", output / "report.html")
    return exit_code(found.gates)
