"""Quantiles from histograms: those of pooled patients whoever has which of them, and numpy's to the width of a bin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rv_histogram

from oncofed_shared.errors import ConfigError
from oncofed_shared.features import check_sums, column_sums, no_sums, prepare, prepared_input
from oncofed_shared.plan import Plan, parse
from oncofed_shared.robust import BINS, histogram, quantile


def plan_of(**modality: Any) -> Plan:
    return parse(
        {
            "study": {"name": "robust", "purpose": "find the middle of values"},
            "tasks": {"r": {"kind": "classification", "label": "r", "classes": ["no", "yes"]}},
            "modalities": {
                "m": {"patterns": ["*"], "scaling": "robust", "range": [-4.0, 12.0], "clip": None} | modality
            },
            "training": {"rounds": 1, "rate": 0.1},
        }
    )


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 300), share=st.sampled_from([0.25, 0.5, 0.75, 0.01]))
def test_a_quantile_is_numpys_to_the_width_of_a_bin(seed: int, count: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    values = np.clip(rng.standard_normal((count, 3)) * [0.01, 0.3, 5], -1, 1)
    values[rng.random(values.shape) < 0.1] = np.nan
    found = quantile(histogram(values), share)
    for column, made in zip(values.T, found, strict=True):
        seen = column[~np.isnan(column)]
        if not len(seen):
            assert made == 0
            continue
        # The value of somebody, as the order of patients has it; the bin he is in has him.
        exact = np.quantile(seen, share, method="inverted_cdf")
        assert abs(made - exact) <= 2 / BINS + 1e-12


def test_counts_of_sites_add_up_to_those_of_pooled_patients_and_so_do_the_quantiles() -> None:
    plan, rng = plan_of(), np.random.default_rng(4)
    own = {"m": ("a", "b", "c")}
    tables = [rng.gamma(2.0, size=(n, 3)) + 3 * k for k, n in enumerate((31, 17, 8))]
    tables[1][::3, 1] = np.nan
    labels = {"r": np.zeros(0)}
    apart = [column_sums(plan, own, {"m": t}, own, labels) for t in tables]
    whole = np.concatenate(tables)
    together = column_sums(plan, own, {"m": whole}, own, labels)
    for sums in apart:
        check_sums(plan, own, sums)
    assert len(together) == len(no_sums(plan, own))
    federated, pooled = prepare(plan, own, np.sum(apart, axis=0)), prepare(plan, own, together)
    for name, array in pooled.arrays().items():
        np.testing.assert_allclose(federated.arrays()[name], array, atol=1e-9)
    width = 16 / BINS
    np.testing.assert_allclose(pooled.center, np.nanmedian(whole, axis=0), atol=width)
    quartiles = np.nanquantile(whole, [0.25, 0.75], axis=0)
    np.testing.assert_allclose(pooled.spread, (quartiles[1] - quartiles[0]) / 1.349, atol=1.5 * width)
    made, _ = prepared_input(plan, pooled, {"m": whole}, own)
    np.testing.assert_allclose(made[:, 0], (whole[:, 0] - pooled.center[0]) / pooled.spread[0])


def test_a_column_of_nobody_stays_in_the_middle_of_its_range() -> None:
    plan = plan_of()
    own = {"m": ("a",)}
    made = prepare(plan, own, no_sums(plan, own))
    assert made.center.tolist() == [4.0]
    assert made.spread.tolist() == [1.0]


@pytest.mark.parametrize(
    ("modality", "where"),
    [
        ({"range": None}, "declared range"),
        (
            {
                "patterns": None,
                "range": None,
                "columns": {"a": {"kind": "numeric"}, "b": {"kind": "numeric", "range": [0.0, 1.0]}},
            },
            "there is none of a",
        ),
        ({"patterns": None, "columns": {"a": {"kind": "numeric", "knots": [5.0]}}}, "knots needs scaling = 'zscore'"),
    ],
)
def test_a_robust_column_needs_a_declared_range(modality: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        plan_of(**modality)


def test_quantiles_of_three_hospitals_are_scipys_of_the_pooled_histogram() -> None:
    """To 1e-6: another library's bins and another library's inverse of their distribution."""
    plan, rng = plan_of(), np.random.default_rng(9)
    own = {"m": ("a", "b")}
    tables = [rng.gamma(3.0, size=(n, 2)) + k for k, n in enumerate((41, 20, 13))]
    sums = sum(column_sums(plan, own, {"m": t}, own, {"r": np.zeros(0)}) for t in tables)
    made = prepare(plan, own, np.asarray(sums))
    for place, column in enumerate(np.concatenate(tables).T):
        pooled = rv_histogram(np.histogram(column, bins=BINS, range=(-4, 12)), density=False)
        low, median, high = pooled.ppf([0.25, 0.5, 0.75])
        np.testing.assert_allclose(made.center[place], median, atol=1e-6)
        np.testing.assert_allclose(made.spread[place], (high - low) / (norm.ppf(0.75) - norm.ppf(0.25)), atol=1e-6)
