"""Modality dropout: in training a patient now and then lacks what he has, so that the network learns to do without it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ModalityDropout"]


class ModalityDropout(nn.Module):
    """Hides whole modalities of each patient in training; does nothing else (Neverova et al. 2016, "ModDrop").

    Each modality that a patient has is hidden with the given chance, independently. Who would have nothing left keeps all he has:
    a step over nobody's data teaches nothing. Values are not scaled up in return, because a patient who lacks a modality in
    earnest is not scaled up either.

    Args:
        chance: 0 to below 1.
        sizes: number of columns of each modality, in the order of the columns.
    """

    def __init__(self, chance: float, sizes: Sequence[int]) -> None:
        super().__init__()
        self.chance = chance
        owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.int64))
        self.owner = owner
        self.member = torch.nn.functional.one_hot(owner, max(len(sizes), 1))

    def forward(self, seen: Tensor) -> Tensor:
        """(n, columns), 1 where observed, to the same with 0 where hidden."""
        if not self.training or not self.chance:
            return seen
        has = seen @ self.member.to(seen.dtype) > 0
        kept = torch.rand(has.shape, dtype=seen.dtype) >= self.chance
        nothing = ~(has & kept).any(dim=1, keepdim=True)
        return seen * (kept | nothing)[:, self.owner].to(seen.dtype)
