"""How a study judges its model: splits, subgroups, reference models, tables of counts."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from oncofed_shared.plan_fields import Distinct, Name, NonNegative, Positive, ascending, distinct
from oncofed_shared.strict import Frozen

__all__ = ["Evaluation", "Reference", "Split", "SplitColumn", "SplitFractions", "Subgroup"]


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
        distinct((*info.data.get("train", ()), *info.data.get("validation", ()), *test))
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
        ascending(edges or ())
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
