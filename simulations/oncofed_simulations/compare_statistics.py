"""Tests between two models over the same folds or hospitals, and intervals of their scores.

The plain t-test over folds takes them for independent, but any two share most of their training patients, so that it finds
differences that are not there (Dietterich 1998). Nadeau & Bengio (2003) put 1/k + n_test/n_train in the place of 1/k.
Held-out hospitals may have one class each; their scores are pooled, and the spread comes from leaving out a hospital at a
time (delete-m_j jackknife; Busing, Meijer & van der Leeden 1999).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ["Estimate", "holm", "jackknife", "over_folds"]

LEVEL = 0.95
ALPHA, POWER = 0.05, 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A score, or a difference of two, with what is known about its spread.

    Attributes:
        value: the estimate.
        variance: of the estimate, taking folds or hospitals for independent.
        factor: by which the variance grows because training patients are shared.
        freedom: degrees of freedom of Student's distribution.
    """

    value: float
    variance: float
    factor: float
    freedom: int

    def p(self, *, corrected: bool) -> float:
        """One-tailed: how often as much above 0 or more comes from no difference. 1/2 where all values are 0."""
        spread = math.sqrt(self.variance * (self.factor if corrected else 1.0))
        if spread == 0:
            return 0.5 if self.value == 0 else float(self.value < 0)
        return float(stats.t.sf(self.value / spread, self.freedom))

    def detectable(self) -> float:
        """The difference that this test would have found four times in five, at 5 % and one-tailed, by the corrected variance."""
        spread = math.sqrt(self.variance * self.factor)
        return spread * float(stats.t.ppf(1 - ALPHA, self.freedom) + stats.t.ppf(POWER, self.freedom))

    def interval(self) -> tuple[float, float]:
        """The 95 % interval, by the corrected variance."""
        half = float(stats.t.ppf((1 + LEVEL) / 2, self.freedom)) * math.sqrt(self.variance * self.factor)
        return self.value - half, self.value + half


def over_folds(values: Sequence[float], ratio: float) -> Estimate | None:
    """The mean over folds; Nadeau & Bengio 2003, eq. 10.

    Args:
        values: a score, or a difference of two, per fold.
        ratio: test patients to training patients of a fold.

    Returns:
        None for fewer than two folds.
    """
    count = len(values)
    if count < 2:
        return None
    variance = float(np.var(values, ddof=1)) / count
    return Estimate(value=float(np.mean(values)), variance=variance, factor=1 + count * ratio, freedom=count - 1)


def jackknife(whole: float, without: Sequence[float], sizes: Sequence[int], ratio: float) -> Estimate | None:
    """A pooled score whose spread comes from groups of unequal sizes; Busing et al. 1999, eq. 7.

    Args:
        whole: the score of all patients; it stays the estimate, because the pooled score is what is reported.
        without: the score without each group.
        sizes: patients of each group.
        ratio: test patients to training patients, mean over the groups.

    Returns:
        None for fewer than two groups.
    """
    groups = len(sizes)
    if groups < 2:
        return None
    left = np.asarray(without, float)
    shares = np.sum(sizes) / np.asarray(sizes, float)
    pseudo = shares * whole - (shares - 1) * left
    centre = groups * whole - float(np.sum((1 - 1 / shares) * left))
    variance = float(np.mean((pseudo - centre) ** 2 / (shares - 1)))
    return Estimate(value=whole, variance=variance, factor=1 + groups * ratio, freedom=groups - 1)


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction of p-values (1979): with it the chance of one false finding or more stays below the level."""
    made: dict[str, float] = {}
    least = 0.0
    for rank, name in enumerate(sorted(values, key=lambda n: values[n])):
        least = max(least, min(1.0, (len(values) - rank) * values[name]))
        made[name] = least
    return {name: made[name] for name in values}
