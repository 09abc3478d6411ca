"""
netdiff decode
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import ClientNet, Output, Overwrite, Payload, Seed, ServerNet, Session


def decode(
    session: Session,
    encoded: Annotated[Path, typer.Argument(help="Folder that netdiff encode wrote.", show_default=False)],
    output: Output,
    seed: Seed = None,
    payload: Payload = None,
    client_net: ClientNet = None,
    server_net: ServerNet = None,
    overwrite: Overwrite = False,
) -> None:
    """
    Turn rows of bits back into captures, as they are: nothing is repaired.

    Example: netdiff decode bits -o pcaps
    """
    config = session.config(
        seed=seed,
        payload=payload,
        client_net=client_net,
        server_net=server_net,
    )
    from .. import pipeline, storage
    from ..context import Context
    from ..run_folder import new_folder

    with new_folder(output, overwrite, inputs=[encoded]) as folder:
        rows, made_by = storage.load(encoded), storage.read_encoder(encoded)
        encoder = session.plugins.create("encoder", made_by["name"], {**made_by["options"], **config.encoder_options})
        traffic = pipeline.decode(rows, encoder, Context(seed=config.seed))
        pipeline.write(traffic, folder, session.terminal.progress)
