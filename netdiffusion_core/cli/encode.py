"""
netdiff encode
"""

from __future__ import annotations

from .common import Classes, Data, EncoderName, Labels, MaxPackets, Output, Overwrite, Session


def encode(
    session: Session,
    output: Output,
    data: Data = None,
    labels: Labels = None,
    classes: Classes = None,
    encoder: EncoderName = None,
    max_packets: MaxPackets = None,
    overwrite: Overwrite = False,
) -> None:
    """
    Turn captures into rows of bits: a folder of .npy arrays.

    Example: netdiff encode my_pcaps/ -o bits --set encoder.layout=paper
    """
    config = session.config(data=data, labels=labels, classes=classes, encoder=encoder, max_packets=max_packets)
    from .. import pipeline, storage
    from ..run_folder import new_folder

    with new_folder(output, overwrite, inputs=[pipeline.require_data(config)]) as folder:
        chosen, config = pipeline.prepare_encoder(config, session.plugins)
        traffic = pipeline.load(config, session.plugins, session.terminal.progress)
        encoded = pipeline.encode(traffic, chosen, session.terminal.progress)
        storage.save(encoded, folder, pipeline.encoder_index(config))
