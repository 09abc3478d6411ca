"""
netdiff generate
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import (
    Classes,
    ClientNet,
    ExecutorName,
    Flows,
    MaxPackets,
    Output,
    Overwrite,
    Payload,
    RuleNames,
    RulesOff,
    Seed,
    ServerNet,
    Session,
)


def generate(
    session: Session,
    model: Annotated[Path, typer.Argument(help="Folder that netdiff fit wrote, or RUN/model.", show_default=False)],
    output: Output,
    classes: Classes = None,
    flows: Flows = None,
    rules: RuleNames = None,
    rules_off: RulesOff = None,
    max_packets: MaxPackets = None,
    seed: Seed = None,
    payload: Payload = None,
    client_net: ClientNet = None,
    server_net: ServerNet = None,
    executor: ExecutorName = None,
    overwrite: Overwrite = False,
) -> None:
    """
    Generate captures from a trained model: LABEL/00001.pcap and so on, repaired by the rules.

    Example: netdiff generate first-run/model -o more --classes dns,web --flows 500 --seed 7
    """
    config, given = session.settings(
        classes=classes,
        flows=flows,
        rules=rules,
        max_packets=max_packets,
        seed=seed,
        rules_off=rules_off,
        payload=payload,
        client_net=client_net,
        server_net=server_net,
        executor=executor,
    )
    import shutil

    from .. import pipeline, slices
    from ..context import Context
    from ..run_folder import new_folder, working_folder

    with (
        new_folder(output, overwrite, inputs=[model]) as folder,
        pipeline.prepare_executor(config, session.plugins) as workers,
    ):
        backend, encoder, index = pipeline.load_model(
            model, session.plugins, config.backend_options, config.encoder_options
        )
        chosen, config = pipeline.prepare_rules(config, session.plugins)
        context = Context(seed=config.seed, progress=session.terminal.progress, encoder=encoder, rules=chosen)
        learned = {
            label: index["classes"][label] for label in pipeline.choose_classes(config.classes, index["classes"])
        }
        longest = config.max_packets if "max_packets" in given else index["max_packets"]
        request = pipeline.sample_request(learned, config.flows, longest, config.seed)
        working = working_folder(folder)
        shop = slices.Workshop(plugins=session.plugins, context=context, executor=workers, folder=working)
        made = shop.synthesize(backend, request, working / "made", model.absolute())
        shop.write(made.folder, folder)
        shutil.rmtree(working)
