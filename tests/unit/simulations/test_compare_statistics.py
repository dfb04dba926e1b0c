"""Tests between variants against numbers worked out by hand or by another route."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from oncofed_simulations.compare_statistics import holm, jackknife, over_folds


def test_the_plain_test_is_the_paired_one_of_scipy():
    a, b = np.array([0.71, 0.74, 0.69, 0.80, 0.77]), np.array([0.70, 0.70, 0.70, 0.75, 0.72])
    found = over_folds(list(a - b), 0.25)
    assert found.p(corrected=False) == pytest.approx(stats.ttest_rel(a, b, alternative="greater").pvalue)


def test_the_corrected_test_has_the_variance_of_nadeau_and_bengio():
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    found = over_folds(values, 0.25)
    # Mean 3, s^2 2.5, (1/5 + 1/4) 2.5 = 1.125.
    assert found.p(corrected=True) == pytest.approx(stats.t.sf(3 / math.sqrt(1.125), 4))
    assert found.p(corrected=True) > found.p(corrected=False)
    half = 2.7764451 * math.sqrt(1.125)
    assert found.interval() == pytest.approx((3 - half, 3 + half))


def test_a_worse_variant_has_a_large_p_and_no_difference_has_half():
    assert over_folds([-0.1, -0.2, -0.15], 0.5).p(corrected=True) > 0.9
    assert over_folds([0.0, 0.0], 0.5).p(corrected=True) == 0.5
    assert over_folds([0.3], 0.5) is None


def test_holm_by_hand():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_the_jackknife_of_a_mean_of_equal_groups_is_its_standard_error():
    groups = np.random.default_rng(3).normal(size=(8, 1))
    without = [float(np.delete(groups, i).mean()) for i in range(8)]
    found = jackknife(float(groups.mean()), without, [1] * 8, 0.0)
    assert found.variance == pytest.approx(float(np.var(groups, ddof=1)) / 8)
    assert found.freedom == 7


def test_a_detectable_difference_is_found_four_times_in_five():
    rng = np.random.default_rng(0)
    size, folds = 1.0, 40
    least = over_folds(list(stats.norm.ppf((np.arange(folds) + 0.5) / folds)), 0.0).detectable()
    found = [over_folds(list(rng.normal(least, size, folds)), 0.0).p(corrected=True) < 0.05 for _ in range(4000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)
