"""Attention between tokens, of plain linear layers and norms, so that each patient's gradient is known."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name

__all__ = ["Attention", "Layer"]


class Attention(nn.Module):
    """Multi-head self-attention from plain linear layers (Vaswani et al. 2017), so that per-sample gradients are exact."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """(n, t, width) and (n, t) bool to (n, t, width)."""
        n, t, width = tokens.shape

        def split(layer: nn.Linear) -> Tensor:
            heads: Tensor = layer(tokens)
            return heads.view(n, t, self.heads, width // self.heads).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            split(self.query), split(self.key), split(self.value), attn_mask=present[:, None, None, :]
        )
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(n, t, width))
        return out


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
