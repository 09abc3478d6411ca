"""
netdiff fit
"""

from __future__ import annotations

from .common import (
    BackendName,
    Classes,
    Data,
    EncoderName,
    Labels,
    MaxPackets,
    Output,
    Overwrite,
    Resume,
    Seed,
    Session,
)


def fit(
    session: Session,
    output: Output,
    data: Data = None,
    labels: Labels = None,
    classes: Classes = None,
    encoder: EncoderName = None,
    backend: BackendName = None,
    max_packets: MaxPackets = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """
    Train a model on the training flows and write its folder.

    Example: netdiff fit my_pcaps/ -o model --backend stable-diffusion --set backend.steps=300
    """
    config = session.config(
        data=data,
        labels=labels,
        classes=classes,
        encoder=encoder,
        backend=backend,
        max_packets=max_packets,
        seed=seed,
    )
    from .. import pipeline
    from ..context import Context
    from ..run_folder import CHECKPOINTS, Run, resumable_folder

    progress, source = session.terminal.progress, pipeline.require_data(config)
    with resumable_folder(output, overwrite, resume, inputs=[source]) as folder:
        chosen, config = pipeline.prepare_encoder(config, session.plugins)
        model, config = pipeline.prepare_backend(config, session.plugins)
        context = Context(seed=config.seed, progress=progress, encoder=chosen, checkpoints=folder / CHECKPOINTS)
        traffic = pipeline.load(config, session.plugins, progress)
        work = pipeline.work(config, pipeline.input_files(traffic, source), session.plugins)
        Run(plugins=session.plugins, folder=folder).begin(work)
        train = pipeline.encode(pipeline.split(traffic, context).train, chosen, progress)
        pipeline.fit(model, train, context)
        pipeline.save_model(folder, model, train, config, session.plugins)
