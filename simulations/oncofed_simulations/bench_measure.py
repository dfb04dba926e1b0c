"""One number of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KIBIBYTE", "MEBIBYTE", "Measure"]

KIBIBYTE, MEBIBYTE = 2**10, 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One number of a benchmark.

    Attributes:
        name: what was measured.
        value: the number, in `unit`.
        goal: what it should be at most; None where nothing is promised.
        note: how to read it.
    """

    name: str
    value: float
    unit: str
    goal: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the goal is met."""
        if self.goal is None:
            return ""
        return "met" if self.value <= self.goal else "MISSED"
