"""Prediction sets and bands: the coverage that they promise, over many cohorts drawn anew, read from tables of counts alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from oncofed_shared.calibrated import band_of, bands, coverage, sets, threshold, wilson
from oncofed_shared.metrics import tally
from oncofed_shared.plan import ClassificationTask, Evaluation, SurvivalTask

# Few bins: what is promised holds whatever the grid.
RULE = Evaluation(score_bins=64, days_per_bin=10.0, minimum_shown=10)
EDGES = (0.0, 100.0, 200.0, 400.0)
PLAIN = SurvivalTask.model_validate({"kind": "survival", "time": "t", "event": "e", "edges": EDGES, "horizon": 200.0})
RISKS = SurvivalTask.model_validate({**PLAIN.model_dump(exclude={"causes"}), "causes": ("relapse", "death")})
Values = np.ndarray[Any, Any]


def classes(number: int, *, ordered: bool = False) -> ClassificationTask:
    return ClassificationTask(kind="classification", label="c", classes=tuple("abcdef"[:number]), ordered=ordered)


def drawn(rng: np.random.Generator, n: int, number: int) -> tuple[Values, Values]:
    """Predictions that are wrong: sharper than the truth, and the truth leans towards the first class."""
    truth = rng.dirichlet(np.linspace(2, 0.7, number), n)
    labels = (truth.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    sharp = truth**2.5 + 1e-4
    return sharp / sharp.sum(axis=1, keepdims=True), np.minimum(labels, number - 1)


@pytest.mark.parametrize("number", [2, 3, 5])
@pytest.mark.parametrize("patients", [25, 120])
def test_the_true_class_is_in_the_set_as_often_as_promised(number: int, patients: int) -> None:
    task, rng = classes(number), np.random.default_rng(number * patients)
    covered, total, sizes = 0, 0, []
    for _ in range(250):
        at = threshold(task, RULE, tally(task, RULE, *drawn(rng, patients, number)))
        assert at is not None
        prediction, labels = drawn(rng, 20, number)
        chosen = sets(task, prediction, at)
        covered += int(chosen[np.arange(20), labels].sum())
        total += 20
        sizes.append(chosen.sum(axis=1).mean())
    # One-sided: 20 new patients share a threshold, so the test allows for more spread than a binomial's.
    assert covered / total > 0.9 - 0.012
    # A set of all classes would cover too: these are smaller.
    assert np.mean(sizes) < number - 0.2
    assert covered / total < 0.985


def test_predictions_taken_at_their_word_would_not_cover() -> None:
    """What the sets are needed for: 0.1 as the threshold, which a calibrated model could take, does worse here."""
    rng = np.random.default_rng(0)
    prediction, labels = drawn(rng, 4000, 3)
    naive = sets(classes(3), prediction, 0.1)[np.arange(4000), labels].mean()
    assert naive < 0.88


def test_with_too_few_patients_every_class_is_in_the_set() -> None:
    task = classes(3)
    prediction, labels = drawn(np.random.default_rng(1), 8, 3)
    assert threshold(task, RULE, tally(task, RULE, prediction, labels)) == 0.0
    assert sets(task, prediction, 0.0).all()
    assert threshold(task, RULE, tally(task, RULE, prediction[:0], labels[:0])) is None


@given(st.integers(0, 10_000), st.integers(2, 5), st.floats(0, 1))
@settings(max_examples=60)
def test_nobodys_set_is_empty_and_sets_of_steps_have_no_gap(seed: int, number: int, at: float) -> None:
    prediction, _ = drawn(np.random.default_rng(seed), 15, number)
    plain = sets(classes(number), prediction, at)
    assert plain.any(axis=1).all()
    assert (plain >= (prediction >= at)).all()
    if number > 2:
        filled = sets(classes(number, ordered=True), prediction, at)
        assert (filled >= plain).all()
        assert (np.abs(np.diff(filled.astype(int), axis=1, prepend=0, append=0)).sum(axis=1) == 2).all()


@pytest.mark.parametrize("number", [2, 4])
def test_coverage_from_tables_is_that_of_the_patients(number: int) -> None:
    task, rng = classes(number), np.random.default_rng(3)
    at = threshold(task, RULE, tally(task, RULE, *drawn(rng, 80, number)))
    prediction, labels = drawn(rng, 300, number)
    found = coverage(task, RULE, tally(task, RULE, prediction, labels), at or 0.0)
    plain = prediction >= (at or 0.0)
    assert found is not None
    assert found.covered == pytest.approx(plain[np.arange(300), labels].mean())
    assert found.size == pytest.approx(plain.sum(axis=1).mean())


def test_the_interval_of_a_share_is_wilsons() -> None:
    low, high = wilson(0.3, 40)
    known = binomtest(12, 40).proportion_ci(0.95, "wilson")
    assert (low, high) == pytest.approx((known.low, known.high))


def survivors(rng: np.random.Generator, n: int, *, causes: bool) -> tuple[Values, Values, Values]:
    """Predictions, labels under censoring, and the true incidence of the first cause by day 200."""
    risk = rng.uniform(0.1, 0.9, n)
    rate = -np.log(1 - risk) / 200
    days = rng.exponential(1 / rate)
    share = 0.6 if causes else 1.0
    cause = np.where(rng.random(n) < share, 1, 2)
    stop = rng.uniform(60, 600, n)
    labels = np.column_stack([np.ceil(np.minimum(days, stop)), np.where(days <= stop, cause, 0)])
    true = share * risk
    shown = np.clip(true * 0.7 + 0.1, 0, 1)
    columns = np.tile(shown[:, None], 3)
    prediction = np.concatenate([columns, 0.2 * (1 - columns)], axis=1) if causes else 1 - columns
    return prediction, labels.astype(float), true


@pytest.mark.parametrize("causes", [False, True], ids=["survival", "competing"])
def test_a_band_holds_its_groups_mean_risk_as_often_as_promised(causes: bool) -> None:
    task, rng = (RISKS if causes else PLAIN), np.random.default_rng(7)
    inside = total = 0
    for _ in range(150):
        prediction, labels, true = survivors(rng, 150, causes=causes)
        found = bands(task, RULE, tally(task, RULE, prediction, labels))
        shown = prediction[:, 1] if causes else 1 - prediction[:, 1]
        place = band_of(shown, [{"high": b.high} for b in found])
        for k, band in enumerate(found):
            inside += band.interval[0] <= true[place == k].mean() <= band.interval[1]
            total += 1
            assert band.patients == np.count_nonzero(place == k)
    # The mean risk of the very group moves with it, so that the interval is a little wide: never narrower than promised.
    assert inside / total > 0.935


def test_a_band_of_two_classes_is_the_observed_share() -> None:
    task, rng = classes(2), np.random.default_rng(5)
    prediction, labels = drawn(rng, 200, 2)
    found = bands(task, RULE, tally(task, RULE, prediction, labels))
    place = band_of(prediction[:, 1], [{"high": b.high} for b in found])
    assert len(found) == 5
    for k, band in enumerate(found):
        own = labels[place == k]
        assert band.observed == pytest.approx(own.mean())
        assert band.interval == pytest.approx(wilson(own.mean(), len(own)))
    assert bands(classes(3), RULE, tally(classes(3), RULE, *drawn(rng, 50, 3))) == []


def test_without_censoring_the_effective_number_is_the_number() -> None:
    rng = np.random.default_rng(2)
    prediction, labels, _ = survivors(rng, 120, causes=False)
    labels[:, 1] = 1
    (*_, last) = bands(PLAIN, RULE, tally(PLAIN, RULE, prediction, labels))
    assert last.interval == pytest.approx(wilson(last.observed, last.patients), abs=0.01)


def test_censoring_makes_an_interval_wider() -> None:
    rng = np.random.default_rng(2)
    prediction, labels, _ = survivors(rng, 400, causes=False)
    for band in bands(PLAIN, RULE, tally(PLAIN, RULE, prediction, labels)):
        low, high = wilson(band.observed, band.patients)
        assert band.interval[1] - band.interval[0] > high - low
