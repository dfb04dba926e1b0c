"""Discrete Gaussian noise on integers, by tables of its distribution and AES in counter mode.

Sixteen random bits choose a cell of a table. A value has as many cells as its probability has whole parts of 2**-16; what is left
of all probabilities together is in the remaining cells, and 64 more bits, and then 64 more, choose among that (after Marsaglia,
Tsang & Wang 2004). A wide discrete Gaussian is a sum of narrow ones, the coarser multiplied (Micciancio & Walter 2017).
`docs/noise.md` bounds the error, which the mechanism charges to delta.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from oncofed_client.randomness import Randomness
from oncofed_shared.integer_noise import SMALLEST_SHARE

__all__ = ["CHUNK", "Table", "add_discrete_gaussian", "discrete_gaussian", "levels", "reach", "table"]

PRECISION, FIXED = 128, 320
"""Bits of the distribution function, and of the arithmetic that makes it."""
CELL = 16
"""Random bits that choose a cell of a table."""
ENDS = 13.4
"""A table ends at this many standard deviations: what lies beyond has a probability below 2**-133."""
APART, RATIO = 4.2, 256
"""A finer Gaussian is this many times as wide as a step of the coarser one, and a step is at most this many integers."""
CHUNK = 1 << 16
"""Numbers that are drawn at once: they stay in the processor's cache beside the tables."""
LARGEST = 2**31 - 1
_DIGITS = Context(prec=120)


def _weights(sigma: float, end: int) -> list[int]:
    """exp(-x^2 / 2 sigma^2) for x = 0..end, as integers over 2**FIXED."""
    width = _DIGITS.multiply(Decimal(2), _DIGITS.multiply(Decimal(sigma), Decimal(sigma)))
    base = _DIGITS.exp(_DIGITS.divide(Decimal(-1), width))
    # One after another: q^((x+1)^2) = q^(x^2) q^(2x+1).
    factor = int(_DIGITS.multiply(base, Decimal(1 << FIXED)))
    square, weight, found = factor * factor >> FIXED, 1 << FIXED, []
    for _ in range(end + 1):
        found.append(weight)
        weight, factor = weight * factor >> FIXED, factor * square >> FIXED
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A discrete Gaussian times an integer. Build it with `table`.

    Attributes:
        end: largest magnitude of a value before it is multiplied.
        multiplier: of every value.
        decided: how many cells have a value.
        cells: (2**16,) the multiplied value of each cell; 0 where there is none.
        function: P(X <= x where no cell decides) x 2**128 for x = -end..end, rounded down; the last is 2**128.
        upper: the upper 64 bits of all but the last.
        guide: (2**16,) by the first sixteen bits, the place of the first of `upper` that may be larger.
        single: (2**16,) whether no more than two values remain.
    """

    end: int
    multiplier: int
    decided: int
    cells: NDArray[np.int32] | NDArray[np.int64]
    function: list[int]
    upper: NDArray[np.uint64]
    guide: NDArray[np.int32]
    single: NDArray[np.bool_]

    def rest(self, random: Randomness, count: int) -> NDArray[np.int64]:
        """(count,) multiplied values for draws that no cell decides."""
        bits = random.words(count)
        first = (bits >> np.uint64(64 - CELL)).astype(np.int64)
        low = self.guide[first]
        bound = self.upper[np.minimum(low, len(self.upper) - 1)]
        index = low + (bits > bound)
        tied = bits == bound
        many = np.flatnonzero(~self.single[first])
        found = np.searchsorted(self.upper, bits[many], side="right")
        index[many] = found
        # Whether a value's bound has the same 64 bits; index 0 has none before it.
        tied[many] = (found > 0) & (self.upper[found - 1] == bits[many])
        for i in np.flatnonzero(tied):
            whole = int(bits[i]) << 64 | int(random.words(1)[0])
            index[i] = bisect_right(self.function, whole)
        return (index.astype(np.int64) - self.end) * self.multiplier


@lru_cache(maxsize=32)
def table(sigma: float, multiplier: int = 1) -> Table:
    """The table of a width: some tens of milliseconds, kept afterwards."""
    end = math.ceil(ENDS * sigma)
    half = _weights(sigma, end)
    weights = [*reversed(half), *half[1:]]
    total = sum(weights)
    # A probability is whole cells and a remainder, both exactly.
    whole, left = zip(*(divmod(w << CELL, total) for w in weights), strict=True)
    decided = sum(whole)
    sums = list(accumulate(left))
    function = [(s << PRECISION) // sums[-1] for s in sums]
    upper = np.array([f >> 64 for f in function[:-1]], dtype=np.uint64)
    starts = (upper >> np.uint64(64 - CELL)).astype(np.int64)
    cells = np.zeros(1 << CELL, dtype=np.int64)
    cells[:decided] = np.repeat(np.arange(-end, end + 1) * multiplier, whole)
    return Table(
        end=end,
        multiplier=multiplier,
        decided=decided,
        cells=cells.astype(np.int32) if multiplier * end < LARGEST else cells,
        function=function,
        upper=upper,
        guide=np.searchsorted(starts, np.arange(1 << CELL), side="left").astype(np.int32),
        single=np.bincount(starts, minlength=1 << CELL) <= 1,
    )


@lru_cache(maxsize=16)
def levels(sigma: float) -> tuple[tuple[int, float], ...]:
    """Multipliers and widths of the narrow Gaussians whose sum has the width, finest first.

    With r = the multiplier of the next level, the finer one is 4.2 r wide, so that the sum is a discrete Gaussian but for a
    factor of 1 + 1e-130 on each probability.
    """
    count = max(1, math.ceil(math.log(sigma / 4, RATIO)))
    if count == 1:
        return ((1, sigma),)
    step = round((sigma / 4) ** (1 / count))
    fine = APART * step
    coarser = levels(math.sqrt(sigma * sigma - fine * fine) / step)
    return ((1, fine), *((step * multiplier, width) for multiplier, width in coarser))


def reach(sigma: float) -> int:
    """Largest magnitude that `discrete_gaussian` draws."""
    return sum(multiplier * math.ceil(ENDS * width) for multiplier, width in levels(sigma))


def discrete_gaussian(random: Randomness, sigma: float, count: int) -> NDArray[np.int64]:
    """(count,) independent draws: see `add_discrete_gaussian`."""
    drawn = np.zeros(count, dtype=np.int64)
    add_discrete_gaussian(random, sigma, drawn)
    return drawn


def add_discrete_gaussian(random: Randomness, sigma: float, numbers: NDArray[np.int64]) -> None:
    """Add to each number a draw from the discrete Gaussian: P(x) proportional to exp(-x^2 / 2 sigma^2) on the integers.

    Args:
        sigma: the width, SMALLEST_SHARE or more.
        numbers: any count of them, changed in place while they are in the processor's cache.

    Guarantees:
        - Draws are independent, and none is larger than TAIL x sigma.
        - Total variation to the discrete Gaussian is below 2**-108 for each number (`integer_noise.SAMPLER_ERROR`).
        - Every random bit is of the stream's cipher; the same stream gives the same draws.

    Raises:
        ValueError: the width is too small.
    """
    if not sigma >= SMALLEST_SHARE:
        message = f"a width of {sigma:g} is below {SMALLEST_SHARE:g}"
        raise ValueError(message)
    count = len(numbers)
    parts = [table(width, multiplier) for multiplier, width in levels(sigma)]
    kind = np.int32 if reach(sigma) < LARGEST else np.int64
    summed, part = np.empty((2, min(count, CHUNK)), dtype=kind)
    left: list[list[NDArray[np.int64]]] = [[] for _ in parts]
    for start in range(0, count, CHUNK):
        piece = numbers[start : start + CHUNK]
        for i, own in enumerate(parts):
            cells = random.halves(len(piece))
            # "clip" spares a copy; no index is out of range.
            np.take(own.cells.astype(kind, copy=False), cells, out=(part if i else summed)[: len(piece)], mode="clip")
            if i:
                summed += part
            if own.decided < 1 << CELL:
                left[i].append(start + np.flatnonzero(cells >= np.uint16(own.decided)))
        piece += summed[: len(piece)]
    # All that no cell decided at once: each of these operations takes a while for few numbers too.
    for own, places in zip(parts, left, strict=True):
        where = np.concatenate([np.zeros(0, dtype=np.int64), *places])
        numbers[where] += own.rest(random, len(where))
