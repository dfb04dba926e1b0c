"""Exact discrete Gaussian noise for statistics of a few numbers, by OpenDP (Canonne, Kamath & Steinke 2020).

A hundred numbers take a millisecond; a network's would take seconds, for which `noise` has tables.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import opendp.prelude as dp
from numpy.typing import NDArray

from oncofed_shared.integer_noise import TAIL

__all__ = ["exact_gaussian"]


@lru_cache(maxsize=8)
def _measurement(sigma: float) -> Any:
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    return dp.m.make_gaussian(*space, scale=sigma)


def exact_gaussian(sigma: float, count: int) -> NDArray[np.int64]:
    """Draw from the discrete Gaussian with the operating system's entropy.

    Args:
        sigma: the width.

    Returns:
        (count,) independent numbers, cut at TAIL x sigma, which has a probability below 1e-50 for each.

    Guarantees:
        - Nobody can repeat the numbers: there is no seed.
        - None is larger than TAIL x sigma.
    """
    drawn = np.array(_measurement(sigma)([0] * count), dtype=np.int64)
    tail = math.ceil(TAIL * sigma)
    return np.clip(drawn, -tail, tail)
