"""
Packet images: what Stable Diffusion sees of a flow, and how it becomes a flow again.

One row a packet, one column a bit (paper, section 3.1). Two codecs stand between rows and latents: `PacketCodec` for
the embedded base, and `ColourCodec` for Stable Diffusion checkpoints, which paints the three values in the paper's
three colours. Both draw the Canny map that the ControlNet is given.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from netdiffusion_core.model import Layout

from .autoencoder import DRAWN_FIELDS, TIME, TIME_BITS, PacketAutoencoder, noise, with_binary_time, with_unary_time

Rows = NDArray[np.int8]
Settle = Callable[[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], Rows], Rows]
"""`values.settle` for packets whose states are known."""

COLOURS = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 0]], np.uint8)
"""-1 blue, 0 green, 1 red (paper, section 3.1)."""

CANNY_GRID = 64
"""controlnet-aux resizes its input to multiples of this, so images are padded to it beforehand and stay exact."""

CELL = 3
"""
Pixels that a bit is wide and high in the picture whose edges steer the embedded base: Canny's derivatives are three
pixels wide, so in a picture of a pixel a bit they cannot tell which of two neighbours is the 1.
"""


def paint(rows: Rows) -> NDArray[np.uint8]:
    """
    Paint rows (packets, columns) as an image (packets, columns, 3).
    """
    return COLOURS[rows + 1]


def canny(rows: Rows) -> NDArray[np.uint8]:
    """
    Return the Canny edge map (packets, columns), 0 or 255, of one flow's image, by controlnet-aux.
    """
    with warnings.catch_warnings():  # of its other detectors' models, which are of no interest here
        warnings.simplefilter("ignore")
        from controlnet_aux import CannyDetector

    packets, columns = rows.shape
    padded = np.full((-(-packets // CANNY_GRID) * CANNY_GRID, -(-columns // CANNY_GRID) * CANNY_GRID), -1, np.int8)
    padded[:packets, :columns] = rows
    size = min(padded.shape)
    edges = CannyDetector()(paint(padded), detect_resolution=size, image_resolution=size)
    return np.asarray(edges[:packets, :columns, 0])


class PacketCodec:
    """
    The embedded base's codec: latents (n, channels, 1, packets), control images with a channel for each bit of a row.
    """

    shortest = 8
    scale = 1

    def __init__(self, autoencoder: PacketAutoencoder, layout: Layout) -> None:
        self.autoencoder, self.layout = autoencoder, layout
        self.spans = dict(layout.spans())
        self.latent_channels = autoencoder.config.latent_channels
        self.control_channels = self.edge_features = layout.width

    def latent_shape(self, packets: int) -> tuple[int, int, int]:
        """
        Return (channels, height, width) of the latents of a flow of this many packets.
        """
        return self.latent_channels, 1, packets

    @torch.no_grad()
    def encode(self, rows: Tensor) -> Tensor:
        """
        Turn rows (n, packets, columns) into the means of their latents: numbers that a packet does not need then stay
        near 0, where samples of the posterior would be noise that no model can predict.
        """
        return self.autoencoder.encode(with_unary_time(rows, self.spans))

    @torch.no_grad()
    def decode(self, latents: Tensor, rngs: list[np.random.Generator], settle: Settle | None = None) -> Rows:
        """
        Turn latents into rows (n, packets, columns), one random stream a flow.

        Noise is drawn from the decoder's probabilities: the likelier value would give each port, identifier and time
        the same low bits. All other bits take their likelier value, or that which `settle` gives them.
        """
        present, value = self.autoencoder.decode(latents)
        uniform = torch.tensor(np.stack([rng.random(value.shape[1:], np.float32) for rng in rngs]), device=value.device)
        drawn = (torch.sigmoid(value) > uniform).to(torch.int8)
        coded = torch.where(present > 0, value > 0, -1).to(torch.int8)
        coded[..., -TIME_BITS:] = torch.where(present[..., -TIME_BITS:] > 0, drawn[..., -TIME_BITS:], -1)
        if settle is not None:
            chances = (each.cpu().numpy() for each in (present, value, uniform, coded))
            coded = torch.tensor(settle(*chances), device=coded.device)
        rows = with_binary_time(coded, self.spans)
        random = noise(rows, self.spans)
        for field in DRAWN_FIELDS:
            if settle is None and field in self.spans:
                random[..., self.spans[field]] = True
        drawn = drawn[..., :-TIME_BITS]
        if TIME in self.spans:  # the unary code has no bits below; they are as good as uniform
            drawn[..., self.spans[TIME]] = uniform[..., self.spans[TIME]] < 0.5
        return torch.where((rows >= 0) & random, drawn, rows).cpu().numpy()

    def edges(self, rows: Rows) -> NDArray[np.uint8]:
        """
        Return one flow's Canny map, averaged over the pixels of each bit: uint8[packets, columns].
        """
        edges = canny(rows.repeat(CELL, 0).repeat(CELL, 1))
        return edges.reshape(len(rows), CELL, -1, CELL).mean((1, 3)).astype(np.uint8)

    def steer(self, edges: NDArray[Any]) -> NDArray[Any]:
        """
        Turn edges (n, packets, columns) into control images (n, columns, 1, packets) from 0 to 1.
        """
        return edges.transpose(0, 2, 1)[:, :, None] / np.float32(255)


class ColourCodec:
    """
    The codec of Stable Diffusion checkpoints: the paper's coloured images through the checkpoint's autoencoder, decoded
    by nearest colour; control images are Canny maps in pixels.
    """

    shortest = CANNY_GRID

    def __init__(self, autoencoder: AutoencoderKL, layout: Layout) -> None:
        self.autoencoder, self.layout = autoencoder, layout
        self.scale = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        self.shift = autoencoder.config.shift_factor or 0.0
        self.columns = self.edge_features = -(-layout.width // CANNY_GRID) * CANNY_GRID
        self.latent_channels = autoencoder.config.latent_channels
        self.control_channels = 3
        autoencoder.enable_slicing()  # one picture at a time: 1,024 packets take gigabytes

    def latent_shape(self, packets: int) -> tuple[int, int, int]:
        """
        Return (channels, height, width) of the latents of a flow of this many packets.
        """
        return self.latent_channels, packets // self.scale, self.columns // self.scale

    def encode(self, rows: Tensor) -> Tensor:
        """
        Turn rows (n, packets, columns) into latents.
        """
        rows = torch.nn.functional.pad(rows, (0, self.columns - rows.shape[-1]), value=-1)
        colours = torch.tensor(COLOURS, device=rows.device) / 127.5 - 1
        return self.latents(colours[(rows + 1).long()].permute(0, 3, 1, 2), self.shift)

    @torch.no_grad()
    def latents(self, pixels: Tensor, shift: float) -> Tensor:
        """
        Turn pixels (n, 3, packets, columns) from -1 to 1 into the means of their latents, scaled to variance 1.
        """
        latents = self.autoencoder.encode(pixels.to(self.autoencoder.dtype)).latent_dist.mode()
        return (latents.float() - shift) * self.autoencoder.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor, rngs: list[np.random.Generator], settle: Settle | None = None) -> Rows:
        """
        Turn latents into rows (n, packets, columns) by nearest colour. Nothing is drawn, and no bit has a probability:
        `rngs` and `settle` are not used.
        """
        latents = latents / self.autoencoder.config.scaling_factor + self.shift
        pixels = self.autoencoder.decode(latents.to(self.autoencoder.dtype)).sample
        colours = torch.tensor(COLOURS, device=pixels.device, dtype=pixels.dtype) / 127.5 - 1
        # |p - c|^2 is least where p.c is greatest, as the three colours are equally long
        nearest = torch.einsum("nchw,kc->nkhw", pixels, colours).argmax(1)
        return (nearest[..., : self.layout.width] - 1).to(torch.int8).cpu().numpy()

    def edges(self, rows: Rows) -> NDArray[np.uint8]:
        """
        Return one flow's Canny map: uint8[packets, columns].
        """
        return np.pad(canny(rows), ((0, 0), (0, self.columns - rows.shape[1])))

    def steer(self, edges: NDArray[Any]) -> NDArray[Any]:
        """
        Turn edges (n, packets, columns) into control images (n, 3, packets, columns) from 0 to 1.
        """
        return np.repeat(edges[:, None], 3, 1) / np.float32(255)
