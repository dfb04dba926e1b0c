"""Metrics as tables of counts: sums over patients, then numbers; only sums leave a hospital.

    prediction, labels -> tally (a flat vector per site and task) -> add over sites and folds
      -> compute, figures, interval, binning_error

A tally is additive: the tally of all patients is the sum of the sites' tallies, exactly and in any
order, because every number in it is a count or a multiple of 2^-20. All functions take the vector
of a site, of a subgroup or of a whole consortium alike. Formulas, conventions and their sources:
`classification_metrics`, `survival_metrics`; the score grid: `count_tables`. Survival metrics judge
follow-up up to the task's last edge: see `truncate`.

A number that does not exist is None, never a stand-in: an AUC with one class, a C-index without a
comparable pair.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.classification_metrics import ORDERED_METRICS, ClassificationTables
from oncofed_shared.competing_metrics import CompetingTables, cause_metrics
from oncofed_shared.count_tables import Cells, Floats, Tables
from oncofed_shared.plan import ClassificationTask, Evaluation, SurvivalTask
from oncofed_shared.survival_metrics import SurvivalTables, time_bins, truncate

__all__ = [
    "binning_error",
    "compute",
    "counts",
    "figures",
    "interval",
    "metric_names",
    "table_size",
    "tally",
    "time_bins",
    "truncate",
]

_CHUNK = 200_000
"""Numbers of resampled tables held at once: few enough to stay in a cache."""
_DEFINED = 0.5
"""Share of the draws in which a metric must exist for its interval to be given."""


def metric_names(task: ClassificationTask | SurvivalTask) -> tuple[str, ...]:
    """Names of the metrics of `compute`, in the order of a report."""
    if isinstance(task, ClassificationTask):
        plain = ("auc", "accuracy", "sensitivity", "specificity", "precision", "f1", "brier")
        return plain + (ORDERED_METRICS if task.ordered else ())
    return cause_metrics(task.causes) if task.causes else ("c_index", "brier")


def table_size(task: ClassificationTask | SurvivalTask, evaluation: Evaluation) -> int:
    """Length of the flat vector of a task.

    Raises:
        ConfigError: the plan's grid is so fine that the table is beyond `count_tables.TABLE_LIMIT`.
    """
    if isinstance(task, ClassificationTask):
        return ClassificationTables.size(task, evaluation)
    kind = CompetingTables if task.causes else SurvivalTables
    return kind.size(task, evaluation)


def tally(
    task: ClassificationTask | SurvivalTask,
    evaluation: Evaluation,
    prediction: NDArray[np.float64],
    labels: NDArray[Any],
) -> Floats:
    """Count patients into the task's table.

    Args:
        task: the task.
        evaluation: the grid.
        prediction: (patients, classes) probabilities, or (patients, intervals) survival at every
            edge after 0; of competing risks (patients, causes x intervals) incidences.
        labels: (patients,) class index, -1 if missing; or (patients, 2) time in days and event or
            number of the cause, NaN if missing. A patient without a label is not counted, and his prediction not read.

    Returns:
        (table_size,) float64.

    Guarantees:
        - Tallies of disjoint sets of patients add up to the tally of their union, exactly.
        - The order of the patients does not matter.

    Raises:
        DataError: a prediction is not a probability.
        LocalProtocolError: shapes do not fit the task, or a label is none of the task's.
    """
    if isinstance(task, ClassificationTask):
        return ClassificationTables.tally(task, evaluation, prediction, labels)
    kind = CompetingTables if task.causes else SurvivalTables
    return kind.tally(task, evaluation, prediction, labels)


def compute(task: ClassificationTask | SurvivalTask, evaluation: Evaluation, vector: Floats) -> dict[str, float | None]:
    """Turn a sum of tallies into metrics; None where a metric is not defined.

    Returns:
        Those of `metric_names`.

    Raises:
        RemoteProtocolError: the vector cannot be a sum of tallies. So for all functions below.
    """
    metrics = _parse(task, evaluation, vector).metrics()
    return {name: None if np.isnan(value) else float(value) for name, value in metrics.items()}


def counts(task: ClassificationTask | SurvivalTask, evaluation: Evaluation, vector: Floats) -> tuple[int, int]:
    """What stands behind a number, for the minimum-shown rule.

    Returns:
        Patients; and events up to the last edge (survival), or patients of the rarest class that
        is present (classification; 0 if fewer than two classes are present).
    """
    tables = _parse(task, evaluation, vector)
    return tables.patients, tables.rarest


def binning_error(task: ClassificationTask | SurvivalTask, evaluation: Evaluation, vector: Floats) -> dict[str, float]:
    """Bound |metric of the table - metric of the patients themselves|, where binning touches it.

    The bounds hold for every set of patients that has this table; typical errors are far smaller.

    - auc: a positive and a negative patient in different score bins are ordered as they were; in
      the same bin they count 1/2 instead of 0, 1/2 or 1. So the bound is half the share of such
      pairs; for more classes the mean.
    - c_index: pairs in different time bins as for auc. Within a time bin the exact times may make
      comparable up to all pairs of two events (the table counts none), and need not make
      comparable a pair of an event and a censoring (the table counts all). The bound is the larger
      distance from the table's value to the ends of the range that is left when each of these
      pairs, on its own, falls as badly, or as well, as it can.
    - brier (survival): every S is as low, or as high, as its bin allows, and every weight 1/G as in
      the two extreme orders of events and censorings within the time bins. The horizon is a
      boundary, so who had the event by then is exact.
    - brier (classification): patients' scores are rounded to 2^-20.

    Survival: against patients truncated at the last edge (`truncate`). Of competing risks there is no bound.
    """
    return _parse(task, evaluation, vector).binning_error()


def figures(task: ClassificationTask | SurvivalTask, evaluation: Evaluation, vector: Floats) -> dict[str, Any]:
    """Curves for the report, JSON-ready; a key is absent where its figure does not exist.

    Returns:
        Classification: `roc` [[fpr, tpr], ..] (more than two classes: the mean over the classes
        present), `auc`, `calibration` [[mean predicted, observed share, patients], ..],
        `confusion` [[true][predicted]], `classes`.
        Survival: `calibration` [[mean predicted risk, 1 - Kaplan-Meier at the horizon, patients],
        ..] and `km` {"low" | "middle" | "high": [[days, survival], ..]} by tertile of the
        predicted risk.
        Competing risks: `calibration` against the Aalen-Johansen estimate and `incidence` in place of `km`, of the first
        `cause`.
        Calibration has up to five groups of about equal size, each of `evaluation.minimum_shown`
        patients or more; a smaller tertile is left out.
    """
    return _parse(task, evaluation, vector).figures(evaluation.minimum_shown)


def interval(
    task: ClassificationTask | SurvivalTask,
    evaluation: Evaluation,
    vector: Floats,
    *,
    draws: int,
    seed: int,
    level: float = 0.95,
) -> dict[str, tuple[float, float] | None]:
    """Percentile bootstrap over patients (Efron & Tibshirani 1993, ch. 13), from the table alone.

    To draw patients with replacement is to draw cells from a multinomial with the cells' shares.
    All metrics come from the same resampled tables: see `cells` of the two kinds of tables for how
    a patient is put together again where a task has two tables. The classification brier is
    resampled from bin centres and shifted by the difference between the exact value and theirs.

    Args:
        task: the task.
        evaluation: the grid.
        vector: a sum of tallies.
        draws: resampled tables.
        seed: of the resampling; it protects nobody and may be public.
        level: coverage wanted.

    Returns:
        The interval of every metric of `compute`, widened to contain the metric itself. Draws in
        which a metric is not defined are left out; None where these are half or more, or where the
        metric itself is not defined.
    """
    tables = _parse(task, evaluation, vector)
    point = {name: float(value) for name, value in tables.metrics().items()}
    if not tables.patients:
        return dict.fromkeys(point)
    drawn = _resample(tables.cells(), draws, np.random.default_rng(seed))
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals: dict[str, tuple[float, float] | None] = {}
    for name, value in point.items():
        defined = drawn[name][~np.isnan(drawn[name])]
        if np.isnan(value) or defined.size <= _DEFINED * draws:
            intervals[name] = None
        else:
            low, high = np.quantile(defined, tails)
            intervals[name] = (float(min(low, value)), float(max(high, value)))
    return intervals


def _resample(cells: Cells, draws: int, rng: np.random.Generator) -> dict[str, Floats]:
    """Metrics of `draws` resampled tables, each (draws,)."""
    patients = int(cells.counts.sum())
    share = cells.counts / patients
    step = max(1, _CHUNK // cells.size)
    parts = [
        cells.build(rng.multinomial(patients, share, size=min(step, draws - start))).metrics()
        for start in range(0, draws, step)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _parse(task: ClassificationTask | SurvivalTask, evaluation: Evaluation, vector: Floats) -> Tables:
    if isinstance(task, ClassificationTask):
        return ClassificationTables.parse(task, evaluation, vector)
    if task.causes:
        return CompetingTables.parse(task, evaluation, vector)
    return SurvivalTables.parse(task, evaluation, vector)
