"""How a site trains, and how updates become the next model, as a study plan says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationInfo, field_validator, model_serializer

from oncofed_shared.plan_fields import Distinct, Fraction, Key, NonNegative, Positive, without_later
from oncofed_shared.plan_modalities import compile_pattern
from oncofed_shared.ring import RING_LIMIT
from oncofed_shared.rules import RULES
from oncofed_shared.strict import Frozen

__all__ = ["Strategy", "Training"]


GAMMA = 2.0
"""Of the focal loss, where the plan does not say another: the authors' choice."""


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
        modality_dropout: chance that a step does not see a modality that a patient has; see `modality_dropout`.
        loss: of classifications; `focal` weighs down the patients that are predicted well already (Lin et al. 2017).
        gamma: of `focal`, how much.
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
    modality_dropout: Fraction = 0.0
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    gamma: Annotated[float, Field(ge=0, le=10)] | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_later(written(self), {"modality_dropout": 0.0, "loss": "cross_entropy", "gamma": None})

    @field_validator("gamma")
    @classmethod
    def _of_the_loss(cls, gamma: float | None, info: ValidationInfo) -> float | None:
        focal = info.data.get("loss") == "focal"
        if gamma is not None and not focal:
            message = "is of loss = 'focal'; remove it, or ask for that loss"
            raise ValueError(message)
        return GAMMA if gamma is None and focal else gamma

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
        average: `holders` takes the mean of a modality's own parameters over the patients of those sites that have it; see
            `holders`.
        holders: under privacy, per modality the share of the training patients whose site has it, a public constant; 1 where it
            is not given.
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
    average: Literal["patients", "holders"] = "patients"
    holders: dict[Key, Annotated[float, Field(gt=0, le=1)]] | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_later(written(self), {"average": "patients", "holders": None})

    @field_validator("average")
    @classmethod
    def _averages(cls, average: str, info: ValidationInfo) -> str:
        name = info.data.get("name")
        if average == "holders" and name in {"scaffold", "qfedavg"}:
            message = f"'holders' goes with rules that step along a mean over patients, and {name} does not"
            raise ValueError(message)
        return average

    @field_validator("holders")
    @classmethod
    def _shares(cls, holders: dict[str, float] | None, info: ValidationInfo) -> dict[str, float] | None:
        if holders is not None and info.data.get("average") != "holders":
            message = "is of average = 'holders'; remove it, or ask for that average"
            raise ValueError(message)
        return holders

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
