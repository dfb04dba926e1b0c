"""Encoders of genes: by public gene sets, and by a public graph along which each gene's vector mixes with its neighbours'.

The graph is no parameter: mixing by it is a product with a fixed matrix, and everything that is learned lies in linear layers and
norms over each patient's own genes, so that gradients per patient are exact. What a patient lacks is zero before the first layer
and after every layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name

from oncofed_shared.gene_graph import graph_of, normalised, places, sets_of
from oncofed_shared.network_encoder import Encoder, EncoderShape
from oncofed_shared.plan_genes import GeneSets

__all__ = ["GeneGraphNetwork", "Pathways", "gather_genes"]

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


class _Step(nn.Module, ABC):
    """One step along the graph: H' = H + gelu(H A + M + b), where M mixes a gene with its neighbours.

    A gene without an edge is its own neighbour alone, and stays out of the products over pairs of genes: in 1,600 genes of a study
    half are not in a graph of cancer genes.
    """

    def __init__(self, channels: int, adjacency: Tensor) -> None:
        super().__init__()
        self.own = nn.Linear(channels, channels)
        self.linked = ((adjacency != 0).sum(dim=1) > 1).nonzero()[:, 0]
        self.adjacency = adjacency[self.linked][:, self.linked]

    def forward(self, genes: Tensor, present: Tensor) -> Tensor:
        """(n, genes, channels) to the same; (n, genes) of 0 and 1 says which are there."""
        changed: Tensor = genes + F.gelu(self.own(genes) + self.mixed(genes, present))
        return changed

    @abstractmethod
    def mixed(self, genes: Tensor, present: Tensor) -> Tensor:
        """M, (n, genes, channels)."""


class _Convolution(_Step):
    """M = Â H B (Kipf & Welling 2017, eq. 2), beside the map A for a gene's own vector."""

    def __init__(self, channels: int, adjacency: Tensor) -> None:
        super().__init__(channels, adjacency)
        self.near = nn.Linear(channels, channels, bias=False)

    def mixed(self, genes: Tensor, present: Tensor) -> Tensor:
        """M, (n, genes, channels)."""
        del present
        n, count, channels = len(genes), len(self.linked), genes.shape[2]
        flat = genes[:, self.linked].transpose(0, 1).reshape(count, n * channels)
        summed = (self.adjacency.to(genes.dtype) @ flat).reshape(count, n, channels).transpose(0, 1)
        made: Tensor = self.near(genes.index_copy(1, self.linked, summed))
        return made


class _Attention(_Step):
    """M = the mean of H V over a gene and its neighbours, weighted by both genes' vectors (Veličković et al. 2018, eqs. 1-4).

    The score of a neighbour is a product of both vectors (Dwivedi & Bresson 2021) and not a layer on top of them: it needs no
    number per patient and edge, which for 900 genes with 33,000 edges would be gigabytes.
    """

    def __init__(self, channels: int, adjacency: Tensor) -> None:
        super().__init__(channels, adjacency)
        self.query, self.key, self.value = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.edges = self.adjacency != 0

    def mixed(self, genes: Tensor, present: Tensor) -> Tensor:
        """M, (n, genes, channels)."""
        value = self.value(genes)
        if not len(self.linked):
            # Nothing to compare, but each layer has a gradient.
            unused: Tensor = value + 0 * (self.query(genes) + self.key(genes))
            return unused
        some, there = genes[:, self.linked], present[:, self.linked, None]
        # A further number in query and key takes FAR off wherever the neighbour is absent, without a mask per patient. In this
        # form, with one head and values of the same length, torch keeps no score of a pair of genes: eight times as fast.
        query = torch.cat([self.query(some) * genes.shape[2] ** -0.5, torch.ones_like(there)], dim=2)
        key = torch.cat([self.key(some), (there - 1) * FAR], dim=2)
        padded = F.pad(value[:, self.linked], (0, 1))
        near = F.scaled_dot_product_attention(
            query[:, None], key[:, None], padded[:, None], attn_mask=self.edges, scale=1.0
        )
        made: Tensor = value.index_copy(1, self.linked, near[:, 0, :, :-1])
        return made


def _chosen(sets: GeneSets, files: str | None, genes: Sequence[str]) -> list[list[int]]:
    """Per token the places of its genes: a token for each set with enough of them, and one for genes in none."""
    row = {gene: i for i, gene in enumerate(genes)}
    found = [[row[g] for g in members if g in row] for members in sets_of(files, sets).values()]
    tokens = [members for members in found if len(members) >= sets.smallest]
    left = sorted(set(range(len(genes))) - {i for members in tokens for i in members})
    return [*tokens, left] if left and (sets.rest == "token" or not tokens) else tokens


class _Genes(Encoder):
    """Tokens of groups of genes: one of all genes, or one per gene set.

    Attributes:
        index: (genes, channels) place of each gene's columns, -1 where there is none.
        groups: per token the rows of `index` that it reads; a gene may be in several.
    """

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.where = places(shape.modality, shape.columns)
        self.index = torch.from_numpy(self.where.index)
        sets, count = shape.modality.pathways, len(self.where.genes)
        chosen = [list(range(count))] if sets is None else _chosen(sets, shape.files, self.where.genes)
        self.groups = [torch.tensor(genes) for genes in chosen]
        self.tokens = len(self.groups)
        membership = torch.zeros(len(shape.columns), self.tokens)
        for t, genes in enumerate(self.groups):
            own = self.index[genes]
            own = own[own >= 0]
            membership[own, t] = 1 / len(own)
        self.membership = membership

    def shares(self, seen: Tensor) -> Tensor:
        """(n, columns) of 0 and 1 to the share of each token's columns that was observed, (n, tokens)."""
        return seen @ self.membership.to(seen.dtype)

    def read(self, genes: Tensor, shares: Tensor, readouts: nn.ModuleList) -> tuple[Tensor, Tensor]:
        """Each token's map of its genes' vectors, and of the share of its columns that is missing."""
        made = [
            readout(torch.cat([genes[:, group].flatten(start_dim=1), 1 - shares[:, t, None]], dim=1))
            for t, (group, readout) in enumerate(zip(self.groups, readouts, strict=True))
        ]
        return torch.stack(made, dim=1), (shares > 0).to(shares.dtype)


class Pathways(_Genes):
    """A token per gene set: a linear map of what was measured of its genes (C-23)."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__(shape)
        channels = self.index.shape[1]
        self.readouts = nn.ModuleList(nn.Linear(len(g) * channels + 1, shape.width) for g in self.groups)

    def forward(self, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """(n, columns) both to (n, sets, width) and (n, sets)."""
        genes, _ = gather_genes(values, seen, self.index)
        return self.read(genes, self.shares(seen), self.readouts)


class GeneGraphNetwork(_Genes):
    """Each gene's columns to a vector, mixed along the graph, and then one token, or one per gene set (C-04, C-05).

    A gene that the graph does not know is read like the others, and mixes with nothing.
    """

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__(shape)
        settings = shape.modality.graph
        assert settings is not None  # noqa: S101 - what the plan refuses otherwise
        channels, layer = settings.channels, _Convolution if settings.kind == "convolution" else _Attention
        adjacency = normalised(graph_of(shape.files, settings), self.where.genes)
        fixed = torch.from_numpy(adjacency).to(torch.float32)
        self.first = nn.Linear(self.index.shape[1], channels)
        self.layers = nn.ModuleList(layer(channels, fixed) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(channels)
        self.readouts = nn.ModuleList(nn.Linear(len(g) * channels + 1, shape.width) for g in self.groups)

    def forward(self, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """(n, columns) both to (n, tokens, width) and (n, tokens)."""
        genes, present = gather_genes(values, seen, self.index)
        shown = present[:, :, None]
        genes = self.first(genes) * shown
        for layer in self.layers:
            genes = layer(genes, present) * shown
        return self.read(self.norm(genes) * shown, self.shares(seen), self.readouts)
