"""Patches varied anew in every batch of training, where the plan says so (B-31); never while a model is tested."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from oncofed_shared.plan import Plan, voxels_of

__all__ = ["augmenter"]


def augmenter(plan: Plan, key: str) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The plan's random changes of patches.

    Args:
        plan: the study.
        key: the same key gives the same changes, in the same order of calls.

    Returns:
        From (n, columns + voxels) values and (n, columns) presence to changed values; the given ones are left alone. None
        where the plan varies nothing. All series of a patient are turned together; a series that is absent stays 0.
    """
    if all(m.augmentation is None for m in plan.modalities.values()):
        return None
    from oncofed_client.imaging.patches import augmentation  # noqa: PLC0415 - MONAI takes seconds, and few plans need it

    parts = []
    for name, modality in sorted(plan.modalities.items()):
        if volume := voxels_of(modality):
            patches = modality.patch or {}
            size = next(iter(patches.values())).size
            seed = zlib.crc32(f"augmentation|{name}|{key}".encode())
            change = None if modality.augmentation is None else augmentation(modality.augmentation, size, seed)
            parts.append((len(patches), volume, size, change))

    def vary(values: Tensor, seen: Tensor) -> Tensor:
        start, made = seen.shape[1], values.clone()
        for channels, volume, size, change in parts:
            stop = start + channels * volume
            for row in range(len(values)) if change is not None else ():
                voxels = values[row, start:stop]
                if change is None or not bool(voxels.any()):
                    continue
                changed = change(voxels.view(channels, *size).to(torch.float32).numpy())
                there = (voxels.view(channels, volume) != 0).any(dim=1, keepdim=True)
                made[row, start:stop] = (torch.from_numpy(changed).view(channels, math.prod(size)) * there).ravel()
            start = stop
        return made

    return vary
