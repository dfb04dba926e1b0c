"""The sampler of noise: its tables are exact, its sums are discrete Gaussians, and its draws show nothing else."""

from __future__ import annotations

import math
from bisect import bisect_right
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from oncofed_client.exact_noise import exact_gaussian
from oncofed_client.noise import CHUNK, Table, discrete_gaussian, levels, reach, table
from oncofed_client.randomness import Randomness
from oncofed_shared.integer_noise import SAMPLER_ERROR, SMALLEST_SHARE, TAIL

DRAWS = 1_000_000
REAL = 23_170.8
"""About a share's width in the shipped private study of gliomas."""


def masses(sigma: float, most: int) -> np.ndarray:
    """Probabilities of -most..most in double precision."""
    x = np.arange(-most, most + 1)
    mass = np.exp(-(x**2) / (2 * sigma**2))
    return mass / mass.sum()


def numbers(own: Table) -> dict[int, Fraction]:
    """What a table gives each value, exactly: its cells, and its part of what no cell decides."""
    counts = np.bincount(own.cells[: own.decided] // own.multiplier + own.end, minlength=2 * own.end + 1)
    left = Fraction((1 << 16) - own.decided, 1 << 16)
    given, below = {}, 0
    for i, upto in enumerate(own.function):
        given[i - own.end] = Fraction(int(counts[i]), 1 << 16) + left * Fraction(upto - below, 1 << 128)
        below = upto
    return given


@pytest.mark.parametrize(("sigma", "multiplier"), [(8.0, 1), (33.3, 1), (319.2, 77)])
def test_a_table_is_the_distribution_to_two_to_the_minus_108(sigma: float, multiplier: int) -> None:
    own, far = table(sigma, multiplier), math.ceil(20 * sigma)
    made = numbers(own)
    assert sum(made.values()) == 1
    assert own.function[-1] == 2**128
    assert np.array_equal(own.cells[: own.decided] % multiplier, np.zeros(own.decided))
    with localcontext(prec=80):
        width = 2 * Decimal(sigma) ** 2
        exact = [(Decimal(-x * x) / width).exp() for x in range(far + 1)]
        total = exact[0] + 2 * sum(exact[1:])
        apart = 2 * sum(exact[own.end + 1 :]) / total
        for x, share in made.items():
            apart += abs(Decimal(share.numerator) / Decimal(share.denominator) - exact[abs(x)] / total)
    # A wide draw is three of these at most, and the factor by which their sum differs is far smaller.
    assert 0 < 3 * float(apart) / 2 < SAMPLER_ERROR


class Given(Randomness):
    """A stream of given words."""

    def __init__(self, *words: int) -> None:
        self.left = list(words)

    def words(self, count: int) -> np.ndarray:
        taken, self.left = self.left[:count], self.left[count:]
        assert len(taken) == count
        return np.array(taken, dtype=np.uint64)


@pytest.mark.parametrize(("sigma", "multiplier"), [(8.0, 1), (100.0, 3), (1000.0, 1)])
def test_every_one_of_128_bits_of_what_no_cell_decides_counts(sigma: float, multiplier: int) -> None:
    own = table(sigma, multiplier)
    rng = np.random.default_rng(5)
    bounds = [own.function[i] for i in rng.integers(0, 2 * own.end, 300)] + own.function[:40] + own.function[-41:-1]
    chosen = [u for b in bounds for u in (b - 2**70, b - 1, b, b + 1, b + 2**70)] + [0, 2**128 - 1, 2**127, 2**127 - 1]
    chosen += [int.from_bytes(rng.bytes(16)) for _ in range(500)]
    used = []
    for u in (c for c in chosen if 0 <= c < 2**128):
        stream = Given(u >> 64, u & 2**64 - 1)
        value = int(own.rest(stream, 1)[0])
        assert value == (bisect_right(own.function, u) - own.end) * multiplier
        used.append(2 - len(stream.left))
    # Both depths were reached.
    assert set(used) == {1, 2}


class Halves(Randomness):
    """Cells that are given, and words of a stream."""

    def __init__(self, cells: np.ndarray) -> None:
        self.cells, self.others = cells, Randomness.repeatable("rest")
        self.asked = 0

    def halves(self, count: int) -> np.ndarray:
        taken, self.cells = self.cells[:count], self.cells[count:]
        return taken.astype(np.uint16)

    def words(self, count: int) -> np.ndarray:
        self.asked += count
        return self.others.words(count)


def test_a_cell_with_a_value_gives_it_and_all_others_ask_for_more() -> None:
    own = table(8.0)
    stream = Halves(np.arange(1 << 16))
    drawn = discrete_gaussian(stream, 8.0, 1 << 16)
    assert np.array_equal(drawn[: own.decided], own.cells[: own.decided])
    assert stream.asked == (1 << 16) - own.decided > 0
    again = own.rest(Randomness.repeatable("rest"), stream.asked)
    assert np.array_equal(drawn[own.decided :], again)


def test_few_draws_need_more_than_sixteen_bits() -> None:
    shares = {s: 1 - table(s).decided / 2**16 for s in (8.0, 100.0, 319.2)}
    assert 0 < shares[8.0] < shares[100.0] < shares[319.2] < 0.018


@given(st.floats(SMALLEST_SHARE, 1e9))
def test_a_wide_gaussian_is_a_sum_of_narrow_ones_that_is_smooth(sigma: float) -> None:
    parts = levels(sigma)
    variance = sum((m * s) ** 2 for m, s in parts)
    assert variance == pytest.approx(sigma**2, rel=1e-12)
    assert all(s <= 1100 for _, s in parts)
    assert reach(sigma) <= TAIL * sigma
    # Of the sum so far, and the next one times its multiplier: what decides is this width, in steps (docs/noise.md).
    so_far = parts[0][1]
    for multiplier, width in parts[1:]:
        coarse = math.sqrt(max(0.0, sigma**2 - sum((m * s) ** 2 for m, s in parts if m < multiplier))) / multiplier
        assert so_far * coarse / math.hypot(so_far, multiplier * coarse) > 3.9
        so_far = math.hypot(so_far, multiplier * width)


def test_a_sum_of_two_tables_has_the_probabilities_of_one_gaussian() -> None:
    sigma = 1500.0
    (_, fine), (step, coarse) = levels(sigma)
    near, far = math.ceil(12 * fine), math.ceil(12 * coarse)
    spread = np.zeros(2 * far * step + 1)
    spread[::step] = masses(coarse, far)
    made = np.convolve(spread, masses(fine, near))
    middle, most = len(made) // 2, 6 * int(sigma)
    ratio = made[middle - most : middle + most + 1] / masses(sigma, 12 * int(sigma))[6 * int(sigma) : -6 * int(sigma)]
    # As exactly as double precision can tell, at every value: no comb, no edge.
    assert np.abs(ratio - 1).max() < 1e-10


def expected(sigma: float, edges: np.ndarray) -> np.ndarray:
    """Probabilities between edges that lie in the middle of integers."""
    most = math.ceil(10 * sigma)
    upto = np.concatenate([[0.0], np.cumsum(masses(sigma, most))])
    inner = upto[np.clip(np.floor(edges).astype(int) + most + 1, 0, len(upto) - 1)]
    return np.diff(np.concatenate([[0.0], inner, [1.0]]))


@pytest.mark.parametrize("sigma", [8.0, 100.0, 1000.0, REAL, 300_000.0])
def test_a_million_draws_against_the_exact_probabilities(sigma: float) -> None:
    drawn = discrete_gaussian(Randomness.repeatable(f"chi-square {sigma}"), sigma, DRAWS)
    edges = np.unique(np.floor(stats.norm.ppf(np.linspace(0, 1, 202)[1:-1]) * sigma) + 0.5)
    counts = np.bincount(np.searchsorted(edges, drawn), minlength=len(edges) + 1)
    assert stats.chisquare(counts, DRAWS * expected(sigma, edges)).pvalue > 1e-3
    tails = np.array([-4.5, -4, -3.5, 3.5, 4, 4.5]) * sigma
    outer = np.bincount(np.searchsorted(tails, drawn), minlength=7)
    assert stats.chisquare(outer, DRAWS * expected(sigma, np.floor(tails) + 0.5)).pvalue > 1e-3
    # The low end, where a sum of multiples would show: every remainder is as likely as every other.
    for divisor in {2, 97, *(m for m, _ in levels(sigma) if 1 < m < 2000)} if sigma >= 100 else ():
        assert stats.chisquare(np.bincount(drawn % divisor, minlength=divisor)).pvalue > 1e-4
    assert abs(drawn.mean()) < 4.5 * sigma / math.sqrt(DRAWS)
    assert abs(drawn.var() / sigma**2 - 1) < 4.5 * math.sqrt(2 / DRAWS)
    assert np.abs(drawn).max() <= reach(sigma)


@pytest.mark.parametrize("sigma", [8.0, 1500.0])
def test_draws_against_opendp_s_exact_sampler(sigma: float) -> None:
    count = 20_000
    theirs = exact_gaussian(sigma, count)
    assert np.abs(theirs).max() <= 16 * sigma
    assert not np.array_equal(theirs, exact_gaussian(sigma, count)), "nobody can repeat them"
    ours = discrete_gaussian(Randomness.from_os(), sigma, 10 * count)
    edges = np.unique(np.floor(stats.norm.ppf(np.linspace(0, 1, 42)[1:-1]) * sigma) + 0.5)
    table_of_both = [np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1) for x in (ours, theirs)]
    # Theirs cannot be seeded, so this must be rarer than a run of the tests is repeated.
    assert stats.chi2_contingency(table_of_both).pvalue > 1e-6


def test_steps_neighbours_and_pieces_have_nothing_in_common() -> None:
    random = Randomness.repeatable("steps")
    first, second = (discrete_gaussian(random, REAL, DRAWS).astype(float) for _ in range(2))
    piece = CHUNK
    for a, b in ((first, second), (first[:-1], first[1:]), (first[:-piece], first[piece:])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / math.sqrt(len(a))
        assert abs(np.corrcoef(a**2, b**2)[0, 1]) < 4.5 / math.sqrt(len(a))


def test_the_stream_decides_every_length_is_given_and_a_narrow_width_is_refused() -> None:
    same = [discrete_gaussian(Randomness.repeatable("one"), REAL, 70_001) for _ in range(2)]
    assert np.array_equal(*same)
    assert same[0].dtype == np.int64
    assert not np.array_equal(same[0], discrete_gaussian(Randomness.repeatable("two"), REAL, 70_001))
    assert [len(discrete_gaussian(Randomness.from_os(), 8.0, n)) for n in (0, 1, 3, 40_000)] == [0, 1, 3, 40_000]
    for narrow in (7.99, 0.0, float("nan")):
        with pytest.raises(ValueError, match="is below 8"):
            discrete_gaussian(Randomness.from_os(), narrow, 1)
    for width in (1e8, 1e9):
        wide = discrete_gaussian(Randomness.repeatable("wide"), width, 200_000)
        assert abs(wide.std() / width - 1) < 4.5 * math.sqrt(1 / 400_000)
        assert np.abs(wide).max() > 2**28
