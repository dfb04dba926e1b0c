"""What all tables of counts share: the public score grid, checks at the door, resampling.

A score is a probability. It is put on a grid that is uniform in logit(p) from -10 to 10, with open
ends. The grid is a constant of the plan and was learned from nobody. logit is strictly increasing,
so a rank can only be lost inside a bin, never reversed: every statement about binning errors rests
on that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.errors import ConfigError, DataError, LocalProtocolError, RemoteProtocolError

__all__ = [
    "LOGIT_LIMIT",
    "TABLE_LIMIT",
    "Cells",
    "Floats",
    "Integers",
    "ScoreGrid",
    "Tables",
    "check_length",
    "check_limit",
    "check_probabilities",
    "check_rows",
    "quantile_groups",
    "quantile_index",
    "ratio",
    "scatter",
    "score_grid",
]

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

LOGIT_LIMIT = 10.0
TABLE_LIMIT = 4_194_304
"""Most numbers that one task's table may have (32 MiB as float64)."""
_SLACK = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreGrid:
    """Bins (low, high] of a probability; the first also contains 0.

    Attributes:
        low: (bins,) lower ends.
        centre: (bins,) the probability that stands for a bin: expit of the middle in logits.
        high: (bins,) upper ends.
    """

    low: Floats
    centre: Floats
    high: Floats

    def bins(self, probabilities: Floats) -> Integers:
        """Index of the bin of each probability, same shape."""
        return np.searchsorted(self.high[:-1], probabilities, side="left").astype(np.int64)


def _expit(logits: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-logits)), dtype=np.float64)


@lru_cache(maxsize=16)
def score_grid(bins: int) -> ScoreGrid:
    """Build the grid of `bins` bins; equal for everybody who has the same plan."""
    logits = np.linspace(-LOGIT_LIMIT, LOGIT_LIMIT, bins + 1)
    edges = _expit(logits)
    edges[0], edges[-1] = 0.0, 1.0
    centre = _expit((logits[1:] + logits[:-1]) / 2)
    edges.setflags(write=False)
    centre.setflags(write=False)
    return ScoreGrid(low=edges[:-1], centre=centre, high=edges[1:])


class Tables(Protocol):
    """One task's tables, or a batch of them along leading axes."""

    @property
    def patients(self) -> int:
        """Patients counted."""

    @property
    def rarest(self) -> int:
        """Events, or patients of the rarest class present."""

    def metrics(self) -> dict[str, Floats]:
        """Every metric with the batch's shape; NaN where it is not defined."""

    def binning_error(self) -> dict[str, float]:
        """Bound on |metric of the table - metric of the patients|."""

    def figures(self, minimum: int) -> dict[str, Any]:
        """Curves; a group of fewer than `minimum` patients is merged or left out."""

    def cells(self) -> Cells:
        """Patients by cell, for resampling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Patients grouped so that each is in exactly one cell.

    Attributes:
        counts: (cells,) patients per cell, all positive.
        size: numbers that one resampled table takes, to bound memory.
        build: turns (draws, cells) resampled counts into tables with leading shape (draws,).
    """

    counts: Integers
    size: int
    build: Callable[[Integers], Tables]


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide, with NaN where the denominator is 0."""
    missing = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), np.nan)
    np.divide(numerator, denominator, out=missing, where=np.asarray(denominator) != 0)
    return missing


def scatter(weights: Integers, keys: Integers, size: int) -> Floats:
    """Add up (draws, cells) weights by key: (draws, size). `keys` is (cells,), not empty."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, np.diff(ordered) > 0])
    total = np.zeros((len(weights), size))
    total[:, ordered[starts]] = np.add.reduceat(weights[:, order], starts, axis=1)
    return total


def quantile_index(counts: Floats, number: int) -> Integers:
    """Quantile group of each bin, 0..number-1, (bins,): where the middle of its ranks lies."""
    middle = (np.cumsum(counts) - counts / 2) / max(float(counts.sum()), 1.0)
    return np.minimum((middle * number).astype(np.int64), number - 1)


def quantile_groups(counts: Floats, number: int, minimum: int) -> list[NDArray[np.intp]]:
    """Cut bins into at most `number` groups of about equal counts, each with `minimum` or more.

    Args:
        counts: (bins,) per bin. A bin stays whole.
        number: groups wanted.
        minimum: a smaller group is merged with its neighbour.

    Returns:
        Indices of the occupied bins of each group, ascending; empty if all bins together have
        fewer than `minimum`.
    """
    if counts.sum() < max(minimum, 1):
        return []
    group = quantile_index(counts, number)
    merged: list[NDArray[np.intp]] = []
    for index in range(number):
        members = np.flatnonzero((group == index) & (counts > 0))
        if members.size and merged and counts[merged[-1]].sum() < minimum:
            merged[-1] = np.concatenate([merged[-1], members])
        elif members.size:
            merged.append(members)
    if len(merged) > 1 and counts[merged[-1]].sum() < minimum:
        last = merged.pop()
        merged[-1] = np.concatenate([merged[-1], last])
    return merged


def check_limit(size: int) -> int:
    """Return `size` unless it is beyond TABLE_LIMIT.

    Raises:
        ConfigError: the plan's grid is too fine.
    """
    if size > TABLE_LIMIT:
        raise ConfigError(
            f"evaluation: the table of one task would have {size} numbers, at most {TABLE_LIMIT}; "
            "lower evaluation.score_bins or raise evaluation.days_per_bin"
        )
    return size


def check_length(vector: Floats, size: int) -> Floats:
    """Return `vector` if it can be a sum of tallies of `size` numbers.

    Raises:
        RemoteProtocolError: a wrong length, or a number that is not finite or negative.
    """
    if vector.shape != (size,):
        raise RemoteProtocolError(
            f"a table of counts has shape {vector.shape}, expected ({size},); "
            "the sender follows another plan or version",
            code="bad-table",
        )
    if not np.all((vector >= 0) & np.isfinite(vector)):
        raise RemoteProtocolError(
            "a table of counts has a negative or non-finite number; reject the sender's metrics",
            code="bad-table",
        )
    return vector


def check_rows(prediction: NDArray[Any], labels: NDArray[Any], columns: int, shape: tuple[int, ...]) -> None:
    """Compare shapes: `prediction` (patients, columns), `labels` (patients, *shape).

    Raises:
        LocalProtocolError: they do not fit.
    """
    if prediction.shape != (len(labels), columns) or labels.shape[1:] != shape:
        raise LocalProtocolError(
            f"tally: predictions {prediction.shape} and labels {labels.shape} do not fit a task "
            f"with {columns} outputs; one row per patient in both"
        )


def check_probabilities(values: Floats) -> Floats:
    """Return probabilities clipped to 0..1; rounding errors up to 1e-6 are forgiven.

    Raises:
        DataError: some are not finite or lie outside. The message has their number only.
    """
    # The comparison is written so that NaN fails it too.
    good = np.abs(values - 0.5) <= 0.5 + _SLACK
    if not good.all():
        raise DataError(
            f"{int(good.size - np.count_nonzero(good))} of {good.size} predictions are not "
            "probabilities (not finite, or outside 0..1); training diverged, lower training.rate",
            code="out-of-range",
        )
    return np.asarray(np.clip(values, 0.0, 1.0), dtype=np.float64)
