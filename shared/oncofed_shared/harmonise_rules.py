"""Which harmonisations a private plan may ask for: those whose hospitals find their own location inside the budget."""

from __future__ import annotations

from collections.abc import Mapping

from oncofed_shared.plan_modalities import Modality
from oncofed_shared.reduction_rules import without_range

__all__ = ["private_harmonisations"]


def private_harmonisations(modalities: Mapping[str, Modality], *, charged: bool) -> list[str]:
    """What a private plan must not harmonise, and what it lacks where it may, each with its path.

    Args:
        charged: whether the plan has a budget for hospitals' own locations.
    """
    found = []
    for name, modality in modalities.items():
        settings, path = modality.harmonise, f"/modalities.{name}"
        if settings is None:
            continue
        if not charged:
            found.append(
                f"{path}.harmonise: a hospital's location and scale are learned from its patients, and no epsilon is charged for "
                "them; leave it out, or give privacy.harmonise_epsilon under noise = 'consortium'"
            )
            continue
        if settings.covariates:
            found.append(
                f"{path}.harmonise.covariates: cannot be used with privacy: their effects are sums about hospitals' own means"
            )
        if modality.columns is None and modality.vocabulary is None:
            found.append(
                f"{path}.harmonise: with noise needs columns that the plan names; give columns, or a vocabulary"
            )
        if without_range(modality) is not None:
            found.append(f"{path}.range: is missing; a noised location needs a declared range of each column")
    return found
