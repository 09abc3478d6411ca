"""
Stable Diffusion 1.5 in its full size, randomly initialised: 3 GB on the disk, minutes of two cores.

The file is a script too, since the peak of a process counts what it has done before: ``test_full_size.py write FOLDER``
and ``test_full_size.py step FOLDER PACKETS`` each do one thing and print the highest resident set size, in bytes.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from netdiffusion_core.context import Context
from netdiffusion_core.model import Encoded, Layout, SampleRequest
from netdiffusion_stable_diffusion import checkpoint
from netdiffusion_stable_diffusion.backend import Options, StableDiffusion


def write(folder: Path) -> None:
    """
    All parts of a full-size folder, float16. Only the vocabulary is small.
    """
    from diffusers import AutoencoderKL, ControlNetModel, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.set_default_dtype(torch.float16)
    tokenizer = checkpoint.packet_tokenizer()
    clip_large = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964  # as of Stable Diffusion 1.5
    ControlNetModel.from_unet(unet).half().save_pretrained(folder / "controlnet")
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        ),
        unet=unet,
        text_encoder=CLIPTextModel(clip_large),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def step(folder: Path, packets: int) -> None:
    """
    One step of fine-tuning and one of denoising a flow of the paper's width.
    """
    layout = Layout(name="test", version=1, fields=(("ipv4.tl", 16), ("rest", 1072)))
    rows = np.random.default_rng(0).integers(-1, 2, (packets, layout.width)).astype(np.int8)
    data = Encoded(
        rows=rows, starts=np.array([0, packets]), labels=np.array(["x"]), start_times=np.zeros(1), layout=layout
    )
    backend = StableDiffusion(
        Options(
            base=str(folder),
            device="cpu",
            steps=1,
            rows_per_step=packets,
            sampling_steps=1,
            gradient_checkpointing=True,
        )
    )
    backend.fit(data, Context())
    flows = backend.sample(SampleRequest(labels=("x",), max_packets=packets, seed=0), Context())
    assert set(np.unique(flows.rows)) <= {-1, 0, 1}
    assert flows.rows.shape[1] == layout.width


def peak_bytes(*arguments: object) -> int:
    done = subprocess.run([sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
def test_one_step_within_20_gb(tmp_path):
    """
    The folder loads, takes one LoRA step and one denoising step, in an ordinary machine's memory. A flow of 1,024
    packets takes a quarter of an hour: ``test_full_size.py step FOLDER 1024``.
    """
    peak_bytes("write", tmp_path)
    assert peak_bytes("step", tmp_path, 64) < 20e9


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        step(Path(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(f"{1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}\n")
