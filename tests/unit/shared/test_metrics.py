"""Metrics from tables of counts: additive, equal to scikit-learn and scikit-survival, honest."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)
from sksurv.exceptions import NoComparablePairException
from sksurv.metrics import brier_score, concordance_index_censored
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

from oncofed_shared import metrics
from oncofed_shared.classification_metrics import ClassificationTables
from oncofed_shared.count_tables import Tables, score_grid
from oncofed_shared.errors import (
    ConfigError,
    DataError,
    LocalProtocolError,
    RemoteProtocolError,
)
from oncofed_shared.plan import ClassificationTask, Evaluation, SurvivalTask
from oncofed_shared.ring import decode, encode
from oncofed_shared.survival_metrics import SurvivalTables

Floats = NDArray[np.float64]
Task: TypeAlias = ClassificationTask | SurvivalTask

EVALUATION = Evaluation(score_bins=256, days_per_bin=30.0)
COARSE = Evaluation(score_bins=17, days_per_bin=200.0)
SEEDS = st.integers(0, 2**32 - 1)
EXACT = 1e-12


def classification(classes: int) -> ClassificationTask:
    names = tuple("abcdefgh"[:classes])
    return ClassificationTask(kind="classification", label="label", classes=names)


def survival(horizon: float = 1080.0, last: float = 3600.0) -> SurvivalTask:
    edges = tuple(sorted({0.0, 360.0, horizon, last}))
    return SurvivalTask(kind="survival", time="t", event="e", edges=edges, horizon=horizon)


def cohort(task: Task, patients: int, seed: int, *, signal: float = 1.0) -> tuple[Floats, NDArray[Any]]:
    """Patients whose predictions are informative but not calibrated."""
    rng = np.random.default_rng(seed)
    if isinstance(task, ClassificationTask):
        number = len(task.classes)
        labels = rng.integers(number, size=patients)
        logits = rng.normal(size=(patients, number)) * rng.choice([0.3, 1.5, 6.0])
        odds = np.exp(logits + signal * np.eye(number)[labels])
        return odds / odds.sum(axis=1, keepdims=True), labels
    score = rng.normal(size=patients)
    failure = rng.exponential(1500 * np.exp(-signal * score))
    end = rng.uniform(0, 2 * task.edges[-1], patients)
    labels = np.stack([np.minimum(failure, end), failure <= end], axis=1)
    return np.exp(-np.exp(score)[:, None] * np.array(task.edges[1:]) / 2000), labels


def on_grid(task: SurvivalTask, patients: int, seed: int) -> tuple[Floats, Floats]:
    """Patients of `cohort` with times that are ends of bins and risks that are centres of bins."""
    prediction, labels = cohort(task, patients, seed)
    days = metrics.time_bins(task, EVALUATION)[:-1]
    early = labels[:, 0] <= days[-1]
    rounded = days[np.minimum(np.searchsorted(days, labels[:, 0]), len(days) - 1)]
    labels[:, 0] = np.where(early, rounded, 2 * task.edges[-1])
    grid = score_grid(EVALUATION.score_bins)
    return 1 - grid.centre[grid.bins(1 - prediction)], labels


def horizon_column(task: SurvivalTask, prediction: Floats) -> Floats:
    return prediction[:, task.edges.index(task.horizon) - 1]


def judge(task: Task, evaluation: Evaluation, vector: Floats) -> tuple[dict[str, Any], dict[str, float]]:
    return metrics.compute(task, evaluation, vector), metrics.binning_error(task, evaluation, vector)


def exact_c_index(task: SurvivalTask, prediction: Floats, labels: Floats) -> float:
    time, event = metrics.truncate(task, labels).T
    risk = 1 - horizon_column(task, prediction)
    try:
        with np.errstate(invalid="ignore"):
            return float(concordance_index_censored(event == 1, time, risk, tied_tol=0)[0])
    except (NoComparablePairException, ValueError):  # no event
        return float("nan")


def has_exact_brier(task: SurvivalTask, labels: Floats) -> bool:
    """Whether scikit-survival gives a Brier score: an event, and follow-up around the horizon."""
    inside = labels[:, 0].min() <= task.horizon < labels[:, 0].max()
    return bool(inside and labels[:, 1].any())


def exact_brier(task: SurvivalTask, prediction: Floats, labels: Floats) -> float:
    outcome = Surv.from_arrays(labels[:, 1] == 1, labels[:, 0])
    estimate = horizon_column(task, prediction)
    return float(brier_score(outcome, outcome, estimate, task.horizon)[1][0])


TASKS: list[Any] = [classification(2), classification(4), survival(), survival(1000.0)]
IDS = ["two classes", "four classes", "survival", "horizon between bins"]


@pytest.fixture(params=TASKS, ids=IDS)
def task(request: pytest.FixtureRequest) -> Task:
    chosen: Task = request.param
    return chosen


# --- sums ------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(task=st.sampled_from(TASKS), seed=SEEDS, patients=st.integers(0, 80), sites=st.integers(1, 5))
def test_tallies_of_sites_add_up_exactly_in_any_order(task: Task, seed: int, patients: int, sites: int) -> None:
    prediction, labels = cohort(task, patients, seed)
    rng = np.random.default_rng(seed)
    site, order = rng.integers(sites, size=patients), rng.permutation(patients)
    whole = metrics.tally(task, EVALUATION, prediction, labels)
    parts = [metrics.tally(task, EVALUATION, prediction[site == s], labels[site == s]) for s in rng.permutation(sites)]
    assert whole.shape == (metrics.table_size(task, EVALUATION),)
    assert whole.dtype == np.float64
    assert np.array_equal(np.sum(parts, axis=0), whole)
    assert np.array_equal(metrics.tally(task, EVALUATION, prediction[order], labels[order]), whole)


def test_a_tally_goes_through_the_ring_unchanged(task: Task) -> None:
    vector = metrics.tally(task, EVALUATION, *cohort(task, 500, 1))
    assert np.array_equal(decode(encode(vector, 4096.0) + encode(vector, 4096.0)), 2 * vector)


def test_patients_without_a_label_are_skipped_and_their_prediction_not_read(task: Task) -> None:
    prediction, labels = cohort(task, 60, 2)
    known = np.arange(60) % 3 > 0
    expected = metrics.tally(task, EVALUATION, prediction[known], labels[known])
    labels[~known] = -1 if isinstance(task, ClassificationTask) else np.nan
    if isinstance(task, SurvivalTask):
        labels[3] = [100.0, np.nan]
    prediction[~known] = np.nan
    assert np.array_equal(metrics.tally(task, EVALUATION, prediction, labels), expected)


@pytest.mark.parametrize(
    ("task", "size"),
    [
        (classification(2), 256 * 2 + 4 + 1),
        (classification(4), 4 * 256 * 2 + 16 + 1),
        (survival(), 256 * (3600 // 30 + 1) * 2),
        (survival(1000.0), 256 * (3600 // 30 + 2) * 2),
        (survival(last=3601.0), 256 * (3600 // 30 + 2) * 2),
    ],
)
def test_table_size(task: Task, size: int) -> None:
    assert metrics.table_size(task, EVALUATION) == size


def test_rounding_makes_no_empty_time_bin() -> None:
    task = SurvivalTask(kind="survival", time="t", event="e", edges=(0, 0.3, 0.9), horizon=0.3)
    days = metrics.time_bins(task, Evaluation(days_per_bin=0.1))
    assert np.allclose(days[:-1], np.arange(1, 10) / 10)
    assert days[2] == task.horizon
    assert days[-2] == task.edges[-1]
    assert days[-1] == np.inf


def test_the_score_grid_is_public_and_keeps_the_order() -> None:
    grid = score_grid(256)
    assert np.array_equal(grid.bins(grid.high), np.arange(256))
    assert np.array_equal(grid.bins(grid.centre), np.arange(256))
    assert (grid.bins(np.array([0.0, 1.0])) == [0, 255]).all()
    assert np.array_equal(grid.low[1:], grid.high[:-1])
    inner = np.log(grid.high[:-1] / (1 - grid.high[:-1]))
    assert inner == pytest.approx(np.linspace(-10, 10, 257)[1:-1])


# --- classification against scikit-learn -----------------------------------------------------


@settings(max_examples=60)
@given(
    number=st.integers(2, 5),
    seed=SEEDS,
    patients=st.integers(1, 120),
    evaluation=st.sampled_from([EVALUATION, COARSE]),
)
def test_classification_equals_scikit_learn(number: int, seed: int, patients: int, evaluation: Evaluation) -> None:
    task = classification(number)
    prediction, labels = cohort(task, patients, seed)
    present = np.unique(labels)
    assume(len(present) > 1)
    vector = metrics.tally(task, evaluation, prediction, labels)
    got, bound = judge(task, evaluation, vector)
    guess = prediction.argmax(axis=1)
    chosen: dict[str, Any] = (
        {"pos_label": 1} if number == 2 else {"average": "macro", "labels": present, "zero_division": 0}
    )
    matrix = confusion_matrix(labels, guess, labels=range(number))
    specificity = [recall_score(labels != k, guess != k) for k in ([1] if number == 2 else present)]
    expected = {
        "accuracy": accuracy_score(labels, guess),
        "sensitivity": recall_score(labels, guess, **chosen),
        "specificity": np.mean(specificity),
        "precision": precision_score(labels, guess, **{"zero_division": 0} | chosen),
        "f1": f1_score(labels, guess, **chosen),
    }
    if number == 2 and not (guess == 1).any():
        assert got["precision"] is None
        del expected["precision"]
    assert {k: got[k] for k in expected} == pytest.approx(expected, abs=EXACT)
    scored = [1] if number == 2 else present
    auc = np.mean([roc_auc_score(labels == k, prediction[:, k]) for k in scored])
    brier = brier_score_loss(labels, prediction, labels=range(number), scale_by_half=number == 2)
    assert got["auc"] == pytest.approx(auc, abs=bound["auc"] + EXACT)
    assert got["brier"] == pytest.approx(brier, abs=bound["brier"] + EXACT)
    drawn = metrics.figures(task, evaluation, vector)
    assert drawn["confusion"] == matrix.tolist()
    assert drawn["classes"] == list(task.classes)


@pytest.mark.parametrize("number", [2, 3])
def test_auc_is_exact_when_scores_are_bin_centres(number: int) -> None:
    task = classification(number)
    prediction, labels = cohort(task, 300, 5)
    grid = score_grid(EVALUATION.score_bins)
    centres = grid.centre[grid.bins(prediction)]
    got = metrics.compute(task, EVALUATION, metrics.tally(task, EVALUATION, centres, labels))["auc"]
    scored = [1] if number == 2 else range(number)
    expected = np.mean([roc_auc_score(labels == k, centres[:, k]) for k in scored])
    assert got == pytest.approx(expected, abs=EXACT)


def test_ties_in_one_bin_count_one_half_and_the_bound_says_so() -> None:
    task = classification(2)
    prediction = np.full((10, 2), 0.5)
    vector = metrics.tally(task, EVALUATION, prediction, np.arange(10) % 2)
    assert metrics.compute(task, EVALUATION, vector)["auc"] == 0.5
    assert metrics.binning_error(task, EVALUATION, vector)["auc"] == 0.5


# --- survival against scikit-survival --------------------------------------------------------


@settings(max_examples=40)
@given(
    task=st.sampled_from([survival(), survival(1000.0), survival(3600.0)]),
    seed=SEEDS,
    patients=st.integers(10, 150),
)
def test_survival_equals_scikit_survival_on_the_grid(task: SurvivalTask, seed: int, patients: int) -> None:
    prediction, labels = on_grid(task, patients, seed)
    assume(has_exact_brier(task, labels))
    assume((metrics.truncate(task, labels)[:, 1] == 1).any())
    vector = metrics.tally(task, EVALUATION, prediction, labels)
    got = metrics.compute(task, EVALUATION, vector)
    assert got["c_index"] == pytest.approx(exact_c_index(task, prediction, labels), abs=EXACT)
    assert got["brier"] == pytest.approx(exact_brier(task, prediction, labels), abs=EXACT)


@settings(max_examples=100)
@given(
    task=st.sampled_from([survival(), survival(1000.0), survival(3600.0)]),
    evaluation=st.sampled_from([EVALUATION, COARSE]),
    seed=SEEDS,
    patients=st.integers(5, 80),
    days=st.sampled_from([0.0, 1.0, 100.0]),
)
def test_survival_is_within_the_stated_binning_error(
    task: SurvivalTask, evaluation: Evaluation, seed: int, patients: int, days: float
) -> None:
    prediction, labels = cohort(task, patients, seed)
    if days:
        labels[:, 0] = np.floor(labels[:, 0] / days) * days
    vector = metrics.tally(task, evaluation, prediction, labels)
    got, bound = judge(task, evaluation, vector)
    c_index = exact_c_index(task, prediction, labels)
    if got["c_index"] is not None and np.isfinite(c_index):
        assert got["c_index"] == pytest.approx(c_index, abs=bound["c_index"] + EXACT)
    if got["brier"] is not None and has_exact_brier(task, labels):
        brier = exact_brier(task, prediction, labels)
        assert got["brier"] == pytest.approx(brier, abs=bound["brier"] + EXACT)


def test_binning_errors_are_small_on_a_monthly_grid() -> None:
    task = survival()
    prediction, labels = cohort(task, 800, 3)
    vector = metrics.tally(task, EVALUATION, prediction, labels)
    got, bound = judge(task, EVALUATION, vector)
    assert got["c_index"] == pytest.approx(exact_c_index(task, prediction, labels), abs=5e-3)
    assert got["brier"] == pytest.approx(exact_brier(task, prediction, labels), abs=1e-3)
    assert bound["c_index"] < 0.02
    assert bound["brier"] < 0.01


def test_survival_by_hand() -> None:
    """Four patients: events on days 300 (a) and 600 (b), censored on days 600 (c) and 2000 (d)."""
    task = survival()
    risk = score_grid(EVALUATION.score_bins).centre[[150, 100, 100, 120]]
    prediction = np.repeat(1 - risk[:, None], task.intervals, axis=1)
    labels = np.array([[300.0, 1], [600, 1], [600, 0], [2000, 0]])
    vector = metrics.tally(task, EVALUATION, prediction, labels)
    # a beats b, c, d; b ties with c, which is censored on the same day, and loses to d.
    assert metrics.compute(task, EVALUATION, vector)["c_index"] == pytest.approx(3.5 / 5)
    # After the event on day 600 one of two is censored: G = 1/2 from then on.
    a, b, _, d = risk
    brier = ((1 - a) ** 2 + (1 - b) ** 2 / 0.5 + d**2 / 0.5) / 4
    assert metrics.compute(task, EVALUATION, vector)["brier"] == pytest.approx(brier)


def test_follow_up_beyond_the_last_edge_is_censored_there() -> None:
    task = survival()
    prediction, labels = cohort(task, 200, 7)
    late = labels[:, 0] > task.edges[-1]
    assert late.any()
    changed = labels.copy()
    changed[late] = [9e9, 1.0]
    first, second = (metrics.tally(task, EVALUATION, prediction, x) for x in (labels, changed))
    assert np.array_equal(first, second)
    assert metrics.counts(task, EVALUATION, first) == (200, int((labels[~late, 1] == 1).sum()))
    kept = metrics.truncate(task, labels)
    assert np.array_equal(kept[~late], labels[~late])
    assert np.array_equal(np.unique(kept[late], axis=0), [[task.edges[-1], 0.0]])


# --- what is not defined ---------------------------------------------------------------------


def test_nothing_is_defined_without_patients(task: Task) -> None:
    empty = np.zeros(metrics.table_size(task, EVALUATION))
    assert set(metrics.compute(task, EVALUATION, empty).values()) == {None}
    assert set(metrics.interval(task, EVALUATION, empty, draws=50, seed=0).values()) == {None}
    assert metrics.binning_error(task, EVALUATION, empty) == {}
    assert metrics.counts(task, EVALUATION, empty) == (0, 0)
    assert set(metrics.figures(task, EVALUATION, empty)) <= {"confusion", "classes"}


@pytest.mark.parametrize("number", [2, 3])
def test_one_class_only(number: int) -> None:
    task = classification(number)
    prediction, _ = cohort(task, 30, 1)
    vector = metrics.tally(task, EVALUATION, prediction, np.zeros(30, dtype=np.int64))
    got = metrics.compute(task, EVALUATION, vector)
    assert got["auc"] is None
    assert got["accuracy"] is not None
    assert got["specificity" if number > 2 else "sensitivity"] is None
    assert metrics.interval(task, EVALUATION, vector, draws=50, seed=0)["auc"] is None
    assert metrics.counts(task, EVALUATION, vector) == (30, 0)
    assert not {"roc", "auc"} & set(metrics.figures(task, EVALUATION, vector))
    assert "auc" not in metrics.binning_error(task, EVALUATION, vector)


def test_a_class_nobody_has_is_left_out_of_the_means() -> None:
    task = classification(3)
    prediction, labels = cohort(task, 100, 4)
    labels = labels % 2
    vector = metrics.tally(task, EVALUATION, prediction, labels)
    expected = np.mean([roc_auc_score(labels == k, prediction[:, k]) for k in (0, 1)])
    bound = metrics.binning_error(task, EVALUATION, vector)["auc"]
    assert metrics.compute(task, EVALUATION, vector)["auc"] == pytest.approx(expected, abs=bound)
    assert metrics.counts(task, EVALUATION, vector) == (100, min(np.bincount(labels)))


def test_no_event_no_comparable_pair_and_nobody_followed_to_the_horizon() -> None:
    task = survival()
    prediction, _ = cohort(task, 3, 1)

    def of(*rows: tuple[float, float]) -> dict[str, float | None]:
        vector = metrics.tally(task, EVALUATION, prediction, np.array(rows, dtype=np.float64))
        return metrics.compute(task, EVALUATION, vector)

    nobody = of((100, 0), (200, 0), (2000, 0))
    assert nobody["c_index"] is None
    assert nobody["brier"] is not None
    late = of((100, 0), (200, 0), (2000, 1))
    assert late["c_index"] is None
    assert of((100, 1), (200, 0), (300, 0))["brier"] is None


# --- intervals -------------------------------------------------------------------------------


def test_an_interval_contains_its_metric_and_is_the_same_for_the_same_seed(task: Task) -> None:
    for seed, patients in enumerate((8, 40, 300)):
        vector = metrics.tally(task, EVALUATION, *cohort(task, patients, seed))
        got = metrics.compute(task, EVALUATION, vector)
        drawn = metrics.interval(task, EVALUATION, vector, draws=60, seed=seed)
        assert drawn == metrics.interval(task, EVALUATION, vector, draws=60, seed=seed)
        assert drawn.keys() == got.keys()
        for name, bounds in drawn.items():
            value = got[name]
            assert bounds is None or (value is not None and bounds[0] <= value <= bounds[1])
    assert None not in drawn.values()
    wide = metrics.interval(task, EVALUATION, vector, draws=60, seed=seed, level=0.99)
    for name, bounds in drawn.items():
        other = wide[name]
        assert bounds is not None
        assert other is not None
        assert other[0] <= bounds[0] < bounds[1] <= other[1]


@pytest.mark.parametrize("evaluation", [EVALUATION, COARSE])
def test_the_patients_put_together_again_have_the_tables_they_came_from(task: Task, evaluation: Evaluation) -> None:
    vector = metrics.tally(task, evaluation, *cohort(task, 150, 9))
    tables: Tables
    if isinstance(task, ClassificationTask):
        tables = ClassificationTables.parse(task, evaluation, vector)
    else:
        tables = SurvivalTables.parse(task, evaluation, vector)
    cells = tables.cells()
    assert cells.counts.sum() == tables.patients == 150
    again = cells.build(np.stack([cells.counts, 3 * cells.counts])).metrics()
    expected = metrics.compute(task, evaluation, vector)
    assert {k: v[0] for k, v in again.items()} == pytest.approx(expected)
    del again["brier"], expected["brier"]  # tripled, its constant shift is not
    assert {k: v[1] for k, v in again.items()} == pytest.approx(expected)


def test_with_two_classes_the_patients_are_rebuilt_exactly() -> None:
    """Each (class, predicted, bin) is right also where a bin contains 1/2."""
    task = classification(2)
    prediction, labels = cohort(task, 2000, 3, signal=0.1)
    vector = metrics.tally(task, COARSE, prediction, labels)
    build: Any = ClassificationTables.parse(task, COARSE, vector).cells().build
    bins = score_grid(COARSE.score_bins).bins(prediction[:, 1])
    guess = prediction.argmax(axis=1)
    both = np.unique(np.stack([labels, guess, bins], 1), axis=0, return_counts=True)
    assert np.array_equal(build.patients, both[0])
    assert np.array_equal(build.counts, both[1])


def test_intervals_are_those_of_a_bootstrap_over_patients() -> None:
    """Widths beside resampling the patients themselves; more classes may be wider, not narrower."""
    for number, most in ((2, 1.25), (4, 1.6)):
        task = classification(number)
        prediction, labels = cohort(task, 250, 2)
        rng = np.random.default_rng(0)
        drawn = []
        for _ in range(300):
            rows = rng.integers(250, size=250)
            vector = metrics.tally(task, EVALUATION, prediction[rows], labels[rows])
            drawn.append(metrics.compute(task, EVALUATION, vector))
        vector = metrics.tally(task, EVALUATION, prediction, labels)
        got = metrics.interval(task, EVALUATION, vector, draws=600, seed=1)
        for name, bounds in got.items():
            assert bounds is not None
            low, high = np.quantile([float(d[name] or 0) for d in drawn], [0.025, 0.975])
            assert 0.85 < (bounds[1] - bounds[0]) / (high - low) < most, name


def test_coverage_of_the_auc() -> None:
    """95 % intervals of 200 studies cover the true AUC in about 95 % of them."""
    task, shift, covered = classification(2), 1.0, 0
    truth = norm.cdf(shift / np.sqrt(2))
    rng = np.random.default_rng(11)
    for seed in range(200):
        labels = np.arange(120) % 3 % 2
        positive = 1 / (1 + np.exp(-(rng.normal(size=120) + shift * labels)))
        vector = metrics.tally(task, EVALUATION, np.stack([1 - positive, positive], 1), labels)
        bounds = metrics.interval(task, EVALUATION, vector, draws=200, seed=seed)["auc"]
        assert bounds is not None
        covered += bounds[0] <= truth <= bounds[1]
    assert 0.89 <= covered / 200 <= 0.99


def test_coverage_of_the_survival_metrics() -> None:
    task = survival()
    truth = metrics.compute(task, EVALUATION, metrics.tally(task, EVALUATION, *cohort(task, 200_000, 1)))
    covered = dict.fromkeys(truth, 0)
    for seed in range(100):
        vector = metrics.tally(task, EVALUATION, *cohort(task, 100, 1000 + seed))
        bounds = metrics.interval(task, EVALUATION, vector, draws=100, seed=seed)
        for name, value in truth.items():
            low, high = bounds[name] or (1.0, 0.0)
            covered[name] += low <= float(value or 0) <= high
    assert min(covered.values()) >= 87
    assert max(covered.values()) <= 100


def test_perfect_ranking_has_a_point_for_an_interval() -> None:
    task = classification(2)
    positive = np.linspace(0.01, 0.99, 40)
    vector = metrics.tally(task, EVALUATION, np.stack([1 - positive, positive], 1), np.arange(40) // 20)
    assert metrics.interval(task, EVALUATION, vector, draws=100, seed=0)["auc"] == (1.0, 1.0)


def test_an_interval_where_everybody_outlives_the_horizon() -> None:
    task = survival()
    prediction, labels = cohort(task, 50, 1)
    labels[:, 0] = 2000 + np.arange(50)
    vector = metrics.tally(task, EVALUATION, prediction, labels)
    expected = ((1 - horizon_column(task, prediction)) ** 2).mean()
    assert metrics.compute(task, EVALUATION, vector)["brier"] == pytest.approx(expected, abs=1e-3)
    low, high = metrics.interval(task, EVALUATION, vector, draws=100, seed=0)["brier"] or (1, 0)
    assert low < expected < high


# --- figures ---------------------------------------------------------------------------------


def test_the_area_under_the_roc_is_the_auc() -> None:
    for number, slack in ((2, EXACT), (3, 5e-3)):
        task = classification(number)
        vector = metrics.tally(task, EVALUATION, *cohort(task, 400, 6))
        drawn = metrics.figures(task, EVALUATION, vector)
        curve = np.array(drawn["roc"])
        assert curve[0].tolist() == [0, 0]
        assert curve[-1].tolist() == [1, 1]
        assert (np.diff(curve, axis=0) >= 0).all()
        assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(drawn["auc"], abs=slack)


def test_figures_are_json_and_no_group_is_below_the_minimum(task: Task) -> None:
    evaluation = Evaluation(minimum_shown=15)
    for patients in (10, 20, 44, 400):
        vector = metrics.tally(task, evaluation, *cohort(task, patients, 8))
        drawn = metrics.figures(task, evaluation, vector)
        assert json.loads(json.dumps(drawn, allow_nan=False)) == drawn
        groups = drawn.get("calibration", [])
        assert (patients >= 15) == bool(groups)
        assert len(groups) <= 5
        assert all(count >= 15 for *_, count in groups)
        assert all(0 <= x <= 1 for predicted, observed, _ in groups for x in (predicted, observed))
        if isinstance(task, SurvivalTask):
            assert sum(count for *_, count in groups) in (0, patients)
            assert len(drawn.get("km", {})) == {10: 0, 20: 0, 400: 3}.get(patients, 2)


def test_curves_by_tertile_equal_scikit_survival_on_the_grid() -> None:
    task = survival()
    prediction, labels = on_grid(task, 600, 4)
    vector = metrics.tally(task, EVALUATION, prediction, labels)
    curves = metrics.figures(task, EVALUATION, vector)["km"]
    assert list(curves) == ["low", "middle", "high"]
    risk = 1 - horizon_column(task, prediction)
    time, event = metrics.truncate(task, labels).T
    tertile = np.floor((rankdata(risk) - 0.5) / 600 * 3)
    for index, curve in enumerate(curves.values()):
        days, alive = np.array(curve).T
        assert (days[0], alive[0], days[-1]) == (0, 1, task.edges[-1])
        mine = tertile == index
        times, expected = kaplan_meier_estimator(event[mine] == 1, time[mine])
        assert alive[np.searchsorted(days, times)] == pytest.approx(expected)


def test_without_any_ranking_there_is_one_curve_and_one_group() -> None:
    task = survival()
    prediction, labels = on_grid(task, 300, 4)
    time, event = metrics.truncate(task, labels).T
    one = metrics.tally(task, EVALUATION, np.full_like(prediction, 0.5), labels)
    only = metrics.figures(task, EVALUATION, one)
    assert list(only["km"]) == ["middle"]
    days, alive = np.array(only["km"]["middle"]).T
    times, expected = kaplan_meier_estimator(event == 1, time)
    assert alive[np.searchsorted(days, times)] == pytest.approx(expected)
    at_horizon = expected[np.searchsorted(times, task.horizon, side="right") - 1]
    ((predicted, observed, patients),) = only["calibration"]
    assert (observed, patients) == (pytest.approx(1 - at_horizon), 300)
    assert predicted == pytest.approx(0.5, abs=0.01)


def test_a_calibrated_model_lies_on_the_diagonal() -> None:
    rng = np.random.default_rng(2)
    task = classification(2)
    positive = rng.beta(1, 2, size=40_000)
    labels = (rng.random(40_000) < positive).astype(np.int64)
    vector = metrics.tally(task, EVALUATION, np.stack([1 - positive, positive], 1), labels)
    for predicted, observed, _ in metrics.figures(task, EVALUATION, vector)["calibration"]:
        assert observed == pytest.approx(predicted, abs=0.03)


# --- what is refused -------------------------------------------------------------------------


def test_a_prediction_that_is_no_probability_is_refused_without_its_value(task: Task) -> None:
    for bad in (np.nan, np.inf, 1.25, -0.125):
        prediction, labels = cohort(task, 20, 3)
        prediction[4] = bad
        with pytest.raises(DataError, match="not probabilities") as caught:
            metrics.tally(task, EVALUATION, prediction, labels)
        assert str(bad) not in str(caught.value)


def test_rounding_beyond_one_is_forgiven(task: Task) -> None:
    prediction, labels = cohort(task, 20, 3)
    prediction[4] = 1 + 1e-9
    assert metrics.counts(task, EVALUATION, metrics.tally(task, EVALUATION, prediction, labels))[0] == 20


def test_shapes_and_labels_that_do_not_fit_are_our_own_mistake(task: Task) -> None:
    prediction, labels = cohort(task, 20, 3)
    wrong = labels.copy()
    wrong[0] = 9
    for bad in ((prediction[:, :1], labels), (prediction[1:], labels), (prediction, wrong)):
        with pytest.raises(LocalProtocolError):
            metrics.tally(task, EVALUATION, *bad)


def test_a_vector_that_is_no_sum_of_tallies_is_the_peers_fault(task: Task) -> None:
    good = metrics.tally(task, EVALUATION, *cohort(task, 20, 3))
    bad = [good[:-1], good.reshape(1, -1), np.full_like(good, np.nan), good - 1]
    if isinstance(task, ClassificationTask):
        uneven = good.copy()
        uneven[0] += 1
        bad.append(uneven)
    for vector in bad:
        with pytest.raises(RemoteProtocolError):
            metrics.compute(task, EVALUATION, vector)


def test_a_grid_beyond_reason_is_refused() -> None:
    for days in (1e-9, 0.5):
        with pytest.raises(ConfigError, match="days_per_bin"):
            metrics.table_size(survival(), Evaluation(score_bins=4096, days_per_bin=days))
