"""Tokens of patches: a small 3-D convolutional network with group norm (C-02; Wu and He 2018), series as channels (C-03)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name

from oncofed_shared.network_encoder import Encoder, EncoderShape

__all__ = ["Cnn", "filters"]

STAGES = 3
"""Each halves the patch along every axis and doubles the filters."""
_GROUP = 4
"""Filters that are normalised together."""


def filters(width: int) -> tuple[int, ...]:
    """Filters of each stage, by the length of a token: the last stage has as many as a token, and 8 at least."""
    return tuple(max(2, width // 2 ** (STAGES - 1)) * 2**stage for stage in range(STAGES))


class Cnn(Encoder):
    """One token from the patches of one region, a channel per role of a series.

    A channel that a patient lacks is zero, and the last map is told which ones were missing. Each stage is a convolution of
    3 x 3 x 3 voxels with a stride of 2, group norm and a GELU; then comes the mean over all places.
    """

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        patches = shape.modality.patch or {}
        self.size = patches[shape.columns[0]].size
        self.tokens = 1
        channels = (len(shape.columns), *filters(shape.width))
        self.convolutions = nn.ModuleList(
            nn.Conv3d(into, out, kernel_size=3, stride=2, padding=1) for into, out in pairwise(channels)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(max(1, out // _GROUP), out) for out in channels[1:])
        self.token = nn.Linear(channels[-1] + len(shape.columns), shape.width)

    def forward(self, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """(n, channels x voxels) and (n, channels) to (n, 1, width) and (n, 1)."""
        n, channels = seen.shape
        voxels = values.view(n, channels, math.prod(self.size))
        image = torch.where(seen[:, :, None] > 0, voxels, 0).view(n, channels, *self.size)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            image = F.gelu(norm(convolution(image)))
        made: Tensor = self.token(torch.cat([image.mean(dim=(2, 3, 4)), 1 - seen], dim=1))
        return made[:, None], seen.amax(dim=1, keepdim=True)
