"""One number of a benchmark, and a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["MEBIBYTE", "Measure", "seconds"]

MEBIBYTE = 2**20


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


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
