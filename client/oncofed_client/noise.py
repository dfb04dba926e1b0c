"""Discrete Gaussian noise on integers, by tables of its distribution and AES in counter mode.

A table holds the distribution function of a narrow discrete Gaussian as integers of 128 bits. Sixteen random bits choose among the
values, and where they do not decide, 48 more do, and then 64 more. A wide discrete Gaussian is a sum of narrow ones, the coarser
multiplied (Micciancio & Walter 2017). `docs/noise.md` bounds the error, which the mechanism charges to delta.
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

__all__ = ["Table", "discrete_gaussian", "levels", "reach", "table"]

PRECISION, FIXED = 128, 320
"""Bits of the distribution function, and of the arithmetic that makes it."""
CELL = 16
"""Random bits that choose a cell of a table."""
ENDS = 13.4
"""A table ends at this many standard deviations: what lies beyond has a probability below 2**-133."""
APART, RATIO = 4.2, 256
"""A finer Gaussian is this many times as wide as a step of the coarser one, and a step is at most this many integers."""
UNDECIDED = 1 << 28
CHUNK = 1 << 15
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
    """The distribution function of a discrete Gaussian and which values each cell of 16 bits may mean. Build it with `table`.

    Attributes:
        end: largest magnitude of a value.
        function: P(X <= x) x 2**128 for x = -end..end, rounded down; the last is 2**128.
        upper: the upper 64 bits of all but the last.
        cells: (2**16,) int32: the value, plus `UNDECIDED` where more bits are needed.
        single: (2**16,) whether two values alone remain.
    """

    end: int
    function: list[int]
    upper: NDArray[np.uint64]
    cells: NDArray[np.int32]
    single: NDArray[np.bool_]

    def draw(self, random: Randomness, count: int) -> NDArray[np.int32]:
        """(count,) values."""
        cells = random.words((count + 3) // 4).view("<u2")[:count]
        values: NDArray[np.int32] = self.cells[cells]
        open_ = np.flatnonzero(values >= UNDECIDED // 2)
        if len(open_):
            values[open_] = self._decide(cells[open_], values[open_] - UNDECIDED + self.end, random)
        return values

    def _decide(self, cells: NDArray[np.uint16], low: NDArray[np.int32], random: Randomness) -> NDArray[np.int64]:
        """Values of undecided cells, of which `low` is the index of the smallest."""
        beyond = 64 - CELL
        bits = (cells.astype(np.uint64) << np.uint64(beyond)) | (random.words(len(cells)) >> np.uint64(CELL))
        index = low + (bits > self.upper[low])
        tied = bits == self.upper[low]
        many = np.flatnonzero(~self.single[cells])
        found = np.searchsorted(self.upper, bits[many], side="right")
        index[many] = found
        # Whether a value's bound has the same 64 bits; index 0 has none before it.
        tied[many] = (found > 0) & (self.upper[found - 1] == bits[many])
        for i in np.flatnonzero(tied):
            whole = int(bits[i]) << 64 | int(random.words(1)[0])
            index[i] = bisect_right(self.function, whole)
        return np.asarray(index - self.end, dtype=np.int64)


@lru_cache(maxsize=16)
def table(sigma: float) -> Table:
    """The table of a width: some tens of milliseconds, kept afterwards."""
    end = math.ceil(ENDS * sigma)
    half = _weights(sigma, end)
    sums = list(accumulate([*reversed(half), *half[1:]]))
    function = [(s << PRECISION) // sums[-1] for s in sums]
    upper = np.array([f >> 64 for f in function[:-1]], dtype=np.uint64)
    starts = (upper >> np.uint64(64 - CELL)).astype(np.int64)
    bounds = np.bincount(starts, minlength=1 << CELL)
    low = np.searchsorted(starts, np.arange(1 << CELL), side="left")
    cells = low - end + np.where(bounds > 0, UNDECIDED, 0)
    return Table(end=end, function=function, upper=upper, cells=cells.astype(np.int32), single=bounds == 1)


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
    """Draw from the discrete Gaussian: P(x) proportional to exp(-x^2 / 2 sigma^2) on the integers.

    Args:
        sigma: the width, SMALLEST_SHARE or more.

    Returns:
        (count,) independent numbers, none larger than 16 sigma.

    Guarantees:
        - Total variation to the discrete Gaussian is below 2**-108 for each number (`integer_noise.SAMPLER_ERROR`).
        - Every random bit is of the stream's cipher; the same stream gives the same numbers.
        - No number is larger than TAIL x sigma.

    Raises:
        ValueError: the width is too small.
    """
    if not sigma >= SMALLEST_SHARE:
        message = f"a width of {sigma:g} is below {SMALLEST_SHARE:g}"
        raise ValueError(message)
    parts = [(multiplier, table(width)) for multiplier, width in levels(sigma)]
    drawn = np.empty(count, dtype=np.int64)
    # In pieces that stay in the processor's cache.
    for start in range(0, count, CHUNK):
        piece = drawn[start : start + CHUNK]
        piece[:] = parts[0][1].draw(random, len(piece))
        for multiplier, own in parts[1:]:
            piece += own.draw(random, len(piece)) * np.int64(multiplier)
    return drawn
