"""Metrics of competing risks from a table of counts for each cause: predicted incidence x follow-up x what happened.

Score of a cause: its cumulative incidence at the horizon, on the public score grid. Follow-up: the bins of `survival_metrics`.
What happened: followed to here, the cause, or another cause. Every patient is counted once for each cause.

Conventions, for one cause:
    c_index: Wolbers et al. 2009 (Epidemiology 20:555). Whoever has the cause in a bin should have a higher score than all who are
        followed for longer, are censored in the same bin, or have had another cause by then: those can never have this one. A tie
        in the score counts one half; two patients with the cause in one bin are not ordered. Censoring is not weighed in.
    brier: Schoop et al. 2011 (Biom J 53:88). With G the Kaplan-Meier estimate of the censoring distribution (all causes of a bin
        before its censorings), the mean over patients of (1 - F)^2 / G(t) for the cause at t <= horizon, F^2 / G(t) for another
        cause there, F^2 / G(horizon) for t > horizon, 0 otherwise. F is the centre of the score bin, G is read at the end of the
        time bin. Not defined if G(horizon) = 0.
    calibration and curves: Aalen & Johansen 1978, causes before censorings within a bin.

The first cause's metrics have plain names, the others' have the cause behind a point: `c_index.relapse`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.count_tables import (
    Cells,
    Floats,
    Integers,
    check_length,
    check_limit,
    check_probabilities,
    check_rows,
    quantile_groups,
    quantile_index,
    ratio,
    score_grid,
)
from oncofed_shared.curves import CALIBRATION_GROUPS
from oncofed_shared.errors import LocalProtocolError, RemoteProtocolError
from oncofed_shared.plan import Evaluation, SurvivalTask
from oncofed_shared.survival_metrics import time_bins

__all__ = ["CompetingTables", "aalen_johansen", "cause_metrics"]

_TERTILES = ("low", "middle", "high")
CENSORED, CAUSE, OTHER = 0, 1, 2


def cause_metrics(causes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of all metrics, the first cause's first."""
    return tuple(f"{metric}{_behind(causes, c)}" for c in causes for metric in ("c_index", "brier"))


def _behind(causes: tuple[str, ...], cause: str) -> str:
    return "" if cause == causes[0] else f".{cause}"


def aalen_johansen(planes: Floats) -> Floats:
    """Incidence of the cause at the end of each bin, (..., times) from (..., times, 3) counts."""
    everyone = planes.sum(axis=-1)
    at_risk = np.flip(np.cumsum(np.flip(everyone, -1), axis=-1), -1)
    hazard = np.nan_to_num(ratio(planes[..., CAUSE], at_risk))
    other = np.nan_to_num(ratio(planes[..., OTHER], at_risk))
    free = np.cumprod(1 - hazard - other, axis=-1)
    before = np.concatenate([np.ones_like(free[..., :1]), free[..., :-1]], axis=-1)
    return np.asarray(np.cumsum(before * hazard, axis=-1), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompetingTables:
    """The tables of a task with competing risks; they may have the same leading batch axes.

    Attributes:
        causes: names.
        horizon: day at which the incidence is read.
        days: (times,) upper ends of the time bins.
        risk: (scores,) centre of the score bins.
        counts: (..., causes, scores, times, 3) patients who are censored, have the cause, have another.
    """

    causes: tuple[str, ...]
    horizon: float
    days: Floats
    risk: Floats
    counts: Floats

    @classmethod
    def size(cls, task: SurvivalTask, evaluation: Evaluation) -> int:
        """Length of the flat vector: (causes, scores, times, what happened)."""
        return check_limit(task.number * evaluation.score_bins * len(time_bins(task, evaluation)) * 3)

    @classmethod
    def tally(cls, task: SurvivalTask, evaluation: Evaluation, prediction: Floats, labels: NDArray[Any]) -> Floats:
        """Count patients with a label into a flat vector; see `metrics.tally`."""
        check_rows(prediction, labels, task.number * task.intervals, (2,))
        known = ~np.isnan(labels).any(axis=1)
        time, cause = labels[known].T
        if not np.all((time >= 0) & np.isin(cause, np.arange(task.number + 1))):
            raise LocalProtocolError("tally: a follow-up is negative, or an event is none of the task's causes")
        cause = np.where(time > task.edges[-1], 0, cause).astype(np.int64)
        days = time_bins(task, evaluation)
        when = np.searchsorted(days, time, side="left")
        column = task.edges.index(task.horizon) - 1
        incidences = check_probabilities(prediction[known]).reshape(-1, task.number, task.intervals)[:, :, column]
        scores = score_grid(evaluation.score_bins).bins(incidences)
        table = np.zeros((task.number, evaluation.score_bins, len(days), 3))
        for index in range(task.number):
            what = np.where(cause == 0, CENSORED, np.where(cause == index + 1, CAUSE, OTHER))
            np.add.at(table[index], (scores[:, index], when, what), 1)
        return table.ravel()

    @classmethod
    def parse(cls, task: SurvivalTask, evaluation: Evaluation, vector: Floats) -> Self:
        """Read a sum of tallies; see `count_tables.check_length` for what is refused, and tables of different patients."""
        days = time_bins(task, evaluation)
        flat = check_length(vector, cls.size(task, evaluation))
        counts = flat.reshape(task.number, evaluation.score_bins, len(days), 3)
        when = counts.sum(axis=(1, 3))
        happened = counts[..., CAUSE].sum(axis=1)
        if not (
            (when == when[0]).all() and np.array_equal(happened.sum(axis=0) - happened, counts[..., OTHER].sum(axis=1))
        ):
            raise RemoteProtocolError(
                "the tables of two causes count different patients; reject the sender's metrics", code="bad-table"
            )
        risk = score_grid(evaluation.score_bins).centre
        return cls(causes=task.causes or (), horizon=task.horizon, days=days, risk=risk, counts=counts)

    @property
    def patients(self) -> int:
        """Patients counted."""
        return int(self.counts[0].sum())

    @property
    def rarest(self) -> int:
        """Patients with the rarest of the causes, up to the last edge."""
        return int(self.counts[..., CAUSE].sum(axis=(-1, -2)).min())

    def _early(self) -> int:
        """Number of time bins up to the horizon."""
        return int(np.searchsorted(self.days, self.horizon, side="right"))

    def metrics(self) -> dict[str, Floats]:
        """Every metric with the batch's shape; NaN where it is not defined."""
        made: dict[str, Floats] = {}
        for index, cause in enumerate(self.causes):
            planes = self.counts[..., index, :, :, :]
            behind = _behind(self.causes, cause)
            made |= {f"c_index{behind}": _c_index(planes), f"brier{behind}": self._brier(planes)}
        return made

    def _brier(self, planes: Floats) -> Floats:
        early, risk = self._early(), self.risk
        everyone = planes.sum(axis=(-1, -3))
        at_risk = np.flip(np.cumsum(np.flip(everyone, -1), axis=-1), -1)
        leaving = planes[..., CENSORED].sum(axis=-2)
        staying = 1 - ratio(leaving, at_risk - everyone + leaving)
        free = np.asarray(np.cumprod(np.nan_to_num(staying, nan=1.0), axis=-1), dtype=np.float64)[..., :early]
        late = planes[..., early:, :].sum(axis=(-1, -2)) @ risk**2
        lost: Floats = np.einsum("...st,s->...t", planes[..., :early, CAUSE], (1 - risk) ** 2)
        lost += np.einsum("...st,s->...t", planes[..., :early, OTHER], risk**2)
        total = ratio(lost, free).sum(axis=-1) + ratio(late, free[..., -1])
        return ratio(total, everyone.sum(axis=-1))

    def binning_error(self) -> dict[str, float]:
        """None is given: a patient's other causes would have to be bounded too."""
        return {}

    def figures(self, minimum: int) -> dict[str, Any]:
        """Calibration at the horizon, and curves by tertile of the incidence, of the first cause; see `metrics.figures`."""
        planes = self.counts[0]
        counts = planes.sum(axis=(1, 2))
        calibration = []
        for members in quantile_groups(counts, CALIBRATION_GROUPS, minimum):
            number = counts[members].sum()
            predicted = float(self.risk[members] @ counts[members] / number)
            seen = aalen_johansen(planes[members].sum(axis=0))[self._early() - 1]
            calibration.append([predicted, float(seen), int(number)])
        curves = {}
        tertile = quantile_index(counts, len(_TERTILES))
        for index, name in enumerate(_TERTILES):
            members = np.flatnonzero((tertile == index) & (counts > 0))
            if counts[members].sum() >= max(minimum, 1):
                group = planes[members].sum(axis=0)
                shown = min(int(np.flatnonzero(group.sum(axis=1))[-1]) + 1, len(self.days) - 1)
                steps = zip(self.days[:shown], aalen_johansen(group)[:shown], strict=True)
                curves[name] = [[0.0, 0.0], *([float(day), float(value)] for day, value in steps)]
        figures: dict[str, Any] = {"calibration": calibration} if calibration else {}
        return figures | ({"incidence": curves, "cause": self.causes[0]} if curves else {})

    def cells(self) -> Cells:
        """Patients by (cause, score, time, what happened).

        A patient has a cell in each cause's table, and who is who in the other tables was not counted. So all tables are drawn
        from together: each then has as many patients as it had only on average, which no metric looks at.
        """
        integers = self.counts.astype(np.int64).ravel()
        occupied = np.flatnonzero(integers)
        return Cells(counts=integers[occupied], size=integers.size, build=_Builder(tables=self, occupied=occupied))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Builder:
    """Turns resampled counts into tables.

    Attributes:
        tables: what was observed.
        occupied: (cells,) flat index of each cell in the observed counts.
    """

    tables: CompetingTables
    occupied: NDArray[np.intp]

    def __call__(self, weights: Integers) -> CompetingTables:
        """Tables of (draws, cells) weights."""
        flat = np.zeros((len(weights), self.tables.counts.size))
        flat[:, self.occupied] = weights
        return replace(self.tables, counts=flat.reshape(-1, *self.tables.counts.shape))


def _c_index(planes: Floats) -> Floats:
    """Of (..., scores, times, 3) counts, (...)."""
    everyone = planes.sum(axis=-1)
    later = np.flip(np.cumsum(np.flip(everyone, -1), axis=-1), -1) - everyone
    # Another cause counts from its own bin on: such a patient can never have this one any more.
    longer = later + planes[..., CENSORED] + np.cumsum(planes[..., OTHER], axis=-1)
    events = planes[..., CAUSE]
    below = np.cumsum(longer, axis=-2) - longer
    won = (events * (below + 0.5 * longer)).sum(axis=(-1, -2))
    every = (events.sum(axis=-2) * longer.sum(axis=-2)).sum(axis=-1)
    return ratio(won, every)
