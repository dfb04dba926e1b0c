"""The sampler of noise: its tables are exact, its sums are discrete Gaussians, and its draws show nothing else."""

from __future__ import annotations

import math
from bisect import bisect_right
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given as given_widths
from hypothesis import strategies as st
from scipy import stats

from oncofed_client.exact_noise import exact_gaussian
from oncofed_client.noise import CHUNK, Table, discrete_gaussian, table
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


def given(own: Table) -> dict[int, Fraction]:
    """What a table gives each number, exactly: its block's cells, its part of what no cell decides, and what is not refused."""
    blocks, length = len(own.near), 1 << own.bits
    starts = np.minimum(own.near, own.far)
    counts = np.bincount((own.cells[: own.decided] - starts[0]) // length, minlength=blocks)
    left = Fraction((1 << 16) - own.decided, 1 << 16)
    parts = np.diff([0, *own.function]).tolist()
    made = {}
    for i, start in enumerate(starts.tolist()):
        at_once = Fraction(int(counts[i]), 1 << 16) + left * Fraction(parts[i], 1 << 128)
        perhaps = left * Fraction(parts[blocks + i], 1 << 128) if own.bits else Fraction(0)
        for x in range(start, start + length):
            made[x] = (at_once + (perhaps * Fraction(own.chance(x, i), 1 << 128) if own.bits else 0)) / length
    kept = sum(made.values())
    # A refused number is drawn anew.
    return {x: share / kept for x, share in made.items()}


@pytest.mark.parametrize(("sigma", "bits"), [(8.0, 0), (33.3, 0), (140.0, 1), (319.2, 2)])
def test_what_is_drawn_is_the_distribution_to_two_to_the_minus_108(sigma: float, bits: int) -> None:
    own, far = table(sigma), math.ceil(20 * sigma)
    assert own.bits == bits
    made = given(own)
    assert len(made) == 2 * own.reach
    assert own.function[-1] == 2**128
    with localcontext(prec=80):
        width = 2 * Decimal(sigma) ** 2
        exact = [(Decimal(-x * x) / width).exp() for x in range(far + 1)]
        total = exact[0] + 2 * sum(exact[1:])
        apart = total - sum(exact[abs(x)] for x in made)
        for x, share in made.items():
            apart += abs(Decimal(share.numerator) / Decimal(share.denominator) * total - exact[abs(x)])
    assert 0 < float(apart / total) / 2 < SAMPLER_ERROR


@pytest.mark.parametrize("sigma", [1500.0, REAL, 1e6, 1e9])
def test_blocks_of_a_wide_table_are_proposed_by_their_largest_probability(sigma: float) -> None:
    own = table(sigma)
    blocks, length = len(own.near), 1 << own.bits
    assert sigma / 128 < length <= sigma / 64
    assert own.reach <= 13.5 * sigma < TAIL * sigma
    left = 1 - own.decided / 2**16
    at_once, perhaps = np.split(np.diff(np.array(own.function, dtype=object), prepend=0) / 2**128 * left, 2)
    counts = np.bincount((own.cells[: own.decided] + own.reach) // length, minlength=blocks) / 2**16
    most, least = (np.exp(-(x.astype(float) ** 2) / (2 * sigma**2)) for x in (own.near, own.far))
    assert np.allclose((counts + at_once).astype(float), least / most.sum(), rtol=1e-9, atol=1e-25)
    assert np.allclose(perhaps.astype(float), (most - least) / most.sum(), rtol=1e-6, atol=1e-25)


class Words(Randomness):
    """A stream of given words."""

    def __init__(self, *words: int) -> None:
        self.left = list(words)

    def words(self, count: int) -> np.ndarray:
        taken, self.left = self.left[:count], self.left[count:]
        assert len(taken) == count
        return np.array(taken, dtype=np.uint64)


def around(bounds: list[int]) -> list[int]:
    rng = np.random.default_rng(5)
    chosen = [u for b in bounds for u in (b - 2**70, b - 1, b, b + 1, b + 2**70)] + [0, 2**128 - 1, 2**127, 2**127 - 1]
    return [u for u in chosen + [int.from_bytes(rng.bytes(16)) for _ in range(500)] if 0 <= u < 2**128]


@pytest.mark.parametrize("sigma", [8.0, 100.0, 1000.0, 1e6])
def test_every_one_of_128_bits_of_what_no_cell_decides_counts(sigma: float) -> None:
    own = table(sigma)
    some = np.random.default_rng(5).integers(0, len(own.function) - 1, 300)
    used = []
    for u in around([own.function[i] for i in some] + own.function[:40] + own.function[-41:-1]):
        stream = Words(u >> 64, u & 2**64 - 1)
        assert int(own.pieces(stream, 1)[0]) == bisect_right(own.function, u)
        used.append(2 - len(stream.left))
    # Both depths were reached.
    assert set(used) == {1, 2}


@pytest.mark.parametrize("sigma", [140.0, 1000.0, REAL, 1e9])
def test_every_one_of_128_bits_of_a_refusal_counts(sigma: float) -> None:
    own = table(sigma)
    rng, used = np.random.default_rng(6), []
    for block in (0, len(own.near) // 2 - 1, len(own.near) // 2, *rng.integers(0, len(own.near), 12).tolist()):
        near, far = int(own.near[block]), int(own.far[block])
        for number in {near, far, int(rng.integers(min(near, far), max(near, far) + 1))}:
            with localcontext(prec=80):
                here, most, least = ((Decimal(-x * x) / (2 * Decimal(sigma) ** 2)).exp() for x in (number, near, far))
                chance = int((here - least) / (most - least) * 2**128)
            assert abs(own.chance(number, block) - chance) <= 1
            assert own.chance(near, block) == 2**128
            assert own.chance(far, block) == 0
            for u in around([own.chance(number, block)] * 3)[:40]:
                stream = Words(u >> 64, u & 2**64 - 1)
                (found,) = own.taken(stream, np.array([number]), np.array([block]))
                assert found == (u < own.chance(number, block))
                used.append(2 - len(stream.left))
    assert set(used) == {1, 2}


class Halves(Randomness):
    """Cells that are given, and all else of a stream."""

    def __init__(self, cells: np.ndarray) -> None:
        self.cells, self.others = cells, Randomness.repeatable("rest")

    def halves(self, count: int) -> np.ndarray:
        taken, self.cells = self.cells[:count], self.cells[count:]
        return taken.astype(np.uint16) if len(taken) else self.others.halves(count)

    def words(self, count: int) -> np.ndarray:
        return self.others.words(count)


@pytest.mark.parametrize("sigma", [8.0, 1000.0])
def test_a_cell_with_a_block_gives_a_number_of_it_and_all_others_ask_for_more(sigma: float) -> None:
    own = table(sigma)
    # A chunk has as many numbers as there are cells.
    drawn = discrete_gaussian(Halves(np.arange(1 << 16)), sigma, 1 << 16)
    again = Randomness.repeatable("rest")
    if own.bits:
        own.within(again, 1 << 16)
    assert np.array_equal(drawn[own.decided :], own.rest(again, (1 << 16) - own.decided))
    places = drawn[: own.decided] - own.cells[: own.decided]
    assert places.min() == 0
    assert places.max() == (1 << own.bits) - 1
    assert len(np.unique(drawn[own.decided :])) > 20


def test_few_draws_need_more_than_a_cell() -> None:
    shares = [1 - table(s).decided / 2**16 for s in (8.0, 100.0, 319.2, REAL, 8192.0 * 127, 1e9)]
    assert min(shares) > 0
    assert max(shares) < 0.018


@given_widths(st.floats(SMALLEST_SHARE, 1e9))
def test_no_width_is_too_wide_for_its_table(sigma: float) -> None:
    own = table.__wrapped__(sigma)
    assert own.reach <= TAIL * sigma
    assert 1 <= own.decided <= 1 << 16
    assert own.function == sorted(own.function)
    assert own.near.min() == -own.reach + (1 << own.bits) - 1
    assert own.far.max() == own.reach - 1


@pytest.mark.parametrize("sigma", [140.0, 1000.0])
def test_what_no_cell_decides_falls_within_a_block_as_it_is_likely_there(sigma: float) -> None:
    own, count = table(sigma), 500_000
    drawn = own.rest(Randomness.repeatable(f"places {sigma}"), count)
    length, blocks = 1 << own.bits, len(own.near)
    at_once, perhaps = np.split(np.diff(np.array(own.function, dtype=object), prepend=0).astype(float) / 2.0**128, 2)
    chances = np.array(
        [[own.chance(x, i) for x in range(s, s + length)] for i, s in enumerate(range(-own.reach, own.reach, length))]
    )
    taken = perhaps[:, None] / length * chances.astype(float) / 2.0**128
    # What is refused is drawn anew from the whole.
    likely = at_once[:, None] / length + taken
    likely += (1 - likely.sum()) * masses(sigma, own.reach)[:-1].reshape(blocks, length)
    places = np.where(drawn >= 0, drawn % length, length - 1 - drawn % length)
    by_place = likely[blocks // 2 :].sum(axis=0) + likely[: blocks // 2, ::-1].sum(axis=0)
    assert by_place[0] > 1.4 * by_place[-1], "it is far from uniform"
    assert stats.chisquare(np.bincount(places, minlength=length), count * by_place).pvalue > 1e-3


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
    # The low end, where blocks would show: every remainder is as likely as every other.
    for divisor in {2, 97, min(1 << table(sigma).bits, 1024)} - {1} if sigma >= 100 else ():
        assert stats.chisquare(np.bincount(drawn % divisor, minlength=divisor)).pvalue > 1e-4
    assert abs(drawn.mean()) < 4.5 * sigma / math.sqrt(DRAWS)
    assert abs(drawn.var() / sigma**2 - 1) < 4.5 * math.sqrt(2 / DRAWS)
    assert np.abs(drawn).max() <= table(sigma).reach


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
