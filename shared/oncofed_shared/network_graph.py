"""Graph encoder of genes: each gene's columns become a vector, mixed with its neighbours' in a public graph.

The graph is no parameter: mixing by it is a product with a fixed matrix, and everything that is learned lies in linear layers and
norms over each patient's own genes, so that gradients per patient are exact. What a patient lacks is zero before the first layer
and after every layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name

from oncofed_shared.gene_graph import Places
from oncofed_shared.plan_genes import GeneGraph

__all__ = ["GeneNetwork", "gather_genes"]

FAR = 1e4
"""Taken off the score of a gene that a patient lacks: its weight is then exactly 0 in float32 and float64."""


def gather_genes(values: Tensor, seen: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """A modality's columns by gene and channel.

    Args:
        values, seen: (n, columns) of the modality, `seen` 1 where observed.
        index: (genes, channels) places among the columns, -1 where there is none.

    Returns:
        (n, genes, channels) values, 0 where missing; and (n, genes), 1 where a channel of the gene was observed.
    """
    # One more column stands for "there is none".
    shown = torch.cat([seen, seen.new_zeros(len(seen), 1)], dim=1)[:, index]
    taken = torch.cat([values, values.new_zeros(len(values), 1)], dim=1)[:, index]
    return torch.where(shown > 0, taken, 0), (shown > 0).any(dim=2).to(values.dtype)


class _Convolution(nn.Module):
    """H' = gelu(H A + Â H B + b) + H (Kipf & Welling 2017, eq. 2, with a map of its own for a gene's own vector)."""

    def __init__(self, channels: int, adjacency: Tensor) -> None:
        super().__init__()
        self.own, self.near = nn.Linear(channels, channels), nn.Linear(channels, channels, bias=False)
        self.adjacency = adjacency

    def forward(self, genes: Tensor, present: Tensor) -> Tensor:
        """(n, genes, channels) to the same."""
        del present
        n, count, channels = genes.shape
        flat = genes.transpose(0, 1).reshape(count, n * channels)
        mixed = (self.adjacency.to(genes.dtype) @ flat).reshape(count, n, channels).transpose(0, 1)
        changed: Tensor = genes + F.gelu(self.own(genes) + self.near(mixed))
        return changed


class _Attention(nn.Module):
    """As the convolution, with weights that depend on both genes' vectors (Veličković et al. 2018, eqs. 1-4).

    The score of a neighbour is a product of both vectors (Dwivedi & Bresson 2021) and not a layer on top of them: it needs no
    number per patient and edge, which for 900 genes with 33,000 edges would be gigabytes. A gene is its own neighbour.
    """

    def __init__(self, channels: int, adjacency: Tensor) -> None:
        super().__init__()
        self.own = nn.Linear(channels, channels)
        self.query, self.key, self.value = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.edges = adjacency > 0

    def forward(self, genes: Tensor, present: Tensor) -> Tensor:
        """(n, genes, channels) to the same."""
        scale = genes.shape[2] ** -0.5
        # A further number in query and key takes FAR off wherever the neighbour is absent, without a mask per patient.
        query = torch.cat([self.query(genes) * scale, torch.ones_like(present)[:, :, None]], dim=2)
        key = torch.cat([self.key(genes), (present[:, :, None] - 1) * FAR], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, self.value(genes), attn_mask=self.edges, scale=1.0)
        changed: Tensor = genes + F.gelu(self.own(genes) + mixed)
        return changed


class GeneNetwork(nn.Module):
    """From a modality's columns to a vector per token.

    Args:
        settings: kind, depth and width.
        where: which column is which gene's in which channel.
        adjacency: (genes, genes) normalised, with loops: `gene_graph.normalised`.
        tokens: per token the places of its genes in `where.genes`; a gene may be in several.
        width: of a token.
    """

    def __init__(
        self,
        settings: GeneGraph,
        where: Places,
        adjacency: NDArray[np.float64],
        tokens: Sequence[Sequence[int]],
        width: int,
    ) -> None:
        super().__init__()
        channels, layer = settings.channels, _Convolution if settings.kind == "convolution" else _Attention
        self.index = torch.from_numpy(where.index)
        self.first = nn.Linear(where.index.shape[1], channels)
        fixed = torch.from_numpy(adjacency).to(torch.float32)
        self.layers = nn.ModuleList(layer(channels, fixed) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(channels)
        self.members = [torch.tensor(list(genes)) for genes in tokens]
        # Behind the genes' vectors stands the share of a token's columns that is missing, as for every token.
        self.readouts = nn.ModuleList(nn.Linear(len(genes) * channels + 1, width) for genes in tokens)

    def forward(self, values: Tensor, seen: Tensor, missing: Tensor) -> Tensor:
        """Vectors of the tokens.

        Args:
            values, seen: (n, columns) of the modality.
            missing: (n, tokens) share of each token's columns that is missing.

        Returns:
            (n, tokens, width).
        """
        genes, present = gather_genes(values, seen, self.index)
        shown = present[:, :, None]
        genes = self.first(genes) * shown
        for layer in self.layers:
            genes = layer(genes, present) * shown
        genes = self.norm(genes) * shown
        made = [
            readout(torch.cat([genes[:, members].flatten(start_dim=1), missing[:, t, None]], dim=1))
            for t, (members, readout) in enumerate(zip(self.members, self.readouts, strict=True))
        ]
        return torch.stack(made, dim=1)
