"""Shares of many secrets at once, against sympy and against sums of integers."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_shared.secagg import shamir
from oncofed_shared.secagg.shamir import DIGIT_BITS, DIGITS, PRIME, combine, split

SECRETS = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=4)


def rows(secrets):
    return np.frombuffer(b"".join(secrets), dtype=np.uint8).reshape(len(secrets), 32)


def digits_of(secret):
    value = int.from_bytes(secret, "little")
    return [value >> DIGIT_BITS * i & (1 << DIGIT_BITS) - 1 for i in range(DIGITS)]


def test_the_modulus_is_a_prime_above_every_digit():
    assert sympy.isprime(PRIME)
    assert PRIME > 2**DIGIT_BITS
    assert DIGITS * DIGIT_BITS >= 256 > (DIGITS - 1) * DIGIT_BITS


@settings(max_examples=60)
@given(secrets=SECRETS, data=st.data())
def test_any_threshold_shares_recover_every_secret(secrets, data):
    count = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, count))
    shares = split(rows(secrets), threshold=threshold, count=count, entropy=os.urandom)
    assert shares.shape == (count, len(secrets), DIGITS)
    chosen = data.draw(st.permutations(range(count)))[:threshold]
    recovered = combine(shares[chosen], [i + 1 for i in chosen])
    assert [r.tobytes() for r in recovered] == secrets


@pytest.mark.parametrize(("threshold", "count"), [(33, 64), (64, 64), (26, 50)])
def test_the_largest_groups_are_exact_at_the_largest_digits(threshold, count):
    """The products of floats are exact where they are largest: all digits, and all random numbers, at their maximum."""
    largest = iter(lambda: (PRIME - 1).to_bytes(4, "little"), None)
    secret = b"\xff" * 32
    shares = split(
        rows([secret]), threshold=threshold, count=count, entropy=lambda n: b"".join(itertools.islice(largest, n // 4))
    )
    for place in (1, count // 2, count):
        powers = [pow(place, k, PRIME) for k in range(threshold)]
        expected = [(digit + sum((PRIME - 1) * p for p in powers[1:])) % PRIME for digit in digits_of(secret)]
        assert shares[place - 1, 0].tolist() == expected
    last = list(range(count - threshold + 1, count + 1))
    assert combine(shares[count - threshold :], last)[0].tobytes() == secret


def test_shares_lie_on_the_polynomials_that_sympy_finds():
    """Known answers of an independent implementation: interpolate the shares, evaluate at 0 and at the other places."""
    secret = bytes(range(100, 132))
    shares = split(rows([secret]), threshold=4, count=7, entropy=os.urandom)[:, 0, :].astype(object)
    x = sympy.Symbol("x")
    for i, digit in enumerate(digits_of(secret)):
        points = [(place, int(shares[place - 1, i])) for place in (2, 5, 6, 7)]
        line = sympy.Poly(sympy.interpolate(points, x), x)
        field = sympy.Poly([c.p * pow(int(c.q), -1, PRIME) % PRIME for c in line.all_coeffs()], x, modulus=PRIME)
        assert field.degree() <= 3
        values = [int(field.eval(place)) % PRIME for place in (0, 1, 3, 4)]
        assert values == [digit, *(int(shares[place - 1, i]) for place in (1, 3, 4))]


def test_fewer_than_threshold_shares_say_nothing():
    """With t = 2 a share is digit + place * coin modulo a prime.

    So for either secret each value of the share comes from exactly one coin, and all coins are equally likely.
    """
    for secret in (bytes(32), b"\xff" * 32):
        for coin in (0, 1, 12345, PRIME - 1):
            coins = np.array(coin, dtype="<u4").tobytes()
            shares = split(rows([secret]), threshold=2, count=3, entropy=lambda n, c=coins: c * (n // 4))
            expected = [[(d + place * coin) % PRIME for d in digits_of(secret)] for place in (1, 2, 3)]
            assert shares[:, 0].tolist() == expected


def test_one_share_too_few_recovers_something_else():
    secret = os.urandom(32)
    shares = split(rows([secret]), threshold=5, count=9, entropy=os.urandom)
    assert combine(shares[:4], [1, 2, 3, 4])[0].tobytes() != secret
    wrong = shares[:5].copy()
    wrong[2, 0, 0] ^= 1
    assert combine(wrong, [1, 2, 3, 4, 5])[0].tobytes() != secret


def test_random_numbers_are_uniform_below_the_prime():
    """Where 31 bits give the prime itself, they are drawn again: it would be a second zero."""
    given_bytes = [
        np.array([PRIME, 5, PRIME], dtype="<u4").tobytes(),
        np.array([PRIME, 7], dtype="<u4").tobytes(),
        b"\x09\0\0\0",
    ]
    drawn = shamir._uniform(3, lambda n: given_bytes.pop(0))
    assert drawn.tolist() == [9, 5, 7]
    values = shamir._uniform(40_000, os.urandom)
    assert 0 <= values.min() <= values.max() < PRIME
    counts = np.bincount(values // (PRIME // 16 + 1), minlength=16)
    # Chi-square of 16 cells: beyond 50 once in 80,000 runs.
    assert ((counts - 2500) ** 2 / 2500).sum() < 50


@pytest.mark.parametrize(("threshold", "count"), [(0, 3), (4, 3), (2, 65)])
def test_impossible_numbers_are_refused(threshold, count):
    with pytest.raises(ValueError, match="threshold"):
        split(rows([bytes(32)]), threshold=threshold, count=count, entropy=os.urandom)


@pytest.mark.parametrize("places", [[1, 1], [1], []])
def test_combining_needs_different_places(places):
    shares = split(rows([bytes(32)]), threshold=2, count=3, entropy=os.urandom)[:2]
    with pytest.raises(ValueError, match="different"):
        combine(shares, places)
