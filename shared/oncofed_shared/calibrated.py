"""How sure a prediction is, calibrated on patients the model has not learned from; from their tables of counts alone.

    sets    classifications: the classes that a patient may have, so that the true one is among them for at least 90 % of new
            patients (split conformal prediction: Vovk, Gammerman & Shafer 2005; Sadinle, Lei & Wasserman 2019, without labels).
            The promise is over patients like those of the tables, drawn anew with them, and for all classes together.
    bands   two classes, and survival at the horizon: what a predicted risk has meant, as the observed risk in groups of similar
            predictions with a 95 % interval (Wilson 1927; with censoring Rothman 1978, by the effective number of patients).

A band's interval holds the mean risk of the patients in its group; it is no statement about a single one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from oncofed_shared.classification_metrics import ClassificationTables
from oncofed_shared.competing_metrics import CAUSE, CENSORED, OTHER, CompetingTables, aalen_johansen
from oncofed_shared.count_tables import Floats, ratio, score_grid
from oncofed_shared.count_tables import quantile_groups as groups_of
from oncofed_shared.plan import ClassificationTask, Evaluation, SurvivalTask
from oncofed_shared.survival_metrics import SurvivalTables

__all__ = ["BAND_LEVEL", "SET_LEVEL", "Band", "Sets", "band_of", "bands", "coverage", "sets", "threshold", "wilson"]

SET_LEVEL, BAND_LEVEL = 0.90, 0.95
GROUPS = 5
_SLACK = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """What predictions between `low` and `high` have meant.

    Attributes:
        low, high: range of predicted risk, from bin edge to bin edge.
        predicted, observed: mean predicted risk; share observed, or estimated under censoring.
        interval: of the observed risk.
        patients: behind it.
    """

    low: float
    high: float
    predicted: float
    observed: float
    interval: tuple[float, float]
    patients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sets:
    """How prediction sets did on patients of a table.

    Attributes:
        covered: share whose true class was in their set.
        size: mean number of classes in a set; an empty set counts 0 here.
    """

    covered: float
    size: float


def _true_bins(task: ClassificationTask, evaluation: Evaluation, vector: Floats) -> Floats:
    """(bins,) patients by the bin of the probability that the model gave their true class."""
    scores = ClassificationTables.parse(task, evaluation, vector).scores
    if len(task.classes) > 2:
        return np.asarray(scores[:, :, 1].sum(axis=0), dtype=np.float64)
    # Only the second class is scored; the grid is symmetric, so that the first one's probability is in the mirrored bin.
    return np.asarray(scores[0, :, 1] + scores[0, ::-1, 0], dtype=np.float64)


def threshold(
    task: ClassificationTask, evaluation: Evaluation, vector: Floats, level: float = SET_LEVEL
) -> float | None:
    """The probability from which on a class belongs to a patient's set.

    Args:
        vector: a sum of tallies over patients from whom the model has not learned.

    Returns:
        A lower end of a score bin; 0, so that every class belongs, where there are too few patients for the level; None without
        any.

    Guarantees:
        - For a new patient exchangeable with these the true class is in the set with probability `level` or more.
    """
    counts = _true_bins(task, evaluation, vector)
    patients = int(counts.sum())
    if not patients:
        return None
    # The r-th smallest of n: a new patient is below it with a probability of at most r / (n + 1).
    rank = math.floor((1 - level) * (patients + 1) + _SLACK)
    if rank < 1:
        return 0.0
    place = int(np.searchsorted(np.cumsum(counts), rank, side="left"))
    return float(score_grid(evaluation.score_bins).low[place])


def sets(task: ClassificationTask, probabilities: Floats, at: float) -> NDArray[np.bool_]:
    """Which classes belong to each patient's set, (n, classes).

    Ordered classes have no gaps in their set, and nobody's set is empty: where no class reaches the threshold it is the likeliest
    one. Both can only add classes.
    """
    chosen = np.asarray(probabilities >= at - _SLACK)
    chosen[np.arange(len(chosen)), probabilities.argmax(axis=1)] |= ~chosen.any(axis=1)
    if task.ordered:
        chosen = np.logical_or.accumulate(chosen, axis=1) & np.logical_or.accumulate(chosen[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(chosen, dtype=np.bool_)


def coverage(task: ClassificationTask, evaluation: Evaluation, vector: Floats, at: float) -> Sets | None:
    """How sets with a threshold did on other patients' table, before gaps and empty sets are filled; None without patients."""
    counts, low = _true_bins(task, evaluation, vector), score_grid(evaluation.score_bins).low
    if not counts.sum():
        return None
    inside = low >= at - _SLACK
    scores = ClassificationTables.parse(task, evaluation, vector).scores.sum(axis=2)
    each = scores.sum(axis=0) if len(task.classes) > 2 else scores[0] + scores[0, ::-1]
    return Sets(covered=float(counts[inside].sum() / counts.sum()), size=float(each[inside].sum() / counts.sum()))


def wilson(share: float, patients: float, level: float = BAND_LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share among `patients`, which need not be whole."""
    z = float(norm.ppf((1 + level) / 2))
    middle = (share + z * z / (2 * patients)) / (1 + z * z / patients)
    half = z * math.sqrt(share * (1 - share) / patients + z * z / (4 * patients**2)) / (1 + z * z / patients)
    return max(0.0, middle - half), min(1.0, middle + half)


def _effective(planes: Floats, incidence: float, early: int) -> float:
    """How many patients without censoring would tell as much of an incidence, from (times, 3) counts.

    By the estimate's variance (Marubini & Valsecchi 1995, eq. 10.12); where that is 0, those who were followed to the horizon or
    had something before.
    """
    everyone = planes.sum(axis=1)
    at_risk = np.flip(np.cumsum(np.flip(everyone)))[:early]
    cause, other = planes[:early, CAUSE], planes[:early, OTHER]
    gone = cause + other
    curve = aalen_johansen(planes)[:early]
    free = np.cumprod(1 - np.nan_to_num(ratio(gone, at_risk)))
    before = np.concatenate([[1.0], free[:-1]])
    left = incidence - curve
    variance = np.nan_to_num(left**2 * ratio(gone, at_risk * (at_risk - gone)))
    variance += np.nan_to_num(before**2 * ratio(cause * (at_risk - cause), at_risk**3))
    variance -= np.nan_to_num(2 * left * before * ratio(cause, at_risk**2))
    spread = incidence * (1 - incidence)
    total = float(variance.sum())
    known = float(everyone.sum() - planes[:early, CENSORED].sum())
    most = float(everyone.sum())
    return min(spread / total, most) if total > 0 and spread > 0 else max(known, 1.0)


def bands(
    task: ClassificationTask | SurvivalTask, evaluation: Evaluation, vector: Floats, level: float = BAND_LEVEL
) -> list[Band]:
    """Bands of predicted risk, ascending: of the second of two classes, of an event, or of the first cause, by the horizon.

    Returns:
        Up to five, each with `evaluation.minimum_shown` patients or more; none for more than two classes.
    """
    grid = score_grid(evaluation.score_bins)
    if isinstance(task, ClassificationTask):
        if len(task.classes) > 2:
            return []
        table = ClassificationTables.parse(task, evaluation, vector).scores[0]
        counts = table.sum(axis=1)

        def judged(members: NDArray[np.intp]) -> tuple[float, float]:
            number = float(counts[members].sum())
            return float(table[members, 1].sum()) / number, number
    else:
        planes, days = _planes(task, evaluation, vector)
        counts, early = planes.sum(axis=(1, 2)), int(np.searchsorted(days, task.horizon, side="right"))

        def judged(members: NDArray[np.intp]) -> tuple[float, float]:
            group = planes[members].sum(axis=0)
            incidence = float(aalen_johansen(group)[early - 1])
            return incidence, _effective(group, incidence, early)

    made = []
    for members in groups_of(counts, GROUPS, evaluation.minimum_shown):
        observed, number = judged(members)
        made.append(
            Band(
                low=float(grid.low[members[0]]),
                high=float(grid.high[members[-1]]),
                predicted=float(np.average(grid.centre[members], weights=counts[members])),
                observed=observed,
                interval=wilson(observed, number, level),
                patients=int(counts[members].sum()),
            )
        )
    return made


def _planes(task: SurvivalTask, evaluation: Evaluation, vector: Floats) -> tuple[Floats, Floats]:
    """(scores, times, 3) counts of censorings, the first cause and others; and upper ends of the time bins."""
    if task.causes:
        competing = CompetingTables.parse(task, evaluation, vector)
        return competing.counts[0], competing.days
    plain = SurvivalTables.parse(task, evaluation, vector)
    return np.stack([plain.censored, plain.events, np.zeros_like(plain.events)], axis=2), plain.days


def band_of(risks: Floats, found: Sequence[dict[str, Any]]) -> NDArray[np.int64]:
    """Place of each risk's band, (n,); a risk outside all of them belongs to the nearest."""
    ends = np.array([band["high"] for band in found[:-1]])
    return np.searchsorted(ends, risks, side="left").astype(np.int64)
