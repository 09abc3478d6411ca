"""
netdiff run
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import (
    BackendName,
    Classes,
    ClientNet,
    Data,
    EncoderName,
    EvaluatorNames,
    ExecutorName,
    Flows,
    Gate,
    Json,
    Labels,
    MaxPackets,
    Overwrite,
    Payload,
    Resume,
    RuleNames,
    RulesOff,
    Seed,
    ServerNet,
    Session,
    exit_code,
    print_table,
)


def run(
    session: Session,
    data: Data = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder to write; netdiffusion-run if not given.")
    ] = None,
    labels: Labels = None,
    classes: Classes = None,
    encoder: EncoderName = None,
    backend: BackendName = None,
    rules: RuleNames = None,
    rules_off: RulesOff = None,
    evaluators: EvaluatorNames = None,
    compare: Annotated[
        str | None, typer.Option("--compare", help='Backends for comparison rows; "" for none, baselines by default.')
    ] = None,
    gate: Gate = None,
    flows: Flows = None,
    max_packets: MaxPackets = None,
    seed: Seed = None,
    payload: Payload = None,
    client_net: ClientNet = None,
    server_net: ServerNet = None,
    executor: ExecutorName = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    json: Json = False,
) -> int:
    """
    Train on labelled captures, write synthetic pcaps and a report: the whole way at once.

    Example: netdiff run my_pcaps/ -o first-run --rules tcp,udp --set backend.steps=300
    """
    config = session.config(
        data=data,
        output=output,
        labels=labels,
        classes=classes,
        encoder=encoder,
        backend=backend,
        rules=rules,
        evaluators=evaluators,
        compare=compare,
        gate=gate,
        flows=flows,
        max_packets=max_packets,
        seed=seed,
        executor=executor,
        rules_off=rules_off,
        payload=payload,
        client_net=client_net,
        server_net=server_net,
    )
    from .. import pipeline
    from ..report import score_table

    result = pipeline.run(config, session.plugins, session.terminal.progress, overwrite, resume)
    if json:
        print((result.folder / "report.json").read_text(encoding="utf-8"), end="")
    else:
        print_table(score_table(result.scores))
    return exit_code(result.gates)
