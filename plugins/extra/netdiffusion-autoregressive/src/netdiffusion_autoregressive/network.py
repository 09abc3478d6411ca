"""
The network: a causal transformer with one position a packet, and a head that tells a packet's tokens one by one.

A flow of 64 packets is so 64 positions of the transformer and not 64 times the tokens of a packet. Column 0 of the
tokens says whether the flow goes on: `END` or `MORE`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

END, MORE = 0, 1
HEAD_CHANNELS = 32
"""Channels of an attention head."""

Cache = list[Tensor]
"""Keys and values of each block, ``[2, flows, heads, positions, channels]``, filled from the first position on."""


class Block(nn.Module):
    """
    Causal self-attention and a feed-forward layer, each behind a layer norm (pre-LN; Xiong et al. 2020).
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = width // HEAD_CHANNELS
        self.norm_attention, self.norm_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.forward_in, self.forward_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: Tensor | None = None, position: int = 0) -> Tensor:
        """
        Take ``x[flows, positions, width]`` one step further; with a cache, x is the one position given.
        """
        flows, positions, width = x.shape
        shape = (flows, positions, 3, self.heads, HEAD_CHANNELS)
        q, k, v = self.query_key_value(self.norm_attention(x)).view(shape).permute(2, 0, 3, 1, 4)
        if cache is not None:
            cache[:, :, :, position] = torch.stack([k, v])[:, :, :, 0]
            k, v = cache[:, :, :, : position + 1]
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        x = x + self.dropout(self.out(attended.transpose(1, 2).reshape(flows, positions, width)))
        return x + self.dropout(self.forward_out(F.gelu(self.forward_in(self.norm_forward(x)))))


class Network(nn.Module):
    """
    sizes      the number of tokens of each column; the first is END and MORE
    classes    how many labels
    positions  the most packets of a flow
    """

    def __init__(
        self,
        sizes: Sequence[int],
        classes: int,
        positions: int,
        width: int,
        head_width: int,
        layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.register_buffer("offsets", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)
        self.label, self.position = nn.Embedding(classes, width), nn.Embedding(positions, width)
        self.packet = nn.EmbeddingBag(sum(sizes), width, mode="sum")
        self.start = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

        columns = len(sizes)
        self.context = nn.Linear(width, head_width)
        self.told = nn.Embedding(sum(sizes), head_width)
        self.head_norm = nn.LayerNorm(head_width)
        self.hidden = nn.Parameter(torch.randn(columns, head_width, head_width) * head_width**-0.5)
        self.hidden_bias = nn.Parameter(torch.zeros(columns, 1, head_width))
        self.logits = nn.ModuleList(nn.Linear(head_width, size) for size in sizes)
        for part in (self.packet, self.told, *self.logits):
            nn.init.normal_(part.weight, std=0.02)
        for embedding in (self.label, self.position):  # each as large as a packet, which sums one of each column
            nn.init.normal_(embedding.weight, std=0.02 * columns**0.5)

    # --- training ---------------------------------------------------------------------------------------------------

    def loss(self, groups: Sequence[tuple[Tensor, Tensor, Tensor]], longest: int) -> Tensor:
        """
        Return the negative log-likelihood in nats a packet of groups of flows; the flows of a group are padded to the
        longest of them.

        groups   tokens int64[flows, positions, columns], column 0 being MORE, anything behind a flow's end; lengths
                 int64[flows]; labels int64[flows]
        longest  at this length flows were cut: that they end there tells nothing
        """
        packets, ends, wanted = [], [], []
        for tokens, lengths, labels in groups:
            context = self._contexts(tokens, labels)
            at = torch.arange(context.shape[1])
            real = at < lengths[:, None]
            packets.append(context[real])
            ends.append(context[(at == lengths[:, None]) & (at < longest)])
            wanted.append(tokens[real[:, :-1]])
        context, target = torch.cat(packets), torch.cat(wanted)
        nll = -F.log_softmax(self.logits[0](self.after(torch.cat(ends), 0)), -1)[:, END].sum()
        told = self.told(target + self.offsets)
        hidden = self.after((context[:, None] + told.cumsum(1) - told).transpose(0, 1))
        for logits, z, column in zip(self.logits, hidden, target.T, strict=True):
            nll = nll + F.cross_entropy(logits(z), column, reduction="sum")
        return nll / len(target)

    def _contexts(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """
        Return what is known before each packet and behind the last: ``[flows, positions + 1, head_width]``.
        """
        flows, positions, columns = tokens.shape
        packets = self.packet((tokens + self.offsets).view(-1, columns)).view(flows, positions, -1)
        x = torch.cat([self.start.expand(flows, 1, -1), packets], 1)
        x = self.dropout(x + self.label(labels)[:, None] + self.position.weight[: positions + 1])
        for block in self.blocks:
            x = block(x)
        return self.context(self.norm(x))

    def after(self, context: Tensor, column: int | None = None) -> Tensor:
        """
        Return what the head thinks after some tokens of a packet: of one column from ``[flows, head_width]``, of all
        from ``[columns, flows, head_width]``.
        """
        which = slice(None) if column is None else column
        normed = self.head_norm(context)
        return normed + F.gelu(normed @ self.hidden[which] + self.hidden_bias[which])

    # --- sampling ---------------------------------------------------------------------------------------------------

    def cache(self, flows: int, positions: int) -> Cache:
        """
        Return an empty cache.
        """
        shapes = [(2, flows, block.heads, positions, HEAD_CHANNELS) for block in self.blocks]
        return [torch.zeros(shape) for shape in shapes]

    def draw(
        self, before: Tensor | None, labels: Tensor, position: int, cache: Cache, u: Tensor, temperature: float
    ) -> Tensor:
        """
        Draw the tokens of one packet a flow: int64[flows, columns]. A flow has a first packet in any case.

        before  int64[flows, columns], the packet before; None at the first
        u       float64[flows, columns], uniform in [0, 1)
        """
        x = self.start.expand(len(labels), -1) if before is None else self.packet(before + self.offsets)
        x = (x + self.label(labels) + self.position.weight[position])[:, None]
        for block, kept in zip(self.blocks, cache, strict=True):
            x = block(x, kept, position)
        context = self.context(self.norm(x[:, 0]))
        tokens = torch.empty(len(labels), len(self.sizes), dtype=torch.int64)
        for column, size in enumerate(self.sizes):
            logits = self.logits[column](self.after(context, column))
            cumulated = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
            drawn = (cumulated < u[:, column, None] * cumulated[:, -1:]).sum(-1).clamp(max=size - 1)
            if column == 0 and before is None:
                drawn = torch.full_like(drawn, MORE)
            tokens[:, column] = drawn
            context = context + self.told.weight[self.offsets[column] + drawn]
        return tokens
