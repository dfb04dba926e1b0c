"""What a site keeps of one training run while it lasts."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_client.locations import harmony_of
from oncofed_client.training import TrainingSet
from oncofed_shared.features import Preparation, prepared_input, voxel_input
from oncofed_shared.harmonise import Locations
from oncofed_shared.layout import Layout
from oncofed_shared.losses import targets
from oncofed_shared.messages import Arrays, Trial
from oncofed_shared.network import FusionNetwork
from oncofed_shared.plan import Plan

__all__ = ["Session", "training_set"]


@dataclass(kw_only=True)
class Session:
    """What a site keeps of one training run.

    Attributes:
        whole: all parameters.
        layout: those that are shared.
        local: first values of the others.
        locations: of this site, in the plan's harmonised modalities.
    """

    plan: Plan
    trial: Trial
    preparation: Preparation
    network: FusionNetwork
    whole: Layout
    layout: Layout
    local: Arrays
    locations: Locations | None = None
    cache: dict[str, tuple[Cohort, TrainingSet]] = field(default_factory=dict)

    @cached_property
    def label(self) -> str:
        """The trial in words, for keys of batches and dropout."""
        return str(self.trial)

    def complete(self, shared: Arrays, kept: Arrays) -> Arrays:
        """All parameters of the network: the shared ones as sent, the local ones as this site keeps them, or the first ones."""
        return shared | {n: kept.get(n, first) for n, first in self.local.items()}


def training_set(
    plan: Plan,
    preparation: Preparation,
    cohort: Cohort,
    rows: NDArray[np.bool_] | slice,
    locations: Locations | None = None,
) -> TrainingSet:
    """The chosen patients of a cohort as tensors in the plan's dtype.

    Args:
        locations: the hospital's own, where the preparation is of harmonised values.
    """
    dtype = torch.float64 if plan.training.dtype == "float64" else torch.float32
    chosen = {m: v[rows] for m, v in cohort.values.items()}
    harmony = harmony_of(preparation.harmonisation, locations, cohort, rows)
    values, seen = prepared_input(plan, preparation, chosen, cohort.columns, harmony)
    images = {m: v[rows] for m, v in cohort.images.items()}
    voxels = voxel_input(plan, preparation.columns, images, cohort.columns)
    joined = torch.from_numpy(values).to(dtype)
    if voxels is not None:
        joined = torch.cat([joined, torch.from_numpy(voxels).to(dtype)], dim=1)
    labels = {t: v[rows] for t, v in cohort.labels.items()}
    return TrainingSet(
        values=joined,
        seen=torch.from_numpy(seen).to(dtype),
        goals=targets(plan, labels, preparation.class_weights),
    )
