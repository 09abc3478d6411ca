"""
Checkpoints: a folder in diffusers' layout, whether it is the embedded base or a Stable Diffusion.

`load` tells the family by model_index.json and refuses what it does not know. The autoencoder's class tells the
embedded base and its like (packets) from picture models (colours).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from netdiffusion_core.errors import ConfigError, DataError
from netdiffusion_core.model import Layout

from .autoencoder import PacketAutoencoder
from .family import Family, read_weights
from .images import ColourCodec, PacketCodec
from .stable_diffusion_1 import Checkpoint
from .stable_diffusion_3 import Checkpoint3

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "base"
LAYOUT_FILE = "layout.json"
FAMILIES: tuple[type[Family], ...] = (Checkpoint, Checkpoint3)
Precision = Literal["auto", "fp32", "fp16", "bf16"]

BASE_FILES = ("model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors")
"""What is fetched of a base on the hub: its parts, and not the single files of other programs beside them."""
CONTROLNET_FILES = ("config.json", "*.safetensors")
VARIANTS = ("*.fp16.*", "*.non_ema.*", "safety_checker/*")
"""What is not: the same weights again, and a part that packets do not need."""

# Loading a checkpoint is not worth a bar of its own: the run shows its own progress.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()


def layout_record(layout: Layout) -> dict[str, Any]:
    """
    Return what a model folder records of the layout that it was made for.
    """
    digest = hashlib.sha256(repr(layout.fields).encode()).hexdigest()
    return {"name": layout.name, "version": layout.version, "width": layout.width, "fields_sha256": digest}


def load(
    base: str,
    layout: Layout,
    *,
    controlnet: str = "",
    download: bool = False,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    offload: bool = False,
    gradient_checkpointing: bool = False,
) -> Family:
    """
    Load the embedded base, a folder, or (if `download`) a hub id. With `offload`, text encoders and autoencoder wait in
    main memory until they are at work.

    Raises ConfigError where there is no such checkpoint, DataError where it does not fit the layout.
    """
    device = torch.empty(0, device=device).device  # "cuda" is "cuda:0"
    folder = EMBEDDED_FOLDER if base == EMBEDDED else Path(base)
    if not folder.is_dir():
        folder = _hub_folder(base, download, "base", BASE_FILES)
    family, packets = _recognise(folder)
    if packets:
        _require_layout(base, folder, layout)
    control_folder = Path(controlnet) if controlnet else folder / "controlnet"
    if controlnet and not control_folder.is_dir():
        control_folder = _hub_folder(controlnet, download, "controlnet", CONTROLNET_FILES)
    dtype = _dtype(precision, device, packets)

    reading = f"backend.base: {folder}"
    try:
        autoencoder = read_weights(
            PacketAutoencoder if packets else AutoencoderKL, folder / "vae", torch.float32 if packets else dtype
        )
        control = None
        if control_folder.is_dir():
            reading = f"backend.controlnet: {control_folder}"
            control = read_weights(family.control_class, control_folder, dtype)
            reading = f"backend.base: {folder}"
        checkpoint = family.read(
            folder,
            codec=PacketCodec(autoencoder, layout) if packets else ColourCodec(autoencoder, layout),
            controlnet=control,
            digest=folder_digest(folder),
            dtype=dtype,
            device=device,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ConfigError(f"{reading} cannot be loaded: {str(error).splitlines()[0]}") from error
    if control is not None:
        _require_match(checkpoint, control_folder)

    denoising = [checkpoint.denoiser, *([] if control is None else [control])]
    for part in denoising:
        part.to(device, memory_format=torch.channels_last)
        if gradient_checkpointing:
            part.enable_gradient_checkpointing()
    for part in (*checkpoint.text_encoders, autoencoder):
        part.to("cpu" if offload else device, memory_format=torch.channels_last)
    for part in (*denoising, *checkpoint.text_encoders, autoencoder):
        part.requires_grad_(False).eval()
    return checkpoint


def _recognise(folder: Path) -> tuple[type[Family], bool]:
    """
    Return the family of a folder, and whether its autoencoder is of packets.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text())
        classes = {part: entry[1] for part, entry in index.items() if isinstance(entry, list) and entry[1]}
    except (OSError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(
            f"backend.base: {folder} holds no usable model_index.json; give a folder in diffusers' layout "
            "(unet/, text_encoder/, tokenizer/, scheduler/, vae/)."
        ) from error
    for family in FAMILIES:
        mine = all(classes.get(part) == name for part, name in family.parts.items())
        more = "text_encoder_2" in classes and "text_encoder_2" not in family.parts
        if mine and not more and classes.get("vae") in ("AutoencoderKL", "PacketAutoencoder"):
            tokenizers = [part.replace("text_encoder", "tokenizer") for part in family.parts if "text_encoder" in part]
            for part in (*family.parts, *tokenizers, "scheduler", "vae"):
                if not (folder / part).is_dir():
                    raise ConfigError(f"backend.base: {folder} lacks {part}/, a part of {family.name}: copy it whole.")
            return family, classes["vae"] == "PacketAutoencoder"
    known = ", ".join(f"{family.name} ({family.pipeline.__name__})" for family in FAMILIES)
    found = ", ".join(classes.values()) or "no model"
    raise ConfigError(
        f"backend.base: {folder} is of a kind that this backend does not know: {index.get('_class_name')} ({found}). "
        f"Known: {known}, and what netdiff train-base writes."
    )


def _require_layout(base: str, folder: Path, layout: Layout) -> None:
    """
    Refuse a layout that a base of packets was not made for.
    """
    made_for = json.loads((folder / LAYOUT_FILE).read_text())
    if made_for != layout_record(layout):
        raise DataError(
            f"The base {base!r} was trained for layout {made_for['name']} version {made_for['version']} "
            f"({made_for['width']} columns), and the data has {layout.name} version {layout.version} "
            f"({layout.width} columns): use --set encoder.layout=trace, or another base with --set backend.base=…"
        )


def _require_match(checkpoint: Family, folder: Path) -> None:
    """
    Refuse a ControlNet that was made for another base.
    """
    control: Any = checkpoint.controlnet
    pairs = [
        (name, getattr(control.config, name), getattr(checkpoint.denoiser.config, name))
        for name in checkpoint.shared_with_control
    ]
    codec = checkpoint.codec
    if isinstance(control, ControlNetModel):
        shrinks = 2 ** (len(control.config.conditioning_embedding_out_channels) - 1)
        pairs.append(("conditioning_channels", control.config.conditioning_channels, codec.control_channels))
        pairs.append(("scale from picture to latents", shrinks, codec.scale))
    else:
        pairs.append(("extra_conditioning_channels", control.config.extra_conditioning_channels, 0))
    for name, found, wanted in pairs:
        if found != wanted:
            raise ConfigError(
                f"backend.controlnet: {folder} does not fit the base: its {name} is {found}, and {wanted} is needed."
            )


def _dtype(precision: Precision, device: torch.device, packets: bool) -> torch.dtype:
    """
    Return what to compute in. bfloat16 is as good as float32 for training, but only GPUs since Ampere compute in it.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("backend.precision=fp16 needs a GPU: on a CPU use fp32, or bf16 if memory is short.")
    if precision == "auto":
        if packets or device.type != "cuda":
            precision = "fp32"
        else:
            precision = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def _hub_folder(name: str, download: bool, option: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, local_files_only=not download, allow_patterns=list(files), ignore_patterns=list(VARIANTS)
            )
        )
    except Exception as error:  # huggingface_hub raises a dozen types, from its own to those of its HTTP client
        reason = f"could not be downloaded ({error})" if download else "is no folder, and not in the local hub cache"
        raise ConfigError(
            f"backend.{option}: {name!r} {reason}: download it where there is a network, copy the folder here and "
            f"give its path with --set backend.{option}=/path/to/folder; or allow hub access with "
            "--set backend.download=true"
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
