"""Scores with intervals from noised coarse tables: `noised_tables` says what is counted, `docs/privacy.md` why so.

Every score is read from the noised counts as they are, negative ones too. A C-index and an AUC are a ratio of two sums over
pairs of patients. Noise of different cells is independent and biases no product of two of them; pairs within one cell are
n(n - 1)/2, and what the noise adds to that is taken off. What is clipped is the end result alone.

Intervals are analytic, by Fieller's method: those theta for which won(counts) - theta x pairs(counts) is within z standard
errors of zero. Its variance by the delta method is the sum over cells of (derivative)^2 x (count + noise variance): a cell's
count is Poisson over samples of patients, and carries the noise. A bootstrap would need a table without negative counts to
draw from, and setting them to zero moves scores towards 1/2. Fieller's interval also says when the noise leaves nothing: then
it is unbounded, and no number is given.

Conventions, where the table has no order: a tie in the score is half won. Of two events in one time bin nobody knows which was
first; such pairs are half won and have a weight of 1/3, because two days within a bin are a third as far apart as those of
neighbouring bins. Of an event and a censoring in one bin the event is first half the time, so the pair has a weight of 1/2. In
an AUC, ties have a weight of 2/3. With fine bins all this vanishes; with the coarse ones the weights keep the mean error near
zero on invented cohorts, where counting ties in full or not at all would not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from oncofed_shared.count_tables import Floats
from oncofed_shared.errors import LocalProtocolError
from oncofed_shared.noised_tables import CoarseGrid, column_tables, fixed_grid
from oncofed_shared.plan import Evaluation, Plan, SurvivalTask

__all__ = ["noised_scores", "noised_totals"]

_DROWNED = "the noise is too large for a number"
_SAME_SCORE = 2 / 3
"""Weight of a pair with equal score bins in an AUC."""
_SAME_TIME = 1 / 3
"""Weight of a pair of events in one time bin in a C-index."""
_QUIET = 2.0
"""A group's number at risk is at least this many standard deviations of its noise, or the group joins its neighbour."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fraction:
    """A ratio of two functions of the counts, with their derivatives by cell."""

    top: float
    below: float
    top_slope: Floats
    below_slope: Floats

    def interval(self, variance: Floats, z: float) -> tuple[float, float] | None:
        """Fieller's interval, or None where it is unbounded; `variance` of each cell."""
        a = float((self.top_slope**2) @ variance) * z * z
        b = float((self.top_slope * self.below_slope) @ variance) * z * z
        c = float((self.below_slope**2) @ variance) * z * z
        square = self.below**2 - c
        if self.below <= 0 or square <= 0:
            return None
        middle = self.top * self.below - b
        root = math.sqrt(max(middle**2 - square * (self.top**2 - a), 0.0))
        return (middle - root) / square, (middle + root) / square


def _pairs(counts: Floats, noise: float, won: Floats, every: Floats) -> _Fraction:
    """Ratio of two sums over ordered pairs of patients.

    Args:
        counts: (cells,).
        noise: standard deviation of each.
        won, every: (cells, cells) weights of a pair; on the diagonal of two patients of one cell.
    """

    def total(weights: Floats) -> tuple[float, Floats]:
        own = np.diagonal(weights)
        # A cell of n has n (n - 1) ordered pairs; the square of a noised count is too large by the noise's variance.
        value = counts @ weights @ counts - own @ counts - own.sum() * noise**2
        return float(value), (weights + weights.T) @ counts - own

    (top, top_slope), (below, below_slope) = total(won), total(every)
    return _Fraction(top=top, below=below, top_slope=top_slope, below_slope=below_slope)


def _half(score: Floats) -> Floats:
    """(cells, cells): 1 where the row's score is higher, 1/2 where the bin is the same."""
    return np.asarray((score[:, None] > score) + 0.5 * (score[:, None] == score), dtype=np.float64)


def _auc(table: Floats, noise: float) -> _Fraction:
    """Mann-Whitney (Hanley & McNeil 1982) from (bins, 2) patients not of and of the class."""
    score, own = np.divmod(np.arange(table.size), 2)
    every = np.asarray((own[:, None] == 1) & (own == 0), dtype=np.float64)
    every[score[:, None] == score] *= _SAME_SCORE
    return _pairs(table.ravel(), noise, every * _half(score), every)


def _c_index(table: Floats, noise: float) -> _Fraction:
    """Harrell's C (1996) from (bins, states): pairs of an event and somebody who was followed for longer."""
    score, state = np.divmod(np.arange(table.size), table.shape[1])
    times = table.shape[1] // 2
    # Events 0..T-1 and censorings T..2T-1 lie in the time bins; the last state, 2T, in the one after them.
    when = np.where(state == 2 * times, times, state % times)
    event, together = state < times, when[:, None] == when
    every = np.asarray(event[:, None] & (when[:, None] < when), dtype=np.float64)
    every[event[:, None] & ~event & together] = 0.5
    # Each of two events is once the row and once the column, so a half for each.
    both = event[:, None] & event & together
    every[both] = _SAME_TIME / 2
    return _pairs(table.ravel(), noise, every * np.where(both, 0.5, _half(score)), every)


def _observed(table: Floats, until: int) -> tuple[float, Floats] | None:
    """Share of patients with the outcome, and its slope by cell, from the (bins, states) of a group.

    Survival: the actuarial estimate (Cutler & Ederer 1958) at the horizon, where who is censored in a bin was at risk for half
    of it; `until` time bins lie before the horizon.
    None where nobody is left at risk.
    """
    wide = table.shape[1]
    counts = table.sum(axis=0)
    if wide == 2:
        total = counts.sum()
        if total <= 0:
            return None
        share = counts[1] / total
        slope = np.array([-share, 1 - share]) / total
        return float(share), np.tile(slope, len(table))
    times, survival, slope = wide // 2, 1.0, np.zeros(wide)
    for t in range(until):
        at_risk = np.zeros(wide)
        at_risk[[*range(t, times), *range(times + t, 2 * times + 1)]] = 1.0
        at_risk[times + t] = 0.5
        number = float(at_risk @ counts)
        left = number - counts[t]
        if number <= 0 or left <= 0:
            return None
        survival *= left / number
        step = at_risk / left - at_risk / number
        step[t] -= 1 / left
        slope = slope + step
    return float(1 - survival), np.tile(-survival * slope, len(table))


def _groups(table: Floats, until: int, noise: float, minimum: int) -> list[slice]:
    """Neighbouring score bins joined until each group's noised total is at least `minimum` and well above its noise."""
    found: list[slice] = []
    start = 0
    for stop in range(1, len(table) + 1):
        group = table[start:stop]
        if group.sum() >= max(minimum, _QUIET * noise * math.sqrt(group.size)) and _observed(group, until) is not None:
            found.append(slice(start, stop))
            start = stop
    if found and start < len(table):
        found[-1] = slice(found[-1].start, len(table))
    return [group for group in found if _observed(table[group], until) is not None]


def _clip(interval: tuple[float, float] | None, low: float = 0.0) -> list[float] | None:
    return None if interval is None else [float(np.clip(end, low, 1.0)) for end in interval]


def _number(fraction: _Fraction, variance: Floats, z: float, low: float = 0.0) -> dict[str, Any]:
    """A score with its interval, or none of both."""
    interval = _clip(fraction.interval(variance, z), low)
    if interval is None:
        return {"value": None, "ci": None, "why": _DROWNED}
    return {"value": float(np.clip(fraction.top / fraction.below, low, 1.0)), "ci": interval, "why": ""}


def _calibration(
    table: Floats, bins: tuple[tuple[float, ...], Floats, Floats], *, until: int, noise: float, minimum: int, z: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Calibration and Brier score of one table; see `noised_scores`."""
    variance = np.maximum(table.ravel(), 0.0) + noise**2
    nothing = {"value": None, "ci": None, "why": _DROWNED}
    groups = _groups(table, until, noise, minimum)
    if not groups:
        return nothing | {"points": []}, dict(nothing)
    everybody, inside = 0.0, np.zeros(table.shape)
    edges, centres, spreads = bins
    points, ends = [], (0.0, *edges, 1.0)
    tops = {"calibration": 0.0, "brier": 0.0}
    slopes = {name: np.zeros(table.shape) for name in tops}
    for group in groups:
        part = table[group]
        found = _observed(part, until)
        if found is None:
            continue
        share, slope = found
        patients = part.sum()
        everybody += float(patients)
        inside[group] = 1.0
        # Bins with a negative noised count would draw the mean out of the group's range.
        weights = np.maximum(part.sum(axis=1), 0.0)
        predicted = float(np.average(centres[group], weights=weights))
        spread = float(np.average(spreads[group] + (centres[group] - predicted) ** 2, weights=weights))
        error = z * math.sqrt(float(slope**2 @ variance.reshape(table.shape)[group].ravel()))
        points.append(
            {
                "predicted": predicted,
                "range": [ends[group.start], ends[group.stop]],
                "observed": float(np.clip(share, 0.0, 1.0)),
                "ci": _clip((share - error, share + error)),
                "patients": round(float(patients)),
            }
        )
        # Each is patients x f(share); the slope has a part by the number of patients and one by the share.
        terms = {
            "calibration": (predicted - share, -1.0),
            # Outcomes are taken to follow the scores within a bin as well as a calibrated model's do.
            "brier": (share * (1 - predicted) ** 2 + (1 - share) * predicted**2 - spread, 1 - 2 * predicted),
        }
        for name, (value, by_share) in terms.items():
            tops[name] += float(patients) * value
            slopes[name][group] += value + patients * by_share * slope.reshape(part.shape)
    made = {
        name: _number(
            _Fraction(top=top, below=everybody, top_slope=slopes[name].ravel(), below_slope=inside.ravel()),
            variance,
            z,
            low=-1.0 if name == "calibration" else 0.0,
        )
        for name, top in tops.items()
    }
    return made["calibration"] | {"points": points}, made["brier"]


def noised_totals(plan: Plan, counts: Floats, grid: CoarseGrid | None = None) -> dict[str, tuple[float, float]]:
    """Per task the noised number of patients, and of events in the time bins or of patients of the rarest class."""
    grid = grid or fixed_grid(plan)
    made: dict[str, tuple[float, float]] = {}
    for name, column, table in column_tables(plan, counts, grid):
        states = table.sum(axis=0)
        if name in grid.days:
            rare = states[: len(grid.days[name])].sum()
        elif len(grid.edges[name]) > 1:
            rare = states[1] if column == 0 else min(states[1], made[name][1])
        else:
            rare = states.min()
        # One table per class counts everybody once each: their mean has less noise.
        before = made[name][0] if column else 0.0
        made[name] = (before + float(states.sum()) / len(grid.edges[name]), float(rare))
    return made


def _withheld(rule: Evaluation, patients: float, rarest: float, *, survival: bool) -> str | None:
    """Why no number is shown, or None; judged by the noised totals, never by a cell."""
    if patients < rule.minimum_shown:
        return f"fewer than {rule.minimum_shown} test patients, as far as the noise tells"
    if rarest < rule.minimum_events:
        rare = "events" if survival else "patients of the rarest class"
        return f"fewer than {rule.minimum_events} {rare}, as far as the noise tells"
    return None


def _mean(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Unweighted mean over classes; ends of intervals too, as if the classes' errors were one: too wide rather than too narrow."""
    if any(part["value"] is None for part in parts):
        return {"value": None, "ci": None, "why": next(part["why"] for part in parts if part["why"])}
    ends = np.mean([part["ci"] for part in parts], axis=0)
    return {"value": float(np.mean([part["value"] for part in parts])), "ci": [float(e) for e in ends], "why": ""}


def noised_scores(
    plan: Plan, counts: Floats, *, noise_std: float, level: float = 0.95, grid: CoarseGrid | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores of test patients from the noised sum of their coarse counts.

    Args:
        counts: (coarse_size,) noised sum of `noised_tables.coarse_counts`; may be negative.
        noise_std: standard deviation of the noise of each cell, in patients.
        level: of the intervals.
        grid: of the counts.

    Returns:
        By task and metric `value`, `ci` and `why`: a reason where the two are None, else empty. Metrics: `c_index`, or `auc` (more
        than two classes: mean of one-vs-rest); but for more than two classes also `brier` (mean squared difference of outcome and
        score) and `calibration`: mean predicted less observed, and in `points` the groups of score bins, each with
        `predicted`, `range` (of its bins), `observed`, `ci`, and `patients` (noised).

    Guarantees:
        - It reads the counts through noised sums alone, so it costs nothing beyond them.
        - Without noise it is the score of the coarse table.
        - Noise biases no sum over pairs.

    Raises:
        LocalProtocolError: counts that are not of this plan and grid, or a standard deviation or level that is none.
    """
    if not (0 <= noise_std < math.inf and 0 < level < 1):
        raise LocalProtocolError("noised_scores: noise_std must be finite and not negative, level between 0 and 1")
    grid = grid or fixed_grid(plan)
    totals, z = noised_totals(plan, counts, grid), float(norm.ppf((1 + level) / 2))
    ranks: dict[str, list[dict[str, Any]]] = {}
    made: dict[str, dict[str, dict[str, Any]]] = {}
    for name, column, table in column_tables(plan, counts, grid):
        task = plan.tasks[name]
        survival = isinstance(task, SurvivalTask)
        variance = np.maximum(table.ravel(), 0.0) + noise_std**2
        fraction = (_c_index if survival else _auc)(table, noise_std)
        ranks.setdefault(name, []).append(_number(fraction, variance, z))
        made[name] = {"c_index" if survival else "auc": _mean(ranks[name])}
        if len(grid.edges[name]) == 1:
            calibration, brier = _calibration(
                table,
                (
                    grid.edges[name][column],
                    np.asarray(grid.centres[name][column]),
                    np.asarray(grid.spreads[name][column]),
                ),
                until=grid.days[name].index(task.horizon) + 1 if isinstance(task, SurvivalTask) else 0,
                noise=noise_std,
                minimum=plan.evaluation.minimum_shown,
                z=z,
            )
            made[name] |= {"brier": brier, "calibration": calibration}
        why = _withheld(plan.evaluation, *totals[name], survival=survival)
        if why is not None:
            made[name] = {metric: {"value": None, "ci": None, "why": why} for metric in made[name]}
    return made
