"""Bounds hold where the truth is known, and find what is there to be found."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from oncofed_shared.consortium import gaussian_epsilon
from oncofed_simulations.audit_inclusion import judged_inclusion
from oncofed_simulations.audit_membership import likelihood_ratios, most_true_alarms, true_alarms
from oncofed_simulations.audit_statistics import (
    correlation_check,
    gaussian_bound,
    one_run_bound,
    one_run_p_value,
    rate_interval,
    variance_check,
)

DELTA = 1e-5


def scores(mu, seed, count=1000):
    """Scores of canaries of a Gaussian mechanism, and who was in."""
    rng = np.random.default_rng(seed)
    inside = rng.random(count) < 0.5
    return rng.standard_normal(count) + mu * inside, inside


@pytest.mark.parametrize("mu", [0.3, 0.8, 2.0])
def test_the_gaussian_bound_is_below_the_truth_and_sees_a_factor_of_two(mu):
    truth = gaussian_epsilon(noise_multiplier=1 / mu, delta=DELTA)
    for seed in range(50):
        made, inside = scores(mu, seed)
        assert gaussian_bound(made[inside], made[~inside], delta=DELTA).epsilon <= truth
        twice, inside = scores(2 * mu, seed)
        assert mu < 0.5 or gaussian_bound(twice[inside], twice[~inside], delta=DELTA).epsilon > truth


def test_scores_without_a_spread_are_no_privacy_and_scores_without_a_difference_prove_nothing():
    assert gaussian_bound(np.ones(5), np.zeros(5), delta=DELTA).epsilon == math.inf
    made, inside = scores(0.0, 1)
    assert gaussian_bound(made[inside], made[~inside], delta=DELTA).epsilon == 0


def as_published(m, r, v, epsilon, delta):
    """Appendix D of Steinke, Nasr & Jagielski 2023, line by line."""
    q = 1 / (1 + math.exp(-epsilon))
    beta = stats.binom.sf(v - 1, r, q)
    alpha = total = 0.0
    for i in range(1, v + 1):
        total += stats.binom.pmf(v - i, r, q)
        alpha = max(alpha, total / i)
    return min(beta + alpha * delta * 2 * m, 1)


@given(
    guesses=st.integers(2, 200),
    part=st.floats(0, 1),
    epsilon=st.floats(0, 8),
    delta=st.sampled_from([0.0, 1e-5, 1e-2]),
)
@settings(max_examples=60)
def test_the_one_run_p_value_is_the_published_one(guesses, part, epsilon, delta):
    correct = round(part * guesses)
    own = one_run_p_value(canaries=1000, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
    assert own == pytest.approx(as_published(1000, guesses, correct, epsilon, delta), abs=1e-9)


def test_the_one_run_bound_holds_for_randomised_response_and_comes_near():
    epsilon, found = 2.0, []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        inside = rng.random(1000) < 0.5
        told = np.where(rng.random(1000) < 1 / (1 + math.exp(-epsilon)), inside, ~inside)
        found.append(one_run_bound(told + 1e-6 * rng.random(1000), inside, delta=0.0)[0])
    # 5 % of bounds may be above.
    assert sum(f > epsilon for f in found) <= 6
    assert np.mean(found) > 0.7 * epsilon


def test_the_interval_of_a_rate_is_scipys():
    for successes, trials in [(0, 10), (3, 10), (10, 10), (57, 1000)]:
        low, high = rate_interval(successes, trials)
        known = stats.binomtest(successes, trials).proportion_ci(0.95)
        assert (low, high) == pytest.approx((known.low, known.high))
    assert rate_interval(0, 0) == (0.0, 1.0)


def test_rests_of_independent_noise_are_as_expected_and_others_are_not():
    rests = np.random.default_rng(3).standard_normal((40, 500))
    squares, size = (rests**2).sum(axis=1), 500.0
    assert not variance_check(squares, [size] * 40, [2 * size] * 40).wrong
    assert variance_check(0.83 * squares, [size] * 40, [2 * size] * 40).wrong
    assert variance_check(1.2 * squares, [size] * 40, [2 * size] * 40).wrong
    pairs = [(i, j) for i in range(6) for j in range(i)]
    assert not correlation_check(rests, dimensions=size, shifted=pairs).wrong
    again = rests.copy()
    again[30] = again[7]
    assert correlation_check(again, dimensions=size, shifted=[]).wrong
    ahead = rests.copy()
    ahead[5] = np.roll(ahead[2], 17)
    assert not correlation_check(ahead, dimensions=size, shifted=[]).wrong
    assert correlation_check(ahead, dimensions=size, shifted=pairs).wrong


def test_coins_are_called_so_and_other_samplings_by_what_is_wrong_with_them():
    rng = np.random.default_rng(5)
    assert judged_inclusion(rng.random((64, 200)) < 0.3, 0.3).wrong == ()
    assert "rate" in judged_inclusion(rng.random((64, 200)) < 0.36, 0.3).wrong
    turns = np.arange(64)[:, None] % 2 == np.arange(200)[None] % 2
    assert {"steps", "patients", "next"} <= set(judged_inclusion(turns, 0.5).wrong)
    assert judged_inclusion(np.ones((4, 10), dtype=bool), 1.0).wrong == ()
    assert judged_inclusion(np.eye(10, dtype=bool), 1.0).wrong == ("rate",)


def test_likelihood_ratios_find_members_who_are_remembered_and_no_others():
    rng = np.random.default_rng(7)
    inside = rng.random((24, 60)) < 0.5
    losses = rng.standard_normal(60) + rng.standard_normal((24, 60))
    found = likelihood_ratios(losses - 4 * inside, inside)
    assert true_alarms(found, inside, 0.1)["true"] > 0.9
    assert abs(true_alarms(likelihood_ratios(losses, inside), inside, 0.1)["true"] - 0.1) < 0.05


def test_what_a_claim_allows_is_between_chance_and_all():
    assert most_true_alarms(0.01, epsilon=0.0, delta=0.0) == pytest.approx(0.01)
    assert most_true_alarms(0.01, epsilon=math.log(3), delta=0.0) == pytest.approx(0.03)
    assert most_true_alarms(0.9, epsilon=1.0, delta=0.0) < 1
    assert most_true_alarms(0.01, epsilon=50.0, delta=0.0) == pytest.approx(1.0)
