"""
The embedded base's autoencoder: one packet (a row of ternary bits) becomes a few numbers and comes back.

A packet has no neighbourhood structure that a 2-D convolution could use, and flows do: so packets are compressed one
by one here, and the U-Net sees a flow as a latent image of one line, a pixel a packet.
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
}
"""Loss weights of fields; all others weigh 1. Directions, sizes and flags decide what traffic is good for."""

NOISE_WEIGHT = 0.02
"""It does not pay to spend latent capacity on noise: the decoder learns its distribution, and it is drawn from that."""

NOISE_FIELDS = (
    "ipv4.id",
    "ipv4.cksum",
    "ipv6.fl",
    "tcp.seq",
    "tcp.ackn",
    "tcp.cksum",
    "udp.len",
    "udp.cksum",
    "icmp.cksum",
    "icmp.roh",
)
"""Fields that are random by nature, or follow from the rest of the packet or the flow."""

TIME = "trace.iat_us"
TIME_BITS = 3
"""
Of an inter-arrival time the leading one and the next three bits carry meaning (6 %); what is below is noise.

A network in doubt between two leading ones gives each less than half, and the likelier values would be no time at all.
So it sees a time as how many bits it has, in unary: the likelier values of those are the median (`with_unary_time`).
"""

DRAWN_FIELDS = ("tcp.wsize",)
"""Numbers whose low bits the latents do not always tell: each packet's likelier value would be the same."""

PORT_BITS = 2
"""Of the initiator's port, if above 1023, the first bits tell the range it is drawn from; the rest is noise."""


class PacketAutoencoder(ModelMixin, ConfigMixin):
    """
    A variational autoencoder of single packets.

    columns          bits in a row
    latent_channels  numbers that a packet becomes
    hidden           width of the two hidden layers
    """

    @register_to_config
    def __init__(self, columns: int = 1152, latent_channels: int = 40, hidden: int = 512) -> None:
        super().__init__()
        numbers, columns = latent_channels, columns + TIME_BITS
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
        Return mean and log variance of the latents of rows (..., columns) in {-1, 0, 1}, as `with_unary_time` gives.
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
        Turn flows (n, packets, columns) with unary time into latent images (n, channels, 1, packets).
        """
        mean, log_variance = self.posterior(rows)
        latents = mean if noise is None else mean + torch.exp(log_variance / 2) * noise
        return ((latents - self.latent_mean) / self.latent_std).transpose(1, 2).unsqueeze(2)

    def decode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """
        Turn latent images (n, channels, 1, packets) into `logits` (n, packets, columns).
        """
        latents = images.squeeze(2).transpose(1, 2)
        return self.logits(latents * self.latent_std + self.latent_mean)

    def loss(self, rows: Tensor, weights: Tensor, kl_weight: float) -> tuple[Tensor, dict[str, float]]:
        """
        Return the negative evidence lower bound of rows (n, columns) with unary time, nats a packet, and its parts.
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
    Return the loss weight of each bit of rows (n, columns) and of the columns that `with_unary_time` adds.
    """
    weights = torch.ones(rows.shape[-1], device=rows.device)
    for field, weight in WEIGHTS.items():
        if field in spans:
            weights[spans[field]] = weight
    weights = torch.where(noise(rows, spans), NOISE_WEIGHT, weights)
    if TIME in spans:
        weights[..., spans[TIME]] = 1.0
    return F.pad(weights, (0, TIME_BITS), value=1.0)


def with_unary_time(rows: Tensor, spans: dict[str, slice]) -> Tensor:
    """
    Return rows (..., columns) with the bits of the inter-arrival time set from its leading one downwards, and behind
    them the bits that follow the leading one: int8(..., columns + TIME_BITS).
    """
    coded = F.pad(rows, (0, TIME_BITS), value=-1)
    if TIME in spans:
        time = rows[..., spans[TIME]]
        there = time[..., :1] >= 0
        coded[..., spans[TIME]] = torch.where(there, ((time == 1).cumsum(-1) > 0).to(rows.dtype), -1)
        leading = (time == 1).float().argmax(-1, keepdim=True)
        following = F.pad(time, (0, TIME_BITS), value=0)
        index = leading + 1 + torch.arange(TIME_BITS, device=rows.device)
        coded[..., -TIME_BITS:] = torch.where(there, following.gather(-1, index), -1)
    return coded


def with_binary_time(coded: Tensor, spans: dict[str, slice]) -> Tensor:
    """
    Return what `with_unary_time` was given, but for the bits below: they are 0.
    """
    rows = coded[..., :-TIME_BITS].clone()
    if TIME in spans:
        unary = rows[..., spans[TIME]]
        there, bits = unary[..., :1] >= 0, unary.shape[-1]
        leading = bits - (unary == 1).sum(-1, keepdim=True)
        time = torch.zeros(*unary.shape[:-1], bits + 1 + TIME_BITS, dtype=rows.dtype, device=rows.device)
        time.scatter_(-1, leading, 1)
        following = coded[..., -TIME_BITS:].clamp(min=0)
        time.scatter_(-1, leading + 1 + torch.arange(TIME_BITS, device=rows.device), following)
        rows[..., spans[TIME]] = torch.where(there & (leading < bits), time[..., :bits], torch.where(there, 0, -1))
    return rows


def noise(rows: Tensor, spans: dict[str, slice]) -> Tensor:
    """
    Tell which bits of rows (..., columns) are noise: bool(..., columns).
    """
    found = torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
    for field in NOISE_FIELDS:
        if field in spans:
            found[..., spans[field]] = True
    if TIME in spans:
        started = (rows[..., spans[TIME]] == 1).cumsum(-1) > 0
        found[..., spans[TIME]] = started.cumsum(-1) > 1 + TIME_BITS
    if "trace.direction" in spans:
        from_initiator = rows[..., spans["trace.direction"]] == 0
        for field, mine in (
            ("tcp.sprt", from_initiator),
            ("tcp.dprt", ~from_initiator),
            ("udp.sport", from_initiator),
            ("udp.dport", ~from_initiator),
        ):
            if field in spans:
                above_1023 = (rows[..., spans[field]][..., :6] == 1).any(-1, keepdim=True)
                found[..., spans[field]][..., PORT_BITS:] = mine & above_1023
    if "tcp.opt" in spans:
        found[..., spans["tcp.opt"]] = option_noise(rows[..., spans["tcp.opt"]])
    return found


def option_noise(bits: Tensor) -> Tensor:
    """
    Tell which bits of TCP options (..., columns) are noise: the values of time stamps (RFC 7323 section 3.2), and the
    sequence numbers of SACK blocks (RFC 2018 section 3).
    """
    octets = (bits.unflatten(-1, (-1, 8)) == 1).float() @ (2.0 ** torch.arange(7, -1, -1, device=bits.device))
    kind, length = octets[..., :-1], octets[..., 1:]
    found = torch.zeros(octets.shape, dtype=torch.bool, device=bits.device)
    for option, value_octets in ((8, 8), (5, 8), (5, 16), (5, 24), (5, 32)):
        begins = (kind == option) & (length == 2 + value_octets)
        for ahead in range(2, min(2 + value_octets, octets.shape[-1])):
            found[..., ahead:] |= begins[..., : octets.shape[-1] - ahead]
    return found.repeat_interleave(8, -1)


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
