"""Survival metrics from one table of counts: risk score x follow-up x event.

Score: risk at the horizon, 1 - S(horizon | x), on the public score grid. Follow-up: bins [0, w],
(w, 2w], .., up to the last edge of the task, and one last bin for everybody followed for longer,
who is censored at the last edge (administrative censoring; `truncate` does the same to labels). The
horizon is a boundary of bins: it is added where it is no multiple of w. So there are
ceil(last edge / w) + 1 bins, or one more.

Conventions:
    c_index: Harrell et al. 1982 (JAMA 247:2543). A pair is comparable if the one has an event
        before the other's follow-up ends; a tie in the score counts one half. Within a bin events
        come before censorings, as Harrell has it for equal times; two events in one bin are not
        ordered and are left out.
    brier: Graf et al. 1999 (Stat Med 18:2529). With G the Kaplan-Meier estimate of the censoring
        distribution in this very table (events before censorings within a bin), the mean over
        patients of S^2 / G(t) for an event at t <= horizon, (1 - S)^2 / G(horizon) for
        t > horizon, 0 otherwise. S is 1 minus the centre of the score bin, G is read at the end of
        the time bin. `brier_score` of scikit-survival is the same. Not defined if G(horizon) = 0.
    Kaplan-Meier curves: events before censorings within a bin; a step is drawn at its bin's end.
"""

from __future__ import annotations

import math
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
from oncofed_shared.curves import CALIBRATION_GROUPS, kaplan_meier, kaplan_meier_steps
from oncofed_shared.errors import LocalProtocolError
from oncofed_shared.plan import Evaluation, SurvivalTask

__all__ = ["SurvivalTables", "time_bins", "truncate"]

_TERTILES = ("low", "middle", "high")
_SLIVER = 1e-9


def time_bins(task: SurvivalTask, evaluation: Evaluation) -> Floats:
    """Upper ends of the follow-up bins in days, ascending; the last is infinite."""
    width, last = evaluation.days_per_bin, task.edges[-1]
    number = math.ceil(last / width)
    check_limit(number * evaluation.score_bins * 2)
    fixed = np.array([task.horizon, last])
    steps = width * np.arange(1, number + 1)
    # A multiple of w that equals one of these but for rounding would make an empty bin.
    apart = np.abs(steps[:, None] - fixed).min(axis=1) > _SLIVER * width
    return np.unique(np.concatenate([steps[apart & (steps < last)], fixed, [np.inf]]))


def truncate(task: SurvivalTask, labels: Floats) -> Floats:
    """Censor at the task's last edge, (patients, 2) to the same: what the metrics judge."""
    last = task.edges[-1]
    late = labels[:, 0] > last
    return np.where(late[:, None], [last, 0.0], labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalTables:
    """The table of one survival task, as two planes, which may have the same leading batch axes.

    Attributes:
        horizon: day at which risk is read.
        days: (times,) upper ends of the time bins.
        risk: (3, scores) lower end, centre, upper end of the score bins.
        events: (..., scores, times) patients with an event.
        censored: (..., scores, times) patients without.
    """

    horizon: float
    days: Floats
    risk: Floats
    events: Floats
    censored: Floats

    @classmethod
    def size(cls, task: SurvivalTask, evaluation: Evaluation) -> int:
        """Length of the flat vector: (scores, times, censored or event)."""
        return check_limit(evaluation.score_bins * len(time_bins(task, evaluation)) * 2)

    @classmethod
    def tally(cls, task: SurvivalTask, evaluation: Evaluation, prediction: Floats, labels: NDArray[Any]) -> Floats:
        """Count patients with a label into a flat vector; see `metrics.tally`."""
        check_rows(prediction, labels, task.intervals, (2,))
        known = ~np.isnan(labels).any(axis=1)
        time, event = truncate(task, labels[known]).T
        if not np.all((time >= 0) & ((event == 0) | (event == 1))):
            raise LocalProtocolError("tally: a follow-up is negative, or an event neither 0 nor 1")
        column = task.edges.index(task.horizon) - 1
        survival = check_probabilities(prediction[known])[:, column]
        days = time_bins(task, evaluation)
        # Truncated times that were later than the last edge go to the last bin.
        when = np.searchsorted(days, labels[known][:, 0], side="left")
        score = score_grid(evaluation.score_bins).bins(1.0 - survival)
        table = np.zeros((evaluation.score_bins, len(days), 2))
        np.add.at(table, (score, when, event.astype(np.int64)), 1)
        return table.ravel()

    @classmethod
    def parse(cls, task: SurvivalTask, evaluation: Evaluation, vector: Floats) -> Self:
        """Read a sum of tallies; see `count_tables.check_length` for what is refused."""
        days = time_bins(task, evaluation)
        grid = score_grid(evaluation.score_bins)
        table = check_length(vector, cls.size(task, evaluation)).reshape(-1, len(days), 2)
        return cls(
            horizon=task.horizon,
            days=days,
            risk=np.stack([grid.low, grid.centre, grid.high]),
            events=table[..., 1],
            censored=table[..., 0],
        )

    @property
    def patients(self) -> int:
        """Patients counted."""
        return int((self.events + self.censored).sum())

    @property
    def rarest(self) -> int:
        """Events up to the last edge."""
        return int(self.events.sum())

    def metrics(self) -> dict[str, Floats]:
        """Every metric with the batch's shape; NaN where it is not defined."""
        concordant, tied, comparable = _pairs(self.events, self._followed() + self.censored)
        return {"c_index": ratio(concordant + 0.5 * tied, comparable), "brier": self._brier()}

    def _followed(self) -> Floats:
        """Patients by score whose follow-up ends in a later bin, (..., scores, times)."""
        everyone = self.events + self.censored
        return np.flip(np.cumsum(np.flip(everyone, -1), axis=-1), -1) - everyone

    def _early(self) -> int:
        """Number of time bins up to the horizon."""
        return int(np.searchsorted(self.days, self.horizon, side="right"))

    def _brier(self) -> Floats:
        early = self._early()
        risk = self.risk[1]
        steps, _ = self._censoring()
        survived = (self.events + self.censored)[..., early:].sum(axis=-1) @ risk**2
        failed = np.einsum("...st,s->...t", self.events[..., :early], (1 - risk) ** 2)
        total = ratio(failed, steps).sum(axis=-1) + ratio(survived, steps[..., -1])
        return ratio(total, (self.events + self.censored).sum(axis=(-1, -2)))

    def _censoring(self) -> tuple[Floats, Floats]:
        """Kaplan-Meier of the censoring at the end of each bin to the horizon, (..., early).

        Returns:
            With all events of a bin before its censorings, and with all censorings first. Whatever
            the order within the bins was, the estimate from exact times lies between: k censorings
            among n at risk make a factor of 1 - k/n, and n is smallest when the events are gone.
        """
        early = self._early()
        events, censored = self.events.sum(axis=-2), self.censored.sum(axis=-2)
        everyone = events + censored
        at_risk = np.flip(np.cumsum(np.flip(everyone, -1), axis=-1), -1)
        low = ratio(at_risk - everyone, at_risk - events)[..., :early]
        high = ratio(at_risk - censored, at_risk)[..., :early]
        # Nobody left: nothing changes.
        return _product(low), _product(high)

    def binning_error(self) -> dict[str, float]:
        """Bounds: see `metrics.binning_error`."""
        error = {}
        for name, value in self.metrics().items():
            if not np.isnan(value):
                low, high = self._c_index_range() if name == "c_index" else self._brier_range()
                error[name] = max(high - float(value), float(value) - low, 0.0)
        return error

    def _c_index_range(self) -> tuple[float, float]:
        """Lowest and highest value that patients with this table can have."""
        events = self.events.sum(axis=-2)
        unordered = (events * (events - 1) / 2).sum()
        won, tied, apart = _pairs(self.events, self._followed())
        won_within, tied_within, within = _pairs(self.events, self.censored)
        lost_within = within - won_within - tied_within
        # At best ties are won, and so is every pair that exact times may add; none within is lost.
        added = unordered + won_within + tied_within
        high = ratio(won + tied + added, apart + added)
        added = unordered + lost_within + tied_within
        low = ratio(won, apart + added)
        # Without a denominator all pairs agree, and the range is a point.
        return float(np.nan_to_num(low, nan=1.0)), float(np.nan_to_num(high, nan=0.0))

    def _brier_range(self) -> tuple[float, float]:
        """Lowest and highest value that patients with this table can have."""
        early = self._early()
        least, _, most = self.risk
        last, first = self._censoring()
        before = np.r_[1.0, first[:-1]]
        failed = self.events[:, :early].T
        survived = (self.events + self.censored)[:, early:].sum(axis=-1)
        high = (failed @ (1 - least) ** 2 / last).sum() + survived @ most**2 / last[-1]
        low = (failed @ (1 - most) ** 2 / before).sum() + survived @ least**2 / first[-1]
        return float(low / self.patients), float(high / self.patients)

    def figures(self, minimum: int) -> dict[str, Any]:
        """Calibration at the horizon, and curves by tertile of risk; see `metrics.figures`."""
        counts = (self.events + self.censored).sum(axis=-1)
        calibration = []
        for members in quantile_groups(counts, CALIBRATION_GROUPS, minimum):
            patients = counts[members].sum()
            predicted = self.risk[1][members] @ counts[members] / patients
            survival = kaplan_meier(*self._group(members))[self._early() - 1]
            calibration.append([float(predicted), float(1 - survival), int(patients)])
        curves = {}
        tertile = quantile_index(counts, len(_TERTILES))
        for index, name in enumerate(_TERTILES):
            members = np.flatnonzero((tertile == index) & (counts > 0))
            if counts[members].sum() >= max(minimum, 1):
                curves[name] = kaplan_meier_steps(self.days, *self._group(members))
        figures: dict[str, Any] = {"calibration": calibration} if calibration else {}
        return figures | ({"km": curves} if curves else {})

    def _group(self, members: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Events and censorings, (times,) each, of the patients in some score bins."""
        return self.events[members].sum(axis=0), self.censored[members].sum(axis=0)

    def cells(self) -> Cells:
        """Patients by (score, time, event), without the rows and columns that are empty."""
        everyone = self.events + self.censored
        rows = np.flatnonzero(everyone.any(axis=1))
        columns = np.flatnonzero(everyone.any(axis=0) | (self.days == self.horizon))
        grid = np.ix_(rows, columns)
        small = replace(
            self,
            days=self.days[columns],
            risk=self.risk[:, rows],
            events=self.events[grid],
            censored=self.censored[grid],
        )
        planes = np.stack([small.events, small.censored]).astype(np.int64)
        occupied = np.flatnonzero(planes)
        return Cells(
            counts=planes.ravel()[occupied],
            size=planes.size,
            build=_Builder(tables=small, occupied=occupied),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Builder:
    """Turns resampled counts into tables.

    Attributes:
        tables: what was observed.
        occupied: (cells,) flat index of each cell in (events or censored, scores, times).
    """

    tables: SurvivalTables
    occupied: NDArray[np.intp]

    def __call__(self, weights: Integers) -> SurvivalTables:
        """Tables of (draws, cells) weights."""
        shape = self.tables.events.shape
        planes = np.zeros((len(weights), 2 * shape[0] * shape[1]))
        planes[:, self.occupied] = weights
        events, censored = np.moveaxis(planes.reshape(-1, 2, *shape), 1, 0)
        return replace(self.tables, events=events, censored=censored)


def _product(factors: Floats) -> Floats:
    """Running product along time, (..., times), where NaN stands for 1."""
    return np.asarray(np.cumprod(np.nan_to_num(factors, nan=1.0), axis=-1), dtype=np.float64)


def _pairs(events: Floats, longer: Floats) -> tuple[Floats, Floats, Floats]:
    """Count pairs of an event and somebody followed for longer.

    Args:
        events: (..., scores, times) patients with an event.
        longer: (..., scores, times) patients to compare with an event at that time,
            by their own score.

    Returns:
        Concordant pairs (the event has the higher score), pairs with equal scores, all pairs;
        each (...).
    """
    below = np.cumsum(longer, axis=-2) - longer
    concordant = np.einsum("...st,...st->...", events, below)
    tied = np.einsum("...st,...st->...", events, longer)
    every = np.einsum("...t,...t->...", events.sum(axis=-2), longer.sum(axis=-2))
    return concordant, tied, every
