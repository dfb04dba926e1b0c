"""What makes tokens of a modality: the interface that every encoder but the linear one keeps.

An encoder reads one modality and looks at one patient at a time. It is built of layers for which Opacus knows the gradient per
patient (linear, convolution, layer and group norm, embedding), and has no batch statistics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from oncofed_shared.plan import Modality

__all__ = ["Encoder", "EncoderShape"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderShape:
    """What an encoder is built for.

    Attributes:
        name: of the modality, for messages.
        modality: its settings in the plan.
        columns: names of the columns that it reads, one or more, in the agreed order.
        width: length of a token.
        dropout: of the plan's training.
    """

    name: str
    modality: Modality
    columns: tuple[str, ...]
    width: int
    dropout: float


class Encoder(nn.Module, ABC):
    """Tokens of one modality.

    Attributes:
        tokens: how many it makes for each patient.
    """

    tokens: int

    @abstractmethod
    def forward(self, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Make tokens.

        Args:
            values: (n, columns) scaled, or (n, columns x voxels) of a modality of patches; 0 where missing.
            seen: (n, columns) of 0 and 1, what was observed.

        Returns:
            (n, tokens, width), anything finite where absent; and (n, tokens) of 0 and 1, which tokens are there. A token of
            which nothing was observed is not there.
        """
