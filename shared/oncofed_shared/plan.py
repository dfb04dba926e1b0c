"""The study plan: a TOML file that parses into one frozen value, the root of trust.

`load(path)` names every mistake at once, each with its path. `Plan.hash` is the SHA-256 of the canonical form and is
equal on every machine; `[simulation.*]` is not part of it. Everything here is public: nothing was learned from a patient.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from oncofed_shared.plan_genomics import (
    CallThresholds,
    CopyNumberFeatures,
    Drivers,
    ExpressionFeatures,
    GenomicFeatures,
    MutationFeatures,
    ReferenceSample,
    Severity,
)
from oncofed_shared.plan_privacy import ConsortiumPrivacy, NoPrivacy, Privacy, SitePrivacy, privacy_mistakes
from oncofed_shared.plan_radiomics import RadiomicFeatures
from oncofed_shared.plan_sizes import Fusion, Size, sized
from oncofed_shared.ring import RING_LIMIT
from oncofed_shared.rules import MODES, RULES, verdict
from oncofed_shared.strict import Frozen, read_toml, validate

__all__ = [
    "CallThresholds",
    "CategoricalColumn",
    "ClassificationTask",
    "Column",
    "ConsortiumPrivacy",
    "CopyNumberFeatures",
    "Drivers",
    "Evaluation",
    "ExpressionFeatures",
    "GenomicFeatures",
    "Modality",
    "ModelSettings",
    "MutationFeatures",
    "NoPrivacy",
    "NumericColumn",
    "OrdinalColumn",
    "Plan",
    "Privacy",
    "RadiomicFeatures",
    "Reference",
    "ReferenceSample",
    "Severity",
    "Simulation",
    "SitePrivacy",
    "SplitColumn",
    "SplitFractions",
    "Strategy",
    "StudyHeader",
    "Subgroup",
    "SurvivalTask",
    "Task",
    "Training",
    "compile_pattern",
    "load",
    "parse",
    "read_toml",
    "validate",
]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+ -]{0,63}$")]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+ -]{0,63}$")]
"""A task's or a modality's name: without a dot, because names of tokens, counts and parameters join it with one."""
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Interval = tuple[float, float]


def _ascending(values: tuple[float, ...]) -> None:
    if any(b <= a for a, b in pairwise(values)):
        message = "must be strictly ascending"
        raise ValueError(message)


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        message = "must be distinct"
        raise ValueError(message)
    return values


Distinct = Annotated[tuple[str, ...], AfterValidator(_distinct)]


class StudyHeader(Frozen):
    """Who asks what, and why."""

    name: Name
    purpose: Annotated[str, Field(min_length=10)]


class ClassificationTask(Frozen):
    """Predict one of `classes` from everything a patient has.

    With two classes the second is the positive one.
    """

    kind: Literal["classification"]
    label: str
    table: str | None = None
    classes: Annotated[Distinct, Field(min_length=2)]
    weight: Positive = 1.0


class SurvivalTask(Frozen):
    """Predict the time to an event, in discrete intervals.

    Attributes:
        time: column with the follow-up in days (0 is valid).
        event: column with 1 for an event and 0 for a censored follow-up.
        edges: interval edges in days, from 0 on; a public constant. The last edge is the end of what is modelled.
        horizon: day at which risk, Brier score and calibration are read; one of `edges`.
    """

    kind: Literal["survival"]
    time: str
    event: str
    table: str | None = None
    edges: Annotated[tuple[NonNegative, ...], Field(min_length=3)]
    horizon: Positive
    weight: Positive = 1.0

    @field_validator("edges")
    @classmethod
    def _edges(cls, edges: tuple[float, ...]) -> tuple[float, ...]:
        _ascending(edges)
        if edges[0] != 0:
            message = "must start at 0"
            raise ValueError(message)
        return edges

    @field_validator("horizon")
    @classmethod
    def _horizon(cls, horizon: float, info: ValidationInfo) -> float:
        if horizon not in info.data.get("edges", (horizon,)):
            message = "must be one of edges"
            raise ValueError(message)
        return horizon

    @property
    def intervals(self) -> int:
        """Number of intervals, one less than edges."""
        return len(self.edges) - 1


Task = Annotated[ClassificationTask | SurvivalTask, Field(discriminator="kind")]


class NumericColumn(Frozen):
    """A number; outside `range` (in `unit`) it is an error at the site.

    Attributes:
        center, spread: its own constants of `scaling = "constants"`, after the transform; without them the modality's.
    """

    kind: Literal["numeric"]
    unit: str | None = None
    range: Interval | None = None
    center: float | None = None
    spread: Positive | None = None

    @field_validator("range")
    @classmethod
    def _range(cls, bounds: Interval | None) -> Interval | None:
        _ascending(bounds or ())
        return bounds

    @field_validator("spread")
    @classmethod
    def _pair(cls, spread: float | None, info: ValidationInfo) -> float | None:
        if "center" in info.data and (info.data["center"] is None) != (spread is None):
            message = "center and spread go together"
            raise ValueError(message)
        return spread


class CategoricalColumn(Frozen):
    """One of `categories`, one-hot encoded in this order."""

    kind: Literal["categorical"]
    categories: Annotated[Distinct, Field(min_length=2)]


class OrdinalColumn(Frozen):
    """One of `order`, encoded as its rank."""

    kind: Literal["ordinal"]
    order: Annotated[Distinct, Field(min_length=2)]


Column = Annotated[NumericColumn | CategoricalColumn | OrdinalColumn, Field(discriminator="kind")]


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a column pattern: `{gene}` and `*` match any text, everything else itself.

    >>> bool(compile_pattern("{gene}_rnaseq").fullmatch("TP53_rnaseq"))
    True
    >>> bool(compile_pattern("VOLUME_*").fullmatch("TEXTURE_1"))
    False

    Raises:
        ValueError: it names two parts alike.
    """
    parts = re.split(r"(\{[A-Za-z_]+\}|\*)", pattern)
    named = [p for p in parts[1::2] if p != "*"]
    if len(set(named)) != len(named):
        message = f"pattern {pattern!r} names two parts alike"
        raise ValueError(message)
    made = [".*" if p == "*" else f"(?P<{p[1:-1]}>.+)" for p in parts[1::2]]
    plain = [re.escape(p) for p in parts[::2]]
    return re.compile("".join(a + b for a, b in zip(plain, [*made, ""], strict=True)))


class Modality(Frozen):
    """One kind of data about a patient: which columns, how scaled, what a gap means, which tokens.

    Attributes:
        table: logical name of the site's table; without it, any table that has the column.
        columns: named columns with their kinds, or
        patterns: patterns over column names, all numeric; the sites' names are united before training.
        exclude: patterns of columns that must not be read.
        transform: `log` is log(1 + x) and refuses negative values; `signed_log` is sign(x) log(1 + |x|).
        scaling: `zscore` and `minmax` use sums over the sites; `minmax` uses `range` where one is declared and
            mean +- 3 sd where not, because a minimum is one patient's value and not a sum. `constants` uses `center`
            and `spread` of this plan: a numeric column's own, or the modality's; without the modality's, categories and
            ranks stay as they are.
        clip: bound on the scaled value.
        missing: `mask` (a missing value contributes nothing and the network sees how much of a token was observed),
            `impute` (the consortium's mean), `drop` (one missing value and the patient lacks the modality).
        tokens: `one`, `columns` (a token per column), a number (equal parts in sorted order), or named patterns (a
            column that fits two names goes to the first in the alphabet).
        required: a patient without this modality does not take part.
        genomics: how a site that has sequencing files makes these columns from them; see `plan_genomics`.
        extraction: how a site that has images makes these columns from them; see `plan_radiomics`.
    """

    table: str | None = None
    columns: dict[str, Column] | None = None
    patterns: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    range: Interval | None = None
    transform: Literal["none", "log", "signed_log"] = "none"
    scaling: Literal["zscore", "minmax", "none", "constants"] = "zscore"
    center: float | None = None
    spread: Positive | None = None
    clip: Positive | None = 5.0
    missing: Literal["mask", "impute", "drop"] = "mask"
    tokens: Literal["one", "columns"] | Annotated[int, Field(ge=1, le=256)] | dict[Name, tuple[str, ...]] = "one"
    required: bool = False
    genomics: GenomicFeatures | None = None
    extraction: RadiomicFeatures | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a later key that is not used: a study that was approved before it existed keeps its hash."""
        content: dict[str, Any] = written(self)
        return {k: v for k, v in content.items() if k not in {"genomics", "extraction"} or v is not None}

    @field_validator("patterns")
    @classmethod
    def _sources(cls, patterns: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if "columns" in info.data and (info.data["columns"] is None) == (patterns is None):
            message = "give either columns or patterns"
            raise ValueError(message)
        return patterns

    @field_validator("patterns", "exclude", "tokens")
    @classmethod
    def _compiled(cls, value: Any) -> Any:
        groups = value.values() if isinstance(value, dict) else [value] if isinstance(value, tuple) else []
        for pattern in (p for group in groups for p in group):
            compile_pattern(pattern)
        return value

    @field_validator("range")
    @classmethod
    def _range(cls, bounds: Interval | None) -> Interval | None:
        _ascending(bounds or ())
        return bounds

    @field_validator("transform")
    @classmethod
    def _logarithm(cls, transform: str, info: ValidationInfo) -> str:
        columns = (info.data.get("columns") or {}).values()
        ranges = [info.data.get("range"), *(c.range for c in columns if isinstance(c, NumericColumn))]
        if transform == "log" and any(r is not None and r[0] < 0 for r in ranges):
            message = "'log' takes no negative value, and a range begins below 0; use 'signed_log'"
            raise ValueError(message)
        return transform

    @field_validator("genomics")
    @classmethod
    def _read(cls, genomics: GenomicFeatures | None, info: ValidationInfo) -> GenomicFeatures | None:
        if genomics is None or not {"columns", "patterns"} <= set(info.data):
            return genomics
        made, names, patterns = genomics.column, info.data["columns"] or {}, info.data["patterns"] or ()
        fits = any(compile_pattern(made).fullmatch(n) for n in names)
        fits = fits or any(compile_pattern(p).fullmatch(made.replace("{gene}", "GENE")) for p in patterns)
        if not fits:
            message = f".column: no column or pattern of this modality reads '{made}'"
            raise ValueError(message)
        return genomics

    @field_validator("extraction")
    @classmethod
    def _one_origin(cls, extraction: RadiomicFeatures | None, info: ValidationInfo) -> RadiomicFeatures | None:
        if extraction is not None and info.data.get("genomics") is not None:
            message = "a modality comes from images or from sequencing files; make two modalities of it"
            raise ValueError(message)
        return extraction

    @field_validator("spread")
    @classmethod
    def _constants(cls, spread: float | None, info: ValidationInfo) -> float | None:
        given = (info.data.get("center", spread) is not None, spread is not None)
        columns = (info.data.get("columns") or {}).values()
        own = [c.spread is not None for c in columns if isinstance(c, NumericColumn)]
        if info.data.get("scaling") == "constants":
            # Where every numeric column has its own, the modality need not give any.
            fits = all(given) or (not any(given) and bool(columns) and all(own))
        else:
            fits = not any(given) and not any(own)
        if "scaling" in info.data and not fits:
            message = (
                "center and spread go with scaling = 'constants', and with nothing else; a numeric column "
                "without its own takes the modality's"
            )
            raise ValueError(message)
        return spread


class ModelSettings(Frozen):
    """Shape of the shared network.

    Attributes:
        fusion: how modalities are joined: `transformer` over all tokens, or one of `network_fusion`.
        size: what stands for width, heads, layers and feedforward where they are not given; see `plan_sizes`.
        width: length of a token.
        layers: of the transformer, or feed-forward layers behind another fusion; 0 leaves the linear path alone.
        linear_path: a linear map from all scaled inputs to the outputs beside the fusion, which starts at zero.
        block_scaling: a modality's columns are divided by the root of their number, so that one decay holds two clinical
            columns and 1,500 genes alike (group-wise ridge; van de Wiel et al. 2016).
        hazards: `proportional` (one risk score per patient and one baseline per interval) or `free`.
    """

    fusion: Fusion = "transformer"
    size: Size | None = None
    width: Annotated[int, Field(ge=2, le=512)] = 16
    heads: Annotated[int, Field(ge=1, le=16)] = 2
    layers: Annotated[int, Field(ge=0, le=12)] = 1
    feedforward: Annotated[int, Field(ge=2, le=2048)] = 32
    linear_path: bool = True
    block_scaling: bool = True
    hazards: Literal["proportional", "free"] = "proportional"

    @model_validator(mode="before")
    @classmethod
    def _sized(cls, content: Any) -> Any:
        return sized(content)

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a later key that has its default: a study that was approved before it existed keeps its hash."""
        content: dict[str, Any] = written(self)
        later = {"fusion": "transformer", "size": None}
        return {k: v for k, v in content.items() if k not in later or v != later[k]}

    @field_validator("heads")
    @classmethod
    def _divides(cls, heads: int, info: ValidationInfo) -> int:
        if info.data.get("width", heads) % heads:
            message = "width must be a multiple of heads"
            raise ValueError(message)
        return heads

    @field_validator("layers")
    @classmethod
    def _joins(cls, layers: int, info: ValidationInfo) -> int:
        fusion = info.data.get("fusion", "transformer")
        if layers == 0 and fusion != "transformer":
            message = f"0 leaves the linear path alone, and fusion = '{fusion}' nothing to join"
            raise ValueError(message)
        return layers

    @field_validator("linear_path")
    @classmethod
    def _something(cls, linear_path: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's way to call
        if info.data.get("layers") == 0 and not linear_path:
            message = "layers = 0 needs linear_path = true, or there is no network"
            raise ValueError(message)
        return linear_path


class Training(Frozen):
    """How a site trains in a round, and how many rounds there are.

    Attributes:
        batch: patients per local step, or `all`.
        rate: learning rate of the local optimiser.
        weight_decay: L2 on all weights (not on biases and norms): decay/2 * ||w||^2 added to the mean loss (D-10).
        deep_decay: the same for the transformer's weights, when it should differ from the linear path's.
        l1: L1 on the input weights: l1 * ||w||_1 added to the mean loss (D-10).
        dropout: inside the transformer.
        input_dropout: of scaled input values.
        class_weights: per classification task one weight per class, or `balanced` from summed counts.
        range: largest magnitude of one coordinate of (patients x update); beyond it a site reports an error.
        max_sites: the most sites whose sum must fit the ring.
        validate_every: rounds between two points of the validation curve.
        deadline_minutes, attempts: how long the aggregator waits for a reply, and how often it asks, before it goes on
            without a site.
    """

    rounds: Annotated[int, Field(ge=1, le=100_000)]
    local_steps: Annotated[int, Field(ge=1, le=10_000)] = 1
    batch: Literal["all"] | Annotated[int, Field(ge=1)] = "all"
    optimiser: Literal["sgd", "adam"] = "sgd"
    rate: Positive = 0.1
    momentum: Fraction = 0.0
    weight_decay: NonNegative = 0.0
    deep_decay: NonNegative | None = None
    l1: NonNegative = 0.0
    dropout: Fraction = 0.0
    input_dropout: Fraction = 0.0
    class_weights: Literal["none", "balanced"] | dict[Key, tuple[Positive, ...]] = "none"
    dtype: Literal["float32", "float64"] = "float32"
    range: Positive = 32768.0
    max_sites: Annotated[int, Field(ge=1, le=100_000)] = 128
    validate_every: Annotated[int, Field(ge=1)] = 10
    deadline_minutes: Positive = 60.0
    attempts: Annotated[int, Field(ge=1, le=100)] = 3

    @field_validator("max_sites")
    @classmethod
    def _fits_ring(cls, max_sites: int, info: ValidationInfo) -> int:
        largest = info.data.get("range", 0.0) * max_sites
        if largest > RING_LIMIT:
            message = f"range x max_sites = {largest:g} overflows the ring; at most {RING_LIMIT:g}"
            raise ValueError(message)
        return max_sites


class Strategy(Frozen):
    """How updates become the next model, who is asked, and what stays at a site: see `rules.RULES` and docs/strategies.md.

    The parameters from `momentum` on belong to certain rules; left out they have the rule's own default, and given to a rule
    that does not read them they are a mistake.

    Attributes:
        rate: the aggregator's learning rate.
        schedule: `linear` lets the rate fall to zero over the rounds, so that the last model is not one of an oscillation.
        participation: share of the sites that is asked in a round.
        minimum_sites: never fewer; a round with fewer answers is repeated, a run with fewer sites ends.
        local: patterns over names of parameters that stay at the site.
        tau: added to the root in the adaptive rules (Reddi et al. 2021, who advise 1e-3). Much less of it turns rounding errors of
            gradients that are zero into whole steps.
        bias_correction: of FedAdam's moments: `adam` as Kingma & Ba 2015 and torch, `none` as Reddi et al. 2021, or `flower` as
            Flower 1.41 does it.
        mu: strength of FedProx's pull towards the global model.
        q: how much q-FedAvg favours sites with a high loss; 0 is FedAvg.
    """

    name: Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox", "scaffold", "qfedavg"] = "fedavg"
    rate: Positive = 1.0
    schedule: Literal["constant", "linear"] = "constant"
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    minimum_sites: Annotated[int, Field(ge=1)] = 1
    local: Distinct = ()
    momentum: Fraction | None = None
    betas: tuple[Fraction, Fraction] | None = None
    tau: Positive | None = None
    bias_correction: Literal["adam", "none", "flower"] | None = None
    mu: NonNegative | None = None
    q: NonNegative | None = None

    @field_validator("local")
    @classmethod
    def _compiled(cls, local: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in local:
            compile_pattern(pattern)
        return local

    @field_validator("momentum", "betas", "tau", "bias_correction", "mu", "q")
    @classmethod
    def _of_the_rule(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.data.get("name")
        if name is None:
            return value
        reads = RULES[name].parameters
        if value is not None and info.field_name not in reads:
            takes = ", ".join(("rate", "participation", "minimum_sites", "local", *reads))
            message = f"{name} does not read it; remove it. {name} takes {takes}"
            raise ValueError(message)
        return reads.get(str(info.field_name)) if value is None else value

    @property
    def site_memory(self) -> bool:
        """Whether a site keeps something of its own from round to round."""
        return bool(self.local) or RULES[self.name].site_memory


class SplitColumn(Frozen):
    """A published split: a column and which of its values mean what."""

    column: str
    table: str | None = None
    train: Annotated[tuple[str, ...], Field(min_length=1)]
    validation: tuple[str, ...] = ()
    test: Annotated[tuple[str, ...], Field(min_length=1)]

    @field_validator("test")
    @classmethod
    def _disjoint(cls, test: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        _distinct((*info.data.get("train", ()), *info.data.get("validation", ()), *test))
        return test


class SplitFractions(Frozen):
    """A seeded split by patient, stratified by the main task within each site (D-02, D-19)."""

    train: Annotated[float, Field(gt=0, lt=1)] = 0.70
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.15
    test: Annotated[float, Field(gt=0, lt=1)] = 0.15

    @field_validator("test")
    @classmethod
    def _sum(cls, test: float, info: ValidationInfo) -> float:
        if {"train", "validation"} <= set(info.data):
            total = info.data["train"] + info.data["validation"] + test
            if not math.isclose(total, 1.0, abs_tol=1e-9):
                message = "train + validation + test must be 1"
                raise ValueError(message)
        return test


def _split_kind(value: Any) -> str:
    keys = value if isinstance(value, dict) else ()
    return "split column" if isinstance(value, SplitColumn) or "column" in keys else "split fractions"


Split = Annotated[
    Annotated[SplitColumn, Tag("split column")] | Annotated[SplitFractions, Tag("split fractions")],
    Discriminator(_split_kind),
]


class Subgroup(Frozen):
    """A column whose values, or bands between `edges`, get a metric of their own."""

    column: str
    table: str | None = None
    values: Annotated[Distinct, Field(min_length=1)] | None = None
    edges: Annotated[tuple[float, ...], Field(min_length=2)] | None = None

    @field_validator("edges")
    @classmethod
    def _one(cls, edges: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        if "values" in info.data and (info.data["values"] is None) == (edges is None):
            message = "give either values or edges"
            raise ValueError(message)
        _ascending(edges or ())
        return edges

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in order."""
        if self.values is not None:
            return self.values
        edges = self.edges or ()
        return tuple(f"{a:g}-{b:g}" for a, b in pairwise(edges))


class Reference(Frozen):
    """A simple model on a few features, so that a report shows what the network adds to them.

    Attributes:
        features: column names, or `*` for all columns of the plan.
        penalty: ridge penalty of the Cox (survival) or logistic (classification) regression.
    """

    features: Annotated[tuple[str, ...], Field(min_length=1)]
    penalty: NonNegative = 0.01


class Evaluation(Frozen):
    """How the model is judged.

    Attributes:
        split: a published split column, or fractions.
        folds: k-fold cross-validation instead of one test set; scores are then out of fold.
        resplits: this many further random splits of the same proportions, reported beside the main one.
        reference: named simple models.
        main_reference: which of them is `reference` in `result.json`; the first one written, if not said.
        minimum_shown: fewest patients behind a shown number; and fewest events (or patients of the rarer class) is
            `minimum_events`.
        score_bins, days_per_bin: grid of the tables of counts from which every metric is read.
    """

    split: Split = SplitFractions()
    folds: Annotated[int, Field(ge=2, le=20)] | None = None
    resplits: Annotated[int, Field(ge=0, le=200)] = 0
    subgroups: dict[Name, Subgroup] = Field(default_factory=dict)
    reference: dict[Name, Reference] = Field(default_factory=dict)
    main_reference: str | None = None
    minimum_shown: Annotated[int, Field(ge=1)] = 10
    minimum_events: Annotated[int, Field(ge=1)] = 3
    score_bins: Annotated[int, Field(ge=16, le=4096)] = 256
    days_per_bin: Positive = 10.0
    bootstrap: Annotated[int, Field(ge=50, le=10_000)] = 400

    @field_validator("main_reference")
    @classmethod
    def _named(cls, main: str | None, info: ValidationInfo) -> str | None:
        named = info.data.get("reference")
        if named is not None and ((main is None) != (not named) or (named and main not in named)):
            message = f"expected one of {', '.join(named) or 'none'}"
            raise ValueError(message)
        return main


class Simulation(Frozen):
    """How a single machine plays the consortium; not part of the plan's hash.

    Attributes:
        site: what a `site.toml` says, for folders that have none.
        cohort: arguments of `oncofed-simulate cohort`, for a study without `--sites`.
        noise_seed: makes the noise of a private study repeatable, which protects nobody: whoever knows it can take the noise
            away. A deployed site has no way to be given one.
    """

    site: dict[str, Any] | None = None
    cohort: dict[str, Any] | None = None
    noise_seed: Annotated[int, Field(ge=0)] | None = None


class Plan(Frozen):
    """A whole study. Build it with `load` or `parse`."""

    format: Literal[1] = 1
    study: StudyHeader
    tasks: Annotated[dict[Key, Task], Field(min_length=1)]
    main_task: str
    modalities: Annotated[dict[Key, Modality], Field(min_length=1)]
    model: ModelSettings = ModelSettings()
    training: Training
    strategy: Strategy = Strategy()
    evaluation: Evaluation = Evaluation()
    privacy: Privacy = NoPrivacy()
    simulation: Simulation = Simulation()

    @field_validator("main_task")
    @classmethod
    def _is_a_task(cls, main: str, info: ValidationInfo) -> str:
        tasks = info.data.get("tasks", {main: None})
        if main not in tasks:
            message = f"no task has this name; there are {', '.join(tasks)}"
            raise ValueError(message)
        return main

    @field_validator("training")
    @classmethod
    def _weights(cls, training: Training, info: ValidationInfo) -> Training:
        weights, problems = training.class_weights, []
        tasks: Mapping[str, Any] = info.data.get("tasks") or {}
        for name, values in weights.items() if isinstance(weights, dict) and tasks else ():
            task = tasks.get(name)
            if not isinstance(task, ClassificationTask):
                problems.append(f".class_weights.{name}: not a classification task")
            elif len(values) != len(task.classes):
                problems.append(f".class_weights.{name}: {len(values)} weights for {len(task.classes)} classes")
        if problems:
            raise ValueError("\n".join(problems))
        return training

    @field_validator("strategy")
    @classmethod
    def _local_steps(cls, strategy: Strategy, info: ValidationInfo) -> Strategy:
        training = info.data.get("training")
        plain = training is None or (training.optimiser == "sgd" and training.momentum == 0)
        if strategy.name in {"scaffold", "qfedavg"} and not plain:
            message = (
                f".name: {strategy.name} needs training.optimiser = 'sgd' without momentum, because it reads gradients off "
                "the change that plain steps made"
            )
            raise ValueError(message)
        return strategy

    @field_validator("privacy")
    @classmethod
    def _legal(cls, privacy: Privacy, info: ValidationInfo) -> Privacy:
        problems = privacy_mistakes(privacy, info.data)
        strategy = info.data.get("strategy")
        if strategy is not None and privacy.noise in MODES:
            found = verdict(strategy.name, privacy.noise, local=bool(strategy.local))
            if not found.legal:
                what = f"{strategy.name} with local layers" if strategy.local else strategy.name
                problems.append(f".noise: '{privacy.noise}' cannot be combined with {what}: {found.why}")
        if problems:
            raise ValueError("\n".join(problems))
        return privacy

    @cached_property
    def canonical(self) -> bytes:
        """The canonical form: JSON with sorted keys, without `[simulation]`."""
        content = self.model_dump(mode="json", exclude={"simulation"})
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical form, in hex."""
        return hashlib.sha256(self.canonical).hexdigest()

    @property
    def task_names(self) -> tuple[str, ...]:
        """All tasks, the main one first, the others by name."""
        return (self.main_task, *sorted(set(self.tasks) - {self.main_task}))


def parse(content: dict[str, Any], where: str = "study") -> Plan:
    """Parse a study's content. `main_task` and `evaluation.main_reference` default to the first one written."""
    tasks, evaluation = content.get("tasks"), content.get("evaluation")
    if "main_task" not in content and isinstance(tasks, dict) and tasks:
        content = {**content, "main_task": next(iter(tasks))}
    if isinstance(evaluation, dict) and isinstance(evaluation.get("reference"), dict):
        first = {"main_reference": next(iter(evaluation["reference"]), None)}
        content = {**content, "evaluation": first | evaluation}
    return validate(Plan, content, where)


def load(path: Path) -> Plan:
    """Load a study from a TOML file.

    Raises:
        ConfigError: with every mistake at once, each with its path in the file.
    """
    return parse(read_toml(path), str(path))
