"""Reference models: ordinary regressions, fitted on training patients alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from oncofed_client.cohort import Cohort
from oncofed_client.settings import load_settings
from oncofed_client.source import FolderSource
from oncofed_shared.errors import ConfigError
from oncofed_shared.messages import Trial
from oncofed_shared.metrics import counts
from oncofed_shared.plan import Plan, parse
from oncofed_shared.scoring import WHOLE, split_vector, tabulate
from oncofed_simulations.pooled import PooledSource
from oncofed_simulations.reference import reference_predictions, reference_tables

MakePlan = Callable[..., Plan]
TRIAL = Trial(seed=4)


def plan_of(penalty: float = 0.01, features: Any = ("x", "y"), **evaluation: Any) -> Plan:
    return parse(
        {
            "main_task": "os",
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": {
                "os": {"kind": "survival", "time": "t", "event": "e", "edges": [0, 1, 300, 900], "horizon": 300},
                "r": {"kind": "classification", "label": "r", "classes": ["a", "b", "c"]},
            },
            "modalities": {
                "m": {
                    "columns": {
                        "x": {"kind": "numeric"},
                        "y": {"kind": "numeric"},
                        "z": {"kind": "categorical", "categories": ["p", "q"]},
                    }
                }
            },
            "training": {"rounds": 1},
            "evaluation": {"reference": {"some": {"features": list(features), "penalty": penalty}}, **evaluation},
        }
    )


def cohort_of(n: int = 120, seed: int = 0) -> Cohort:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 2)) * [1, 20] + [0, 50]
    z = rng.integers(0, 2, n)
    risk = values[:, 0] + (values[:, 1] - 50) / 20
    days = np.ceil(rng.exponential(300 * np.exp(-risk))) + 5
    event = (rng.random(n) < 0.7).astype(float)
    classes = np.clip(np.round(risk / 1.5 + rng.normal(size=n) * 0.5) + 1, 0, 2).astype(np.int64)
    return Cohort(
        site="a",
        patients=tuple(f"a/{i}" for i in range(n)),
        values={"m": np.column_stack([values, z == 0, z == 1]).astype(float)},
        columns={"m": ("x", "y", "z=p", "z=q")},
        labels={"os": np.column_stack([days, event]), "r": classes},
        subgroups={},
        split_labels=None,
    )


COHORT = cohort_of()
TRAIN = np.arange(120) < 80


def standardised(columns: list[int]) -> NDArray[np.float64]:
    table = COHORT.values["m"][:, columns]  # noqa: PD011 - no pandas here
    return np.asarray((table - table[TRAIN].mean(axis=0)) / table[TRAIN].std(axis=0))


def test_survival_is_a_ridge_cox_regression_with_lifelines_coefficients_and_breslows_baseline() -> None:
    ours = reference_predictions(plan_of(), COHORT, TRAIN, "some")["os"]
    scaled = standardised([0, 1])
    days, event = COHORT.labels["os"].T
    frame = pd.DataFrame(scaled, columns=["x", "y"]).assign(t=days, e=event)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        beta = CoxPHFitter(penalizer=0.01).fit(frame[TRAIN], "t", "e").params_.to_numpy()
    hazard = np.exp(scaled @ beta)
    at_risk = (days[TRAIN][None, :] >= days[TRAIN][:, None]) @ hazard[TRAIN]
    baseline = [np.sum((event[TRAIN] / at_risk)[days[TRAIN] <= edge]) for edge in (1, 300, 900)]
    np.testing.assert_allclose(ours, np.exp(-np.outer(hazard, baseline)), atol=0.005)
    # Before anybody died, everybody lives.
    np.testing.assert_array_equal(ours[:, 0], 1)


def test_classification_is_ridge_logistic_regression() -> None:
    ours = reference_predictions(plan_of(penalty=0.05), COHORT, TRAIN, "some")["r"]
    scaled = standardised([0, 1])
    model = LogisticRegression(C=1 / (0.05 * 80), max_iter=5000).fit(scaled[TRAIN], COHORT.labels["r"][TRAIN])
    np.testing.assert_allclose(ours, model.predict_proba(scaled), atol=1e-6)


def test_only_training_patients_are_learned_from() -> None:
    before = reference_predictions(plan_of(), COHORT, TRAIN, "some")
    labels = {t: v.copy() for t, v in COHORT.labels.items()}
    labels["os"][~TRAIN] = [1, 1]
    labels["r"][~TRAIN] = 0
    values = np.array(COHORT.values["m"])  # noqa: PD011 - no pandas here
    values[~TRAIN] *= 100
    after = reference_predictions(plan_of(), replace(COHORT, labels=labels), TRAIN, "some")
    moved = reference_predictions(plan_of(), replace(COHORT, values={"m": values}), TRAIN, "some")
    for task, prediction in before.items():
        np.testing.assert_array_equal(after[task], prediction)
        np.testing.assert_array_equal(moved[task][TRAIN], prediction[TRAIN])


def test_a_missing_value_counts_as_the_mean_of_the_training_patients() -> None:
    values = np.array(COHORT.values["m"])  # noqa: PD011 - no pandas here
    values[100, 0] = np.nan
    filled = values.copy()
    filled[100, 0] = values[TRAIN, 0].mean()
    one, two = (
        reference_predictions(plan_of(), replace(COHORT, values={"m": v}), TRAIN, "some") for v in (values, filled)
    )
    for task, prediction in one.items():
        np.testing.assert_allclose(prediction[100], two[task][100])


@pytest.mark.parametrize("features", [("z",), ("z=p", "z=q"), ("x", "z"), ("*",)], ids=str)
def test_a_categorical_feature_is_all_its_categories_and_a_star_is_everything(features: tuple[str, ...]) -> None:
    chosen = {"z": [2, 3], "z=p": [2], "z=q": [3], "x": [0], "*": [0, 1, 2, 3]}
    wanted = sorted({i for f in features for i in chosen[f]})
    ours = reference_predictions(plan_of(features=features), COHORT, TRAIN, "some")["r"]
    scaled = standardised(wanted)
    model = LogisticRegression(C=1 / 0.8, max_iter=5000).fit(scaled[TRAIN], COHORT.labels["r"][TRAIN])
    np.testing.assert_allclose(ours, model.predict_proba(scaled), atol=1e-5)


def test_a_feature_that_nobody_has_is_named() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.reference\.some: no modality of the plan has nowhere"):
        reference_predictions(plan_of(features=("x", "nowhere")), COHORT, TRAIN, "some")


def test_what_cannot_be_fitted_is_left_out() -> None:
    def fitted(change: Callable[[Any], None], cohort: Cohort = COHORT) -> set[str]:
        labels = {t: v.copy() for t, v in cohort.labels.items()}
        change(labels)
        return set(reference_predictions(plan_of(), replace(cohort, labels=labels), TRAIN, "some"))

    assert fitted(lambda labels: None) == {"os", "r"}
    assert fitted(lambda labels: labels["os"].__setitem__((slice(None), 1), 0)) == {"r"}
    assert fitted(lambda labels: labels["r"].__setitem__(slice(None), 2)) == {"os"}
    constant = replace(COHORT, values={"m": np.full((120, 4), 7.0)})
    assert fitted(lambda labels: None, constant) == set()
    absent = replace(COHORT, values={"m": np.full((120, 4), np.nan)})
    assert fitted(lambda labels: None, absent) == set()


def test_a_class_that_no_training_patient_has_gets_no_probability() -> None:
    labels = {**COHORT.labels, "r": np.minimum(COHORT.labels["r"], 1)}
    made = reference_predictions(plan_of(), replace(COHORT, labels=labels), TRAIN, "some")["r"]
    np.testing.assert_array_equal(made[:, 2], 0)
    np.testing.assert_allclose(made.sum(axis=1), 1)


# -- tables -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pooled(hospitals: Path) -> PooledSource:
    return PooledSource([FolderSource(f, load_settings(f)) for f in sorted(hospitals.iterdir())])


def test_tables_hold_each_sites_test_patients_and_externals_whole(pooled: PooledSource, make_plan: MakePlan) -> None:
    plan = make_plan()
    tables = reference_tables(plan, pooled, TRIAL, "age", externals=["site-4"])
    cohort = pooled.cohort(plan)
    parts = pooled.split(plan, cohort, TRIAL)
    owner = np.array([p.split("/")[0] for p in cohort.patients])
    predictions = reference_predictions(plan, cohort, (parts == 0) & (owner != "site-4"), "age")
    for name, table in tables.items():
        rows: NDArray[np.bool_] = (owner == name) & ((parts == 2) | (name == "site-4"))
        expected = tabulate(
            plan,
            {t: p[rows] for t, p in predictions.items()},
            {t: v[rows] for t, v in cohort.labels.items()},
            {s: v[rows] for s, v in cohort.subgroups.items()},
            subgroups=True,
        )
        np.testing.assert_array_equal(table, expected)


def test_a_task_without_a_model_gives_tables_of_nobody(hospitals: Path, make_plan: MakePlan) -> None:
    pooled = PooledSource([FolderSource(f, load_settings(f)) for f in sorted(hospitals.iterdir())])
    plan = make_plan(evaluation__reference={"none": {"features": ["sex=male"]}}, evaluation__main_reference="none")
    table = pooled.cohort(plan).values["clinical"]  # noqa: PD011 - no pandas here
    table[:] = np.nan
    tables = reference_tables(plan, pooled, TRIAL, "none", externals=[])
    for table in tables.values():
        for task, vector in split_vector(plan, table, subgroups=True)[WHOLE].items():
            assert counts(plan.tasks[task], plan.evaluation, vector) == (0, 0)
