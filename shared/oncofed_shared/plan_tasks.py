"""What a study predicts: classes, or the time to an event."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from oncofed_shared.plan_fields import Distinct, NonNegative, Positive, ascending
from oncofed_shared.strict import Frozen

__all__ = ["ClassificationTask", "SurvivalTask", "Task"]


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


Task = Annotated[ClassificationTask | SurvivalTask, Field(discriminator="kind")]
