"""
netdiff encode
"""

from __future__ import annotations

from typing import Annotated

import typer

from .common import Classes, Data, EncoderName, ExecutorName, Labels, MaxPackets, Output, Overwrite, Session

ARRAYS = "npy"


def encode(
    session: Session,
    output: Output,
    data: Data = None,
    labels: Labels = None,
    classes: Classes = None,
    encoder: EncoderName = None,
    max_packets: MaxPackets = None,
    form: Annotated[str, typer.Option("--format", help="npy, or a format of the encoder, such as nprint.")] = ARRAYS,
    nprint_args: Annotated[
        str | None, typer.Option("--nprint-args", help="Columns of --format nprint, in nPrint's words: '-4 -t -p 30'.")
    ] = None,
    executor: ExecutorName = None,
    overwrite: Overwrite = False,
) -> None:
    """
    Turn captures into rows of bits: a folder of .npy arrays, or files of another tool's format. An output with the
    format's suffix is one file with all packets of one capture, in their order; any other is a folder with one file a
    flow.

    Example: netdiff encode capture.pcap -o capture.npt --format nprint --nprint-args '-4 -t -u -p 30 -R'
    """
    config = session.config(
        data=data,
        labels=labels,
        classes=classes,
        encoder=encoder,
        max_packets=max_packets,
        nprint_args=nprint_args,
        executor=executor,
    )
    import shutil

    from .. import pipeline, slices
    from ..context import Context
    from ..errors import ConfigError, did_you_mean
    from ..run_folder import new_file, new_folder, working_folder

    source = pipeline.require_data(config)
    chosen, config = pipeline.prepare_encoder(config, session.plugins)
    if form != ARRAYS and form not in chosen.formats:
        known = (ARRAYS, *chosen.formats)
        hint = did_you_mean(form, known)
        raise ConfigError(f"encoder {config.encoder!r} has no format {form!r}.{hint} It has: {', '.join(known)}")
    if form != ARRAYS and output.suffix == chosen.formats[form]:
        if source.is_dir():
            raise ConfigError(f"{output} would be one file, and {source} is a folder: give a capture, or name a folder")
        with new_file(output, overwrite, inputs=[source]) as path:
            chosen.write(pipeline.read_packets(source, session.plugins), path, form)
        return
    with (
        new_folder(output, overwrite, inputs=[source]) as folder,
        pipeline.prepare_executor(config, session.plugins) as workers,
    ):
        traffic = pipeline.load(config, session.plugins, session.terminal.progress)
        if form == ARRAYS:
            context = Context(progress=session.terminal.progress, encoder=chosen)
            working = working_folder(folder)
            shop = slices.Workshop(plugins=session.plugins, context=context, executor=workers, folder=working)
            shop.encode(shop.keep("traffic", traffic), folder, pipeline.encoder_index(config))
            shutil.rmtree(working)
        else:
            pipeline.export(traffic, chosen, form, folder, session.terminal.progress)
