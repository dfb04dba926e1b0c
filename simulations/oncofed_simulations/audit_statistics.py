"""From what an attacker sees to a lower bound on epsilon, with confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

from oncofed_shared.consortium import gaussian_epsilon

__all__ = [
    "CONFIDENCE",
    "SURE",
    "Bound",
    "SumCheck",
    "correlation_check",
    "gaussian_bound",
    "one_run_bound",
    "one_run_p_value",
    "rate_interval",
    "variance_check",
]

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
"""With which the one-run bound and the intervals of rates hold."""
SURE = 0.999
"""With which the Gaussian bound holds: it is there to find bugs, and one false alarm in twenty would teach nobody to believe it."""
RARE = 1e-6
"""Probability, under correct code, with which a check of sums says that something is wrong; all of its comparisons together."""
GUESSED = 0.1
"""Part of the canaries of which the one-run audit guesses "in", and as many "out"; fixed before anything was looked at."""
LARGEST = 1e3
"""Epsilons beyond which nobody asks further."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """An epsilon that was seen.

    Attributes:
        epsilon: lower bound with confidence `SURE`.
        estimate: where the scores' own mean and spread put it.
        mu: distance of the means of scores in standard deviations, estimated; `mu_low` its lower bound.
    """

    epsilon: float
    estimate: float
    mu: float
    mu_low: float


def _epsilon(mu: float, delta: float) -> float:
    return gaussian_epsilon(noise_multiplier=1 / mu, delta=delta) if mu > 0 else 0.0


def gaussian_bound(inside: Floats, outside: Floats, *, delta: float) -> Bound:
    """Epsilon of the Gaussian mechanism that scores of canaries look like (Dong, Roth & Su 2022; Nasr et al. 2023).

    It takes scores for normal, with one spread: so it sees a factor of two in noise or clip norm that a bound without assumptions
    does not. Standard error of the distance: Hedges & Olkin 1985, eq. 5.15.

    Args:
        inside, outside: scores of canaries that trained, and of those that did not; two or more of each.

    Guarantees:
        - The bound is below the epsilon of the mechanism that made the scores in `SURE` of all audits, if they are normal.
    """
    n, m = len(inside), len(outside)
    spread = math.sqrt(((n - 1) * np.var(inside, ddof=1) + (m - 1) * np.var(outside, ddof=1)) / (n + m - 2))
    mu = float((inside.mean() - outside.mean()) / spread) if spread > 0 else math.inf
    if math.isinf(mu):
        return Bound(epsilon=math.inf, estimate=math.inf, mu=mu, mu_low=mu)
    error = math.sqrt(1 / n + 1 / m + mu * mu / (2 * (n + m)))
    low = max(0.0, mu - float(stats.norm.ppf(SURE)) * error)
    return Bound(epsilon=_epsilon(low, delta), estimate=_epsilon(max(mu, 0.0), delta), mu=mu, mu_low=low)


def one_run_p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Probability of so many correct guesses under (epsilon, delta), at most (Steinke, Nasr & Jagielski 2023, theorem 5.2)."""
    each = 1 / (1 + math.exp(-epsilon))
    beta = float(stats.binom.sf(correct - 1, guesses, each))
    # Chances of missing the count by 1, 2, ...: delta buys so many more correct guesses.
    lacking = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, each))
    alpha = float((lacking / np.arange(1, correct + 1)).max(initial=0.0))
    return min(1.0, beta + 2 * canaries * delta * alpha)


def one_run_bound(scores: Floats, inside: NDArray[np.bool_], *, delta: float) -> tuple[float, int, int]:
    """Epsilon that correct guesses prove, whatever the scores' distribution; how many guesses, and how many were correct.

    The `GUESSED` highest scores are called "in", as many lowest "out", and of the others nothing is said.

    Guarantees:
        - The bound is above the mechanism's epsilon in at most 1 - `CONFIDENCE` of all audits, with no assumption but that each
          canary's coin is fair and its own.
    """
    half = max(1, int(GUESSED * len(scores)))
    order = np.argsort(scores)
    correct = int(inside[order[-half:]].sum() + (~inside[order[:half]]).sum())
    alpha = 1 - CONFIDENCE

    def beyond(epsilon: float) -> float:
        return (
            one_run_p_value(canaries=len(scores), guesses=2 * half, correct=correct, epsilon=epsilon, delta=delta)
            - alpha
        )

    if beyond(0.0) >= 0:
        return 0.0, 2 * half, correct
    high = 1.0
    while beyond(high) < 0 and high < LARGEST:
        high *= 2
    return (float(brentq(beyond, 0.0, high)) if beyond(high) >= 0 else high), 2 * half, correct


@dataclass(frozen=True, kw_only=True, slots=True)
class SumCheck:
    """A question about sums whose answer is known for correct code.

    Attributes:
        found, expected: what it is about.
        limit: largest distance that correct code has, but for a probability of RARE.
    """

    found: float
    expected: float
    limit: float

    @property
    def wrong(self) -> bool:
        """Whether the code does something else than it says."""
        return not abs(self.found - self.expected) <= self.limit


def variance_check(found: Sequence[float], expected: Sequence[float], variances: Sequence[float]) -> SumCheck:
    """Compare squared lengths of what is left of sums without their patients with what noise and sampling make of it.

    Args:
        found: squared length of each release's rest.
        expected, variances: of that number, under correct code.

    Returns:
        Both as multiples of the expectation, which is then 1.
    """
    whole, error = math.fsum(expected), math.sqrt(math.fsum(variances))
    return SumCheck(found=math.fsum(found) / whole, expected=1.0, limit=float(stats.norm.isf(RARE / 2)) * error / whole)


def correlation_check(rests: Floats, *, dimensions: float, shifted: Sequence[tuple[int, int]]) -> SumCheck:
    """The largest correlation between the rests of two releases, which are independent under correct code.

    Args:
        rests: (releases, parameters), without what patients are expected to add.
        dimensions: for how many independent coordinates they count.
        shifted: pairs that are compared at every shift too: two streams with one key, of which one is ahead, draw the same numbers
            at other places.
    """
    unit = rests / np.linalg.norm(rests, axis=1, keepdims=True)
    gram = np.abs(unit @ unit.T)
    np.fill_diagonal(gram, 0.0)
    largest, size = float(gram.max(initial=0.0)), rests.shape[1]
    for i, j in shifted:
        product = np.fft.rfft(unit[i], 2 * size) * np.conj(np.fft.rfft(unit[j], 2 * size))
        largest = max(largest, float(np.abs(np.fft.irfft(product, 2 * size)).max()))
    comparisons = len(rests) * (len(rests) - 1) / 2 + 2 * size * len(shifted)
    # A sum of independent products is nearly normal; a half more for the little that it is not.
    limit = 1.5 * float(stats.norm.isf(RARE / (2 * max(1.0, comparisons)))) / math.sqrt(dimensions)
    return SumCheck(found=largest, expected=0.0, limit=limit)


def rate_interval(successes: int, trials: int) -> tuple[float, float]:
    """Clopper & Pearson's interval of a rate, with `CONFIDENCE`."""
    if trials == 0:
        return 0.0, 1.0
    side = (1 - CONFIDENCE) / 2
    low = float(stats.beta.ppf(side, successes, trials - successes + 1)) if successes else 0.0
    high = float(stats.beta.isf(side, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high
