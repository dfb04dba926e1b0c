"""Single features that alone nearly give a label away: usually the label itself under another name.

Only for warnings to the site's own people; nothing here is released.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from oncofed_shared.plan import ClassificationTask, SurvivalTask

__all__ = ["auc", "concordance", "giveaways"]

AUC_LIMIT = 0.97
CONCORDANCE_LIMIT = 0.95
MINIMUM_PATIENTS = 10
"""Fewest patients in and out of a class, with and without an event; below, chance does it."""
SAMPLED = 1000
"""Most patients whose pairs are compared for survival; pairs grow with the square."""

Values = NDArray[np.float64]


def auc(values: Values, positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve from ranks, ties counted half (Mann and Whitney 1947).

    Args:
        values: (n,) scores.
        positive: (n,) class.
    """
    p = int(np.count_nonzero(positive))
    q = len(positive) - p
    ranks = rankdata(values)
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * q))


def _comparable(labels: Values) -> NDArray[np.bool_]:
    """(n, n) whether i had an event while j was known to be free of one (Harrell et al. 1982)."""
    days, event = labels[:, 0], labels[:, 1] > 0
    later = days[:, None] < days[None, :]
    tied = (days[:, None] == days[None, :]) & ~event[None, :]
    return np.asarray(event[:, None] & (later | tied))


def concordance(values: Values, labels: Values) -> float:
    """Harrell's C of a risk score, ties counted half; NaN without a comparable pair.

    Args:
        values: (n,) scores, higher = earlier event.
        labels: (n, 2) days and event; above 0 whatever its cause.
    """
    return _concordance(values, _comparable(labels))


def _concordance(values: Values, comparable: NDArray[np.bool_]) -> float:
    pairs = np.count_nonzero(comparable)
    if not pairs:
        return float("nan")
    higher = np.count_nonzero(comparable & (values[:, None] > values[None, :]))
    equal = np.count_nonzero(comparable & (values[:, None] == values[None, :]))
    return float((higher + 0.5 * equal) / pairs)


def _gives_class(values: Values, labels: NDArray[np.int64], classes: int) -> bool:
    for k in range(1 if classes == 2 else classes):
        inside = labels == k
        n = np.count_nonzero(inside)
        if min(n, len(labels) - n) >= MINIMUM_PATIENTS:
            score = auc(values, inside)
            if max(score, 1 - score) >= AUC_LIMIT:
                return True
    return False


def giveaways(
    task: ClassificationTask | SurvivalTask,
    labels: NDArray[Any],
    columns: Sequence[str],
    values: Values,
) -> tuple[str, ...]:
    """Columns that alone nearly give a label away, in either direction.

    Args:
        task: the task.
        labels: (n,) or (n, 2), as in a cohort.
        columns: names of the features.
        values: (n, columns), NaN = missing.

    Returns:
        Names with an AUC of 0.97 or more against a class with 10 patients on each side, or a
        concordance of 0.95 or more with 10 patients with and 10 without an event; or with the
        mirror image of these.
    """
    if isinstance(task, ClassificationTask):
        rows = np.flatnonzero(labels >= 0)
    else:
        rows = np.flatnonzero(~np.isnan(labels[:, 0]))
        if len(rows) > SAMPLED:
            rows = rows[np.linspace(0, len(rows) - 1, SAMPLED).astype(np.int64)]
        comparable = _comparable(labels[rows])
    labels, block = labels[rows], values[rows]
    found = []
    for name, column in zip(columns, block.T, strict=True):
        seen = ~np.isnan(column)
        if np.unique(column[seen]).size < 2:
            continue
        if isinstance(task, ClassificationTask):
            if _gives_class(column[seen], labels[seen], len(task.classes)):
                found.append(name)
            continue
        events = np.count_nonzero(labels[seen, 1] > 0)
        if min(events, np.count_nonzero(seen) - events) < MINIMUM_PATIENTS:
            continue
        pairs = comparable if seen.all() else comparable[np.ix_(seen, seen)]
        score = _concordance(column[seen], pairs)
        if max(score, 1 - score) >= CONCORDANCE_LIMIT:
            found.append(name)
    return tuple(found)
