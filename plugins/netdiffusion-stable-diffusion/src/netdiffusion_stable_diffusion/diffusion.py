"""
What training the base, fine-tuning it and sampling share: prompts, batches of equal cost, the loss, the sampler.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from netdiffusion_core.model import Encoded, Layout

from .family import Family
from .images import PacketCodec

LONGEST = 4096
"""Packets of a flow at most, where users ask for more than the 1,024 of the paper."""

DYNAMIC_PORTS = 49152
"""The first of them."""


def prompt(label: str, service: str) -> str:
    """
    Name the class as the paper does, and the service.
    """
    return f"pixelated network data, type-{label}" + (f", {service}" if service else "")


def services(data: Encoded) -> list[str]:
    """
    Name each flow's service by what its first packet says of the transport and the responder's port: "tcp port 443".
    Dynamic ports (RFC 6335 section 6) name no service: "udp". A flow of neither TCP, UDP nor ICMP has "".
    """
    first, spans = data.rows[data.starts[:-1]], data.layout.spans()
    names = np.full(len(first), "", "U16")
    for transport, source, destination in (("tcp", "tcp.sprt", "tcp.dprt"), ("udp", "udp.sport", "udp.dport")):
        if source in spans and destination in spans:
            there = (first[:, spans[source]] >= 0).all(1)
            ports = [(first[:, spans[field]] == 1) @ (1 << np.arange(15, -1, -1)) for field in (source, destination)]
            if "trace.direction" in spans:
                from_responder = first[:, spans["trace.direction"]][:, 0] == 1
                port = np.where(from_responder, *ports)
            else:
                port = np.minimum(*ports)
            named = np.char.add(f"{transport} port ", port.astype(str))
            names = np.where(there, np.where(port < DYNAMIC_PORTS, named, transport), names)
    if "icmp.type" in spans:
        names = np.where((first[:, spans["icmp.type"]] >= 0).all(1), "icmp", names)
    return [str(name) for name in names]


def answered_at(rows: NDArray[np.int8], service: str, layout: Layout) -> NDArray[np.int8]:
    """
    Return a flow's packets, int8[packets, columns], the responder of which has the port that `services` names.
    """
    spans, (transport, _, port) = layout.spans(), service.partition(" port ")
    fields = {"tcp": ("tcp.sprt", "tcp.dprt"), "udp": ("udp.sport", "udp.dport")}.get(transport, ())
    if not port or not {*fields, "trace.direction"} <= set(spans):
        return rows
    rows = rows.copy()
    from_responder = rows[:, spans["trace.direction"].start] == 1
    bits = int(port) >> np.arange(15, -1, -1) & 1
    for field, sent in zip(fields, (from_responder, ~from_responder), strict=True):
        there = (rows[:, spans[field]] >= 0).all(1)
        rows[np.ix_(sent & there, np.arange(rows.shape[1])[spans[field]])] = bits
    return rows


def heights(lengths: NDArray[np.int64], shortest: int) -> NDArray[np.int64]:
    """
    Return the padded height of flows of these many packets: the next power of two, so that short flows cost little. The
    model learns where the absent rows begin, which is how long flows are.
    """
    return np.maximum(shortest, 1 << np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64))


def places(data: Encoded, flows: NDArray[np.int64], height: int) -> NDArray[np.int64]:
    """
    Return which rows flows have at this height: int64[flows, height], -1 behind a flow's end.
    """
    packet = np.arange(height)
    return np.where(packet < data.lengths[flows, None], data.starts[flows, None] + packet, -1)


def padded(data: Encoded, flows: NDArray[np.int64], height: int) -> NDArray[np.int8]:
    """
    Return flows as images int8[flows, height, columns]; what is longer is cut, what is shorter padded with -1.
    """
    index = places(data, flows, height)
    return np.where(index[..., None] >= 0, data.rows[index], np.int8(-1))


def batches(
    data: Encoded, rng: np.random.Generator, *, rows: int, shortest: int, longest: int
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """
    Yield ``(flows, height)`` for ever. Every batch has about `rows` rows, so every step costs the same; a class is
    drawn in proportion to the square root of its flows, so that rare ones are not forgotten.
    """
    _, index, counts = np.unique(data.labels, return_inverse=True, return_counts=True)
    weight = 1 / np.sqrt(counts[index])
    height_of = np.minimum(heights(data.lengths, shortest), longest)
    groups = {h: np.flatnonzero(height_of == h) for h in np.unique(height_of)}
    size = {h: max(1, rows // int(h)) for h in groups}
    # A batch of a group holds size[h] flows: dividing by it makes each flow come up as often as its weight says.
    share = np.array([weight[flows].sum() / size[h] for h, flows in groups.items()])
    while True:
        h = rng.choice(list(groups), p=share / share.sum())
        chance = weight[groups[h]]
        yield rng.choice(groups[h], size[h], p=chance / chance.sum()), int(h)


def encode_packets(data: Encoded, codec: PacketCodec, device: torch.device) -> Tensor:
    """
    Return the latents of every packet, and last those of an absent one: float32[packets + 1, channels].
    """
    rows = torch.cat([torch.tensor(data.rows), torch.full((1, data.layout.width), -1, dtype=torch.int8)])
    return torch.cat([codec.encode(some[None].to(device))[0, :, 0].T for some in rows.split(8192)])


def denoising_loss(
    checkpoint: Family, latents: Tensor, embeddings: Any, control: Tensor | None, generator: torch.Generator
) -> Tensor:
    """
    Return the mean squared error of the denoiser's prediction at random times.
    """
    noisy, times, target = checkpoint.noised(latents, generator)
    return F.mse_loss(checkpoint.predict(noisy, times, embeddings, control), target)


@torch.no_grad()
def denoise(
    checkpoint: Family,
    noise: Tensor,
    prompts: list[str],
    control: Tensor | None,
    *,
    steps: int,
    guidance: float,
    control_scale: float,
) -> Tensor:
    """
    Turn noise into latents by the scheduler's deterministic steps (DDIM, or Euler's for flow matching) with
    classifier-free guidance (Ho and Salimans 2022).
    """
    scheduler = checkpoint.scheduler
    scheduler.set_timesteps(steps, device=noise.device)
    latents = noise
    guided = guidance != 1
    embeddings = checkpoint.embed([""] * len(prompts) + prompts if guided else prompts)
    if control is not None and guided:
        control = torch.cat([control, control])
    for time in scheduler.timesteps:
        doubled = torch.cat([latents, latents]) if guided else latents
        output = checkpoint.predict(doubled, time.expand(len(doubled)), embeddings, control, control_scale)
        if guided:
            free, named = output.chunk(2)
            output = free + guidance * (named - free)
        latents = scheduler.step(output, time, latents).prev_sample
    return latents
