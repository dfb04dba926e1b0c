"""The study plan: a TOML file that parses into one frozen value, the root of trust.

`load(path)` names every mistake at once, each with its path. `Plan.hash` is the SHA-256 of the canonical form and is
equal on every machine; `[simulation.*]` is not part of it. Everything here is public: nothing was learned from a patient.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from oncofed_shared.errors import ConfigError
from oncofed_shared.ring import RING_LIMIT

__all__ = [
    "CategoricalColumn",
    "ClassificationTask",
    "Column",
    "Modality",
    "NumericColumn",
    "OrdinalColumn",
    "Plan",
    "Simulation",
    "SurvivalTask",
    "Task",
    "compile_pattern",
    "load",
    "parse",
    "read_toml",
    "validate",
]

M = TypeVar("M", bound=BaseModel)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+ -]{0,63}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Interval = tuple[Annotated[float, Field(allow_inf_nan=False)], Annotated[float, Field(allow_inf_nan=False)]]


class _Frozen(BaseModel):
    """Strict, closed and immutable: an unknown key or a wrong type is a mistake, never a guess.

    The order in which a table's keys are written means nothing: they are kept by name, as in the canonical form.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @field_validator("*", mode="after")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {k: value[k] for k in sorted(value)} if isinstance(value, dict) else value


def _ascending(values: tuple[float, ...], what: str) -> None:
    if any(b <= a for a, b in pairwise(values)):
        message = f"{what} must be strictly ascending"
        raise ValueError(message)


class StudyHeader(_Frozen):
    """Who asks what, and why."""

    name: Name
    purpose: Annotated[str, Field(min_length=10)]


class ClassificationTask(_Frozen):
    """Predict one of `classes` from everything a patient has.

    With two classes the second is the positive one.
    """

    kind: Literal["classification"]
    label: str
    table: str | None = None
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    weight: Positive = 1.0

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            message = "classes must be distinct"
            raise ValueError(message)
        return self


class SurvivalTask(_Frozen):
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

    @model_validator(mode="after")
    def _edges(self) -> Self:
        _ascending(self.edges, "edges")
        if self.edges[0] != 0:
            message = "edges must start at 0"
            raise ValueError(message)
        if self.horizon not in self.edges:
            message = "horizon must be one of edges"
            raise ValueError(message)
        return self

    @property
    def intervals(self) -> int:
        """Number of intervals, one less than edges."""
        return len(self.edges) - 1


Task = Annotated[ClassificationTask | SurvivalTask, Field(discriminator="kind")]


class NumericColumn(_Frozen):
    """A number; outside `range` (in `unit`) it is an error at the site."""

    kind: Literal["numeric"]
    unit: str | None = None
    range: Interval | None = None


class CategoricalColumn(_Frozen):
    """One of `categories`, one-hot encoded in this order."""

    kind: Literal["categorical"]
    categories: Annotated[tuple[str, ...], Field(min_length=2)]


class OrdinalColumn(_Frozen):
    """One of `order`, encoded as its rank."""

    kind: Literal["ordinal"]
    order: Annotated[tuple[str, ...], Field(min_length=2)]


Column = Annotated[NumericColumn | CategoricalColumn | OrdinalColumn, Field(discriminator="kind")]


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a column pattern: `{gene}` and `*` match any text, everything else itself.

    >>> bool(compile_pattern("{gene}_rnaseq").fullmatch("TP53_rnaseq"))
    True
    >>> bool(compile_pattern("VOLUME_*").fullmatch("TEXTURE_1"))
    False
    """
    parts = re.split(r"(\{[A-Za-z_]+\}|\*)", pattern)
    return re.compile(
        "".join(".*" if p == "*" else f"(?P<{p[1:-1]}>.+)" if p.startswith("{") else re.escape(p) for p in parts)
    )


class Modality(_Frozen):
    """One kind of data about a patient: which columns, how scaled, what a gap means, which tokens.

    Attributes:
        table: logical name of the site's table; without it, any table that has the column.
        columns: named columns with their kinds, or
        patterns: patterns over column names, all numeric; the sites' names are united before training.
        exclude: patterns of columns that must not be read.
        transform: `log` is log(1 + x) and refuses negative values; `signed_log` is sign(x) log(1 + |x|).
        scaling: `zscore` and `minmax` use sums over the sites; `minmax` uses `range` where one is declared and
            mean +- 3 sd where not, because a minimum is one patient's value and not a sum. `constants` uses `center`
            and `spread` of this plan.
        clip: bound on the scaled value.
        missing: `mask` (a missing value contributes nothing and the network sees how much of a token was observed),
            `impute` (the consortium's mean), `drop` (one missing value and the patient lacks the modality).
        tokens: `one`, `columns` (a token per column), a number (equal parts in sorted order), or named patterns (a
            column that fits two names goes to the first in the alphabet).
        required: a patient without this modality does not take part.
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

    @model_validator(mode="after")
    def _sources(self) -> Self:
        if (self.columns is None) == (self.patterns is None):
            message = "give either columns or patterns"
            raise ValueError(message)
        if (self.scaling == "constants") != (self.center is not None and self.spread is not None):
            message = "center and spread go with scaling = 'constants', and with nothing else"
            raise ValueError(message)
        for pattern in (*(self.patterns or ()), *self.exclude):
            compile_pattern(pattern)
        return self


class ModelSettings(_Frozen):
    """Shape of the shared network.

    Attributes:
        width: length of a token.
        layers: transformer layers; 0 leaves the linear path alone.
        linear_path: a linear map from all scaled inputs to the outputs beside the transformer, which starts at zero.
        block_scaling: on the linear path a modality's columns are divided by the root of their number, so that one decay
            holds two clinical columns and 1,500 genes alike (group-wise ridge; van de Wiel et al. 2016).
        hazards: `proportional` (one risk score per patient and one baseline per interval) or `free`.
    """

    width: Annotated[int, Field(ge=2, le=512)] = 16
    heads: Annotated[int, Field(ge=1, le=16)] = 2
    layers: Annotated[int, Field(ge=0, le=12)] = 1
    feedforward: Annotated[int, Field(ge=2, le=2048)] = 32
    linear_path: bool = True
    block_scaling: bool = True
    hazards: Literal["proportional", "free"] = "proportional"

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.width % self.heads:
            message = "width must be a multiple of heads"
            raise ValueError(message)
        if self.layers == 0 and not self.linear_path:
            message = "layers = 0 needs linear_path = true, or there is no network"
            raise ValueError(message)
        return self


class Training(_Frozen):
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
    class_weights: Literal["none", "balanced"] | dict[Name, tuple[Positive, ...]] = "none"
    dtype: Literal["float32", "float64"] = "float32"
    range: Positive = 4096.0
    max_sites: Annotated[int, Field(ge=1, le=100_000)] = 1000
    validate_every: Annotated[int, Field(ge=1)] = 10
    deadline_minutes: Positive = 60.0
    attempts: Annotated[int, Field(ge=1, le=100)] = 3

    @model_validator(mode="after")
    def _fits_ring(self) -> Self:
        if self.range * self.max_sites > RING_LIMIT:
            message = f"range x max_sites = {self.range * self.max_sites:g} overflows the ring; at most {RING_LIMIT:g}"
            raise ValueError(message)
        return self


class Strategy(_Frozen):
    """What the aggregator does with the mean of the sites' updates.

    Attributes:
        tau: added to the root in the adaptive rules (Reddi et al. 2021, who advise 1e-3). Much less of it turns rounding errors of
            gradients that are zero into whole steps.
    """

    name: Literal["fedavg", "fedavgm", "fedadam", "fedadagrad"] = "fedavg"
    rate: Positive = 1.0
    momentum: Fraction = 0.9
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    tau: Positive = 1e-3


class SplitColumn(_Frozen):
    """A published split: a column and which of its values mean what."""

    column: str
    table: str | None = None
    train: Annotated[tuple[str, ...], Field(min_length=1)]
    validation: tuple[str, ...] = ()
    test: Annotated[tuple[str, ...], Field(min_length=1)]


class SplitFractions(_Frozen):
    """A seeded split by patient, stratified by the main task within each site (D-02, D-19)."""

    train: Annotated[float, Field(gt=0, lt=1)] = 0.70
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.15
    test: Annotated[float, Field(gt=0, lt=1)] = 0.15

    @model_validator(mode="after")
    def _sum(self) -> Self:
        if not math.isclose(self.train + self.validation + self.test, 1.0, abs_tol=1e-9):
            message = "train + validation + test must be 1"
            raise ValueError(message)
        return self


class Subgroup(_Frozen):
    """A column whose values, or bands between `edges`, get a metric of their own."""

    column: str
    table: str | None = None
    values: tuple[str, ...] | None = None
    edges: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.values is None) == (self.edges is None):
            message = "give either values or edges"
            raise ValueError(message)
        if self.edges is not None:
            _ascending(self.edges, "edges")
        return self

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in order."""
        if self.values is not None:
            return self.values
        edges = self.edges or ()
        return tuple(f"{a:g}-{b:g}" for a, b in pairwise(edges))


class Reference(_Frozen):
    """A simple model on a few features, so that a report shows what the network adds to them.

    Attributes:
        features: column names, or `*` for all columns of the plan.
        penalty: ridge penalty of the Cox (survival) or logistic (classification) regression.
    """

    features: Annotated[tuple[str, ...], Field(min_length=1)]
    penalty: NonNegative = 0.01


class Evaluation(_Frozen):
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

    split: SplitColumn | SplitFractions = SplitFractions()
    folds: Annotated[int, Field(ge=2, le=20)] | None = None
    resplits: Annotated[int, Field(ge=0, le=200)] = 0
    subgroups: dict[Name, Subgroup] = {}
    reference: dict[Name, Reference] = {}
    main_reference: str | None = None
    minimum_shown: Annotated[int, Field(ge=1)] = 10
    minimum_events: Annotated[int, Field(ge=1)] = 3
    score_bins: Annotated[int, Field(ge=16, le=4096)] = 256
    days_per_bin: Positive = 10.0
    bootstrap: Annotated[int, Field(ge=50, le=10_000)] = 400


class Privacy(_Frozen):
    """What noise is added, and where."""

    noise: Literal["none"] = "none"


class Simulation(_Frozen):
    """How a single machine plays the consortium; not part of the plan's hash.

    Attributes:
        site: what a `site.toml` says, for folders that have none.
        cohort: arguments of `oncofed-simulate cohort`, for a study without `--sites`.
    """

    site: dict[str, Any] | None = None
    cohort: dict[str, Any] | None = None


class Plan(_Frozen):
    """A whole study. Build it with `load` or `parse`."""

    format: Literal[1] = 1
    study: StudyHeader
    main_task: str
    tasks: Annotated[dict[Name, Task], Field(min_length=1)]
    modalities: Annotated[dict[Name, Modality], Field(min_length=1)]
    model: ModelSettings = ModelSettings()
    training: Training
    strategy: Strategy = Strategy()
    evaluation: Evaluation = Evaluation()
    privacy: Privacy = Privacy()
    simulation: Simulation = Simulation()

    @model_validator(mode="after")
    def _references(self) -> Self:
        problems = []
        if self.main_task not in self.tasks:
            problems.append(f"main_task: no task has this name; there are {', '.join(self.tasks)}")
        weights = self.training.class_weights
        if isinstance(weights, dict):
            for name, values in weights.items():
                task = self.tasks.get(name)
                if not isinstance(task, ClassificationTask):
                    problems.append(f"training.class_weights.{name}: not a classification task")
                elif len(values) != len(task.classes):
                    problems.append(
                        f"training.class_weights.{name}: {len(values)} weights for {len(task.classes)} classes"
                    )
        main, named = self.evaluation.main_reference, self.evaluation.reference
        if (main is None) != (not named) or (named and main not in named):
            problems.append(f"evaluation.main_reference: expected one of {', '.join(named) or 'none'}")
        if problems:
            raise ValueError("\n".join(problems))
        return self

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


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: the file cannot be read or is not TOML; the message has the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None


def validate(model: type[M], content: dict[str, Any], where: str) -> M:
    """Parse `content` into `model`, strictly, naming every mistake with its path.

    Raises:
        ConfigError: one line per mistake.
    """
    try:
        # JSON mode: strict types, and arrays may become tuples.
        return model.model_validate_json(json.dumps(content))
    except TypeError:
        raise ConfigError(f"{where}: dates are not used here; write text or a number") from None
    except ValidationError as error:
        lines = []
        for mistake in error.errors(include_url=False, include_input=False):
            tags = {"classification", "survival", "numeric", "categorical", "ordinal"}
            path = ".".join(str(p) for p in mistake["loc"] if not (isinstance(p, str) and p in tags))
            message = mistake["msg"].removeprefix("Value error, ")
            if mistake["type"] == "extra_forbidden":
                message = "unknown key; remove it or check its spelling"
            elif mistake["type"] == "missing":
                message = "is missing"
            lines += [f"{where}: {path}: {m}" if path else f"{where}: {m}" for m in message.split("\n")]
        raise ConfigError(*lines) from None


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
