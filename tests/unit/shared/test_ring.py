"""Fixed-point ring elements: rounded within half a step, refused out of range, summed in any order to the same bits."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from oncofed_shared.errors import DataError
from oncofed_shared.ring import RING_LIMIT, STEP, decode, encode

BOUND = 4096.0
IN_RANGE = arrays(np.float64, st.integers(0, 20), elements=st.floats(-BOUND, BOUND))
ELEMENTS = arrays(np.uint64, 7, elements=st.integers(0, 2**64 - 1))


@given(IN_RANGE)
def test_rounding_costs_at_most_half_a_step(values: np.ndarray) -> None:
    decoded = decode(encode(values, BOUND))
    for value, back in zip(values.tolist(), decoded.tolist(), strict=True):
        # In rationals, so that the test itself does not round.
        assert abs(Fraction(value) - Fraction(back)) <= Fraction(STEP) / 2


@given(st.floats(-RING_LIMIT, RING_LIMIT))
def test_the_bound_holds_up_to_the_limit_of_the_ring(value: float) -> None:
    back = float(decode(encode(np.array([value]), RING_LIMIT))[0])
    assert abs(Fraction(value) - Fraction(back)) <= Fraction(STEP) / 2


@given(arrays(np.float64, 5, elements=st.integers(-(2**52), 2**52).map(lambda k: k * STEP)))
def test_multiples_of_a_step_come_back_as_they_were(values: np.ndarray) -> None:
    np.testing.assert_array_equal(decode(encode(values, BOUND)), values)


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, math.nextafter(BOUND, 1e9), -BOUND * 2, 1e300], ids=lambda v: f"{v:g}"
)
def test_what_is_not_finite_or_out_of_range_raises_without_saying_the_value(bad: float) -> None:
    values = np.array([0.0, bad, 1.0])
    with pytest.raises(DataError) as caught:
        encode(values, BOUND)
    assert caught.value.code == "out-of-range"
    assert "1 of 3 values" in str(caught.value)
    assert f"{bad:g}" not in str(caught.value).replace(f"({BOUND:g})", "")


@given(st.floats(1, 1e300))
def test_nothing_wraps_whatever_the_bound(factor: float) -> None:
    beyond = np.array([RING_LIMIT * factor * 1.001])
    with pytest.raises(DataError):
        encode(beyond, bound=math.inf)


@given(st.lists(ELEMENTS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_sums_do_not_depend_on_order_or_grouping(parts: list[np.ndarray], random: object) -> None:
    total = np.sum(parts, axis=0, dtype=np.uint64)
    other = list(parts)
    random.shuffle(other)  # type: ignore[attr-defined]
    while len(other) > 1:
        # Any tree of additions: join two neighbours, again and again.
        at = random.randrange(len(other) - 1)  # type: ignore[attr-defined]
        other[at : at + 2] = [other[at] + other[at + 1]]
    assert other[0].tobytes() == total.tobytes()


@given(st.lists(arrays(np.float64, 4, elements=st.floats(-BOUND, BOUND)), min_size=1, max_size=50))
def test_a_sum_of_sites_is_the_sum_of_their_values(sites: list[np.ndarray]) -> None:
    total = np.sum([encode(s, BOUND) for s in sites], axis=0, dtype=np.uint64)
    for back, column in zip(decode(total).tolist(), np.transpose(sites).tolist(), strict=True):
        exact = sum((Fraction(v) for v in column), Fraction(0))
        # Half a step per site, and what a float of the sum itself cannot hold.
        assert abs(Fraction(back) - exact) <= len(sites) * Fraction(STEP) / 2 + abs(Fraction(back)) * Fraction(2) ** -52
