"""
The family of the embedded base and of Stable Diffusion 1.x and 2.x: a U-Net and one CLIP text encoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import attrs
import numpy as np
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from .family import Family, read_tokenizer, read_weights

UNET_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "proj_in",
    "proj_out",
)
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


@attrs.define(kw_only=True, eq=False)
class Checkpoint(Family):
    """
    U-Net, text encoder and its tokenizer. DDIM samples whatever scheduler the folder names: same noise, same target.
    """

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    name: ClassVar = "Stable Diffusion 1.x or 2.x"
    parts: ClassVar = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel"}
    pipeline: ClassVar = StableDiffusionPipeline
    control_class: ClassVar = ControlNetModel
    shared_with_control: ClassVar = ("in_channels", "block_out_channels", "cross_attention_dim")

    @classmethod
    def read(cls, folder: Path, **common: Any) -> Self:
        """
        Read unet/, text_encoder/, tokenizer/ and scheduler/.
        """
        return cls(
            unet=read_weights(UNet2DConditionModel, folder / "unet", common["dtype"]),
            text_encoder=read_weights(CLIPTextModel, folder / "text_encoder", common["dtype"]),
            tokenizer=read_tokenizer(CLIPTokenizer, folder / "tokenizer"),
            # Clipping is for pixels. Latents have no bounds, and schedulers other than DDIM do not say so.
            scheduler=DDIMScheduler.from_pretrained(
                folder / "scheduler", timestep_spacing="trailing", clip_sample=False, local_files_only=True
            ),
            **common,
        )

    @property
    def denoiser(self) -> UNet2DConditionModel:
        """
        The U-Net.
        """
        return self.unet

    @property
    def text_encoders(self) -> list[Any]:
        """
        The one.
        """
        return [self.text_encoder]

    @property
    def adapted(self) -> dict[str, tuple[Any, tuple[str, ...]]]:
        """
        Both.
        """
        return {"unet": (self.unet, UNET_TARGETS), "text_encoder": (self.text_encoder, TEXT_TARGETS)}

    def embed(self, prompts: list[str]) -> Tensor:
        """
        Return the text encoder's hidden states: (prompts, tokens, width).
        """
        unique = list(dict.fromkeys(prompts))  # a batch of hundreds of flows has a few dozen classes
        tokens = self.tokenizer(
            unique,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        with self.at_work(self.text_encoder), self.autocast():
            states = self.text_encoder(tokens.input_ids.to(self.device))[0]
        return states[[unique.index(p) for p in prompts]]

    def noised(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """
        Draw times uniformly; the target is noise or velocity, as the scheduler says (Ho et al. 2020, Salimans and Ho
        2022).
        """
        n, device = len(latents), latents.device
        noise = torch.randn(latents.shape, generator=generator).to(device)
        times = torch.randint(0, self.scheduler.config.num_train_timesteps, (n,), generator=generator).to(device)
        noisy = self.scheduler.add_noise(latents, noise, times)
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        return noisy, times, self.scheduler.get_velocity(latents, noise, times) if velocity else noise

    def steer(self, edges: NDArray[np.uint8]) -> Tensor:
        """
        Return the codec's control image; a picture's values lie between 0 and 1.
        """
        return torch.tensor(self.codec.steer(edges), dtype=torch.float32, device=self.device)

    def load_adapter(self, folder: Path) -> None:
        """
        Read the adapters of U-Net and text encoder.
        """
        weights, alphas, metadata = self.pipeline.lora_state_dict(
            folder,
            weight_name=LORA_WEIGHT_NAME_SAFE,  # without a name diffusers takes any .safetensors file in the folder
            return_lora_metadata=True,
            use_safetensors=True,
            local_files_only=True,
        )
        self.pipeline.load_lora_into_unet(weights, alphas, self.unet, metadata=metadata)
        self.pipeline.load_lora_into_text_encoder(
            weights, alphas, self.text_encoder, prefix="text_encoder", metadata=metadata
        )

    def _predict(self, noisy: Tensor, times: Tensor, embeddings: Any, control: Tensor | None, scale: float) -> Tensor:
        residuals: dict[str, Any] = {}
        if control is not None and self.controlnet is not None:
            down, mid = self.controlnet(
                noisy, times, embeddings, controlnet_cond=control, conditioning_scale=scale, return_dict=False
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        output: Tensor = self.unet(noisy, times, encoder_hidden_states=embeddings, **residuals, return_dict=False)[0]
        return output
