"""How a study takes differences between hospitals' scanners and laboratories out of a modality: `[modalities.NAME.harmonise]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from oncofed_shared.plan_fields import Distinct, without_later
from oncofed_shared.plan_reduction import UNBOUND, Bound, Lasso, ReliefF
from oncofed_shared.strict import Frozen

if TYPE_CHECKING:
    from oncofed_shared.plan_modalities import Modality

__all__ = ["Combat", "harmonise_mistakes", "uncharged_harmonisations"]


class Combat(Frozen):
    """Location and scale of each column at each hospital, by empirical Bayes (B-26); see `combat`.

    Attributes:
        covariates: columns of other modalities, as `clinical.age`, whose part in the values stays: hospitals may differ in it.
        minimum: fewest patients with the modality by whom a hospital can find its own location and scale. One with fewer does
            not take part, and one with none has nothing to harmonise. With a budget, fewest after noise; one with fewer stays where
            it is.
        bound: with a budget, the length of a patient's row, as of reductions.
    """

    kind: Literal["combat"]
    covariates: Distinct = ()
    minimum: Annotated[int, Field(ge=3)] = 10
    bound: Bound = 0.5

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_later(written(self), UNBOUND)


def harmonise_mistakes(modalities: Mapping[str, Modality]) -> list[str]:
    """What of a plan's harmonisation cannot be, each with its path below `modalities`."""
    found = []
    for name, modality in modalities.items():
        settings = modality.harmonise
        if settings is None:
            continue
        path = f".{name}.harmonise"
        if modality.encoder == "cnn":
            found.append(f"{path}: harmonises columns, and encoder = 'cnn' reads voxels; leave this out")
        if isinstance(modality.reduction, Lasso | ReliefF):
            found.append(
                f"{path}: cannot go with reduction.kind = '{modality.reduction.kind}', which leaves columns out after a hospital's "
                "location was found over all of them; 'pca', 'autoencoder' and 'group_lasso' keep all columns"
            )
        if any(getattr(c, "kind", "numeric") != "numeric" for c in (modality.columns or {}).values()):
            found.append(f"{path}: has no meaning for categories and ranks; give them a modality of their own")
        found += [f"{path}.covariates: {m}" for c in settings.covariates if (m := _covariate(name, c, modalities))]
    return found


def _covariate(name: str, covariate: str, modalities: Mapping[str, Modality]) -> str:
    """What is wrong with a covariate; nothing where it is right."""
    where, _, column = covariate.partition(".")
    other = modalities.get(where)
    if other is None or where == name:
        return f"'{covariate}': expected MODALITY.COLUMN with another modality; there are " + (
            ", ".join(m for m in modalities if m != name) or "none"
        )
    if other.harmonise is not None:
        return f"'{covariate}': '{where}' is harmonised itself"
    if isinstance(other.reduction, Lasso | ReliefF):
        return f"'{covariate}': '{where}' may leave this column out by its reduction"
    if column not in (other.columns or {}):
        return f"'{covariate}': '{where}' names no column '{column}' under columns"
    return ""


def uncharged_harmonisations(modalities: Mapping[str, Modality]) -> list[str]:
    """What the sums of a plan's harmonisations release, modality by modality."""
    return [
        f"sums per column and of its products with covariates, within each site's training patients (harmonisation of {name}): "
        "whoever sees a site's sums can work out its location and scale"
        for name, m in modalities.items()
        if m.harmonise is not None
    ]
