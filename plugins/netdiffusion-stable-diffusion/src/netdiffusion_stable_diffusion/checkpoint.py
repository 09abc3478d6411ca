"""
Checkpoints: a folder in diffusers' layout, whether it is the embedded base or Stable Diffusion 1.x or 2.x.

The parts are the same everywhere: a U-Net, a CLIP text encoder and its tokenizer, a scheduler, an autoencoder and a
ControlNet. Only the autoencoder's class tells the embedded base (packets) from a picture model (colours).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import attrs
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from netdiffusion_core.errors import ConfigError, DataError
from netdiffusion_core.model import Layout

from .autoencoder import PacketAutoencoder
from .images import ColourCodec, PacketCodec

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "base"
LAYOUT_FILE = "layout.json"
FLOAT32 = {"torch_dtype": torch.float32}

# Loading a checkpoint is not worth a bar of its own: the run shows its own progress.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()


@attrs.define(kw_only=True)
class Checkpoint:
    """
    The loaded parts, float32, frozen, in evaluation mode.
    """

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    codec: PacketCodec | ColourCodec
    controlnet: ControlNetModel | None
    digest: str

    def embed(self, prompts: list[str]) -> torch.Tensor:
        """
        Return the text encoder's hidden states: float32[prompts, tokens, width].
        """
        unique = list(dict.fromkeys(prompts))  # a batch of hundreds of flows has a few dozen classes
        tokens = self.tokenizer(
            unique,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        states = self.text_encoder(tokens.input_ids.to(self.unet.device))[0]
        return states[[unique.index(p) for p in prompts]]


def layout_record(layout: Layout) -> dict[str, Any]:
    """
    Return what a model folder records of the layout that it was made for.
    """
    digest = hashlib.sha256(repr(layout.fields).encode()).hexdigest()
    return {"name": layout.name, "version": layout.version, "width": layout.width, "fields_sha256": digest}


def load(base: str, layout: Layout, *, controlnet: str = "", download: bool = False, device: str = "cpu") -> Checkpoint:
    """
    Load the embedded base, a folder, or (if `download`) a hub id.

    Raises ConfigError where there is no such checkpoint, DataError where it does not fit the layout.
    """
    folder = EMBEDDED_FOLDER if base == EMBEDDED else Path(base)
    if not folder.is_dir():
        folder = _hub_folder(base, download)
    if not (folder / "model_index.json").is_file():
        raise ConfigError(
            f"backend.base: {folder} holds no model_index.json; give a folder in diffusers' layout "
            "(unet/, text_encoder/, tokenizer/, scheduler/, vae/)."
        )
    index = json.loads((folder / "model_index.json").read_text())
    ours = index.get("vae", [""])[-1] == "PacketAutoencoder"
    if ours:
        made_for = json.loads((folder / LAYOUT_FILE).read_text())
        if made_for != layout_record(layout):
            raise DataError(
                f"The base {base!r} was trained for layout {made_for['name']} version {made_for['version']} "
                f"({made_for['width']} columns), and the data has {layout.name} version {layout.version} "
                f"({layout.width} columns): use --set encoder.layout=trace, or another base with --set backend.base=…"
            )
    try:
        vae = (PacketAutoencoder if ours else AutoencoderKL).from_pretrained(folder, subfolder="vae", **FLOAT32)
        control_folder = Path(controlnet) if controlnet else folder / "controlnet"
        if controlnet and not control_folder.is_dir():
            control_folder = _hub_folder(controlnet, download)
        checkpoint = Checkpoint(
            unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **FLOAT32),
            text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", **FLOAT32),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            scheduler=DDIMScheduler.from_pretrained(folder, subfolder="scheduler", timestep_spacing="trailing"),
            codec=PacketCodec(vae, layout) if ours else ColourCodec(vae, layout),
            controlnet=ControlNetModel.from_pretrained(control_folder, **FLOAT32) if control_folder.is_dir() else None,
            digest=folder_digest(folder),
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(f"backend.base: {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    for part in (checkpoint.unet, checkpoint.text_encoder, vae, checkpoint.controlnet):
        if part is not None:
            part.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()
    return checkpoint


def _hub_folder(name: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, local_files_only=not download, allow_patterns=["*.json", "*.txt", "*.safetensors"])
        )
    except Exception as error:  # huggingface_hub raises a dozen types, from its own to those of its HTTP client
        reason = f"could not be downloaded ({error})" if download else "is no folder, and not in the local hub cache"
        raise ConfigError(
            f"the checkpoint {name!r} {reason}: download it where there is a network, copy the folder here and give "
            "its path with --set backend.base=/path/to/folder; or allow hub access with --set backend.download=true"
        ) from error


def folder_digest(folder: Path) -> str:
    """
    Return the SHA-256 over names and bytes of a checkpoint's weight and configuration files.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".json", ".safetensors", ".txt"}:
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def new_base(
    codec: PacketCodec,
) -> tuple[UNet2DConditionModel, ControlNetModel, CLIPTextModel, CLIPTokenizer, DDIMScheduler]:
    """
    Return the embedded base's parts as they are before training (the autoencoder aside).

    The prompt reaches the U-Net by cross-attention and, pooled, with the time: each residual block is scaled and
    shifted by both (Dhariwal and Nichol 2021, section 3).
    """
    tokenizer = packet_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=(1, 64),
        in_channels=codec.latent_channels,
        out_channels=codec.latent_channels,
        block_out_channels=(80, 128, 192),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        use_linear_projection=True,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
    )
    controlnet = ControlNetModel.from_unet(
        unet, conditioning_channels=codec.control_channels, conditioning_embedding_out_channels=(64,)
    )
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    return unet, controlnet, text_encoder, tokenizer, scheduler


def packet_tokenizer() -> CLIPTokenizer:
    """
    Return a CLIP tokenizer whose vocabulary is the bytes and the words of the paper's prompt: any class name can be
    spelt, and the constant part costs few tokens.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    symbols = alphabet + [letter + "</w>" for letter in alphabet]
    merges = []
    for word in ("pixelated", "network", "data", "type", "tcp", "udp", "icmp", "port"):
        prefix = word[0]
        for letter in [*word[1:-1], word[-1] + "</w>"]:
            merges.append((prefix, letter))
            prefix += letter
            symbols.append(prefix)
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=48)
