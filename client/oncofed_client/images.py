"""Prepared patches of a modality whose encoder reads them: which patients have which, and their voxels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from oncofed_client.columns import Block
from oncofed_client.prepare.cache import Cache
from oncofed_client.prepare.patches import prepared_patches_of
from oncofed_client.prepare.recipes import prepared_patches
from oncofed_client.settings import SiteSettings
from oncofed_shared.plan import Modality, Plan

__all__ = ["Patches", "patch_block", "read_patches"]

Patches = Mapping[str, Mapping[str, Mapping[str, NDArray[np.float32]]]]
"""Modality -> role -> patient -> voxels (z, y, x)."""


def read_patches(settings: SiteSettings, plan: Plan, cache: Cache | None, patients: Collection[str]) -> Patches:
    """Read the patches that the plan's encoders need, of the given patients alone.

    Raises:
        Damaged: one was changed; preprocessing makes it anew.
    """
    found: dict[str, dict[str, dict[str, NDArray[np.float32]]]] = {}
    if cache is None:
        return found
    for name, (role, _) in prepared_patches(plan, settings).items():
        modality = name.removesuffix(f".patch.{role}")
        if plan.modalities[modality].encoder == "cnn":
            made = prepared_patches_of(name, settings, plan, cache, patients)
            if made:
                found.setdefault(modality, {})[role] = {p: entry.voxels for p, entry in made.items()}
    return found


def patch_block(
    modality: Modality, patients: Sequence[str], found: Mapping[str, Mapping[str, NDArray[np.float32]]]
) -> tuple[Block, NDArray[np.float32]]:
    """A modality of patches at a site.

    Args:
        modality: its settings.
        patients: (n,) ids, in the order of the result.
        found: role -> patient -> voxels.

    Returns:
        A block with a column per role that anybody has, 0 where the patient has the patch and NaN where not; and
        (n, columns, z, y, x), 0 where not.
    """
    roles = tuple(role for role in modality.patch or {} if found.get(role))
    size = next(iter((modality.patch or {}).values())).size
    voxels = np.zeros((len(patients), len(roles), *size), dtype=np.float32)
    marks = np.full((len(patients), len(roles)), np.nan)
    for channel, role in enumerate(roles):
        for row, patient in enumerate(patients):
            own = found[role].get(patient)
            if own is not None:
                voxels[row, channel], marks[row, channel] = own, 0
    seen = ~np.isnan(marks)
    whole = modality.missing == "drop"
    absent = tuple(role for role in modality.patch or {} if role not in roles)
    present = np.asarray(seen.all(axis=1) if whole else seen.any(axis=1))
    if not roles or (whole and absent):
        present = np.zeros(len(patients), dtype=bool)
    block = Block(
        values=marks, columns=roles, found=roles, first=tuple(range(len(roles))), absent=absent, present=present
    )
    return block, voxels
