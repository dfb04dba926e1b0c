"""Shamir's secret sharing of many secrets at once, over the integers modulo 2**31 - 1.

A secret of 32 bytes is nine digits of 30 bits. Each digit is the constant of its own random polynomial (Shamir, 1979); a share is
the values at one place. All polynomials are evaluated, and all secrets recovered, by one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.secagg.group import MEMBERS_MAX

__all__ = ["DIGITS", "DIGIT_BITS", "PRIME", "SECRET_BYTES", "combine", "split"]

PRIME = 2**31 - 1
DIGIT_BITS, SECRET_BYTES = 30, 32
DIGITS = -(-8 * SECRET_BYTES // DIGIT_BITS)
_HALF = 16
_PLACES = np.arange(DIGIT_BITS, dtype=np.uint32)


def split(
    secrets: NDArray[np.uint8], *, threshold: int, count: int, entropy: Callable[[int], bytes]
) -> NDArray[np.uint32]:
    """Share secrets: (m, 32) bytes become (count, m, DIGITS); row i is the share of place i + 1.

    Args:
        secrets: m secrets.
        threshold: shares that recover a secret.
        count: shares that are made, at most MEMBERS_MAX.
        entropy: gives so many bytes that nobody can predict.

    Guarantees:
        - Any `threshold` shares recover every secret, whichever they are.
        - Fewer say nothing: their distribution is the same for every secret.
    """
    if not 1 <= threshold <= count <= MEMBERS_MAX:
        message = f"{threshold} of {count} shares; 1 <= threshold <= count <= {MEMBERS_MAX}"
        raise ValueError(message)
    digits = _digits(secrets).reshape(1, -1)
    random = _uniform((threshold - 1) * digits.size, entropy).reshape(threshold - 1, digits.size)
    powers = [[pow(place, k, PRIME) for k in range(threshold)] for place in range(1, count + 1)]
    shares = _product(np.array(powers, dtype=np.int64), np.concatenate([digits, random]))
    return shares.astype(np.uint32).reshape(count, len(secrets), DIGITS)


def combine(shares: NDArray[np.uint32], places: Sequence[int]) -> NDArray[np.uint8]:
    """Recover secrets: (t, m, DIGITS) at t different places become (m, 32).

    With a wrong share the result is some other secret; whoever combines compares it with a commitment.
    """
    count = len(places)
    if len(set(places)) != count or not 1 <= count <= MEMBERS_MAX or len(shares) != count:
        message = f"{len(shares)} shares at {count} places; they must be different, and at most {MEMBERS_MAX}"
        raise ValueError(message)
    weights = [_weight(place, places) for place in places]
    digits = _product(np.array([weights], dtype=np.int64), shares.reshape(count, -1).astype(np.int64))
    return _bytes(digits.astype(np.uint32).reshape(shares.shape[1], DIGITS))


def _weight(place: int, places: Sequence[int]) -> int:
    """Lagrange's coefficient of a place for the value at 0."""
    above, below = 1, 1
    for other in places:
        if other != place:
            above = above * other % PRIME
            below = below * (other - place) % PRIME
    return above * pow(below, -1, PRIME) % PRIME


def _product(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Matrix product modulo PRIME, by two products of floats.

    Exact: a half of `left` has 16 bits, `right` 31, and at most 64 = MEMBERS_MAX products are added: below 2**53.
    """
    floats = right.astype(np.float64)
    low = ((left & (2**_HALF - 1)).astype(np.float64) @ floats).astype(np.int64)
    high = ((left >> _HALF).astype(np.float64) @ floats).astype(np.int64) % PRIME
    return np.asarray((low + (high << _HALF)) % PRIME, dtype=np.int64)


def _uniform(count: int, entropy: Callable[[int], bytes]) -> NDArray[np.int64]:
    """So many numbers below PRIME, each equally likely: 31 random bits, drawn again where they are PRIME itself."""
    values = np.frombuffer(entropy(4 * count), dtype="<u4").astype(np.int64) & PRIME
    while np.any(again := values == PRIME):
        values[again] = np.frombuffer(entropy(4 * int(again.sum())), dtype="<u4").astype(np.int64) & PRIME
    return values


def _digits(secrets: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(m, 32) bytes as (m, DIGITS) digits, the lowest first."""
    bits = np.zeros((len(secrets), DIGITS * DIGIT_BITS), dtype=np.uint32)
    bits[:, : 8 * SECRET_BYTES] = np.unpackbits(secrets, axis=1, bitorder="little")
    digits = (bits.reshape(len(secrets), DIGITS, DIGIT_BITS) << _PLACES).sum(axis=2)
    return np.asarray(digits, dtype=np.int64)


def _bytes(digits: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Inverse of `_digits`; what does not fit is cut off."""
    bits = ((digits[:, :, None] >> _PLACES) & 1).astype(np.uint8).reshape(len(digits), -1)
    content: NDArray[np.uint8] = np.packbits(bits[:, : 8 * SECRET_BYTES], axis=1, bitorder="little")
    return content
