"""Ways of joining modalities beside the transformer: the comparators of the literature, under one interface.

Each takes one vector per modality, (n, modalities, width), and who has which, (n, modalities) of 0 and 1, and gives
(n, outputs). All heads start at zero. A modality that a patient lacks adds nothing to any sum here: a network that never knew
of it, with the same weights, says the same about him. Nothing looks at another patient, and every parameter lies in a linear
layer or a layer norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name

__all__ = [
    "ATTENTIVE",
    "JOINS",
    "READS_WHOLE",
    "Concat",
    "Early",
    "Hybrid",
    "Kronecker",
    "Late",
    "Shape",
    "WeightedSum",
    "modality_vectors",
]

PRODUCT_WIDTH = 8
"""Most numbers of a modality that enter products: their number grows with its square."""
ATTENTIVE = frozenset({"transformer", "two_way"})
"""Fusions that join tokens by attention."""
READS_WHOLE = frozenset({"early", "hybrid"})
"""Fusions with a first vector that reads all columns at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What a join is built for.

    Attributes:
        modalities: vectors that it is given; `hybrid` is given one more, which comes first and reads all columns.
        width: of a vector; layers, feedforward, dropout: of the feed-forward layers behind the join.
        outputs: numbers per patient.
    """

    modalities: int
    width: int
    layers: int
    feedforward: int
    dropout: float
    outputs: int


class _Feedforward(nn.Module):
    """A pre-norm residual layer: a transformer's without attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(shape.width)
        self.widen, self.narrow = nn.Linear(shape.width, shape.feedforward), nn.Linear(shape.feedforward, shape.width)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, vector: Tensor) -> Tensor:
        """(n, width) to the same."""
        changed: Tensor = vector + self.dropout(self.narrow(F.gelu(self.widen(self.norm(vector)))))
        return changed


class _Trunk(nn.Module):
    """From a joined vector to outputs; the head is zero, so that the first prediction is the baseline for everybody."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Feedforward(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.heads = nn.Linear(shape.width, shape.outputs, bias=False)
        nn.init.zeros_(self.heads.weight)

    def forward(self, vector: Tensor) -> Tensor:
        """(n, width) to (n, outputs)."""
        for layer in self.layers:
            vector = layer(vector)
        made: Tensor = self.heads(self.norm(vector))
        return made


def modality_vectors(tokens: Tensor, present: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
    """A vector per modality: the mean over those of its tokens that are there, after a GELU.

    Args:
        tokens: (n, tokens, width), anything finite where absent.
        present: (n, tokens) of 0 and 1.
        member: (tokens, modalities), 1 where a token is of a modality.

    Returns:
        (n, modalities, width), 0 where none of its tokens is there; and (n, modalities) of 0 and 1.
    """
    counts = present @ member
    total = member.T @ (F.gelu(tokens) * present[:, :, None])
    return total / counts.clamp(min=1)[:, :, None], counts.clamp(max=1)


def _flat(vectors: Tensor, present: Tensor) -> Tensor:
    """Vectors, each with its presence behind it, side by side; (n, modalities x (width + 1)), zero where absent."""
    shown = present[:, :, None]
    return torch.cat([vectors * shown, shown], dim=2).flatten(start_dim=1)


class Concat(nn.Module):
    """f = Concat(f_1, .., f_m) (C-10): the vectors side by side into one linear map."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.joined = nn.Linear(shape.modalities * (shape.width + 1), shape.width)
        self.trunk = _Trunk(shape)

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """(n, modalities, width) and (n, modalities) to (n, outputs)."""
        made: Tensor = self.trunk(self.joined(_flat(vectors, present)))
        return made


class WeightedSum(nn.Module):
    """f = w_1 f_1 + .. + w_m f_m (C-11); the weights are learned, and add up to 1 over what the patient has.

    They start equal. A patient who has nothing has the sum 0.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        # A layer and not a bare parameter: layers have per-patient gradients.
        self.scores = nn.Linear(1, shape.modalities, bias=False)
        nn.init.zeros_(self.scores.weight)
        self.trunk = _Trunk(shape)

    def weights(self, present: Tensor) -> Tensor:
        """Each patient's weights, (n, modalities): a softmax of the learned scores over the modalities that are there."""
        scores: Tensor = self.scores(present.new_ones(len(present), 1))
        # The smallest number and not minus infinity, whose softmax is not a number where nothing is present.
        lowest = torch.finfo(scores.dtype).min
        return scores.masked_fill(present == 0, lowest).softmax(dim=1) * present

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """(n, modalities, width) and (n, modalities) to (n, outputs)."""
        made: Tensor = self.trunk((vectors * self.weights(present)[:, :, None]).sum(dim=1))
        return made


class Early(nn.Module):
    """Joined at the input (C-12): the one vector has read all columns, and there is nothing left to join."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.trunk = _Trunk(shape)

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """(n, 1, width) and (n, 1) to (n, outputs)."""
        del present
        made: Tensor = self.trunk(vectors[:, 0])
        return made


class Late(nn.Module):
    """Joined at the output (C-13): a network per modality, averaged over those that the patient has.

    A patient with one modality has that one's prediction; without any, the baseline's.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(_Trunk(shape) for _ in range(shape.modalities))

    def weights(self, present: Tensor) -> Tensor:
        """Each patient's weights, (n, modalities): equal over the modalities that are there."""
        return present / present.sum(dim=1, keepdim=True).clamp(min=1)

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """(n, modalities, width) and (n, modalities) to (n, outputs)."""
        each = torch.stack([trunk(vectors[:, m]) for m, trunk in enumerate(self.trunks)], dim=1)
        return (each * self.weights(present)[:, :, None]).sum(dim=1)


class Hybrid(nn.Module):
    """Joined at several stages (C-14): a vector of all columns, beside one per modality, and their networks' average on top."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.inner, self.outer = Concat(shape), Late(replace(shape, modalities=shape.modalities - 1))

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """(n, 1 + modalities, width) and (n, 1 + modalities) to (n, outputs)."""
        made: Tensor = self.inner(vectors, present) + self.outer(vectors[:, 1:], present[:, 1:])
        return made


class Kronecker(nn.Module):
    """Gated outer products of pairs of modalities (C-19; Chen et al. 2020, "Pathomic Fusion", eqs. 4-5).

    Each modality is reduced to a few numbers, and each of those is gated by all modalities together. What follows reads them
    and, for each pair, all products of one's numbers with the other's. The paper multiplies all its modalities at once, which
    grows with a power of how many there are; here it grows with the square.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.few = max(1, min(PRODUCT_WIDTH, shape.width // 2))
        self.reduced = nn.ModuleList(nn.Linear(shape.width, self.few) for _ in range(shape.modalities))
        self.gates = nn.Linear(shape.modalities * (shape.width + 1), shape.modalities * self.few)
        pairs = shape.modalities * (shape.modalities - 1) // 2
        self.joined = nn.Linear(shape.modalities * self.few + pairs * self.few**2, shape.width)
        self.trunk = _Trunk(shape)

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """(n, modalities, width) and (n, modalities) to (n, outputs)."""
        gates = torch.sigmoid(self.gates(_flat(vectors, present))).view(-1, len(self.reduced), self.few)
        few = torch.stack([F.relu(layer(vectors[:, m])) for m, layer in enumerate(self.reduced)], dim=1)
        few = few * gates * present[:, :, None]
        parts = []
        for b in range(few.shape[1]):
            parts.append(few[:, b])
            parts += [(few[:, a, :, None] * few[:, b, None, :]).flatten(start_dim=1) for a in range(b)]
        made: Tensor = self.trunk(self.joined(torch.cat(parts, dim=1)))
        return made


JOINS: dict[str, Callable[[Shape], nn.Module]] = {
    "concat": Concat,
    "weighted_sum": WeightedSum,
    "early": Early,
    "late": Late,
    "hybrid": Hybrid,
    "kronecker": Kronecker,
}
"""Every `[model] fusion` but those of `ATTENTIVE`."""
