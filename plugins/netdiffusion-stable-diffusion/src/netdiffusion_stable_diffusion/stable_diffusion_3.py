"""
The family of Stable Diffusion 3 (Esser et al. 2024): a transformer trained by flow matching, and up to three text
encoders. Calls follow diffusers' StableDiffusion3ControlNetPipeline and its LoRA training script for this family.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import attrs
import numpy as np
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from .family import Family, read_tokenizer, read_weights
from .images import ColourCodec

T5_TOKENS = 256
"""As diffusers' pipeline has by default."""

TARGETS = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)


@attrs.define(kw_only=True, eq=False)
class Checkpoint3(Family):
    """
    Transformer, two CLIP text encoders, and T5 where the folder holds it; the text encoders are never trained.

    sigmas  float32[times] the scheduler's noise levels for training (sampling overwrites its own)
    known   what the text encoders have made of prompts, in main memory
    """

    codec: ColourCodec
    transformer: SD3Transformer2DModel
    clip: list[CLIPTextModelWithProjection]
    clip_tokenizers: list[CLIPTokenizer]
    t5: T5EncoderModel | None
    t5_tokenizer: T5TokenizerFast | None
    sigmas: Tensor = attrs.field(init=False)
    known: dict[str, tuple[Tensor, Tensor]] = attrs.field(init=False, factory=dict)

    name: ClassVar = "Stable Diffusion 3"
    parts: ClassVar = {
        "transformer": "SD3Transformer2DModel",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
    }
    pipeline: ClassVar = StableDiffusion3Pipeline
    control_class: ClassVar = SD3ControlNetModel
    shared_with_control: ClassVar = (
        "in_channels",
        "num_attention_heads",
        "attention_head_dim",
        "pooled_projection_dim",
    )
    control_in_latents: ClassVar = True

    def __attrs_post_init__(self) -> None:
        self.sigmas = self.scheduler.sigmas.clone()
        if self.controlnet is not None and self.controlnet.pos_embed is None:  # ControlNets of Stable Diffusion 3.5
            self.controlnet.pos_embed = self.transformer.pos_embed

    @classmethod
    def read(cls, folder: Path, **common: Any) -> Self:
        """
        Read transformer/, text_encoder/, text_encoder_2/, text_encoder_3/ if it is there, tokenizers and scheduler/.
        """
        dtype = common["dtype"]
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
        if scheduler.config.use_dynamic_shifting:
            raise ValueError("its scheduler shifts times by the size of the picture, which is not supported")
        with_t5 = (folder / "text_encoder_3").is_dir()
        return cls(
            transformer=read_weights(SD3Transformer2DModel, folder / "transformer", dtype),
            clip=[
                read_weights(CLIPTextModelWithProjection, folder / part, dtype)
                for part in ("text_encoder", "text_encoder_2")
            ],
            clip_tokenizers=[read_tokenizer(CLIPTokenizer, folder / part) for part in ("tokenizer", "tokenizer_2")],
            t5=read_weights(T5EncoderModel, folder / "text_encoder_3", dtype) if with_t5 else None,
            t5_tokenizer=read_tokenizer(T5TokenizerFast, folder / "tokenizer_3") if with_t5 else None,
            scheduler=scheduler,
            **common,
        )

    @property
    def denoiser(self) -> SD3Transformer2DModel:
        """
        The transformer.
        """
        return self.transformer

    @property
    def text_encoders(self) -> list[Any]:
        """
        Two or three.
        """
        return [*self.clip, *([] if self.t5 is None else [self.t5])]

    @property
    def adapted(self) -> dict[str, tuple[Any, tuple[str, ...]]]:
        """
        The transformer alone.
        """
        return {"transformer": (self.transformer, TARGETS)}

    def embed(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """
        Return hidden states (prompts, tokens, width) and pooled ones (prompts, width). Each prompt is read once.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if new:
            with torch.no_grad(), self.at_work(*self.text_encoders):
                for prompt in new:
                    states, pooled = self._read(prompt)
                    self.known[prompt] = states.cpu(), pooled.cpu()
        states, pooled = zip(*(self.known[prompt] for prompt in prompts), strict=True)
        return torch.cat(states).to(self.device), torch.cat(pooled).to(self.device)

    def _read(self, prompt: str) -> tuple[Tensor, Tensor]:
        """
        Join the CLIP encoders' states feature by feature, padded to T5's width, and T5's behind them; without T5 zeros.
        """
        outputs = [
            encoder(
                self._tokens(tokenizer, prompt, self.clip_tokenizers[0].model_max_length), output_hidden_states=True
            )
            for encoder, tokenizer in zip(self.clip, self.clip_tokenizers, strict=True)
        ]
        clip = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        width = self.transformer.config.joint_attention_dim
        if self.t5 is None:
            t5 = clip.new_zeros(1, T5_TOKENS, width)
        else:
            t5 = self.t5(self._tokens(self.t5_tokenizer, prompt, T5_TOKENS))[0]
        states = torch.cat([F.pad(clip, (0, width - clip.shape[-1])), t5], 1)
        return states, torch.cat([output.text_embeds for output in outputs], -1)

    def _tokens(self, tokenizer: Any, prompt: str, length: int) -> Tensor:
        tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids: Tensor = tokens.input_ids.to(self.device)
        return ids

    def noised(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """
        Draw times logit-normally; the target is the straight way from data to noise (Esser et al. 2024, section 3.1).
        """
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        share = torch.sigmoid(torch.randn(len(latents), generator=generator))
        sigma = self.sigmas[(share * len(self.sigmas)).long()].to(latents.device)
        times = sigma * self.scheduler.config.num_train_timesteps
        sigma = sigma[:, None, None, None]
        return (1 - sigma) * latents + sigma * noise, times, noise - latents

    def steer(self, edges: NDArray[np.uint8]) -> Tensor:
        """
        Return the latents of the Canny maps' pictures. ControlNets that ignore the pooled prompt were trained on
        latents that are scaled but not shifted.
        """
        pixels = torch.tensor(self.codec.steer(edges), dtype=torch.float32, device=self.device) * 2 - 1
        unshifted = self.controlnet is not None and self.controlnet.config.force_zeros_for_pooled_projection
        with self.at_work(self.codec.autoencoder):
            return self.codec.latents(pixels, shift=0.0 if unshifted else self.codec.shift)

    def load_adapter(self, folder: Path) -> None:
        """
        Read the transformer's adapter.
        """
        weights, metadata = self.pipeline.lora_state_dict(
            folder,
            weight_name=LORA_WEIGHT_NAME_SAFE,  # without a name diffusers takes any .safetensors file in the folder
            return_lora_metadata=True,
            use_safetensors=True,
            local_files_only=True,
        )
        self.pipeline.load_lora_into_transformer(weights, self.transformer, metadata=metadata)

    def _predict(self, noisy: Tensor, times: Tensor, embeddings: Any, control: Tensor | None, scale: float) -> Tensor:
        states, pooled = embeddings
        residuals = None
        if control is not None and self.controlnet is not None:
            config = self.controlnet.config
            residuals = self.controlnet(
                hidden_states=noisy,
                timestep=times,
                encoder_hidden_states=None if config.joint_attention_dim is None else states,
                pooled_projections=torch.zeros_like(pooled) if config.force_zeros_for_pooled_projection else pooled,
                controlnet_cond=control,
                conditioning_scale=scale,
                return_dict=False,
            )[0]
        output: Tensor = self.transformer(
            hidden_states=noisy,
            timestep=times,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            block_controlnet_hidden_states=residuals,
            return_dict=False,
        )[0]
        return output
