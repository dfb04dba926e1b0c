"""Scaling from sums over sites: equal to scikit-learn on pooled patients; a gap stays a gap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from oncofed_shared.errors import DataError, RemoteProtocolError
from oncofed_shared.features import (
    Preparation,
    check_columns,
    check_sums,
    column_sums,
    encoded_columns,
    prepare,
    prepared_input,
    unite,
)
from oncofed_shared.messages import Columns
from oncofed_shared.plan import Plan, parse

Values = NDArray[np.float64]
EXACT = 1e-12
GENES = ("A_rna", "B_rna", "C_rna")


def plan_of(modalities: dict[str, Any] | None = None, tasks: dict[str, Any] | None = None, **training: Any) -> Plan:
    response = {"kind": "classification", "label": "r", "classes": ["a", "b", "c"]}
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": tasks or {"response": response},
            "modalities": modalities or {"genes": {"patterns": ["{gene}_rna"], "clip": 1e6}},
            "training": {"rounds": 1, **training},
        }
    )


def genes(**more: Any) -> Plan:
    return plan_of({"genes": {"patterns": ["{gene}_rna"], "clip": 1e6, **more}})


def with_gaps(rng: np.random.Generator, values: Values, share: float = 0.2) -> Values:
    return np.where(rng.random(values.shape) < share, np.nan, values)


def sites_of(seed: int, *, gaps: float = 0.2, positive: bool = False) -> list[Values]:
    rng = np.random.default_rng(seed)
    means = np.array([3.0, -2.0, 0.5])
    drawn = [means + rng.normal(size=(n, 3)) * [1, 10, 0.1] + rng.normal() for n in (5, 1, 17)]
    return [with_gaps(rng, np.abs(v) if positive else v, gaps) for v in drawn]


def summed(plan: Plan, sites: list[Values], labels: list[NDArray[np.int64]] | None = None) -> Preparation:
    columns: Columns = {"genes": GENES}
    labels = labels or [np.zeros(len(v), np.int64) for v in sites]
    total = np.sum(
        [
            column_sums(plan, columns, {"genes": v}, columns, {"response": y})
            for v, y in zip(sites, labels, strict=True)
        ],
        axis=0,
    )
    return prepare(plan, columns, total)


def scaled(plan: Plan, preparation: Preparation, values: Values) -> tuple[Values, NDArray[np.bool_]]:
    return prepared_input(plan, preparation, {"genes": values}, {"genes": GENES})


@pytest.mark.parametrize("seed", range(5))
def test_zscore_is_scikit_learns_on_pooled_patients(seed: int) -> None:
    sites = sites_of(seed)
    plan = genes()
    ours, seen = scaled(plan, summed(plan, sites), np.concatenate(sites))
    theirs = StandardScaler().fit_transform(np.concatenate(sites))
    np.testing.assert_array_equal(seen, ~np.isnan(theirs))
    np.testing.assert_allclose(ours[seen], theirs[seen], rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("seed", range(5))
def test_minmax_with_a_declared_range_is_scikit_learns(seed: int) -> None:
    sites = sites_of(seed)
    plan = genes(scaling="minmax", range=[-50, 70])
    ours, seen = scaled(plan, summed(plan, sites), np.concatenate(sites))
    theirs = MinMaxScaler().fit([[-50.0] * 3, [70.0] * 3]).transform(np.concatenate(sites))
    np.testing.assert_allclose(ours[seen], theirs[seen], rtol=EXACT, atol=EXACT)


def test_minmax_without_a_range_goes_from_three_deviations_below_the_mean_to_three_above() -> None:
    sites = sites_of(1)
    plan = genes(scaling="minmax")
    ours, seen = scaled(plan, summed(plan, sites), np.concatenate(sites))
    theirs = (StandardScaler().fit_transform(np.concatenate(sites)) + 3) / 6
    np.testing.assert_allclose(ours[seen], theirs[seen], rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    ("transform", "function"),
    [("log", np.log1p), ("signed_log", lambda v: np.sign(v) * np.log1p(np.abs(v)))],
)
def test_logarithms_come_before_the_scaling(transform: str, function: Any) -> None:
    sites = sites_of(2, positive=transform == "log")
    plan = genes(transform=transform)
    ours, seen = scaled(plan, summed(plan, sites), np.concatenate(sites))
    logs = FunctionTransformer(function).transform(np.concatenate(sites))
    theirs = StandardScaler().fit_transform(logs)
    np.testing.assert_allclose(ours[seen], theirs[seen], rtol=EXACT, atol=EXACT)


def test_minmax_takes_the_logarithm_of_the_range_too() -> None:
    plan = genes(transform="log", scaling="minmax", range=[0, 100])
    ours, _ = scaled(plan, summed(plan, [np.zeros((1, 3))]), np.array([[0.0, 100.0, 9.0]]))
    np.testing.assert_allclose(ours, [[0, 1, np.log(10) / np.log(101)]], rtol=EXACT)


def test_a_logarithm_refuses_negative_values() -> None:
    plan = genes(transform="log")
    with pytest.raises(DataError, match="signed_log"):
        summed(plan, [np.array([[0.0, -0.5, 1.0]])])


def test_constants_of_the_plan_need_nobody() -> None:
    plan = genes(scaling="constants", center=2.0, spread=4.0)
    ours, _ = scaled(plan, summed(plan, sites_of(0)), np.array([[2.0, 6.0, -2.0]]))
    np.testing.assert_array_equal(ours, [[0, 1, -1]])


def test_without_scaling_values_stay_what_they_are() -> None:
    sites = sites_of(3)
    plan = genes(scaling="none")
    ours, seen = scaled(plan, summed(plan, sites), sites[0])
    np.testing.assert_array_equal(ours[seen], sites[0][seen])


def test_a_constant_column_becomes_zero_and_a_column_that_nobody_has_stays_missing() -> None:
    table = np.array([[7.1, np.nan, 1.0], [7.1, np.nan, 2.0]])
    plan = genes()
    ours, seen = scaled(plan, summed(plan, [table]), table)
    np.testing.assert_allclose(ours[:, :2], 0, atol=EXACT)
    np.testing.assert_array_equal(seen, [[True, False, True]] * 2)


def test_values_are_clipped_on_both_sides() -> None:
    plan = genes(scaling="none", clip=2.0)
    ours, _ = scaled(plan, summed(plan, sites_of(0)), np.array([[-9.0, 1.5, 9.0]]))
    np.testing.assert_array_equal(ours, [[-2, 1.5, 2]])


SITES = st.lists(st.integers(0, 8), min_size=1, max_size=5)


@given(SITES, st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_sums_are_additive_and_scaling_does_not_depend_on_who_has_whom(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    sites = [with_gaps(rng, rng.normal(size=(n, 3))) for n in sizes]
    labels = [rng.integers(-1, 3, n) for n in sizes]
    plan = genes()
    apart, pooled = summed(plan, sites, labels), summed(plan, [np.concatenate(sites)], [np.concatenate(labels)])
    np.testing.assert_allclose(apart.center, pooled.center, atol=EXACT)
    np.testing.assert_allclose(apart.spread, pooled.spread, atol=1e-7)
    for name, weights in pooled.class_weights.items():
        np.testing.assert_array_equal(apart.class_weights[name], weights)


# -- gaps -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["zscore", "minmax", "none"])
def test_a_gap_under_mask_is_never_filled(scaling: str) -> None:
    sites = sites_of(4, gaps=0.5)
    plan = genes(scaling=scaling)
    table = np.concatenate(sites)
    ours, seen = scaled(plan, summed(plan, sites), table)
    np.testing.assert_array_equal(seen, ~np.isnan(table))
    np.testing.assert_array_equal(ours[~seen], 0)


@pytest.mark.parametrize(
    "more",
    [
        {"scaling": "zscore"},
        {"scaling": "none"},
        {"scaling": "minmax"},
        {"scaling": "minmax", "range": [-100, 400]},
        {"scaling": "constants", "center": 2.0, "spread": 3.0},
        {"scaling": "none", "transform": "signed_log"},
    ],
    ids=str,
)
def test_impute_puts_the_consortiums_mean_into_a_gap(more: dict[str, Any]) -> None:
    sites = sites_of(5)
    plan = genes(missing="impute", **more)
    preparation = summed(plan, sites)
    table = np.concatenate([*sites, np.full((1, 3), np.nan)])
    ours, seen = scaled(plan, preparation, table)
    # A patient without the modality still lacks it.
    np.testing.assert_array_equal(seen, ~np.isnan(table).all(axis=1, keepdims=True).repeat(3, axis=1))
    np.testing.assert_array_equal(ours[-1], 0)
    transformed = np.sign(table) * np.log1p(np.abs(table)) if plan.modalities["genes"].transform != "none" else table
    mean = np.nanmean(transformed, axis=0)
    expected = (np.where(np.isnan(transformed), mean, transformed) - preparation.center) / preparation.spread
    np.testing.assert_allclose(ours[seen], expected[seen], rtol=1e-9, atol=1e-9)


def test_drop_takes_the_whole_modality_of_a_patient_with_one_gap() -> None:
    table = np.array([[1.0, 2.0, 3.0], [1.0, np.nan, 5.0], [2.0, 4.0, 6.0]])
    plan = genes(missing="drop")
    preparation = summed(plan, [table])
    ours, seen = scaled(plan, preparation, table)
    np.testing.assert_array_equal(seen.all(axis=1), [True, False, True])
    np.testing.assert_array_equal(ours[1], 0)
    # The dropped patient is not in the statistics either.
    np.testing.assert_allclose(preparation.center, [1.5, 3.0, 4.5])


def test_a_site_without_a_column_has_a_gap_there_and_never_a_zero() -> None:
    plan = genes(scaling="none")
    own: Columns = {"genes": ("C_rna", "A_rna", "Z_rna")}
    preparation = summed(plan, sites_of(0))
    ours, seen = prepared_input(plan, preparation, {"genes": np.array([[3.0, 1.0, 9.0]])}, own)
    np.testing.assert_array_equal(ours, [[1, 0, 3]])
    np.testing.assert_array_equal(seen, [[True, False, True]])


def test_a_site_without_the_modality_has_gaps_alone() -> None:
    plan = genes()
    preparation = summed(plan, sites_of(0))
    ours, seen = prepared_input(plan, preparation, {"genes": np.empty((2, 0))}, {"genes": ()})
    assert not seen.any()
    np.testing.assert_array_equal(ours, np.zeros((2, 3)))


# -- columns ----------------------------------------------------------------------------------------------------------------

CLINICAL = {
    "columns": {
        "age": {"kind": "numeric", "range": [0, 100]},
        "sex": {"kind": "categorical", "categories": ["f", "m"]},
        "stage": {"kind": "ordinal", "order": ["I", "II"]},
    }
}


def test_columns_of_patterns_are_the_sorted_union_and_named_columns_those_of_the_plan() -> None:
    plan = plan_of({"genes": {"patterns": ["{gene}_rna"]}, "clinical": CLINICAL})
    described: list[Columns] = [
        {"genes": ("B_rna", "A_rna"), "clinical": ("age",)},
        {"genes": ("C_rna", "B_rna"), "clinical": ()},
    ]
    united = unite(plan, described)
    assert united == {"clinical": ("age", "sex=f", "sex=m", "stage"), "genes": GENES}
    assert list(united) == ["clinical", "genes"]
    assert unite(plan, reversed(described)) == united


def test_an_excluded_column_is_not_a_column() -> None:
    assert encoded_columns(plan_of({"c": {**CLINICAL, "exclude": ["sex"]}}).modalities["c"]) == ("age", "stage")
    assert encoded_columns(plan_of().modalities["genes"]) is None


def test_minmax_of_named_columns_uses_each_columns_range() -> None:
    plan = plan_of({"c": {**CLINICAL, "scaling": "minmax", "range": [0, 10]}})
    columns: Columns = {"c": ("age", "sex=f", "sex=m", "stage")}
    table = np.array([[50.0, 1.0, 0.0, 1.0]])
    preparation = prepare(plan, columns, column_sums(plan, columns, {"c": table}, columns, {"response": np.array([0])}))
    ours, _ = prepared_input(plan, preparation, {"c": table}, columns)
    # The column's own range; 0 to 1 for a category; the modality's for the rest.
    np.testing.assert_allclose(ours, [[0.5, 1.0, 0.0, 0.1]])


# -- class weights ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-1, 2), min_size=1, max_size=40), st.integers(1, 4))
@settings(max_examples=60)
def test_balanced_weights_are_scikit_learns(labels: list[int], sites: int) -> None:
    plan = plan_of(class_weights="balanced")
    parts = np.array_split(np.array(labels), sites)
    preparation = summed(plan, [np.zeros((len(p), 3)) for p in parts], list(parts))
    ours = preparation.class_weights["response"]
    known = np.array([k for k in labels if k >= 0])
    there = np.unique(known)
    if len(there) < 3:
        # scikit-learn counts only the classes that are there; ours are the plan's three.
        assert np.all(ours[~np.isin(np.arange(3), there)] == 1)
        return
    np.testing.assert_allclose(ours, compute_class_weight("balanced", classes=there, y=known), rtol=EXACT)


def test_weights_of_the_plan_are_taken_as_they_are_and_survival_has_none() -> None:
    tasks = {
        "z": {"kind": "classification", "label": "z", "classes": ["a", "b"]},
        "a": {"kind": "classification", "label": "a", "classes": ["a", "b", "c"]},
        "os": {"kind": "survival", "time": "t", "event": "e", "edges": [0, 1, 2], "horizon": 1},
    }
    plan = plan_of(tasks=tasks, class_weights={"a": [1.0, 2.0, 3.0]})
    columns: Columns = {"genes": GENES}
    labels = {"z": np.array([0, 1]), "a": np.array([2, -1]), "os": np.zeros((2, 2))}
    sums = column_sums(plan, columns, {"genes": np.zeros((2, 3))}, columns, labels)
    np.testing.assert_array_equal(sums[9:], [0, 0, 1, 1, 1])
    weights = prepare(plan, columns, sums).class_weights
    assert {n: w.tolist() for n, w in weights.items()} == {"a": [1, 2, 3], "z": [1, 1]}


# -- at the door ------------------------------------------------------------------------------------------------------------


def test_a_preparation_comes_back_from_its_arrays() -> None:
    plan = plan_of(class_weights="balanced")
    preparation = summed(plan, sites_of(6))
    back = Preparation.from_arrays(plan, preparation.columns, preparation.arrays())
    assert back.columns == preparation.columns
    for name, value in preparation.arrays().items():
        np.testing.assert_array_equal(back.arrays()[name], value)


def broken(change: Any) -> tuple[Columns, dict[str, Any]]:
    preparation = summed(genes(), sites_of(6))
    columns, arrays = dict(preparation.columns), preparation.arrays()
    change(columns, arrays)
    return columns, arrays


BROKEN = {
    "no centre": lambda c, a: a.pop("center"),
    "no fill": lambda c, a: a.pop("fill"),
    "no weights": lambda c, a: a.pop("class_weights.response"),
    "one more array": lambda c, a: a.update(other=np.zeros(3)),
    "weights of no task": lambda c, a: a.update({"class_weights.other": np.ones(2)}),
    "weights of another length": lambda c, a: a.update({"class_weights.response": np.ones(2)}),
    "negative weights": lambda c, a: a.update({"class_weights.response": -np.ones(3)}),
    "short centre": lambda c, a: a.update(center=np.zeros(2)),
    "a centre with two axes": lambda c, a: a.update(center=np.zeros((3, 1))),
    "integers": lambda c, a: a.update(center=np.zeros(3, np.int64)),
    "an infinite centre": lambda c, a: a.update(center=np.array([0, np.inf, 0])),
    "a spread that is not a number": lambda c, a: a.update(spread=np.array([1, np.nan, 1])),
    "a spread of zero": lambda c, a: a.update(spread=np.array([1.0, 0, 1])),
    "an unknown modality": lambda c, a: c.update(other=()),
    "a modality too few": lambda c, a: c.clear(),
    "a column more": lambda c, a: c.update(genes=(*GENES, "D_rna")),
    "a column twice": lambda c, a: c.update(genes=("A_rna", "A_rna", "B_rna")),
    "no column at all": lambda c, a: c.update(genes=()),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_preparation_that_does_not_fit_is_the_peers_fault(change: Any) -> None:
    columns, arrays = broken(change)
    with pytest.raises(RemoteProtocolError):
        Preparation.from_arrays(genes(), columns, arrays)


def test_sums_that_do_not_fit_are_the_peers_fault() -> None:
    plan = genes()
    columns: Columns = {"genes": GENES}
    good = column_sums(plan, columns, {"genes": sites_of(0)[0]}, columns, {"response": np.zeros(5, np.int64)})
    check_sums(plan, columns, good)
    check_columns(plan, columns)
    negative, infinite = good.copy(), good.copy()
    negative[0], infinite[4] = -1, np.inf
    for bad in (good[:-1], np.append(good, 0), negative, infinite, np.empty(0)):
        with pytest.raises(RemoteProtocolError):
            check_sums(plan, columns, bad)
