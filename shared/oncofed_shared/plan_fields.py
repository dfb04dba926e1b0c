"""Names and numbers that all parts of a study plan have in common."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, Field

__all__ = ["Distinct", "Fraction", "Interval", "Key", "Name", "NonNegative", "Positive", "ascending", "distinct"]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+ -]{0,63}$")]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+ -]{0,63}$")]
"""A task's or a modality's name: without a dot, because names of tokens, counts and parameters join it with one."""
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Interval = tuple[float, float]


def ascending(values: tuple[float, ...]) -> None:
    """Check an order.

    Raises:
        ValueError: it is not strictly ascending.
    """
    if any(b <= a for a, b in pairwise(values)):
        message = "must be strictly ascending"
        raise ValueError(message)


def distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    """The same values.

    Raises:
        ValueError: two are equal.
    """
    if len(set(values)) != len(values):
        message = "must be distinct"
        raise ValueError(message)
    return values


Distinct = Annotated[tuple[str, ...], AfterValidator(distinct)]
