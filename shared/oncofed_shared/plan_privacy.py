"""The `[privacy]` table of a plan, and what a private plan must not ask for.

In a private study nothing is learned from patients but what is charged: patient counts, scaling and class weights are constants
of the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from oncofed_shared.strict import Frozen

if TYPE_CHECKING:
    from oncofed_shared.plan import Evaluation, Modality, Training

__all__ = ["NoPrivacy", "Privacy", "SitePrivacy", "privacy_mistakes"]

SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+ -]{0,63}$")]


class NoPrivacy(Frozen):
    """No noise: sums leave a site as they are."""

    noise: Literal["none"] = "none"


class SitePrivacy(Frozen):
    """Patient-level DP-SGD at every site, each with all the noise that it needs on its own.

    Attributes:
        epsilon, delta: bound for one patient over the whole run, at each site.
        clip_norm: bound on the length of one patient's gradient over all parameters.
        sampling_rate: probability that a patient enters a local step.
        patients: the roster: per site the public, rounded number of its training patients. Divisor and weight come from it and
            never from a count.
        release_tables: whether tables of counts over validation and test patients, who never train, leave a site without noise
            and without a charge. Without them a deployed study has no score.
    """

    noise: Literal["site"]
    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    clip_norm: Annotated[float, Field(gt=0)]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    patients: Annotated[dict[SiteName, Annotated[int, Field(ge=1)]], Field(min_length=1)]
    release_tables: bool = False

    @field_validator("patients")
    @classmethod
    def _small_delta(cls, patients: dict[str, int], info: ValidationInfo) -> dict[str, int]:
        total = sum(patients.values())
        if info.data.get("delta", 0.0) * total >= 1:
            message = f"/privacy.delta: must be below 1 / (patients of all sites), 1 / {total}; better a tenth of it"
            raise ValueError(message)
        return patients


Privacy = Annotated[NoPrivacy | SitePrivacy, Field(discriminator="noise")]


def _scaling(name: str, modality: Modality) -> Iterator[str]:
    """What of a modality's scaling would be learned from patients."""
    path = f"/modalities.{name}"
    if modality.missing == "impute":
        yield f"{path}.missing: 'impute' needs the mean of patients; with privacy use 'mask' or 'drop'"
    if modality.scaling == "zscore":
        yield f"{path}.scaling: 'zscore' needs sums over patients; with privacy use 'constants', 'none', or 'minmax' with ranges"
    raw = modality.genomics
    if raw is not None and raw.kind == "expression" and raw.normalisation == "size_factors" and raw.reference is None:
        yield f"{path}.genomics.reference: is missing; with privacy size factors need it, or they are learned from patients"
    if modality.scaling != "minmax" or modality.range is not None:
        return
    if modality.columns is None:
        yield f"{path}.range: is missing; with privacy 'minmax' needs a declared range"
        return
    for column, spec in modality.columns.items():
        declared = spec.kind == "categorical" or (spec.kind == "numeric" and spec.range is not None)
        if not declared:
            yield f"{path}.columns.{column}.range: is missing; with privacy 'minmax' needs one, here or of the modality"


def _training(training: Training) -> Iterator[str]:
    if training.batch != "all":
        yield "/training.batch: must be 'all' with privacy, because privacy.sampling_rate decides who enters a step"
    if training.class_weights == "balanced":
        yield "/training.class_weights: 'balanced' counts patients; with privacy give the weights, or 'none'"


def _evaluation(evaluation: Evaluation) -> Iterator[str]:
    for key, runs in (("folds", evaluation.folds), ("resplits", evaluation.resplits)):
        if runs:
            yield (
                f"/evaluation.{key}: must be left out with privacy: every further run over the same patients "
                "spends epsilon again"
            )


def privacy_mistakes(privacy: NoPrivacy | SitePrivacy, plan: Mapping[str, Any]) -> list[str]:
    """What in a plan contradicts its privacy, each with its path; nothing without privacy.

    Args:
        plan: the plan's other tables by name; those that are wrong themselves are absent.
    """
    if privacy.noise == "none":
        return []
    found: list[str] = []
    for name, modality in (plan.get("modalities") or {}).items():
        found += _scaling(name, modality)
    if "training" in plan:
        found += _training(plan["training"])
    if "evaluation" in plan:
        found += _evaluation(plan["evaluation"])
    return found
