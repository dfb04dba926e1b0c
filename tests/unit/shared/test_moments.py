"""Components and the LASSO from sums over sites: those of scikit-learn on pooled patients."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import Lasso, MultiTaskLasso

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.moments import (
    PATH,
    Moments,
    components,
    lasso_weights,
    moment_sums,
    moments_size,
    strongest,
)

Values = NDArray[np.float64]
EXACT = 1e-6


def drawn(patients: int, columns: int, responses: int, seed: int = 0) -> tuple[Values, Values]:
    """Correlated columns off zero, a few of which the responses depend on."""
    rng = np.random.default_rng(seed)
    values = (
        rng.normal(size=(patients, columns)) @ (np.eye(columns) + rng.normal(size=(columns, columns)) / columns) + 1
    )
    weights = rng.normal(size=(min(4, columns), responses)) * 2
    return values, values[:, : len(weights)] @ weights + rng.normal(size=(patients, responses)) + 3


def at_sites(values: Values, responses: Values, sites: int = 3) -> Moments:
    """From sums of sites of unequal size; one of them has nobody."""
    cuts = [0, 0, *(len(values) * s**2 // sites**2 for s in range(1, sites)), len(values)]
    parts = [moment_sums(values[a:b], responses[a:b]) for a, b in itertools.pairwise(cuts)]
    return Moments.parse(np.sum(parts, axis=0), values.shape[1], responses.shape[1])


SHAPES = [(60, 8), (30, 100)]


@given(st.integers(0, 40), st.integers(1, 6), st.integers(0, 3), st.integers(0, 1000))
def test_sums_over_sites_are_the_covariances_of_all_patients(
    patients: int, columns: int, responses: int, seed: int
) -> None:
    values, wanted = drawn(patients, columns, responses, seed)
    found = at_sites(values, wanted)
    assert found.patients == patients
    if patients > 1:
        both = np.cov(np.concatenate([values, wanted], axis=1).T, bias=True).reshape(columns + responses, -1)
        np.testing.assert_allclose(found.covariance, both[:columns, :columns], atol=1e-10)
        np.testing.assert_allclose(found.cross, both[:columns, columns:], atol=1e-10)


@pytest.mark.parametrize(("patients", "columns"), SHAPES)
def test_components_are_scikit_learns_on_pooled_patients(patients: int, columns: int) -> None:
    values, none = drawn(patients, columns, 0)
    directions, variances = components(at_sites(values, none), 5)
    pooled = PCA(5, svd_solver="full").fit(values)
    signs = np.sign((directions * pooled.components_).sum(axis=1))
    np.testing.assert_allclose(directions * signs[:, None], pooled.components_, atol=EXACT)
    np.testing.assert_allclose(variances, pooled.explained_variance_ * (patients - 1) / patients, rtol=EXACT)
    assert (directions[np.arange(5), np.abs(directions).argmax(axis=1)] > 0).all()


def test_there_are_no_more_components_than_patients_span() -> None:
    values, none = drawn(4, 20, 0)
    assert len(components(at_sites(values, none), 20)[0]) == 3
    assert len(components(at_sites(values[:1], none[:1]), 20)[0]) == 0
    assert len(components(at_sites(values[:0], none[:0]), 20)[0]) == 0


@pytest.mark.parametrize("responses", [1, 3])
@pytest.mark.parametrize(("patients", "columns"), SHAPES)
def test_the_lasso_is_scikit_learns_on_pooled_patients(patients: int, columns: int, responses: int) -> None:
    values, wanted = drawn(patients, columns, responses)
    moments = at_sites(values, wanted)
    found = lasso_weights(moments, 5)
    largest = np.linalg.norm(moments.cross, axis=1).max()
    for share in PATH:
        model = Lasso if responses == 1 else MultiTaskLasso
        pooled = model(alpha=largest * share, tol=1e-12, max_iter=1_000_000).fit(values, wanted)
        weights = pooled.coef_.reshape(responses, columns).T
        if np.count_nonzero(weights.any(axis=1)) >= 5:
            break
    np.testing.assert_allclose(found, weights, atol=EXACT)
    assert np.count_nonzero(found.any(axis=1)) >= 5


def test_a_lasso_without_anything_to_go_with_chooses_nothing() -> None:
    values, _ = drawn(20, 6, 0)
    assert not lasso_weights(at_sites(values, np.ones((20, 1))), 3).any()
    assert lasso_weights(at_sites(values, np.zeros((20, 0))), 3).shape == (6, 0)


def test_a_lasso_that_is_asked_for_more_columns_than_there_are_gives_what_it_has() -> None:
    values, wanted = drawn(40, 6, 1)
    assert 0 < np.count_nonzero(lasso_weights(at_sites(values, wanted), 50)) <= 6


def test_the_strongest_are_the_largest_and_the_first_of_equals() -> None:
    assert strongest(np.array([1.0, 3, 3, -np.inf, 2]), 3).tolist() == [1, 2, 4]
    assert strongest(np.array([5.0, 5, 5]), 2).tolist() == [0, 1]
    assert strongest(np.array([-np.inf, 0.0]), 2).tolist() == [1]


@pytest.mark.parametrize("spoil", [lambda v: v[:-1], lambda v: np.append(v, 0), lambda v: v * np.nan, lambda v: -v])
def test_sums_that_cannot_be_are_refused(spoil: Callable[[Values], Values]) -> None:
    values, wanted = drawn(5, 3, 2)
    sums = moment_sums(values, wanted)
    assert len(sums) == moments_size(3, 2)
    with pytest.raises(RemoteProtocolError, match="sums of products do not fit"):
        Moments.parse(spoil(sums), 3, 2)
