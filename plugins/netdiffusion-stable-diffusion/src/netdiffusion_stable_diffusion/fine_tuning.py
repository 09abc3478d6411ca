"""
LoRA fine-tuning: batches drawn beforehand, what they need encoded once, and a loop that goes on where it was stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from netdiffusion_core.context import Context, stream_seed
from netdiffusion_core.model import Encoded

from .diffusion import batches, denoising_loss, encode_packets, padded, places
from .family import Family
from .images import PacketCodec

Batch = tuple[NDArray[np.int64], int, NDArray[np.bool_]]
"""Flows, their height, and which of them go without a prompt."""
Make = Callable[[NDArray[np.int64], int], torch.Tensor]
"""Gives what a batch of these flows and this height needs."""

CHECKPOINT = "fine-tuning.safetensors"
CHECKPOINT_SECONDS = 60.0


def fine_tune(
    base: Family,
    data: Encoded,
    prompts: list[str],
    steer: Make | None,
    context: Context,
    *,
    longest: int,
    steps: int,
    rows_per_step: int,
    learning_rate: float,
    prompt_dropout: float,
    lora_rank: int,
    lora_alpha: float,
) -> None:
    """
    Add adapters to a checkpoint and train them on flows, each with its prompt and (by `steer`) its control image.

    With `context.checkpoints`, the state is kept there every minute; training that finds one goes on from it, and ends
    as it would have.
    """
    generator = torch.Generator().manual_seed(stream_seed(context.seed, "backend.noise"))
    torch.manual_seed(stream_seed(context.seed, "backend.weights"))
    parameters = base.add_adapters(lora_rank, lora_alpha)
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0)
    scaler = torch.amp.GradScaler(base.device.type, enabled=base.dtype == torch.float16)

    rng = context.rng("backend.fit")
    stream = batches(data, rng, rows=rows_per_step, shortest=base.codec.shortest, longest=longest)
    plan = [(flows, height, rng.random(len(flows)) < prompt_dropout) for flows, height in islice(stream, steps)]
    latents_of, control_of = _encode(base, data, plan, steer, context)
    prompts = ["", *prompts]
    if "text_encoder" not in base.adapted:
        base.embed(sorted(set(prompts)))  # which keeps them

    path = None if context.checkpoints is None else context.checkpoints / CHECKPOINT
    trained = [part for part, _ in base.adapted.values()]
    with base.at_work(*trained), context.progress("fine-tune", steps) as advance:
        done, mean = (0, None) if path is None else _load(path, parameters, optimizer, scaler, generator)
        saved_at = time.monotonic()
        advance(done)
        for step, (flows, height, dropped) in enumerate(plan[done:], start=done):
            latents = latents_of(flows, height).to(base.device)
            control = None if control_of is None else control_of(flows, height).to(base.device)
            embeddings = base.embed([prompts[i] for i in np.where(dropped, 0, flows + 1)])
            loss = denoising_loss(base, latents, embeddings, control, generator)
            scaler.scale(loss).backward()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(step, steps)
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            mean = loss.item() if mean is None else 0.9 * mean + 0.1 * loss.item()
            advance(note=f"loss {mean:.3f}")
            if path is not None and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                _save(path, step + 1, mean, parameters, optimizer, scaler, generator)
                saved_at = time.monotonic()


def _schedule(step: int, steps: int) -> float:
    """
    Warm up over the first twentieth, then fall to 0 by a cosine.
    """
    return float(min(1, (step + 1) / (steps / 20)) * 0.5 * (1 + np.cos(np.pi * step / steps)))


# --- what batches need ------------------------------------------------------------------------------------------


def _encode(
    base: Family, data: Encoded, plan: list[Batch], steer: Make | None, context: Context
) -> tuple[Make, Make | None]:
    """
    Encode what the batches will ask for. Return what gives their latents, and what gives their control images.
    """
    with base.at_work(base.codec.autoencoder):
        if isinstance(base.codec, PacketCodec):
            return partial(_latents, encode_packets(data, base.codec, base.device), data), steer
        latents_of = _kept(lambda flows, height: base.encode(torch.tensor(padded(data, flows, height))), plan, context)
        if steer is not None and base.control_in_latents:
            steer = _kept(steer, plan, context)
    return latents_of, steer


def _latents(packets: torch.Tensor, data: Encoded, flows: NDArray[np.int64], height: int) -> torch.Tensor:
    """
    Return the latents of flows, taken from those of all packets as `encode_packets` gives them.
    """
    return packets[places(data, flows, height)].transpose(1, 2).unsqueeze(2)


def _kept(make: Make, plan: list[Batch], context: Context) -> Make:
    """
    Make of each flow what batches will ask for, once, and keep it in main memory.
    """
    height_of = {flow: height for flows, height, _ in plan for flow in flows.tolist()}
    made = {}
    with context.progress("encode pictures", len(height_of)) as advance:
        for flow, height in height_of.items():
            made[flow] = make(np.array([flow]), height).cpu()
            advance()
    return lambda flows, _: torch.cat([made[flow] for flow in flows.tolist()])


# --- the state --------------------------------------------------------------------------------------------------


def _save(
    path: Path, step: int, loss: float, parameters: list[Any], optimizer: Any, scaler: Any, generator: torch.Generator
) -> None:
    """
    Write the state of training, so that a crash while writing leaves the last one whole.
    """
    state = {
        "step": torch.tensor(step),
        "loss": torch.tensor(loss, dtype=torch.float64),
        "noise": generator.get_state(),
        **{f"scaler/{key}": torch.tensor(value) for key, value in scaler.state_dict().items()},
    }
    for i, parameter in enumerate(parameters):
        state[f"weight/{i}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            state[f"{key}/{i}"] = value
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(".draft")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, draft)
    os.sync()
    os.replace(draft, path)


def _load(
    path: Path, parameters: list[Any], optimizer: Any, scaler: Any, generator: torch.Generator
) -> tuple[int, float | None]:
    """
    Go on from what `_save` wrote, if it did. Return the steps that are done, and the loss.
    """
    if not path.exists():
        return 0, None
    state = load_file(path)
    generator.set_state(state["noise"])
    scaler.load_state_dict({key: state[f"scaler/{key}"].item() for key in scaler.state_dict()})
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parameter.copy_(state[f"weight/{i}"])
            optimizer.state[parameter] = {
                key: state[f"{key}/{i}"].to(parameter.device if key != "step" else "cpu")
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
    return int(state["step"]), float(state["loss"])
