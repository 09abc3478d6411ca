"""
Training: batches of flows of like length, drawn beforehand, and a loop that goes on where it was stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from netdiffusion_core.context import Context, stream_seed

from .network import Network

Array = NDArray[Any]

LENGTH_JITTER = 0.1
"""Flows are sorted by length times exp(normal * this), so that no two epochs have the same groups."""
GROUPS = 8
"""
Groups in a step, or fewer where flows are long. Flows of like length are padded together, and a step has short and long
ones: steps of one length each would pull the chance of an end to and fro.
"""
WEIGHT_DECAY = 0.05
CHECKPOINT = "training.safetensors"
CHECKPOINT_SECONDS = 60.0


def groups(lengths: Array, rng: np.random.Generator, rows: int) -> Iterator[Array]:
    """
    Yield flows of like length, with padding at most so many rows, or one flow; epoch after epoch, in random order.
    """
    while True:
        order = np.argsort(lengths * np.exp(LENGTH_JITTER * rng.standard_normal(len(lengths))))
        cuts, first, tallest = [], 0, 0
        for i, length in enumerate(lengths[order].tolist()):
            tallest = max(tallest, length)
            if i > first and tallest * (i + 1 - first) > rows:
                cuts.append(i)
                first, tallest = i, length
        epoch = np.split(order, cuts)
        yield from (epoch[i] for i in rng.permutation(len(epoch)))


def batches(lengths: Array, rng: np.random.Generator, rows: int) -> Iterator[list[Array]]:
    """
    Yield groups for one step: with padding so many rows, or the group more that completes them.
    """
    batch, held = [], 0
    for group in groups(lengths, rng, max(1, rows // GROUPS)):
        batch.append(group)
        held += len(group) * int(lengths[group].max())
        if held >= rows:
            yield batch
            batch, held = [], 0


def train(
    network: Network,
    tokens: Array,
    starts: Array,
    class_of: Array,
    context: Context,
    *,
    steps: int,
    rows_per_step: int,
    learning_rate: float,
) -> None:
    """
    Minimise the negative log-likelihood of the training flows.

    tokens    int64[packets, columns]
    class_of  int64[flows]

    With `context.checkpoints`, the state is kept there every minute; training that finds one goes on from it, and ends
    as it would have.
    """
    torch.manual_seed(stream_seed(context.seed, "backend.dropout"))
    for logits, column, size in zip(network.logits, tokens.T, network.sizes, strict=True):
        frequency = (np.bincount(column, minlength=size) + 0.5) / len(column)
        logits.bias.data = torch.tensor(np.log(frequency), dtype=torch.float32)  # what it knows before it looks
    lengths, longest = np.diff(starts), int(np.diff(starts).max())
    plan = list(islice(batches(lengths, context.rng("backend.fit"), rows_per_step), steps))
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    path = None if context.checkpoints is None else context.checkpoints / CHECKPOINT
    done, mean = (0, None) if path is None else _load(path, network, optimizer)
    saved_at = time.monotonic()
    network.train()
    with context.progress("train", steps) as advance:
        advance(done)
        for step, chosen in enumerate(plan[done:], start=done):
            loss = network.loss([_padded(tokens, starts, class_of, flows) for flows in chosen], longest)
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(step, steps)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
            advance(note=f"loss {mean:.2f} nats a packet")
            if path is not None and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                _save(path, step + 1, mean, network, optimizer)
                saved_at = time.monotonic()


def _padded(tokens: Array, starts: Array, class_of: Array, flows: Array) -> tuple[torch.Tensor, ...]:
    """
    Return tokens, lengths and labels of a group; behind a flow's end stands what comes next.
    """
    lengths = starts[flows + 1] - starts[flows]
    at = np.minimum(starts[flows, None] + np.arange(lengths.max()), len(tokens) - 1)
    return torch.from_numpy(tokens[at]), torch.from_numpy(lengths), torch.from_numpy(class_of[flows])


def _schedule(step: int, steps: int) -> float:
    """
    Warm up over the first twentieth, then fall to 0 by a cosine.
    """
    return float(min(1, (step + 1) / (steps / 20)) * 0.5 * (1 + np.cos(np.pi * step / steps)))


def _save(path: Path, step: int, loss: float, network: Network, optimizer: torch.optim.Optimizer) -> None:
    """
    Write the state of training, so that a crash while writing leaves the last one whole.
    """
    state = {
        "step": torch.tensor(step),
        "loss": torch.tensor(loss, dtype=torch.float64),
        "dropout": torch.get_rng_state(),
    }
    for name, parameter in network.named_parameters():
        state[f"weight/{name}"] = parameter.detach()
        state |= {f"{key}/{name}": value for key, value in optimizer.state[parameter].items()}
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(".draft")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, draft)
    os.replace(draft, path)


def _load(path: Path, network: Network, optimizer: torch.optim.Optimizer) -> tuple[int, float | None]:
    """
    Go on from what `_save` wrote, if it did. Return the steps that are done, and the loss.
    """
    if not path.exists():
        return 0, None
    state = load_file(path)
    torch.set_rng_state(state["dropout"])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(state[f"weight/{name}"])
            optimizer.state[parameter] = {key: state[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    return int(state["step"]), float(state["loss"])
