"""Discrete Gaussian noise on integers, by a table of blocks, exact rejection and AES in counter mode.

The integers are cut into blocks of 2**b, a 64th to a 128th of the width long. A block is proposed by the largest probability in
it, a number in it by b random bits, and the number is refused by as much as it is less likely than that. What no number of a block
is refused is known beforehand, so that only about one in fifty has to be looked at more closely. `docs/noise.md` bounds the error,
which the mechanism charges to delta.
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

__all__ = ["CHUNK", "Table", "add_discrete_gaussian", "discrete_gaussian", "table"]

PRECISION, FIXED = 128, 320
"""Bits of the distribution function and of a refusal, and of the arithmetic that makes the function."""
CELL = 16
"""Random bits that choose a cell of the table."""
ENDS = 13.4
"""The table ends where a block begins at this many standard deviations: what lies beyond has a probability below 2**-133."""
FINEST = 64
"""A block is at most this part of the width long."""
CHUNK = 1 << 16
"""Numbers that are drawn at once: they stay in the processor's cache beside the table."""
CLOSE = 2.0**-40
"""Doubles decide no refusal that is nearer than this: they err by less than 2**-45."""
LARGEST = 2**31 - 1
_DIGITS = Context(prec=120)


def _exp(numerator: int, sigma: float) -> Decimal:
    """exp(numerator / 2 sigma^2) to 119 digits."""
    width = _DIGITS.multiply(Decimal(2), _DIGITS.multiply(Decimal(sigma), Decimal(sigma)))
    return _DIGITS.exp(_DIGITS.divide(Decimal(numerator), width))


def _weights(sigma: float, block: int, blocks: int) -> tuple[list[int], list[int], list[int]]:
    """exp(-x^2 / 2 sigma^2) at x = k block, k block + 1 and k block - 1 for k = 0..blocks, as integers over 2**FIXED."""

    def fixed(value: Decimal) -> int:
        return int(_DIGITS.multiply(value, Decimal(1 << FIXED)))

    # One after another: q^((k+1)^2) = q^(k^2) q^(2k+1), and x + 1 is as likely as x times q^(2x+1) for another q.
    factor = fixed(_exp(-block * block, sigma))
    square, one = factor * factor >> FIXED, fixed(_exp(-1, sigma))
    away, back = one, one
    further, nearer = fixed(_exp(-2 * block, sigma)), fixed(_exp(2 * block, sigma))
    weight, at, after, before = 1 << FIXED, [], [], []
    for _ in range(blocks + 1):
        at.append(weight)
        after.append(weight * away >> FIXED)
        before.append(weight * back >> FIXED)
        weight, factor = weight * factor >> FIXED, factor * square >> FIXED
        away, back = away * further >> FIXED, back * nearer >> FIXED
    return at, after, before


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Blocks of integers and how likely each is proposed. Build it with `table`.

    Attributes:
        sigma: the width.
        bits: that choose a number within a block.
        reach: largest magnitude of a number.
        decided: how many cells have a block of which they take any number.
        cells: (2**16,) the first number of each cell's block; 0 where there is none.
        function: P(piece <= i where no cell decides) x 2**128, rounded down; the last is 2**128. First comes of each block what is
            taken at once and no cell has, then of each block what may be refused.
        upper: the upper 64 bits of all but the last.
        near, far: (blocks,) the most and the least likely number of each block, from left to right.
    """

    sigma: float
    bits: int
    reach: int
    decided: int
    cells: NDArray[np.int32] | NDArray[np.int64]
    function: list[int]
    upper: NDArray[np.uint64]
    near: NDArray[np.int64]
    far: NDArray[np.int64]

    def within(self, random: Randomness, count: int) -> NDArray[np.uint16] | NDArray[np.uint64]:
        """(count,) places in a block, each equally likely."""
        if self.bits <= CELL:
            return random.halves(count) & np.uint16((1 << self.bits) - 1)
        return random.words(count) & np.uint64((1 << self.bits) - 1)

    def pieces(self, random: Randomness, count: int) -> NDArray[np.int64]:
        """(count,) places in `function`, for draws that no cell decides."""
        bits = random.words(count)
        found = np.searchsorted(self.upper, bits, side="right")
        # Those whose bound has the same 64 bits; index 0 has none before it.
        for i in np.flatnonzero((found > 0) & (self.upper[found - 1] == bits)):
            found[i] = bisect_right(self.function, int(bits[i]) << 64 | int(random.words(1)[0]))
        return found

    def taken(self, random: Randomness, numbers: NDArray[np.int64], blocks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether proposed numbers, of the part of their blocks that may be refused, are taken."""
        near, far = self.near[blocks], self.far[blocks]

        def lost(x: NDArray[np.int64]) -> NDArray[np.float64]:
            """What x has less than the nearest, as a part of it, times -1."""
            apart = (x - near).astype(float) * (x + near).astype(float)
            made: NDArray[np.float64] = np.expm1(-apart / (2 * self.sigma**2))
            return made

        chance = 1 - lost(numbers) / lost(far)
        bits = random.words(len(numbers))
        drawn = bits * 2.0**-64
        found = drawn < chance
        for i in np.flatnonzero(np.abs(drawn - chance) < CLOSE):
            whole = int(bits[i]) << 64 | int(random.words(1)[0])
            found[i] = whole < self.chance(int(numbers[i]), int(blocks[i]))
        return found

    def chance(self, number: int, block: int) -> int:
        """With which a proposed number of the part that may be refused is taken, x 2**128, rounded down."""
        here, near, far = (_exp(-x * x, self.sigma) for x in (number, int(self.near[block]), int(self.far[block])))
        part = _DIGITS.divide(_DIGITS.subtract(here, far), _DIGITS.subtract(near, far))
        return int(_DIGITS.multiply(part, Decimal(1 << PRECISION)))

    def rest(self, random: Randomness, count: int) -> NDArray[np.int64]:
        """(count,) draws for those that no cell decides."""
        pieces = self.pieces(random, count)
        blocks = pieces % len(self.near)
        numbers = np.minimum(self.near, self.far)[blocks] + self.within(random, count).astype(np.int64)
        doubtful = np.flatnonzero(pieces >= len(self.near))
        refused = doubtful[~self.taken(random, numbers[doubtful], blocks[doubtful])]
        if len(refused):
            numbers[refused] = discrete_gaussian(random, self.sigma, len(refused))
        return numbers


@lru_cache(maxsize=32)
def table(sigma: float) -> Table:
    """The table of a width: a few milliseconds, kept afterwards."""
    bits = max(0, math.floor(math.log2(sigma / FINEST)))
    block = 1 << bits
    end = math.ceil(ENDS * sigma / block)
    at, after, before = _weights(sigma, block, end)
    # Blocks from zero on, nearest number first; those below zero begin at -1 and end one number later.
    right, left = (at[:-1], before[1:]), (after[:-1], at[1:])
    largest, smallest = ([*reversed(minus), *plus] for plus, minus in zip(right, left, strict=True))
    # A block of one number refuses nothing, not even by a last digit.
    refused = [most - least for most, least in zip(largest, smallest, strict=True)] if bits else []
    total = sum(smallest) + sum(refused)
    # What is taken at once is whole cells and a remainder, both exactly; what may be refused has no cells.
    whole, remainders = zip(*(divmod(w << CELL, total) for w in smallest), strict=True)
    decided = sum(whole)
    sums = list(accumulate([*remainders, *(w << CELL for w in refused)]))
    function = [(s << PRECISION) // sums[-1] for s in sums]
    starts = np.arange(-end, end) * block
    cells = np.zeros(1 << CELL, dtype=np.int64)
    cells[:decided] = np.repeat(starts, whole)
    reach = end * block
    return Table(
        sigma=sigma,
        bits=bits,
        reach=reach,
        decided=decided,
        cells=cells.astype(np.int32) if reach < LARGEST else cells,
        function=function,
        upper=np.array([f >> 64 for f in function[:-1]], dtype=np.uint64),
        near=np.where(starts >= 0, starts, starts + block - 1),
        far=np.where(starts >= 0, starts + block - 1, starts),
    )


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
    own = table(sigma)
    count = len(numbers)
    drawn = np.empty(min(count, CHUNK), dtype=own.cells.dtype)
    left = [np.zeros(0, dtype=np.int64)]
    for start in range(0, count, CHUNK):
        piece = numbers[start : start + CHUNK]
        cells = random.halves(len(piece))
        # "clip" spares a copy; no index is out of range.
        made = np.take(own.cells, cells, out=drawn[: len(piece)], mode="clip")
        if own.bits:
            made += own.within(random, len(piece)).astype(made.dtype, copy=False)
        undecided = np.flatnonzero(cells >= np.uint16(own.decided)) if own.decided < 1 << CELL else left[0]
        made[undecided] = 0
        piece += made
        left.append(start + undecided)
    # All that no cell decided at once: each of these operations takes a while for few numbers too.
    where = np.concatenate(left)
    if len(where):
        numbers[where] += own.rest(random, len(where))
