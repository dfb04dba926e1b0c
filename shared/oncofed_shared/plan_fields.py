"""Names and numbers that all parts of a study plan have in common."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, Field

__all__ = [
    "Distinct",
    "Fraction",
    "Interval",
    "Key",
    "Name",
    "NonNegative",
    "Positive",
    "ascending",
    "distinct",
    "without_later",
]

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


def without_later(content: dict[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """The content without later keys that have their default: a study that was approved before they existed keeps its hash.

    Args:
        later: the later keys with their defaults, as they are written.
    """
    return {k: v for k, v in content.items() if k not in later or v != later[k]}
