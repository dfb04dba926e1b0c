"""What a study predicts: classes, or the time to an event."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationInfo, field_validator, model_serializer

from oncofed_shared.plan_fields import Distinct, Key, NonNegative, Positive, ascending, distinct, without_later
from oncofed_shared.strict import Frozen

__all__ = ["ClassificationTask", "SurvivalTask", "Task"]


class ClassificationTask(Frozen):
    """Predict one of `classes` from everything a patient has.

    With two classes the second is the positive one.

    Attributes:
        ordered: the classes are steps of one scale, from the lowest on, such as a stage: one score per patient, and a threshold
            between each two neighbours.
    """

    kind: Literal["classification"]
    label: str
    table: str | None = None
    classes: Annotated[Distinct, Field(min_length=2)]
    weight: Positive = 1.0
    ordered: bool = False

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_later(written(self), {"ordered": False})

    @field_validator("ordered")
    @classmethod
    def _steps(cls, ordered: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's way to call
        if ordered and len(info.data.get("classes", ())) == 2:
            message = "needs three classes or more; of two the order says nothing"
            raise ValueError(message)
        return ordered


class SurvivalTask(Frozen):
    """Predict the time to an event, in discrete intervals.

    Attributes:
        time: column with the follow-up in days (0 is valid).
        event: column with 1 for an event and 0 for a censored follow-up; with `causes` the number of the cause.
        edges: interval edges in days, from 0 on; a public constant. The last edge is the end of what is modelled.
        causes: names of competing events, of which a patient has the first that happens; 1 in the column `event` is the first
            name, and so on. Scores named without a cause are the first one's.
        horizon: day at which risk, Brier score and calibration are read; one of `edges`.
    """

    kind: Literal["survival"]
    time: str
    event: str
    table: str | None = None
    edges: Annotated[tuple[NonNegative, ...], Field(min_length=3)]
    horizon: Positive
    weight: Positive = 1.0
    causes: Annotated[tuple[Key, ...], Field(min_length=2, max_length=8)] | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_later(written(self), {"causes": None})

    @field_validator("causes")
    @classmethod
    def _apart(cls, causes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if causes is None else distinct(causes)

    @field_validator("edges")
    @classmethod
    def _edges(cls, edges: tuple[float, ...]) -> tuple[float, ...]:
        ascending(edges)
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

    @property
    def number(self) -> int:
        """Number of causes; 1 where an event is an event."""
        return len(self.causes or ("event",))


Task = Annotated[ClassificationTask | SurvivalTask, Field(discriminator="kind")]
