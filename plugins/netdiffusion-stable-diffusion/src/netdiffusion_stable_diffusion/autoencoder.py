"""
The embedded base's autoencoder: one packet (a row of ternary bits) becomes 64 numbers and comes back.

A packet has no neighbourhood structure that a 2-D convolution could use, and flows do: so packets are compressed one
by one here, and the U-Net sees a flow as an image of (channels, packets, columns) latents.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = {
    "trace.direction": 5.0,
    "ipv4.tos": 2.0,
    "ipv4.tl": 3.0,
    "ipv4.dfbit": 3.0,
    "ipv4.ttl": 2.0,
    "ipv6.len": 3.0,
    "ipv6.hl": 2.0,
    "tcp.ackf": 3.0,
    "tcp.psh": 3.0,
    "tcp.rst": 3.0,
    "tcp.syn": 3.0,
    "tcp.fin": 3.0,
    "ipv4.id": 0.05,
    "ipv4.cksum": 0.02,
    "tcp.seq": 0.02,
    "tcp.ackn": 0.02,
    "tcp.cksum": 0.02,
    "udp.len": 0.1,
    "udp.cksum": 0.02,
    "icmp.cksum": 0.02,
    "icmp.roh": 0.1,
}
"""
Loss weights of fields; all others weigh 1. Directions, sizes and flags decide what traffic is good for. Bits that are
random by nature, or follow from the rest, weigh little: it does not pay to spend latent capacity on them, so the
decoder learns their distribution and `decode` draws from it.
"""

NOISE = 0.02
"""The weight of noise within a field: the low bits of an inter-arrival time, the values of TCP time stamps."""

TIME_BITS = 6
"""Of an inter-arrival time the leading one and the next five bits carry meaning (2 %); what is below is noise."""

DRAWN_FIELDS = (*(field for field, weight in WEIGHTS.items() if weight < 1), "tcp.opt")
"""The fields whose bits are drawn from the decoder's probabilities."""


class PacketAutoencoder(ModelMixin, ConfigMixin):
    """
    A variational autoencoder of single packets.

    columns         bits in a row
    latent_channels, latent_columns  a packet's numbers, as they lie in the latent image
    hidden          width of the two hidden layers
    """

    @register_to_config
    def __init__(
        self, columns: int = 1152, latent_channels: int = 16, latent_columns: int = 4, hidden: int = 512
    ) -> None:
        super().__init__()
        numbers = latent_channels * latent_columns
        self.encoder = nn.Sequential(
            nn.Linear(2 * columns, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 2 * numbers),
        )
        self.decoder = nn.Sequential(
            nn.Linear(numbers, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2 * columns)
        )
        # So that the U-Net sees latents of mean 0 and variance 1: measured once, after training.
        self.register_buffer("latent_mean", torch.zeros(numbers))
        self.register_buffer("latent_std", torch.ones(numbers))

    def posterior(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """
        Return mean and log variance of the latents of rows (..., columns) in {-1, 0, 1}.
        """
        planes = torch.cat([(rows >= 0), (rows == 1)], -1).to(self.dtype)
        mean, log_variance = self.encoder(planes).chunk(2, -1)
        return mean, log_variance.clamp(-12, 6)

    def logits(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """
        Return the log-odds that each bit is present, and that it is 1 if it is.
        """
        present, value = self.decoder(latents).chunk(2, -1)
        return present, value

    def encode(self, rows: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """
        Turn flows (n, packets, columns) into latent images (n, channels, packets, latent_columns).
        """
        mean, log_variance = self.posterior(rows)
        latents = mean if noise is None else mean + torch.exp(log_variance / 2) * noise
        latents = (latents - self.latent_mean) / self.latent_std
        n, packets, _ = latents.shape
        return latents.view(n, packets, self.config.latent_channels, -1).transpose(1, 2)

    def decode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """
        Turn latent images (n, channels, packets, latent_columns) into `logits` (n, packets, columns).
        """
        latents = images.transpose(1, 2).flatten(2)
        return self.logits(latents * self.latent_std + self.latent_mean)

    def loss(self, rows: Tensor, weights: Tensor, kl_weight: float) -> tuple[Tensor, dict[str, float]]:
        """
        Return the negative evidence lower bound of rows (n, columns), nats a packet, and its parts.
        """
        mean, log_variance = self.posterior(rows)
        present, value = self.logits(mean + torch.exp(log_variance / 2) * torch.randn_like(mean))
        there = (rows >= 0).float()
        presence = F.binary_cross_entropy_with_logits(present, there, reduction="none").sum(-1).mean()
        bits = F.binary_cross_entropy_with_logits(value, (rows == 1).float(), reduction="none")
        bits = (bits * there * weights).sum(-1).mean()
        kl = (mean**2 + log_variance.exp() - 1 - log_variance).sum(-1).mean() / 2
        parts = {"presence": presence.item(), "bits": bits.item(), "kl": kl.item()}
        return presence + bits + kl_weight * kl, parts


def bit_weights(rows: Tensor, spans: dict[str, slice]) -> Tensor:
    """
    Return the loss weight of each bit of rows (n, columns).
    """
    weights = torch.ones(rows.shape)
    for field, weight in WEIGHTS.items():
        if field in spans:
            weights[:, spans[field]] = weight
    if "trace.iat_us" in spans:
        started = (rows[:, spans["trace.iat_us"]] == 1).cumsum(-1) > 0
        weights[:, spans["trace.iat_us"]] = torch.where(started.cumsum(-1) > TIME_BITS, NOISE, 1.0)
    if "tcp.opt" in spans:
        octets = (rows[:, spans["tcp.opt"]] == 1).view(len(rows), -1, 8).long() @ 2 ** torch.arange(7, -1, -1)
        begins = (octets[:, :-1] == 8) & (octets[:, 1:] == 10)  # kind and length (RFC 7323 section 3.2)
        stamps = torch.zeros(octets.shape, dtype=torch.bool)
        for ahead in range(2, 10):
            stamps[:, ahead:] |= begins[:, : octets.shape[1] - ahead]
        weights[:, spans["tcp.opt"]] = torch.where(stamps.repeat_interleave(8, 1), NOISE, 1.0)
    return weights


def mix_fields(rows: Tensor, fields: tuple[tuple[str, int], ...], share: float = 0.1) -> Tensor:
    """
    Return rows in which a share of the fields come from other rows, where both have them.

    In real captures fields go together: who has this TTL and this port always speaks first. An autoencoder that learns
    that need not encode the direction, and errs on the first host that is different. Here it cannot.
    """
    mixed = rows.clone()
    start = 0
    for _, bits in fields:
        span = slice(start, start + bits)
        other = rows[torch.randperm(len(rows)), span]
        swap = (torch.rand(len(rows), 1) < share) & ((rows[:, span] >= 0) == (other >= 0)).all(-1, keepdim=True)
        mixed[:, span] = torch.where(swap, other, rows[:, span])
        start += bits
    return mixed
