"""
netdiff fit
"""

from __future__ import annotations

from .common import (
    BackendName,
    Classes,
    Data,
    EncoderName,
    ExecutorName,
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
    executor: ExecutorName = None,
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
        executor=executor,
    )
    from .. import pipeline, slices, storage
    from ..context import Context
    from ..run_folder import CHECKPOINTS, Run, resumable_folder, working_folder

    progress, source = session.terminal.progress, pipeline.require_data(config)
    with (
        resumable_folder(output, overwrite, resume, inputs=[source]) as folder,
        pipeline.prepare_executor(config, session.plugins) as workers,
    ):
        chosen, config = pipeline.prepare_encoder(config, session.plugins)
        model, config = pipeline.prepare_backend(config, session.plugins)
        context = Context(seed=config.seed, progress=progress, encoder=chosen, checkpoints=folder / CHECKPOINTS)
        working = working_folder(folder)
        shop = slices.Workshop(plugins=session.plugins, context=context, executor=workers, folder=working)
        traffic = pipeline.load(config, session.plugins, progress)
        work = pipeline.work(config, pipeline.input_files(traffic, source), session.plugins)
        Run(plugins=session.plugins, folder=folder).begin(work)
        kept = shop.keep("traffic", pipeline.split(traffic, context).train)
        del traffic  # from here on it is read from these files, a slice at a time
        shop.encode(kept, working / "bits", pipeline.encoder_index(config))
        train = storage.load(working / "bits")
        pipeline.fit(model, train, context)
        pipeline.save_model(folder, model, train, config, session.plugins)
