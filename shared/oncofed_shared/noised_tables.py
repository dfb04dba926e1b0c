"""Coarse tables of test patients, small enough that noise on every cell leaves a score readable.

    predictions of validation patients -> score_histogram -> noised sum -> grid_from -> grid
    predictions, labels of test patients -> coarse_counts -> noised sum -> `noised_scores.noised_scores`

Noise grows with the root of the number of cells, and rounding of scores and days falls with it; `docs/privacy.md` says how the
numbers below were chosen. A patient counts one in one cell per scored column of a task: one column for survival (risk by the
horizon) and for two classes (probability of the second), one per class for more. Validation and test patients are disjoint and
neither trains, so a patient is in one of the releases only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.count_tables import Floats, check_probabilities, check_rows
from oncofed_shared.errors import LocalProtocolError
from oncofed_shared.plan import ClassificationTask, Plan, SurvivalTask

__all__ = [
    "FIXED_BINS",
    "HISTOGRAM_BINS",
    "PLACED_BINS",
    "CoarseGrid",
    "coarse_counts",
    "coarse_entries",
    "coarse_size",
    "column_tables",
    "columns",
    "fixed_grid",
    "grid_from",
    "histogram_size",
    "placed_grid",
    "score_histogram",
    "time_edges",
]

HISTOGRAM_BINS = 32
"""Equal bins of 0..1 in which scores of validation patients are counted, to place the few edges of the coarse table."""
FIXED_BINS = 5
"""Equal bins of 0..1 where nothing is known about the scores."""
PLACED_BINS = 4
"""Bins between quantiles of the scores."""


_Bins: TypeAlias = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class CoarseGrid:
    """The table's bins, a public value: made from the plan alone or from a noised release. See `fixed_grid` and `grid_from`.

    Attributes:
        edges: per task and scored column the inner edges of the score bins, ascending; bins are (low, high], the first contains 0.
        centres: per task and scored column the score that stands for each bin.
        spreads: per task and scored column the variance of the score within each bin.
        days: per survival task the upper ends of the time bins, ascending; the horizon is among them, and one more bin follows.
    """

    edges: Mapping[str, tuple[tuple[float, ...], ...]]
    centres: Mapping[str, tuple[tuple[float, ...], ...]]
    spreads: Mapping[str, tuple[tuple[float, ...], ...]]
    days: Mapping[str, tuple[float, ...]]

    def states(self, task: str) -> int:
        """Cells of a score bin.

        Classification: not of the class, of the class. Survival with T time bins: event in each, then censored in each, then
        followed beyond the last.
        """
        return 2 * len(self.days[task]) + 1 if task in self.days else 2


def columns(task: ClassificationTask | SurvivalTask) -> int:
    """Scored columns of a task: 1, or one per class where there are more than two."""
    return len(task.classes) if isinstance(task, ClassificationTask) and len(task.classes) > 2 else 1


def coarse_entries(plan: Plan) -> int:
    """Cells in which one patient counts one, at most: his change of a table or histogram has Euclidean length sqrt of it."""
    return sum(columns(plan.tasks[name]) for name in plan.task_names)


def time_edges(task: SurvivalTask) -> tuple[float, ...]:
    """Upper ends in days of a table's time bins: the plan's edge nearest half the horizon, if there is one, and the horizon."""
    before = [edge for edge in task.edges if 0 < edge < task.horizon]
    if not before:
        return (task.horizon,)
    return (min(before, key=lambda edge: abs(edge - task.horizon / 2)), task.horizon)


def _even(bins: int) -> _Bins:
    ends = [k / bins for k in range(bins + 1)]
    return tuple(ends[1:-1]), tuple((k + 0.5) / bins for k in range(bins)), (1 / (12 * bins * bins),) * bins


def _grid(plan: Plan, made: Mapping[str, list[_Bins]]) -> CoarseGrid:
    """A grid from edges, centres and spreads of each task's scored columns."""
    edges, centres, spreads = ({name: tuple(bins[k] for bins in each) for name, each in made.items()} for k in range(3))
    return CoarseGrid(
        edges=edges,
        centres=centres,
        spreads=spreads,
        days={name: time_edges(task) for name, task in plan.tasks.items() if isinstance(task, SurvivalTask)},
    )


def fixed_grid(plan: Plan) -> CoarseGrid:
    """The grid of a plan when nothing is known of the scores: equal bins."""
    return _grid(plan, {name: [_even(FIXED_BINS)] * columns(task) for name, task in plan.tasks.items()})


def _scores(task: ClassificationTask | SurvivalTask, prediction: Floats) -> Floats:
    """Scores that are counted, (n, scored columns), higher for more risk or for the class."""
    if isinstance(task, SurvivalTask):
        column = task.edges.index(task.horizon) - 1
        return np.asarray(1.0 - check_probabilities(prediction[:, column : column + 1]))
    return check_probabilities(prediction if columns(task) > 1 else prediction[:, 1:2])


def histogram_size(plan: Plan) -> int:
    """Length of the vector of `score_histogram`."""
    return HISTOGRAM_BINS * coarse_entries(plan)


def score_histogram(plan: Plan, predictions: Mapping[str, Floats]) -> Floats:
    """Count the scores of (validation) patients in equal bins.

    Args:
        predictions: as `losses.predict` gives them, n rows each; labels play no part.

    Returns:
        (histogram_size,) float64 integers: tasks as in `plan.task_names`, then scored columns, then bins.

    Guarantees:
        - One patient more changes the vector by one in each of `coarse_entries` numbers.
        - The order of the patients does not matter.

    Raises:
        DataError: a prediction is not a probability.
    """
    parts = []
    for name in plan.task_names:
        for score in _scores(plan.tasks[name], np.asarray(predictions[name], dtype=np.float64)).T:
            bins = np.minimum((score * HISTOGRAM_BINS).astype(np.int64), HISTOGRAM_BINS - 1)
            parts.append(np.bincount(bins, minlength=HISTOGRAM_BINS))
    return np.concatenate(parts).astype(np.float64)


def _placed(counts: Floats, bins: int) -> _Bins:
    """Edges at the quantiles of a noised histogram, (HISTOGRAM_BINS,), and mean and variance of the score between them."""
    ends = np.linspace(0.0, 1.0, HISTOGRAM_BINS + 1)
    # Noise makes the sum fall in places; a little slope makes it invertible where it is flat.
    rising = np.maximum.accumulate(np.concatenate([[0.0], np.cumsum(counts)])) + 1e-6 * np.arange(len(ends))
    share = rising / rising[-1]
    edges = np.interp(np.arange(1, bins) / bins, share, ends)
    # Means between two edges are integrals of the quantile function, in steps fine enough for any report.
    quantiles = np.interp((np.arange(200 * bins) + 0.5) / (200 * bins), share, ends)
    within = quantiles.reshape(bins, -1)
    return tuple(edges.tolist()), tuple(within.mean(axis=1).tolist()), tuple(within.var(axis=1).tolist())


def grid_from(plan: Plan, histogram: Floats) -> CoarseGrid:
    """The grid whose bins hold about equally many of the patients in a noised histogram.

    Args:
        histogram: (histogram_size,) noised sum of `score_histogram` over the sites' validation patients.

    Raises:
        LocalProtocolError: a wrong length, or a number that is not finite.
    """
    if histogram.shape != (histogram_size(plan),) or not np.isfinite(histogram).all():
        raise LocalProtocolError(
            f"grid_from: expected {histogram_size(plan)} finite numbers, got shape {histogram.shape}"
        )
    rows = iter(histogram.reshape(-1, HISTOGRAM_BINS))
    return _grid(
        plan,
        {
            name: [_placed(next(rows), PLACED_BINS) for _ in range(columns(plan.tasks[name]))]
            for name in plan.task_names
        },
    )


def placed_grid(plan: Plan, histogram: Floats | None = None) -> CoarseGrid:
    """The grid of a plan's tables: by the validation patients' noised histogram, or the fixed one where the plan has none of them.

    Without a histogram the grid has the right size and is good for nothing else.
    """
    if not plan.evaluation.split.validation:
        return fixed_grid(plan)
    return grid_from(plan, np.ones(histogram_size(plan)) if histogram is None else histogram)


def coarse_size(plan: Plan, grid: CoarseGrid | None = None) -> int:
    """Length of the vector of `coarse_counts`; the grid's default is `fixed_grid`. All grids of `grid_from` have one same size."""
    grid = grid or fixed_grid(plan)
    return sum(grid.states(name) * sum(len(edges) + 1 for edges in grid.edges[name]) for name in plan.task_names)


def _state(ends: tuple[float, ...], labels: Floats) -> NDArray[np.int64]:
    """Cell within a score bin of survival labels, (n, 2) to (n,)."""
    when = np.searchsorted(ends, labels[:, 0], side="left")
    within = np.where(labels[:, 1] == 1, when, len(ends) + when)
    return np.where(when == len(ends), 2 * len(ends), within).astype(np.int64)


def coarse_counts(
    plan: Plan,
    predictions: Mapping[str, Floats],
    labels: Mapping[str, NDArray[np.float64]],
    grid: CoarseGrid | None = None,
) -> Floats:
    """Count test patients by score bin and outcome.

    Args:
        predictions: as `losses.predict` gives them: probabilities (n, classes), or survival at the end of each interval
            (n, intervals).
        labels: (n,) class index, -1 if missing; or (n, 2) days and event, NaN if missing. A patient without a label is not
            counted.
        grid: bins of the scores.

    Returns:
        (coarse_size,) float64 integers: tasks as in `plan.task_names`, then scored columns, then bins by ascending score, then
        `CoarseGrid.states`.

    Guarantees:
        - Counts of disjoint sets of patients add up to the counts of their union.
        - One patient with all labels changes the vector by one in each of `coarse_entries` cells, whoever he is: a Euclidean
          length of exactly sqrt(coarse_entries). A label that is missing makes it less.
        - The order of the patients does not matter.

    Raises:
        DataError: a prediction is not a probability.
        LocalProtocolError: shapes do not fit the task.
    """
    grid = grid or fixed_grid(plan)
    parts = []
    for name in plan.task_names:
        task = plan.tasks[name]
        prediction = np.asarray(predictions[name], dtype=np.float64)
        label = np.asarray(labels[name], dtype=np.float64)
        survival = isinstance(task, SurvivalTask)
        width = task.intervals if isinstance(task, SurvivalTask) else len(task.classes)
        check_rows(prediction, label, width, (2,) if survival else ())
        known = ~np.isnan(label).any(axis=1) if survival else label >= 0
        prediction, label = prediction[known], label[known]
        for column, score in enumerate(_scores(task, prediction).T):
            if isinstance(task, SurvivalTask):
                state = _state(grid.days[name], label)
            else:
                state = (label == (column if columns(task) > 1 else 1)).astype(np.int64)
            edges = grid.edges[name][column]
            place = np.searchsorted(edges, score, side="left") * grid.states(name) + state
            parts.append(np.bincount(place, minlength=(len(edges) + 1) * grid.states(name)))
    return np.concatenate(parts).astype(np.float64)


def column_tables(plan: Plan, counts: Floats, grid: CoarseGrid | None = None) -> Iterator[tuple[str, int, Floats]]:
    """Cut a vector of (noised) counts into (task, scored column, table of (bins, states)).

    Raises:
        LocalProtocolError: a wrong length, or a number that is not finite.
    """
    grid = grid or fixed_grid(plan)
    size = coarse_size(plan, grid)
    if counts.shape != (size,) or not np.isfinite(counts).all():
        raise LocalProtocolError(f"column_tables: expected {size} finite numbers, got shape {counts.shape}")
    start = 0
    for name in plan.task_names:
        for column, edges in enumerate(grid.edges[name]):
            shape = (len(edges) + 1, grid.states(name))
            yield name, column, counts[start : start + math.prod(shape)].reshape(shape)
            start += math.prod(shape)
