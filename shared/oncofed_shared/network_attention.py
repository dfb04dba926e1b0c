"""Attention between tokens, of plain linear layers and norms, so that each patient's gradient is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name

__all__ = ["Attention", "Crossing", "Layer"]


class Attention(nn.Module):
    """Multi-head attention from plain linear layers (Vaswani et al. 2017), so that per-sample gradients are exact."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def _split(self, layer: nn.Linear, tokens: Tensor) -> Tensor:
        n, t, width = tokens.shape
        heads: Tensor = layer(tokens)
        return heads.view(n, t, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, tokens: Tensor, present: Tensor, others: Tensor | None = None) -> Tensor:
        """What tokens read of each other, or of other tokens.

        Args:
            tokens: (n, t, width), who reads.
            present: (n, s) bool, which of the tokens that are read are there; one at least.
            others: (n, s, width), what is read; without it `tokens`.

        Returns:
            (n, t, width).
        """
        n, t, width = tokens.shape
        read = tokens if others is None else others
        mixed = F.scaled_dot_product_attention(
            self._split(self.query, tokens),
            self._split(self.key, read),
            self._split(self.value, read),
            attn_mask=present[:, None, None, :],
        )
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(n, t, width))
        return out

    def weights(self, tokens: Tensor, present: Tensor, others: Tensor | None = None) -> Tensor:
        """How much each token reads of each, the mean over heads: (n, t, s), rows add up to 1."""
        query, key = self._split(self.query, tokens), self._split(self.key, tokens if others is None else others)
        scores = (query @ key.transpose(2, 3)) * query.shape[3] ** -0.5
        mean: Tensor = scores.masked_fill(~present[:, None, None, :], -torch.inf).softmax(dim=3).mean(dim=1)
        return mean


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention, self.norm_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.widen, self.narrow = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """(n, t, width) to the same."""
        tokens = tokens + self.dropout(self.attention(self.norm_attention(tokens), present))
        inner = F.gelu(self.widen(self.norm_feedforward(tokens)))
        changed: Tensor = tokens + self.dropout(self.narrow(inner))
        return changed

    def reading(self, tokens: Tensor, present: Tensor) -> Tensor:
        """How much each token holds of each behind this layer's attention: half itself, half what it read; (n, t, t).

        The residual path counts as much as attention does (Abnar & Zuidema 2020, eq. 1).
        """
        read = self.attention.weights(self.norm_attention(tokens), present)
        return (read + torch.eye(tokens.shape[1], dtype=tokens.dtype)) / 2


class Crossing(nn.Module):
    """Two-way cross-attention between two sides (C-06, C-07): each reads the other as it was before, and adds what it read.

    A patient who lacks a side altogether has the other one unchanged. Tokens of neither side stay as they are.

    Args:
        width, heads, dropout: as in a transformer layer.
        sides: places of the tokens of either side.
    """

    def __init__(self, width: int, heads: int, dropout: float, sides: tuple[list[int], list[int]]) -> None:
        super().__init__()
        self.sides = [torch.tensor(side, dtype=torch.long) for side in sides]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in sides)
        self.attention = nn.ModuleList(Attention(width, heads) for _ in sides)
        self.dropout = nn.Dropout(dropout)

    def _pairs(self, tokens: Tensor, present: Tensor) -> list[tuple[Attention, Tensor, Tensor, Tensor, Tensor]]:
        """Per side: its attention, places, tokens, the other's tokens, and which of those are there."""
        normed = [norm(tokens[:, side]) for norm, side in zip(self.norms, self.sides, strict=True)]
        made = []
        for own, attention in enumerate(self.attention):
            assert isinstance(attention, Attention)  # noqa: S101 - what __init__ put there
            there = present[:, self.sides[1 - own]]
            made.append((attention, self.sides[own], normed[own], normed[1 - own], there))
        return made

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """(n, t, width) and (n, t) bool to (n, t, width)."""
        if not all(len(side) for side in self.sides):
            return tokens
        added = torch.zeros_like(tokens)
        for attention, places, own, other, there in self._pairs(tokens, present):
            some = there.any(dim=1)
            # Where there is nothing to read, attention to anything, which is then dropped: a softmax of nothing is no number.
            read = attention(own, there | ~some[:, None], other) * some[:, None, None]
            added = added.index_add(1, places, self.dropout(read))
        return tokens + added

    def reading(self, tokens: Tensor, present: Tensor) -> Tensor:
        """How much each token holds of each behind this: (n, t, t), as for a layer."""
        n, t, _ = tokens.shape
        held = torch.eye(t, dtype=tokens.dtype).expand(n, t, t).clone()
        if not all(len(side) for side in self.sides):
            return held
        for own, (attention, places, mine, other, there) in enumerate(self._pairs(tokens, present)):
            some = there.any(dim=1)
            read = attention.weights(mine, there | ~some[:, None], other) * some[:, None, None] / 2
            held[:, places, places] = 1 - some[:, None].to(tokens.dtype) / 2
            held[:, places[:, None], self.sides[1 - own]] = read
        return held
