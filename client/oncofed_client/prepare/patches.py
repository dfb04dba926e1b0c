"""The patches that were prepared for a study."""

from __future__ import annotations

from collections.abc import Collection

from oncofed_client.prepare.cache import Cache, PatchEntry
from oncofed_client.prepare.recipes import patch_recipe, prepared_patches
from oncofed_client.settings import SiteSettings
from oncofed_shared.plan import Plan

__all__ = ["count_patches", "prepared_patches_of"]


def prepared_patches_of(
    name: str, settings: SiteSettings, plan: Plan, cache: Cache, patients: Collection[str]
) -> dict[str, PatchEntry]:
    """Patches by patient, for the given patients who have one.

    Args:
        name: MODALITY.patch.ROLE.

    Raises:
        Damaged: one was changed; preprocessing makes it anew.
    """
    rules = settings.imaging
    if rules is None:
        return {}
    role, wanted = prepared_patches(plan, settings)[name]
    made = patch_recipe(role, wanted, rules)
    return {p: entry for p in sorted(patients) if (entry := cache.get_patch(p, made)) is not None}


def count_patches(settings: SiteSettings, plan: Plan, cache: Cache | None, patients: Collection[str]) -> dict[str, int]:
    """How many of the given patients have a patch, by MODALITY.patch.ROLE.

    Nothing is decrypted: whether a patch is whole is seen by the next preprocessing.
    """
    rules = settings.imaging
    if rules is None:
        return {}
    return {
        name: 0
        if cache is None
        else sum(cache.exists(patient, patch_recipe(role, wanted, rules)) for patient in patients)
        for name, (role, wanted) in prepared_patches(plan, settings).items()
    }
