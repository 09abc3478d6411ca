"""
netdiff render
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Classes, EncoderName, Labels, MaxPackets, Output, Overwrite, Session


def render(
    session: Session,
    data: Annotated[Path, typer.Argument(help="Captures, or a folder of netdiff encode.", show_default=False)],
    output: Output,
    labels: Labels = None,
    classes: Classes = None,
    encoder: EncoderName = None,
    max_packets: MaxPackets = None,
    flows: Annotated[int, typer.Option("--flows", min=1, help="Images a class.")] = 10,
    scale: Annotated[int, typer.Option("--scale", min=1, help="Pixels a bit, in both directions.")] = 1,
    overwrite: Overwrite = False,
) -> None:
    """
    Draw flows as packet images: one row a packet, one pixel a bit (red 1, green 0, blue absent).

    Example: netdiff render first-run/synthetic -o pictures --flows 3
    """
    config = session.config(data=data, labels=labels, classes=classes, encoder=encoder, max_packets=max_packets)
    from .. import pipeline, storage
    from ..report import render_png
    from ..run_folder import new_folder

    with new_folder(output, overwrite, inputs=[data]) as folder:
        if storage.is_encoded(data):
            encoded = storage.load(data)
        else:
            chosen, config = pipeline.prepare_encoder(config, session.plugins)
            traffic = pipeline.load(config, session.plugins, session.terminal.progress)
            encoded = pipeline.encode(traffic, chosen, session.terminal.progress)
        names = pipeline.flow_names(encoded.labels.tolist())
        wanted = [i for i, (_, number) in enumerate(names) if number <= flows and encoded.lengths[i]]
        with session.terminal.progress("render", len(wanted)) as advance:
            for i in wanted:
                label, number = names[i]
                path = folder / label / f"{number:05d}.png"
                path.parent.mkdir(exist_ok=True)
                render_png(encoded.flow(i), encoded.layout, path, scale)
                advance()
