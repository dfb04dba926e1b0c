"""ComBat from sums is the library's over pooled patients, whoever has which of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neuroCombat import neuroCombat as library
from neuroCombat.neuroCombat import it_sol
from numpy.typing import NDArray

from oncofed_shared.combat import (
    Location,
    Pooled,
    combat_size,
    combat_sums,
    located,
    location_of,
    pooled_of,
    standardised,
)
from oncofed_shared.errors import RemoteProtocolError

Values = NDArray[np.float64]
SIZES = (40, 25, 18)


class World:
    """Hospitals with scanners of their own, in which patients differ too."""

    def __init__(self, seed: int, columns: int = 12, sizes: tuple[int, ...] = SIZES) -> None:
        rng = np.random.default_rng(seed)
        self.hospital = np.repeat(np.arange(len(sizes)), sizes)
        # The library holds covariates as 32-bit floats: halves are the same in either.
        age = np.round(2 * (60 + 5 * self.hospital + 9 * rng.standard_normal(len(self.hospital)))) / 2
        self.covariates = np.column_stack([age, rng.random(len(age)) < 0.3 + 0.2 * (self.hospital == 1)]).astype(float)
        effects = rng.standard_normal((2, columns)) * [[0.05], [1.0]]
        shift, scale = rng.standard_normal((2, len(sizes), columns))
        noise = rng.standard_normal((len(age), columns)) * np.exp(0.3 * scale)[self.hospital]
        self.table = 3 * rng.standard_normal(columns) + self.covariates @ effects + shift[self.hospital] + noise

    def federated(self) -> Values:
        """What each hospital makes of its own patients, after one sum."""
        parts = [self.hospital == k for k in range(self.hospital.max() + 1)]
        count = self.covariates.shape[1]
        sums = sum((combat_sums(self.table[p], self.covariates[p]) for p in parts), np.zeros(1))
        pooled = pooled_of(np.asarray(sums), columns=self.table.shape[1], covariates=count)
        made = np.empty_like(self.table)
        for part in parts:
            own = location_of(standardised(pooled, self.table[part], self.covariates[part]))
            made[part] = located(pooled, own, self.table[part], self.covariates[part])
        return made

    def by_library(self) -> Values:
        frame = pd.DataFrame({"hospital": self.hospital, "age": self.covariates[:, 0], "sex": self.covariates[:, 1]})
        names: dict[str, Any] = {"categorical_cols": ["sex"], "continuous_cols": ["age"]}
        return np.asarray(library(self.table.T, frame, "hospital", **names)["data"]).T


@pytest.mark.parametrize("seed", range(5))
def test_hospitals_together_get_what_neurocombat_gives_over_pooled_patients(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(seed)
    # The library stops its repetition when nothing changes by more than 1e-4; here it goes on to the solution, as ours does.
    with monkeypatch.context() as patch:
        patch.setattr(it_sol, "__defaults__", (1e-13,))
        np.testing.assert_allclose(world.federated(), world.by_library(), rtol=0, atol=1e-6)
    as_shipped = np.abs(world.federated() - world.by_library()).max()
    assert as_shipped < 1e-4


def test_the_differences_between_hospitals_go_and_the_covariates_effects_stay() -> None:
    world = World(7, sizes=(400, 300, 300))
    made = world.federated()

    def fitted(table: Values) -> tuple[Values, Values]:
        marks = (world.hospital[:, None] == np.arange(3)).astype(float)
        design = np.column_stack([marks, world.covariates])
        found = np.linalg.lstsq(design, table, rcond=None)[0]
        return found[:3], found[3:]

    before, after = fitted(world.table), fitted(made)
    assert np.ptp(before[0], axis=0).mean() > 1
    assert np.ptp(after[0], axis=0).max() < 0.2
    # Ranges of age differ between hospitals; a harmonisation without covariates would take a part of its effect away.
    np.testing.assert_allclose(after[1], before[1], atol=0.15)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), gaps=st.floats(0, 0.5))
def test_with_gaps_each_column_has_the_least_squares_of_the_patients_of_whom_it_was_observed(
    seed: int, gaps: float
) -> None:
    world, rng = World(seed, columns=4), np.random.default_rng(seed)
    world.table[rng.random(world.table.shape) < gaps] = np.nan
    world.covariates[rng.random(len(world.table)) < gaps / 3, 0] = np.nan
    parts = [world.hospital == k for k in range(3)]
    sums = sum((combat_sums(world.table[p], world.covariates[p]) for p in parts), np.zeros(1))
    pooled = pooled_of(np.asarray(sums), columns=4, covariates=2)
    marks = (world.hospital[:, None] == np.arange(3)).astype(float)
    for f in range(4):
        rows = ~np.isnan(world.table[:, f]) & ~np.isnan(world.covariates).any(axis=1)
        used = marks[rows][:, marks[rows].any(axis=0)]
        design, y = np.column_stack([used, world.covariates[rows]]), world.table[rows, f]
        found = np.linalg.lstsq(design, y, rcond=None)[0]
        left = y - design @ found
        np.testing.assert_allclose(pooled.effects[:, f], found[-2:], atol=1e-8)
        np.testing.assert_allclose(pooled.mean[f], used.mean(axis=0) @ found[:-2], atol=1e-6)
        np.testing.assert_allclose(pooled.spread[f], np.sqrt((left**2).mean()), rtol=1e-8)


def test_a_hospitals_equations_are_solved() -> None:
    """Johnson et al. 2007: each of the two posterior means, with the other one in it."""
    table = np.random.default_rng(3).standard_normal((21, 30)) * np.linspace(0.5, 2, 30) + np.linspace(-1, 1, 30)
    found = location_of(table)
    mean, variance = table.mean(axis=0), table.var(axis=0, ddof=1)
    m, s = variance.mean(), variance.var(ddof=1)
    a, b, tau = 2 + m * m / s, m + m**3 / s, mean.var(ddof=1)
    g = (21 * tau * mean + found.scale * mean.mean()) / (21 * tau + found.scale)
    d = (b + ((table - found.shift) ** 2).sum(axis=0) / 2) / (21 / 2 + a - 1)
    np.testing.assert_allclose(found.shift, g, rtol=1e-10)
    np.testing.assert_allclose(found.scale, d, rtol=1e-10)


def test_a_column_with_hardly_a_value_has_the_priors_means_and_a_constant_one_is_left_alone() -> None:
    world = World(1)
    world.table[:, 0] = 7.0
    first = world.hospital == 0
    world.table[first, 1] = np.nan
    world.table[np.flatnonzero(first)[0], 1] = 2.0
    made = world.federated()
    np.testing.assert_array_equal(made[:, 0], world.table[:, 0])
    np.testing.assert_array_equal(np.isnan(made), np.isnan(world.table))
    pooled = pooled_of(
        sum(
            (combat_sums(world.table[world.hospital == k], world.covariates[world.hospital == k]) for k in range(3)),
            np.zeros(1),
        ),
        columns=12,
        covariates=2,
    )
    assert pooled.spread[0] == 0
    alone = standardised(pooled, world.table[first], world.covariates[first])
    own = location_of(alone)
    means, variances = np.nanmean(alone[:, 2:], axis=0), np.nanvar(alone[:, 2:], axis=0, ddof=1)
    assert own.shift[1] == pytest.approx(means.mean())
    assert own.scale[1] == pytest.approx(variances.mean())


@pytest.mark.parametrize(
    ("table", "shift", "scale"),
    [
        (np.zeros((0, 3)), 0.0, 1.0),
        (np.full((5, 3), np.nan), 0.0, 1.0),
        (np.full((5, 2), 2.0), 2.0, 1.0),
        (np.array([[1.0], [3.0]]), 2.0, 2.0),
    ],
    ids=["nobody", "only gaps", "values all alike", "one column, nothing to shrink by"],
)
def test_where_there_is_little_to_find_a_location_by_it_is_still_one(table: Values, shift: float, scale: float) -> None:
    found = location_of(table)
    np.testing.assert_allclose(found.shift, shift)
    np.testing.assert_allclose(found.scale, scale)


def test_one_hospital_alone_keeps_its_values_but_for_a_little_shrinking() -> None:
    world = World(2, sizes=(200,))
    np.testing.assert_allclose(world.federated(), world.table, atol=0.05 * world.table.std())


def test_a_covariate_that_says_nothing_new_has_no_effect() -> None:
    world = World(4)
    plain = world.federated()
    world.covariates = np.column_stack([world.covariates, world.covariates[:, 0] * 2 + 1, np.ones(len(world.table))])
    np.testing.assert_allclose(world.federated(), plain, atol=1e-6)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s[:-1],
        lambda s: np.append(s, 0.0),
        lambda s: np.where(np.arange(len(s)) == 3, np.nan, s),
        lambda s: np.where(np.arange(len(s)) == 0, -1.0, s),
        lambda s: np.where(np.arange(len(s)) == 24, -1.0, s),
    ],
    ids=["short", "long", "no number", "negative count", "negative squares"],
)
def test_sums_that_cannot_be_of_patients_are_refused(spoil: Any) -> None:
    world = World(5)
    sums = combat_sums(world.table, world.covariates)
    assert len(sums) == combat_size(12, 2)
    with pytest.raises(RemoteProtocolError, match="do not fit"):
        pooled_of(spoil(sums), columns=12, covariates=2)


def test_what_is_agreed_survives_being_sent_and_is_refused_when_it_cannot_be() -> None:
    world = World(6)
    pooled = pooled_of(combat_sums(world.table, world.covariates), columns=12, covariates=2)
    back = Pooled.parse(pooled.flat(), columns=12, covariates=2)
    for name, array in pooled.flat().items():
        np.testing.assert_array_equal(back.flat()[name], array)
    for name, bad in (("spread", -pooled.spread), ("mean", pooled.mean[1:]), ("middle", np.full(2, np.inf))):
        with pytest.raises(RemoteProtocolError, match="does not fit"):
            Pooled.parse(pooled.flat() | {name: bad}, columns=12, covariates=2)
    still = Location(shift=np.zeros(12), scale=np.ones(12))
    np.testing.assert_allclose(located(pooled, still, world.table, world.covariates), world.table)
