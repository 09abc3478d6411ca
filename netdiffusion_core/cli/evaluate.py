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
    Json,
    Labels,
    MaxPackets,
    RuleNames,
    Seed,
    Session,
    print_json,
    print_table,
)


def evaluate(
    session: Session,
    real: Annotated[Path, typer.Argument(help="Labelled real captures, as for netdiff run.", show_default=False)],
    synthetic: Annotated[Path, typer.Argument(help="Folder LABEL/*.pcap of synthetic ones.", show_default=False)],
    labels: Labels = None,
    classes: Classes = None,
    encoder: EncoderName = None,
    rules: RuleNames = None,
    evaluators: EvaluatorNames = None,
    max_packets: MaxPackets = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """
    Score synthetic against real captures, wherever they come from.

    Example: netdiff evaluate my_pcaps/ other-generator/ --evaluators fidelity,utility
    """
    config = session.config(
        data=real,
        labels=labels,
        classes=classes,
        encoder=encoder,
        rules=rules,
        evaluators=evaluators,
        max_packets=max_packets,
        seed=seed,
    )
    import attrs

    from .. import pipeline
    from ..context import Context
    from ..report import score_table
    from ..report.json import plain

    plugins, progress = session.plugins, session.terminal.progress
    chosen, config = pipeline.prepare_encoder(config, plugins)
    rule_sets, config = pipeline.prepare_rules(config, plugins)
    judges, config = pipeline.prepare_evaluators(config, plugins)
    context = Context(seed=config.seed, progress=progress, encoder=chosen, rules=rule_sets)
    halves = pipeline.split(pipeline.load(config, plugins, progress), context)
    generated = pipeline.load(attrs.evolve(config, data=synthetic, labels=None), plugins, progress)
    scores = pipeline.evaluate(halves, generated, judges, context)
    if json:
        print_json(plain([attrs.asdict(score) for score in scores]))
    else:
        print_table(score_table({"synthetic": scores}))
