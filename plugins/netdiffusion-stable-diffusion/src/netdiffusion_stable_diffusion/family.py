"""
What a family of checkpoints must be able to do, so that fine-tuning and sampling are one code path for all of them.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import attrs
import numpy as np
import torch
from diffusers.training_utils import cast_training_params
from numpy.typing import NDArray
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from netdiffusion_core.errors import ConfigError

from .images import ColourCodec, PacketCodec, Settle

PICKLED = (".bin", ".ckpt", ".pt", ".pth")
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")


@attrs.define(kw_only=True, eq=False)
class Family(ABC):
    """
    The loaded parts of a checkpoint, frozen, in evaluation mode.

    dtype   what the denoiser, its ControlNet and the text encoders compute in; latents and LoRA weights are float32
    device  where the denoiser works; other parts may wait in main memory (`at_work`)
    """

    codec: PacketCodec | ColourCodec
    controlnet: nn.Module | None
    scheduler: Any
    digest: str
    dtype: torch.dtype = torch.float32
    device: torch.device = attrs.field(
        default=attrs.Factory(lambda self: self.codec.autoencoder.device, takes_self=True)
    )

    name: ClassVar[str]
    parts: ClassVar[dict[str, str]]
    """The classes by which its model_index.json is recognised."""
    pipeline: ClassVar[Any]
    """diffusers' own pipeline, which reads and writes adapters."""
    control_class: ClassVar[Any]
    shared_with_control: ClassVar[tuple[str, ...]]
    """What the configurations of denoiser and ControlNet must agree in."""
    control_in_latents: ClassVar[bool] = False
    """Whether control images go through the autoencoder, which is worth doing once a flow."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, **common: Any) -> Self:
        """
        Read denoiser, text encoders, tokenizers and scheduler from a folder; `common` are the fields above.
        """

    @property
    @abstractmethod
    def denoiser(self) -> Any:
        """
        The U-Net or the transformer.
        """

    @property
    @abstractmethod
    def text_encoders(self) -> list[Any]:
        """
        All text encoders.
        """

    @property
    @abstractmethod
    def adapted(self) -> dict[str, tuple[Any, tuple[str, ...]]]:
        """
        By diffusers' name of each part that LoRA trains: the part, and the layers that get matrices.
        """

    @abstractmethod
    def embed(self, prompts: list[str]) -> Any:
        """
        Return what the text encoders make of prompts, in the form that `predict` takes.
        """

    @abstractmethod
    def noised(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """
        Return latents with noise of random times, these times, and what the denoiser should say to them.
        """

    @abstractmethod
    def steer(self, edges: NDArray[np.uint8]) -> Tensor:
        """
        Turn Canny maps into the ControlNet's input.
        """

    @abstractmethod
    def load_adapter(self, folder: Path) -> None:
        """
        Read what `save_adapter` wrote, by diffusers' own loaders.
        """

    @abstractmethod
    def _predict(self, noisy: Tensor, times: Tensor, embeddings: Any, control: Tensor | None, scale: float) -> Tensor:
        """
        Run the ControlNet, where there is a control image, and the denoiser.
        """

    def predict(
        self, noisy: Tensor, times: Tensor, embeddings: Any, control: Tensor | None, scale: float = 1.0
    ) -> Tensor:
        """
        Return the denoiser's prediction (noise, velocity or flow), float32.
        """
        with self.autocast():
            control = None if control is None else control.to(self.dtype)
            return self._predict(noisy.to(self.dtype), times, embeddings, control, scale).float()

    def encode(self, rows: Tensor) -> Tensor:
        """
        Turn rows (n, packets, columns) into latents, float32.
        """
        with self.at_work(self.codec.autoencoder):
            return self.codec.encode(rows.to(self.device))

    def decode(
        self, latents: Tensor, rngs: list[np.random.Generator], settle: Settle | None = None
    ) -> NDArray[np.int8]:
        """
        Turn latents into rows (n, packets, columns), one random stream a flow.
        """
        with self.at_work(self.codec.autoencoder):
            return self.codec.decode(latents, rngs, settle)

    def add_adapters(self, rank: int, alpha: float) -> list[nn.Parameter]:
        """
        Add fresh LoRA matrices, float32 whatever the rest is, and return them.
        """
        parts = [part for part, _ in self.adapted.values()]
        for part, targets in self.adapted.values():
            part.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)))
        cast_training_params(parts)
        return [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]

    def save_adapter(self, folder: Path) -> None:
        """
        Write the LoRA matrices in diffusers' format.
        """
        layers: dict[str, Any] = {}
        for name, (part, _) in self.adapted.items():
            layers[f"{name}_lora_layers"] = get_peft_model_state_dict(part)
            layers[f"{name}_lora_adapter_metadata"] = next(iter(part.peft_config.values())).to_dict()
        self.pipeline.save_lora_weights(folder, **layers)

    @contextmanager
    def merged(self) -> Iterator[None]:
        """
        Add the LoRA matrices to float32 weights for a while, so that they cost no time (Hu et al. 2021, section 4.1);
        half the digits would lose them. Afterwards the weights are as they were, to the bit.
        """
        parts = [part for part, _ in self.adapted.values() if self.dtype == torch.float32]
        layers = [module for part in parts for module in part.modules() if isinstance(module, LoraLayer)]
        kept = [layer.get_base_layer().weight.clone() for layer in layers]
        for layer in layers:
            layer.merge()
        try:
            yield
        finally:
            for layer, weight in zip(layers, kept, strict=True):
                layer.unmerge()
                layer.get_base_layer().weight.data.copy_(weight)

    def autocast(self) -> AbstractContextManager[Any]:
        """
        Compute in `dtype` where LoRA's float32 meets it.
        """
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    @contextmanager
    def at_work(self, *parts: Any) -> Iterator[None]:
        """
        Bring parts to the device, and back to where they waited.
        """
        waiting = [(part, part.device) for part in parts if part.device != self.device]
        for part, _ in waiting:
            part.to(self.device)
        try:
            yield
        finally:
            for part, home in waiting:
                part.to(home)


def read_weights(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """
    Read one part of a checkpoint, all of it.

    Raises ConfigError for another class, for weights that are missing, which would be random, and for weights that are
    pickled: reading those can run any code.
    """
    files = sorted(folder.glob("*"))
    pickled = [file.name for file in files if file.suffix in PICKLED]
    if pickled and not any(file.suffix == ".safetensors" for file in files):
        raise ConfigError(
            f"{folder} holds pickled weights only ({pickled[0]}), which can run any code when they are read: give a "
            "folder with safetensors, or convert it where you trust it (diffusers: save_pretrained, which writes them)."
        )
    found = json.loads((folder / "config.json").read_text()).get("_class_name", kind.__name__)
    if found != kind.__name__:
        raise ConfigError(f"{folder} holds a {found}, and a {kind.__name__} is needed.")
    part, info = kind.from_pretrained(
        folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    if info["missing_keys"]:
        some = next(iter(info["missing_keys"]))
        raise ConfigError(f"{folder} lacks {len(info['missing_keys'])} weights, {some} among them: copy it whole.")
    return part


def read_tokenizer(kind: Any, folder: Path) -> Any:
    """
    Read a tokenizer. Raises ConfigError where there is no vocabulary: transformers would go on with an empty one.
    """
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise ConfigError(f"{folder} holds no vocabulary ({', '.join(VOCABULARIES)}): copy it whole.")
    return kind.from_pretrained(folder, local_files_only=True)
