"""Scores from noised coarse tables: one patient's change is known, nothing is biased, intervals hold what they promise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import brier_score_loss, roc_auc_score
from sksurv.metrics import concordance_index_censored

from oncofed_shared.errors import DataError, LocalProtocolError
from oncofed_shared.noised_scores import noised_scores, noised_totals
from oncofed_shared.noised_tables import (
    HISTOGRAM_BINS,
    PLACED_BINS,
    CoarseGrid,
    coarse_counts,
    coarse_entries,
    coarse_size,
    column_tables,
    fixed_grid,
    grid_from,
    histogram_size,
    score_histogram,
    time_edges,
)
from oncofed_shared.plan import Plan, parse

Floats = NDArray[np.float64]
Cohort = tuple[dict[str, Floats], dict[str, Floats]]
SEEDS = st.integers(0, 2**32 - 1)
EDGES = [0, 90, 180, 270, 365, 450, 545, 730, 910, 1095, 1460, 2190, 3650]
HORIZON = 730


def study(*, classes: int = 2, **evaluation: int) -> Plan:
    return parse(
        {
            "study": {"name": "coarse", "purpose": "Try coarse tables of counts."},
            "tasks": {
                "os": {"kind": "survival", "time": "t", "event": "e", "edges": EDGES, "horizon": HORIZON},
                "class": {"kind": "classification", "label": "c", "classes": list("abcdef"[:classes])},
            },
            "modalities": {"clinical": {"patterns": ["x*"]}},
            "training": {"rounds": 1},
            "evaluation": evaluation,
        }
    )


PLAN, THREE = study(), study(classes=3)


def cohort(
    plan: Plan,
    patients: int,
    seed: int | np.random.Generator,
    *,
    effect: float = 1.0,
    spread: float = 0.7,
    missing: bool = False,
) -> Cohort:
    """Invented patients with a latent risk: proportional hazards, a model that knows the risk and may be too sure or unsure."""
    random = np.random.default_rng(seed)
    latent = random.normal(size=patients)
    days = random.exponential(900, size=patients) * np.exp(-effect * latent)
    censored = random.uniform(0, 4000, size=patients)
    survival = np.exp(-0.6 * np.exp(spread * latent))
    later = survival[:, None] ** (np.array(EDGES[1:]) / HORIZON)
    classes = len(plan.tasks["class"].classes)
    logits = effect * latent[:, None] * np.linspace(-1, 1, classes) + (
        random.normal(size=(patients, classes)) if classes > 2 else 0.0
    )
    odds = np.exp(logits)
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    drawn = (random.random((patients, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    labels = {
        "os": np.stack([np.ceil(np.minimum(days, censored)), days <= censored], 1).astype(float),
        "class": np.minimum(drawn, classes - 1).astype(float),
    }
    if missing:
        labels["os"][random.random(patients) < 0.3] = np.nan
        labels["class"][random.random(patients) < 0.3] = -1
    return {"os": later, "class": probabilities}, labels


def fine(plan: Plan, bins: int = 250) -> CoarseGrid:
    """A grid so fine that nothing is coarse: score bins by hundreds."""
    grid = fixed_grid(plan)
    edges = tuple(k / bins for k in range(1, bins))
    centres = tuple((k + 0.5) / bins for k in range(bins))
    return CoarseGrid(
        edges={"os": grid.edges["os"], "class": (edges,) * len(grid.edges["class"])},
        centres={"os": grid.centres["os"], "class": (centres,) * len(grid.edges["class"])},
        spreads={"os": grid.spreads["os"], "class": ((0.0,) * bins,) * len(grid.edges["class"])},
        days=grid.days,
    )


def harrell(prediction: Floats, labels: Floats) -> float:
    risk = 1 - prediction[:, EDGES.index(HORIZON) - 1]
    return float(concordance_index_censored(labels[:, 1] == 1, labels[:, 0], risk)[0])


def rows(table: Mapping[str, Floats], keep: Any) -> dict[str, Floats]:
    return {name: values[keep] for name, values in table.items()}


# ---------------------------------------------------------------- counts


@settings(max_examples=30)
@given(seed=SEEDS, patients=st.integers(0, 40), classes=st.integers(2, 4), missing=st.booleans())
def test_order_of_patients_changes_nothing_and_counts_of_parts_add_up(seed, patients, classes, missing):
    plan = study(classes=classes)
    predictions, labels = cohort(plan, patients, seed, missing=missing)
    whole = coarse_counts(plan, predictions, labels)
    order = np.random.default_rng(seed).permutation(patients)
    assert (coarse_counts(plan, rows(predictions, order), rows(labels, order)) == whole).all()
    assert (score_histogram(plan, rows(predictions, order)) == score_histogram(plan, predictions)).all()
    first, second = order[: patients // 2], order[patients // 2 :]
    parts = [coarse_counts(plan, rows(predictions, part), rows(labels, part)) for part in (first, second)]
    assert (sum(parts) == whole).all()
    assert whole.shape == (coarse_size(plan),)
    assert (whole >= 0).all()
    assert (whole == np.rint(whole)).all()


@settings(max_examples=30)
@given(seed=SEEDS, patients=st.integers(1, 30), classes=st.integers(2, 4), placed=st.booleans())
def test_one_patient_moves_tables_and_histogram_by_exactly_the_root_of_the_entries(seed, patients, classes, placed):
    plan = study(classes=classes)
    assert coarse_entries(plan) == (2 if classes == 2 else 1 + classes)
    predictions, labels = cohort(plan, patients, seed)
    grid = grid_from(plan, score_histogram(plan, predictions)) if placed else None
    for without in range(patients):
        keep = np.arange(patients) != without
        moved = coarse_counts(plan, predictions, labels, grid) - coarse_counts(
            plan, rows(predictions, keep), rows(labels, keep), grid
        )
        assert math.isclose(np.linalg.norm(moved), math.sqrt(coarse_entries(plan)), rel_tol=1e-12)
        assert set(moved) <= {0.0, 1.0}
        seen = score_histogram(plan, predictions) - score_histogram(plan, rows(predictions, keep))
        assert math.isclose(np.linalg.norm(seen), math.sqrt(coarse_entries(plan)), rel_tol=1e-12)


def test_with_one_column_per_task_entries_are_the_tasks():
    assert coarse_entries(PLAN) == len(PLAN.tasks)


@settings(max_examples=20)
@given(seed=SEEDS)
def test_a_patient_without_a_label_counts_nowhere_in_the_tables(seed):
    predictions, labels = cohort(PLAN, 25, seed, missing=True)
    tables = {name: table for name, _, table in column_tables(PLAN, coarse_counts(PLAN, predictions, labels))}
    assert tables["os"].sum() == (~np.isnan(labels["os"][:, 0])).sum()
    assert tables["class"].sum() == (labels["class"] >= 0).sum()


def test_cells_are_where_the_page_says():
    """Risk 0.1 is in the first of five bins; an event on the last day of a time bin is in it."""
    assert time_edges(PLAN.tasks["os"]) == (365, 730)
    survival = np.tile([[0.9], [0.1], [0.1], [0.1], [0.9], [0.5]], (1, len(EDGES) - 1))
    labels = np.array([[365, 1], [366, 1], [0, 0], [730, 0], [731, 1], [730, 1]], dtype=float)
    predictions = {"os": survival, "class": np.tile([0.25, 0.75], (6, 1))}
    counts = coarse_counts(PLAN, predictions, {"os": labels, "class": np.array([0, 1, 1, -1, -1, -1.0])})
    tables = {name: table for name, _, table in column_tables(PLAN, counts)}
    assert tables["os"].tolist() == [[1, 0, 0, 0, 1], [0] * 5, [0, 1, 0, 0, 0], [0] * 5, [0, 1, 1, 1, 0]]
    assert tables["class"].tolist() == [[0, 0], [0, 0], [0, 0], [1, 2], [0, 0]]


def test_a_horizon_in_the_first_interval_leaves_one_time_bin():
    task = PLAN.tasks["os"].model_copy(update={"horizon": 90.0})
    assert time_edges(task) == (90.0,)


def test_what_is_no_probability_or_no_sum_of_this_plan_is_refused():
    predictions, labels = cohort(PLAN, 5, 0)
    with pytest.raises(DataError, match="not probabilities"):
        coarse_counts(PLAN, {**predictions, "class": predictions["class"] * np.nan}, labels)
    with pytest.raises(LocalProtocolError, match="do not fit"):
        coarse_counts(PLAN, predictions, {**labels, "os": labels["os"][:, :1]})
    counts = coarse_counts(PLAN, predictions, labels)
    for wrong in (counts[1:], np.full_like(counts, np.inf)):
        with pytest.raises(LocalProtocolError, match="finite numbers"):
            noised_scores(PLAN, wrong, noise_std=1.0)
    for noise, level in ((-1.0, 0.95), (math.nan, 0.95), (1.0, 1.0)):
        with pytest.raises(LocalProtocolError, match="noise_std must be"):
            noised_scores(PLAN, counts, noise_std=noise, level=level)
    with pytest.raises(LocalProtocolError, match="grid_from: expected 64 finite numbers"):
        grid_from(PLAN, np.zeros(3))


# ---------------------------------------------------------------- the grid


@settings(max_examples=20)
@given(seed=SEEDS, spread=st.floats(0.2, 1.5))
def test_placed_bins_hold_equal_parts_of_the_patients_whose_scores_placed_them(seed, spread):
    predictions, labels = cohort(PLAN, 2000, seed, spread=spread)
    grid = grid_from(PLAN, score_histogram(PLAN, predictions))
    for name, _, table in column_tables(PLAN, coarse_counts(PLAN, predictions, labels, grid), grid):
        # Edges lie between those of the histogram by interpolation; no bin of it has more than a fifth of a part here.
        assert np.abs(table.sum(axis=1) / 2000 - 1 / PLACED_BINS).max() < 0.06
        ends, centres = (0.0, *grid.edges[name][0], 1.0), grid.centres[name][0]
        assert all(low <= centre <= high for low, centre, high in zip(ends, centres, ends[1:], strict=False))


@settings(max_examples=60)
@given(seed=SEEDS, noise=st.floats(0, 1e6), patients=st.integers(0, 50))
def test_any_noised_histogram_gives_a_usable_grid_of_one_size(seed, noise, patients):
    random = np.random.default_rng(seed)
    histogram = score_histogram(THREE, cohort(THREE, patients, seed)[0]) + noise * random.normal(
        size=histogram_size(THREE)
    )
    grid = grid_from(THREE, histogram)
    assert coarse_size(THREE, grid) == 4 * 5 + 3 * 4 * 2
    for edges in (*grid.edges["os"], *grid.edges["class"]):
        assert list(edges) == sorted(edges)
        assert edges[0] >= 0
        assert edges[-1] <= 1
    assert histogram_size(THREE) == 4 * HISTOGRAM_BINS


# ---------------------------------------------------------------- scores


@settings(max_examples=8)
@given(seed=SEEDS)
def test_without_noise_and_with_fine_bins_scores_are_those_of_scikit_learn(seed):
    predictions, labels = cohort(PLAN, 150, seed)
    grid = fine(PLAN)
    made = noised_scores(PLAN, coarse_counts(PLAN, predictions, labels, grid), noise_std=0.0, grid=grid)["class"]
    assert made["auc"]["value"] == pytest.approx(roc_auc_score(labels["class"], predictions["class"][:, 1]), abs=4e-3)


@settings(max_examples=5)
@given(seed=SEEDS)
def test_of_three_classes_the_auc_is_the_mean_of_one_against_the_rest(seed):
    predictions, labels = cohort(THREE, 200, seed, effect=2.0)
    grid = fine(THREE)
    made = noised_scores(THREE, coarse_counts(THREE, predictions, labels, grid), noise_std=0.0, grid=grid)["class"]
    expected = roc_auc_score(labels["class"], predictions["class"], multi_class="ovr")
    assert made["auc"]["value"] == pytest.approx(expected, abs=8e-3)
    assert set(made) == {"auc"}
    assert made["auc"]["ci"][0] < expected < made["auc"]["ci"][1]


@settings(max_examples=5)
@given(seed=SEEDS)
def test_without_noise_and_with_fine_bins_the_c_index_is_that_of_scikit_survival(seed):
    predictions, labels = cohort(PLAN, 30, seed)
    base = fixed_grid(PLAN)
    days = tuple(sorted({*np.unique(np.ceil(labels["os"][:, 0])), float(HORIZON)}))
    edges = tuple(np.unique(1 - predictions["os"][:, EDGES.index(HORIZON) - 1])[:-1] + 1e-12)
    grid = dataclasses.replace(
        base,
        edges={**base.edges, "os": (edges,)},
        centres={**base.centres, "os": ((*edges, 1.0),)},
        spreads={**base.spreads, "os": ((0.0,) * (len(edges) + 1),)},
        days={"os": days},
    )
    # Without ties in days, which scikit-survival would count as it does and a bin by its weights.
    first = np.unique(labels["os"][:, 0], return_index=True)[1]
    predictions, labels = rows(predictions, first), rows(labels, first)
    made = noised_scores(PLAN, coarse_counts(PLAN, predictions, labels, grid), noise_std=0.0, grid=grid)["os"]
    # With so few patients an interval may have no end, and then no number is given.
    assume(made["c_index"]["value"] is not None)
    assert made["c_index"]["value"] == pytest.approx(harrell(predictions["os"], labels["os"]), abs=1e-9)


def test_known_answers_of_small_tables():
    """By hand: 30 patients of a class and 30 not, in bins 0, 2 and 4, and what a perfect and a reversed order give."""
    plan = study(minimum_shown=1, minimum_events=1)
    table = np.zeros((5, 2))
    table[0], table[2], table[4] = (20, 0), (10, 10), (0, 20)
    os = np.zeros((5, 5))
    os[4, 0], os[2, 1], os[0, 4] = 10, 10, 10
    made = noised_scores(plan, np.concatenate([os.ravel(), table.ravel()]), noise_std=0.0)
    # Pairs: 900, of which 100 tie and weigh two thirds: (800 + 100/3) / (800 + 200/3).
    assert made["class"]["auc"]["value"] == pytest.approx(2500 / 2600)
    # 20 x 0.1^2 twice, and 20 in the middle with 0.5^2, over 60; less the variance of a score within a bin of width 0.2.
    assert made["class"]["brier"]["value"] == pytest.approx((40 * 0.01 + 20 * 0.25) / 60 - 0.2**2 / 12)
    assert made["class"]["calibration"]["value"] == pytest.approx(0.0, abs=1e-12)
    # 300 pairs in order; 45 pairs of events in each of two time bins weigh a third and are half won.
    assert made["os"]["c_index"]["value"] == pytest.approx((300 + 15) / (300 + 30))
    backwards = noised_scores(plan, np.concatenate([os[::-1].ravel(), table[::-1].ravel()]), noise_std=0.0)
    assert backwards["class"]["auc"]["value"] == pytest.approx(100 / 2600)
    assert backwards["os"]["c_index"]["value"] == pytest.approx(15 / 330)


def test_calibration_of_survival_is_the_life_table():
    """100 patients in one bin: 20 events, 10 censored, then 7 events, 6 censored: 1 - (1 - 20/95)(1 - 7/67)."""
    os = np.zeros((5, 5))
    os[3] = 20, 7, 10, 6, 57
    made = noised_scores(PLAN, np.concatenate([os.ravel(), np.zeros(10)]), noise_std=0.0)["os"]["calibration"]
    (point,) = made["points"]
    observed = 1 - (1 - 20 / 95) * (1 - 7 / 67)
    assert point["observed"] == pytest.approx(observed)
    assert point["predicted"] == pytest.approx(0.7)
    assert made["value"] == pytest.approx(0.7 - observed)
    # Greenwood's error of the same life table, to first order.
    error = (1 - observed) * math.sqrt(20 / (95 * 75) + 7 / (67 * 60))
    assert (point["ci"][1] - point["ci"][0]) / (2 * 1.959964) == pytest.approx(error, rel=0.05)


def test_brier_and_calibration_are_near_the_exact_ones_without_noise():
    predictions, labels = cohort(PLAN, 4000, 7)
    grid = grid_from(PLAN, score_histogram(PLAN, predictions))
    made = noised_scores(PLAN, coarse_counts(PLAN, predictions, labels, grid), noise_std=0.0, grid=grid)["class"]
    positive = predictions["class"][:, 1]
    assert made["brier"]["value"] == pytest.approx(brier_score_loss(labels["class"], positive), abs=0.003)
    exact = positive.mean() - labels["class"].mean()
    assert made["calibration"]["value"] == pytest.approx(exact, abs=0.005)
    for point in made["calibration"]["points"]:
        low, high = point["range"]
        inside = (positive > low) & (positive <= high)
        assert point["patients"] == inside.sum()
        assert point["observed"] == pytest.approx(labels["class"][inside].mean())
        assert point["predicted"] == pytest.approx(positive[inside].mean(), abs=0.01)
    # The error of a mean over patients, as anybody would compute it from the patients.
    bins = np.searchsorted(grid.edges["class"][0], positive)
    squares = (np.array(grid.centres["class"][0])[bins] - labels["class"]) ** 2
    differences = np.array(grid.centres["class"][0])[bins] - labels["class"]
    for metric, values in (("brier", squares), ("calibration", differences)):
        width = 2 * 1.959964 * values.std() / math.sqrt(len(values))
        assert np.diff(made[metric]["ci"])[0] == pytest.approx(width, rel=0.03)


def test_noise_biases_no_sum_over_pairs_though_many_counts_become_negative():
    """The mean of the two sums over draws of noise is what it is without; ratios and clipping come after them.

    Each draw is taken with both signs, so that what is linear in the noise is gone and a bias, which is quadratic, stands out.
    """
    from oncofed_shared.noised_scores import _auc, _c_index  # noqa: PLC0415 - the sums are not released

    random, noise = np.random.default_rng(0), 4.0
    exact = coarse_counts(PLAN, *cohort(PLAN, 120, 5))
    tables = {name: table for name, _, table in column_tables(PLAN, exact)}
    for rank, table in ((_c_index, tables["os"]), (_auc, tables["class"])):
        plain = rank(table, 0.0)
        draws, negative = [], 0
        for _ in range(1500):
            drawn = noise * random.normal(size=table.shape)
            negative += min((table + drawn).min(), (table - drawn).min()) < 0
            both = rank(table + drawn, noise), rank(table - drawn, noise)
            draws.append([sum(b.top for b in both) / 2 - plain.top, sum(b.below for b in both) / 2 - plain.below])
        assert negative > 1000
        off = np.array(draws)
        assert (np.abs(off.mean(axis=0)) < 4 * off.std(axis=0) / math.sqrt(len(off))).all()
        # The test would see a thirtieth of the sums.
        assert (4 * off.std(axis=0) / math.sqrt(len(off)) < plain.below / 30).all()


@pytest.mark.parametrize(("patients", "effect", "spread"), [(250, 1.0, 0.7), (200, 0.5, 0.3), (300, 1.8, 1.2)])
def test_intervals_of_95_percent_cover_the_score_of_the_population(patients, effect, spread):
    """Over cohorts, noise of 0 to 6 per count, and grids placed by as many validation patients under the same noise."""
    random = np.random.default_rng(patients)
    predictions, labels = cohort(PLAN, 20_000, random, effect=effect, spread=spread)
    truth = {
        ("os", "c_index"): harrell(predictions["os"][:4000], labels["os"][:4000]),
        ("class", "auc"): roc_auc_score(labels["class"], predictions["class"][:, 1]),
        ("class", "brier"): brier_score_loss(labels["class"], predictions["class"][:, 1]),
        ("class", "calibration"): 0.0,
    }
    hits: dict[tuple[str, str], list[bool]] = {name: [] for name in truth}
    for run in range(320):
        noise = 2.0 * (run % 4)
        validation = score_histogram(PLAN, cohort(PLAN, patients, random, effect=effect, spread=spread)[0])
        grid = grid_from(PLAN, validation + noise * random.normal(size=validation.size))
        counts = coarse_counts(PLAN, *cohort(PLAN, patients, random, effect=effect, spread=spread), grid)
        made = noised_scores(PLAN, counts + noise * random.normal(size=counts.size), noise_std=noise, grid=grid)
        for (task, metric), true in truth.items():
            score = made[task][metric]
            if score["value"] is not None:
                assert score["ci"][0] <= score["value"] <= score["ci"][1]
                hits[task, metric].append(score["ci"][0] <= true <= score["ci"][1])
    for name, covered in hits.items():
        assert len(covered) > 300, name
        assert np.mean(covered) >= 0.9, (name, np.mean(covered))


def test_noise_widens_intervals_and_a_higher_level_does():
    counts = coarse_counts(PLAN, *cohort(PLAN, 250, 1))
    widths = [
        np.diff(noised_scores(PLAN, counts, noise_std=noise, level=level)["os"]["c_index"]["ci"])[0]
        for noise, level in ((0.0, 0.9), (0.0, 0.95), (1.0, 0.95), (4.0, 0.95))
    ]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


# ---------------------------------------------------------------- what is not shown


def test_protocol_19_a_minimum_is_of_the_noised_totals_behind_a_number_never_of_a_bin():
    """The rule looks at totals: empty and negative cells do not matter, and only the totals decide."""
    few = study(minimum_shown=100, minimum_events=40)
    counts = coarse_counts(few, *cohort(few, 150, 3))
    shifted = counts.copy()
    # Noise that leaves every total as it was, but makes single cells negative.
    shifted[0] -= 60
    shifted[5] += 60
    for vector in (counts, shifted):
        assert all(score["why"] == "" for score in noised_scores(few, vector, noise_std=1.0)["class"].values())
        assert noised_totals(few, vector) == noised_totals(few, counts)
    patients, events = noised_totals(few, counts)["os"]
    assert (
        noised_scores(study(minimum_shown=int(patients)), counts, noise_std=1.0)["os"]["c_index"]["value"] is not None
    )
    for limit, why in (
        ({"minimum_shown": int(patients) + 1}, f"fewer than {int(patients) + 1} test patients"),
        ({"minimum_events": int(events) + 1}, f"fewer than {int(events) + 1} events"),
    ):
        for score in noised_scores(study(**limit), counts, noise_std=1.0)["os"].values():
            assert score["value"] is None
            assert score["ci"] is None
            assert why in score["why"]


def test_the_rarest_class_has_a_minimum_too():
    plan = study(classes=3, minimum_events=60)
    _, labels = data = cohort(plan, 150, 3)
    counts = coarse_counts(plan, *data)
    rarest = np.bincount(labels["class"].astype(int)).min()
    assert noised_totals(plan, counts)["class"] == (pytest.approx(150), rarest)
    assert rarest < 60
    assert "patients of the rarest class" in noised_scores(plan, counts, noise_std=1.0)["class"]["auc"]["why"]


def test_when_the_noise_drowns_everything_no_number_is_given():
    counts = coarse_counts(PLAN, *cohort(PLAN, 40, 2))
    made = noised_scores(PLAN, counts, noise_std=50.0)
    for score in (made["os"]["c_index"], made["class"]["auc"]):
        assert score == {"value": None, "ci": None, "why": "the noise is too large for a number"}
    assert made["os"]["calibration"]["points"] == []


@settings(max_examples=60)
@given(seed=SEEDS, size=st.floats(0, 1e5), noise=st.floats(0, 1e4), classes=st.integers(2, 3))
def test_any_vector_of_counts_gives_scores_in_range_or_a_reason(seed, size, noise, classes):
    plan = study(classes=classes)
    counts = size * np.random.default_rng(seed).normal(size=coarse_size(plan))
    for metrics in noised_scores(plan, counts, noise_std=noise).values():
        for metric, score in metrics.items():
            assert (score["value"] is None) == (score["ci"] is None) == bool(score["why"])
            if score["value"] is not None:
                low = -1.0 if metric == "calibration" else 0.0
                assert low <= score["ci"][0] <= score["ci"][1] <= 1
                assert low <= score["value"] <= 1
