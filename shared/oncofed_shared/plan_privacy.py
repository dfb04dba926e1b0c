"""The `[privacy]` table of a plan, and what a private plan must not ask for.

In a private study nothing is learned from patients but what is charged: patient counts, scaling and class weights are constants
of the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationInfo, field_validator, model_serializer

from oncofed_shared.harmonise_rules import private_harmonisations
from oncofed_shared.plan_fields import without_later
from oncofed_shared.plan_reduction import Charged
from oncofed_shared.reduction_rules import private_reductions, without_range
from oncofed_shared.strict import Frozen

if TYPE_CHECKING:
    from oncofed_shared.plan import Evaluation, Modality, Strategy, Training

__all__ = ["MINIMUM_SITES", "ConsortiumPrivacy", "NoPrivacy", "Privacy", "SitePrivacy", "privacy_mistakes"]

SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+ -]{0,63}$")]
MINIMUM_SITES = 3
"""In a sum of two, each of them knows the other's part."""


class NoPrivacy(Frozen):
    """No noise: sums leave a site as they are."""

    noise: Literal["none"] = "none"


class _Sampled(Frozen):
    """What every kind of DP-SGD says: a bound, a clip norm, a sampling rate, and public numbers of patients."""

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    clip_norm: Annotated[float, Field(gt=0)]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    patients: Annotated[dict[SiteName, Annotated[int, Field(ge=1)]], Field(min_length=1)]

    @field_validator("patients")
    @classmethod
    def _small_delta(cls, patients: dict[str, int], info: ValidationInfo) -> dict[str, int]:
        total = sum(patients.values())
        if info.data.get("delta", 0.0) * total >= 1:
            message = f"/privacy.delta: must be below 1 / (patients of all sites), 1 / {total}; better a tenth of it"
            raise ValueError(message)
        return patients


class SitePrivacy(_Sampled):
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
    release_tables: bool = False


class ConsortiumPrivacy(_Sampled):
    """Patient-level DP-SGD over the patients of all sites, with noise drawn once: each site adds a share under a secure sum.

    Attributes:
        epsilon, delta: bound for one patient over the whole run, against all but the sites and at most `collude` of them.
        clip_norm, sampling_rate: as at the site.
        patients: the roster, with public numbers; the divisor of a step is `sampling_rate` x their total.
        statistics_epsilon: bound for one training patient over noised statistics before training, beside `epsilon`: scaling,
            class weights. Delta is then halved between the two. Without it, these are constants of the plan.
        harmonise_epsilon: bound for one training patient over his hospital's own noised location, beside the others; delta is then
            divided by one more.
        spare_steps: steps beyond `training.rounds`, for attempts that must be repeated: the noise is calibrated for all.
        drop: sites that may be missing from a step.
        reference: allows `collude = 0`, for a simulation to compare with.
        collude: sites that may tell the aggregator their share of the noise.
        threshold: sites that open a sum together; the smallest legal number where none is given.
        ring_bits: width of the integers that are summed.
        microbatch: most patients whose gradients are computed at once.
        score_epsilon: bound for one test patient over the noised tables from which scores are read; without it, no table.
    """

    noise: Literal["consortium"]
    statistics_epsilon: Annotated[float, Field(gt=0)] | None = None
    harmonise_epsilon: Annotated[float, Field(gt=0)] | None = None
    spare_steps: Annotated[int, Field(ge=0, le=100_000)] = 2
    drop: Annotated[int, Field(ge=0)] = 0
    reference: bool = False
    collude: Annotated[int, Field(ge=0)] = 1
    threshold: Annotated[int, Field(ge=2)] | None = None
    ring_bits: Literal[32, 64] = 32
    microbatch: Annotated[int, Field(ge=1, le=65_536)] = 64
    score_epsilon: Annotated[float, Field(gt=0)] | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_later(written(self), {"statistics_epsilon": None, "harmonise_epsilon": None})

    @property
    def step_delta(self) -> float:
        """Of delta, what the steps of training have, and statistics and locations each where there are any."""
        return self.delta / (1 + (self.statistics_epsilon is not None) + (self.harmonise_epsilon is not None))

    @property
    def training_epsilon(self) -> float:
        """What a training patient is promised: steps, statistics and his hospital's location together."""
        return self.epsilon + (self.statistics_epsilon or 0.0) + (self.harmonise_epsilon or 0.0)

    @field_validator("collude")
    @classmethod
    def _somebody_colludes(cls, collude: int, info: ValidationInfo) -> int:
        if collude == 0 and info.data.get("reference") is False:
            message = (
                "must be at least 1: with 0 a single site that tells its noise breaks the bound; a simulation that only "
                "compares says reference = true"
            )
            raise ValueError(message)
        return collude

    @field_validator("threshold")
    @classmethod
    def _opens(cls, threshold: int | None, info: ValidationInfo) -> int | None:
        if not {"patients", "drop", "collude"} <= set(info.data):
            return threshold
        sites, drop, collude = len(info.data["patients"]), info.data["drop"], info.data["collude"]
        if sites < MINIMUM_SITES:
            message = (
                f"/privacy.patients: has {sites} sites; a sum of fewer than {MINIMUM_SITES} hides nobody: add sites, or say "
                "noise = 'site'"
            )
            raise ValueError(message)
        smallest = (sites + collude) // 2 + 1
        if smallest > sites - drop:
            message = (
                f"/privacy.drop: {sites} sites, {collude} of whom collude, open a sum only by {smallest} together, so at most "
                f"{max(0, sites - smallest)} may be missing; lower drop or collude, or add sites"
            )
            raise ValueError(message)
        if threshold is not None and not smallest <= threshold <= sites - drop:
            message = (
                f"must be {smallest} to {sites - drop}: 2 x threshold > sites + collude, and sites - drop >= threshold"
            )
            raise ValueError(message)
        return smallest if threshold is None else threshold

    @property
    def honest(self) -> int:
        """Shares of noise on which the guarantee counts: those of sites that neither drop nor collude."""
        return len(self.patients) - self.drop - self.collude


Privacy = Annotated[NoPrivacy | SitePrivacy | ConsortiumPrivacy, Field(discriminator="noise")]


def _learned(name: str, modality: Modality, *, charged: bool) -> Iterator[str]:
    """What of a modality's scaling would be learned from patients and is not charged, or has no bound.

    Args:
        charged: whether the plan has noised statistics of training patients.
    """
    path, other = f"/modalities.{name}", "with privacy use 'constants', 'none', or 'minmax' with ranges"
    if charged:
        wants = modality.scaling == "zscore" or modality.missing == "impute" or isinstance(modality.reduction, Charged)
        open_ended = without_range(modality)
        if wants and open_ended is not None:
            of = f" of {', '.join(open_ended[:5])}" if open_ended else ""
            yield f"{path}.range: is missing{of}; a noised mean needs a declared range, which bounds what a patient moves"
        return
    if modality.missing == "impute":
        yield f"{path}.missing: 'impute' needs the mean of patients; with privacy use 'mask' or 'drop'"
    if modality.scaling == "zscore":
        yield f"{path}.scaling: 'zscore' needs sums over patients; {other}"
    if modality.scaling == "robust":
        yield f"{path}.scaling: 'robust' needs histograms over patients; {other}"


def _scaling(name: str, modality: Modality, *, charged: bool) -> Iterator[str]:
    """What of a modality's input would be learned from patients."""
    path = f"/modalities.{name}"
    yield from _learned(name, modality, charged=charged)
    if modality.augmentation is not None:
        yield f"{path}.augmentation: is drawn for a batch, so a patient's gradient would depend on who else is in it; leave it out"
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


def _training(training: Training, *, charged: bool) -> Iterator[str]:
    if training.batch != "all":
        yield "/training.batch: must be 'all' with privacy, because privacy.sampling_rate decides who enters a step"
    if training.class_weights == "balanced" and not charged:
        yield "/training.class_weights: 'balanced' counts patients; with privacy give the weights, or 'none'"
    for key in ("dropout", "input_dropout", "modality_dropout"):
        if getattr(training, key):
            yield (
                f"/training.{key}: must be 0 with privacy: it is drawn for a batch, so a patient's gradient would depend on who "
                "else is in it"
            )


def _summed(training: Training) -> Iterator[str]:
    """What a round of summed gradients has no place for: anything between a patient's gradient and the sum."""
    if training.local_steps != 1:
        yield "/training.local_steps: must be 1 with noise = 'consortium': a step is a sum over all sites' patients"
    if training.optimiser != "sgd" or training.momentum:
        yield (
            "/training.optimiser: must be 'sgd' without momentum with noise = 'consortium': the aggregator's rule makes the "
            "step, see [strategy]"
        )


def _asked(strategy: Strategy) -> Iterator[str]:
    if strategy.participation != 1:
        yield (
            "/strategy.participation: must be 1 with noise = 'consortium': privacy.sampling_rate decides who enters, and the "
            "noise is sized for all sites"
        )


def _evaluation(evaluation: Evaluation) -> Iterator[str]:
    for key, runs in (("folds", evaluation.folds), ("resplits", evaluation.resplits)):
        if runs:
            yield (
                f"/evaluation.{key}: must be left out with privacy: every further run over the same patients "
                "spends epsilon again"
            )


def _asks_statistics(plan: Mapping[str, Any]) -> bool:
    """Whether scaling, gaps or class weights want statistics of patients; also where the plan is wrong there."""
    modalities, training = plan.get("modalities"), plan.get("training")
    if modalities is None or training is None:
        return True
    learned = any(m.scaling in {"zscore", "robust"} or m.missing == "impute" for m in modalities.values())
    learned = learned or any(isinstance(m.reduction, Charged) for m in modalities.values())
    return learned or training.class_weights == "balanced"


def privacy_mistakes(privacy: NoPrivacy | SitePrivacy | ConsortiumPrivacy, plan: Mapping[str, Any]) -> list[str]:
    """What in a plan contradicts its privacy, each with its path; nothing without privacy.

    Args:
        plan: the plan's other tables by name; those that are wrong themselves are absent.
    """
    if privacy.noise == "none":
        return []
    found: list[str] = []
    charged = isinstance(privacy, ConsortiumPrivacy) and privacy.statistics_epsilon is not None
    for name, modality in (plan.get("modalities") or {}).items():
        found += _scaling(name, modality, charged=charged)
    modalities = plan.get("modalities") or {}
    located = isinstance(privacy, ConsortiumPrivacy) and privacy.harmonise_epsilon is not None
    found += private_reductions(modalities, charged=charged) + private_harmonisations(modalities, charged=located)
    if located and modalities and not any(m.harmonise for m in modalities.values()):
        found.append(
            "/privacy.harmonise_epsilon: nothing of this plan is harmonised; leave it out, and spend it on training"
        )
    found += [
        f"/tasks.{name}.causes: cannot be used with privacy: the released tables with noise know one kind of event"
        for name, task in (plan.get("tasks") or {}).items()
        if task.kind == "survival" and task.causes
    ]
    if "training" in plan:
        found += _training(plan["training"], charged=charged)
    if charged and not _asks_statistics(plan):
        found.append(
            "/privacy.statistics_epsilon: nothing of this plan is learned before training; leave it out, and spend it on training"
        )
    if privacy.noise == "consortium":
        found += _summed(plan["training"]) if "training" in plan else ()
        found += _asked(plan["strategy"]) if "strategy" in plan else ()
    if "strategy" in plan and plan["strategy"].average == "holders" and plan["strategy"].holders is None:
        found.append(
            "/strategy.holders: is missing; with privacy nobody says who has what, and average = 'holders' needs the shares "
            "as constants of the plan"
        )
    if "evaluation" in plan:
        found += _evaluation(plan["evaluation"])
    return found
