"""Tables of competing risks: equal to numbers worked out patient by patient, to scikit-survival, and to plain survival."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, mean_absolute_error
from sksurv.nonparametric import cumulative_incidence_competing_risks

from oncofed_shared.competing_metrics import CAUSE, aalen_johansen
from oncofed_shared.count_tables import score_grid
from oncofed_shared.errors import LocalProtocolError, RemoteProtocolError
from oncofed_shared.metrics import compute, counts, figures, interval, metric_names, table_size, tally, time_bins
from oncofed_shared.plan import ClassificationTask, Evaluation, SurvivalTask

EDGES = (0.0, 40.0, 80.0, 120.0)
ONE = {"kind": "survival", "time": "t", "event": "e", "edges": EDGES, "horizon": 80.0}
RISKS = SurvivalTask.model_validate({**ONE, "causes": ("relapse", "death")})
PLAIN = SurvivalTask.model_validate(ONE)
DAILY = Evaluation(score_bins=64, days_per_bin=1.0, minimum_shown=1)
Values = np.ndarray[Any, Any]


def cohort(n: int, seed: int, horizon_known: bool = True) -> tuple[Values, Values]:
    """Incidences and labels; days are whole, so that a bin of a day holds no order."""
    rng = np.random.default_rng(seed)
    labels = np.column_stack([rng.integers(1, 150, n), rng.integers(0, 3, n)]).astype(float)
    if horizon_known:
        labels[:3] = [[140, 0], [130, 0], [120, 0]]
    each = np.cumsum(rng.dirichlet(np.ones(7), n)[:, :6].reshape(n, 2, 3), axis=2)
    return each.reshape(n, 6), labels


def truncated(labels: Values) -> Values:
    late = labels[:, 0] > EDGES[-1]
    return np.where(late[:, None], [EDGES[-1] + 1, 0.0], labels)


def brute_c(score: Values, labels: Values, cause: int) -> float:
    """Wolbers et al. 2009: pair by pair."""
    won = every = 0.0
    for i, (ti, ci) in enumerate(labels):
        for j, (tj, cj) in enumerate(labels):
            if i == j or ci != cause:
                continue
            if not (tj > ti or (tj == ti and cj == 0) or (cj not in {0, cause} and tj <= ti)):
                continue
            every += 1
            won += 1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0
    return won / every


def brute_brier(score: Values, labels: Values, cause: int, horizon: float) -> float:
    """Schoop et al. 2011, with the censoring distribution day by day."""

    def free(until: float) -> float:
        made = 1.0
        for day in range(1, int(until) + 1):
            at_risk = np.count_nonzero((labels[:, 0] > day) | ((labels[:, 0] == day) & (labels[:, 1] == 0)))
            gone = np.count_nonzero((labels[:, 0] == day) & (labels[:, 1] == 0))
            made *= 1 - gone / at_risk if at_risk else 1.0
        return made

    total = 0.0
    for f, (t, c) in zip(score, labels, strict=True):
        if t > horizon:
            total += f**2 / free(horizon)
        elif c > 0:
            total += ((1 - f) if c == cause else f) ** 2 / free(t)
    return total / len(score)


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_those_of_the_patients_themselves(seed: int) -> None:
    prediction, labels = cohort(60, seed)
    got = compute(RISKS, DAILY, tally(RISKS, DAILY, prediction, labels))
    grid = score_grid(DAILY.score_bins)
    for index, behind in enumerate(("", ".death")):
        score = grid.centre[grid.bins(prediction[:, index * 3 + 1])]
        known = truncated(labels)
        assert got[f"c_index{behind}"] == pytest.approx(brute_c(score, known, index + 1), abs=1e-12)
        assert got[f"brier{behind}"] == pytest.approx(brute_brier(score, known, index + 1, 80.0), abs=1e-12)
    assert tuple(got) == metric_names(RISKS)


@pytest.mark.parametrize("seed", range(3))
def test_incidence_equals_scikit_survivals(seed: int) -> None:
    _, labels = cohort(80, seed)
    days = np.arange(1, 151)
    planes = np.zeros((150, 3))
    for t, c in labels.astype(int):
        planes[t - 1, c] += 1
    times, expected = cumulative_incidence_competing_risks(labels[:, 1].astype(int), labels[:, 0])
    ours = aalen_johansen(planes)
    assert np.allclose(ours[np.searchsorted(days, times)], expected[CAUSE])


def test_without_another_cause_it_is_plain_survival() -> None:
    prediction, labels = cohort(70, 5)
    labels[:, 1] = labels[:, 1] > 0
    plain = compute(PLAIN, DAILY, tally(PLAIN, DAILY, 1 - prediction[:, :3], labels))
    got = compute(RISKS, DAILY, tally(RISKS, DAILY, prediction, labels))
    assert plain["c_index"] is not None
    assert got["c_index"] == pytest.approx(plain["c_index"], abs=1e-9)
    assert got["brier"] == pytest.approx(plain["brier"], abs=1e-9)
    assert got["c_index.death"] is None


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(0, 40))
@settings(max_examples=40)
def test_tallies_add_up_and_the_order_does_not_matter(seed: int, n: int, cut: int) -> None:
    prediction, labels = cohort(n, seed, horizon_known=False)
    labels[seed % n] = np.nan
    whole = tally(RISKS, DAILY, prediction, labels)
    order = np.random.default_rng(seed).permutation(n)
    first, rest = order[:cut], order[cut:]
    parts = tally(RISKS, DAILY, prediction[first], labels[first]) + tally(RISKS, DAILY, prediction[rest], labels[rest])
    assert np.array_equal(whole, parts)
    assert len(whole) == table_size(RISKS, DAILY) == 2 * 64 * len(time_bins(RISKS, DAILY)) * 3
    known = truncated(labels[~np.isnan(labels[:, 0])])
    rarest = min(np.count_nonzero(known[:, 1] == c) for c in (1, 2))
    assert counts(RISKS, DAILY, whole) == (n - 1, rarest)


def test_figures_are_of_the_first_cause() -> None:
    prediction, labels = cohort(200, 2)
    made = figures(RISKS, DAILY, tally(RISKS, DAILY, prediction, labels))
    assert made["cause"] == "relapse"
    assert set(made["incidence"]) == {"low", "middle", "high"}
    for curve in made["incidence"].values():
        assert curve[0] == [0.0, 0.0]
        assert np.all(np.diff(np.array(curve), axis=0) >= 0)
        assert curve[-1][1] <= 1
    assert sum(patients for _, _, patients in made["calibration"]) == 200


def test_intervals_hold_the_number_and_narrow_with_patients() -> None:
    wide, narrow = (interval(RISKS, DAILY, tally(RISKS, DAILY, *cohort(n, 9)), draws=200, seed=1) for n in (40, 600))
    for name in metric_names(RISKS):
        few, many = wide[name], narrow[name]
        assert few is not None
        assert many is not None
        assert few[1] - few[0] > 1.5 * (many[1] - many[0])


def test_intervals_are_as_wide_as_resampled_patients_make_them() -> None:
    prediction, labels = cohort(150, 4)
    rng = np.random.default_rng(0)
    drawn = [
        compute(RISKS, DAILY, tally(RISKS, DAILY, prediction[rows], labels[rows]))["c_index"]
        for rows in rng.integers(0, 150, (300, 150))
    ]
    low, high = np.quantile(np.array(drawn, dtype=float), [0.025, 0.975])
    ours = interval(RISKS, DAILY, tally(RISKS, DAILY, prediction, labels), draws=1000, seed=0)["c_index"]
    assert ours is not None
    assert ours[1] - ours[0] == pytest.approx(high - low, rel=0.25)


@pytest.mark.parametrize("what", ["patients", "times"])
def test_tables_that_count_different_patients_are_refused(what: str) -> None:
    vector = tally(RISKS, DAILY, *cohort(30, 1))
    shaped = vector.reshape(2, 64, -1, 3)
    if what == "patients":
        shaped[1, 0, 0, 0] += 1
    else:
        score, time = (int(p[0]) for p in np.nonzero(shaped[1, :, :, 0]))
        shaped[1, score, time, 0] -= 1
        shaped[1, score, (time + 1) % shaped.shape[2], 0] += 1
    with pytest.raises(RemoteProtocolError, match="different patients"):
        compute(RISKS, DAILY, vector)


def test_a_cause_that_the_task_has_not_is_refused() -> None:
    prediction, labels = cohort(5, 0)
    labels[0, 1] = 3
    with pytest.raises(LocalProtocolError, match="none of the task's causes"):
        tally(RISKS, DAILY, prediction, labels)


@given(st.integers(0, 10_000))
@settings(max_examples=40)
def test_ordered_metrics_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    task = ClassificationTask(kind="classification", label="s", classes=("I", "II", "III", "IV"), ordered=True)
    labels, prediction = rng.integers(0, 4, 50), rng.dirichlet(np.ones(4), 50)
    got = compute(task, DAILY, tally(task, DAILY, prediction, labels))
    guess = prediction.argmax(axis=1)
    assert tuple(got) == metric_names(task)
    assert got["class_distance"] == pytest.approx(mean_absolute_error(labels, guess))
    assert got["kappa"] == pytest.approx(cohen_kappa_score(labels, guess, weights="quadratic"))
    drawn = interval(task, DAILY, tally(task, DAILY, prediction, labels), draws=50, seed=0)
    assert drawn["kappa"] is not None
