"""
What the tests of this distribution share.
"""

from __future__ import annotations

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from netdiffusion_core.model import Encoded, Layout
from netdiffusion_stable_diffusion import checkpoint
from netdiffusion_stable_diffusion.autoencoder import PacketAutoencoder
from netdiffusion_stable_diffusion.family import Family


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def layout() -> Layout:
    fields = (("ipv4.tl", 16), ("ipv4.id", 16), ("tcp.sprt", 16), ("udp.sport", 16), ("trace.iat_us", 64))
    return Layout(name="test", version=1, fields=fields)


@pytest.fixture(scope="session")
def data(layout) -> Encoded:
    """
    Two classes: "long" has TCP columns and 10 to 20 packets, "short" has UDP columns and 2 to 6.
    """
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(10, 21, 12), rng.integers(2, 7, 12)])
    labels = np.repeat(["long", "short"], 12)
    rows = rng.integers(0, 2, (lengths.sum(), layout.width)).astype(np.int8)
    long = np.repeat(labels, lengths) == "long"
    rows[long, layout.span("udp")] = -1
    rows[~long, layout.span("tcp")] = -1
    return Encoded(
        rows=rows,
        starts=np.cumsum([0, *lengths]),
        labels=labels,
        start_times=np.zeros(24),
        layout=layout,
    )


def write_text_model(folder, width: int) -> None:
    tokenizer = checkpoint.packet_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")


def small_unet(channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )


@pytest.fixture(scope="session")
def packet_base(tmp_path_factory, layout):
    """
    A folder like the embedded base, untrained.
    """
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("packet-base")
    unet = small_unet(16)
    unet.save_pretrained(folder / "unet")
    PacketAutoencoder(columns=layout.width, latent_channels=16, hidden=32).save_pretrained(folder / "vae")
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    control = ControlNetModel.from_unet(
        unet, conditioning_channels=layout.width, conditioning_embedding_out_channels=(16,)
    )
    control.save_pretrained(folder / "controlnet")
    write_text_model(folder, 16)
    (folder / "layout.json").write_text(json.dumps(checkpoint.layout_record(layout)))
    index = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "vae": ["netdiffusion_stable_diffusion.autoencoder", "PacketAutoencoder"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def waiting(monkeypatch):
    """
    ``waiting(Class, ...)``: parts of these classes may only be used inside `Family.at_work`.
    """
    working: list[set[int]] = []

    @contextmanager
    def at_work(self, *parts):
        working.append({id(module) for part in parts for module in part.modules()})
        yield
        working.pop()

    def guarded(method):
        def call(self, *arguments, **more):
            assert any(id(self) in modules for modules in working), type(self)
            return method(self, *arguments, **more)

        return call

    def guard(*kinds):
        monkeypatch.setattr(Family, "at_work", at_work)
        for kind in kinds:
            for name in {"encode", "decode", "forward"} & set(dir(kind)):
                monkeypatch.setattr(kind, name, guarded(getattr(kind, name)))

    return guard
