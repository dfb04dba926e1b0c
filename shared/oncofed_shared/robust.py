"""Quantiles from histograms whose edges are public: counts add up over sites, and no patient's value is sent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "NORMAL", "histogram", "quantile"]

Values = NDArray[np.float64]
BINS = 64
"""Equal bins over a column's declared range."""
NORMAL = 1.3489795003921634
"""Quartiles of a normal distribution lie so many standard deviations apart."""


def histogram(values: Values) -> Values:
    """Counts of values in BINS equal bins of -1..1, (n, columns) with NaN for gaps to (columns, BINS); beyond is in the last."""
    places = np.clip(np.floor((values + 1) * (BINS / 2)), 0, BINS - 1)
    return np.asarray((places[:, :, None] == np.arange(BINS)).sum(axis=0), dtype=np.float64)


def quantile(counts: Values, share: float) -> Values:
    """The quantile of each column from its histogram, (columns, BINS) to (columns,) in -1..1; values lie evenly in their bin.

    0 for a column without anybody.
    """
    reached = np.cumsum(counts, axis=1)
    wanted = share * reached[:, -1:]
    place = (reached < wanted).sum(axis=1).clip(max=BINS - 1)
    rows = np.arange(len(counts))
    here = counts[rows, place]
    below = reached[rows, place] - here
    part = np.divide(wanted[:, 0] - below, here, out=np.full(len(counts), 0.5), where=here > 0)
    found = -1 + 2 * (place + part) / BINS
    return np.asarray(np.where(reached[:, -1] > 0, found, 0.0))
