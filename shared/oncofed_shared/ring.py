"""Fixed-point integers in a 64-bit ring: what updates are, so that a sum does not depend on its order.

A float is rounded to a multiple of 2**-40 and kept modulo 2**64 in a uint64. Sums of unsigned integers wrap, are
associative and commutative, and are therefore the same whichever site answers first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.errors import DataError

__all__ = ["COUNT_SCALE", "FRACTION_BITS", "RING_LIMIT", "STEP", "decode", "encode", "encode_update"]

FRACTION_BITS = 40
STEP = 2.0**-FRACTION_BITS
COUNT_SCALE = 2.0**-12
"""Numbers of patients, and sums of their losses, go into the ring times this: exact, and room for millions of patients."""
RING_LIMIT = 2.0 ** (63 - FRACTION_BITS) / 2
"""Largest magnitude that a sum may reach: half of what a signed 64-bit integer holds."""


def encode(values: NDArray[np.float64], bound: float | NDArray[np.float64]) -> NDArray[np.uint64]:
    """Round to the nearest ring step.

    Args:
        values: (d,) floats.
        bound: largest magnitude allowed; one for all, or (d,).

    Guarantees:
        - |decode(encode(x)) - x| <= STEP / 2 for every coordinate.
        - A value that is not finite, or larger than `bound` or RING_LIMIT, raises; nothing wraps silently.

    Raises:
        DataError: a value is out of range. The message does not contain it.
    """
    bound = np.minimum(bound, RING_LIMIT)
    # The comparison is written so that NaN fails it too.
    within = np.abs(values) <= bound
    if not within.all():
        count = int(np.size(values) - np.count_nonzero(within))
        raise DataError(
            f"{count} of {np.size(values)} values of an update are not finite or beyond the plan's "
            f"training.range ({np.min(bound):g}); lower the learning rate or raise the range",
            code="out-of-range",
        )
    scaled = np.rint(np.asarray(values, dtype=np.float64) * 2.0**FRACTION_BITS)
    return scaled.astype(np.int64).view(np.uint64)


def encode_update(total: NDArray[np.float64], *, bound: float, max_sites: int, counts: int = 0) -> NDArray[np.uint64]:
    """A round's total as ring elements.

    Args:
        total: (parameters + 2,): patients x change of every parameter, then patients and the sum of their losses, which get the
            whole ring and COUNT_SCALE.
        bound: largest magnitude of a change.
        counts: how many further numbers of patients stand before these two, with the same room.

    Raises:
        DataError: a value is out of range. The message does not contain it.
    """
    vector, bounds = total.copy(), np.full(len(total), bound)
    vector[-2 - counts :] *= COUNT_SCALE
    bounds[-2 - counts :] = RING_LIMIT / max_sites
    return encode(vector, bounds)


def decode(total: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Turn a (sum of) ring elements back into floats, (d,) to (d,)."""
    return total.view(np.int64).astype(np.float64) * STEP
