"""Modalities taken from hospitals: pairs counted as scikit counts them, and an experiment that says who lacks what."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from sksurv.metrics import concordance_index_censored

from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import ClassificationTask, Plan, SurvivalTask
from oncofed_simulations.missing import experiment, settings
from oncofed_simulations.missing_scores import gain, pairs_of, table

TWO = ClassificationTask(kind="classification", label="r", classes=("no", "yes"))
OS = SurvivalTask(kind="survival", time="t", event="e", edges=(0.0, 100.0, 200.0), horizon=100.0)


def fold(seed: int, n: int = 40) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    score = rng.random(n).round(1)
    return np.column_stack([1 - score, score]), rng.integers(0, 2, n).astype(float)


def test_pairs_of_classes_are_those_of_the_auc_and_never_cross_folds() -> None:
    once = np.ones((1, 40))
    prediction, labels = fold(0)
    area = roc_auc_score(labels, prediction[:, 1])
    assert float(pairs_of(TWO, [(prediction, labels)]).score(once)[0]) == pytest.approx(area)
    both = pairs_of(TWO, [fold(0), fold(1)])
    each = [pairs_of(TWO, [fold(k)]) for k in (0, 1)]
    total = sum(float(p.comparable.sum()) for p in each)
    expected = sum(float(p.won.sum()) for p in each) / total
    assert float(both.score(np.ones((1, 80)))[0]) == pytest.approx(expected)
    assert not both.comparable[:40, 40:].any()


def test_pairs_of_survival_are_harrells() -> None:
    rng = np.random.default_rng(2)
    labels = np.column_stack([rng.permutation(60) + 1.0, rng.integers(0, 2, 60)])
    risk = rng.random(60)
    made = pairs_of(OS, [(np.column_stack([1 - risk, np.zeros(60)]), labels)])
    known = concordance_index_censored(labels[:, 1] == 1, labels[:, 0], risk)[0]
    assert float(made.score(np.ones((1, 60)))[0]) == pytest.approx(known)


def test_who_has_no_label_is_in_no_pair() -> None:
    prediction, labels = fold(3)
    labels[5] = -1
    made = pairs_of(TWO, [(prediction, labels)])
    assert not made.comparable[5].any()
    assert not made.comparable[:, 5].any()


def test_the_interval_of_a_gain_is_of_paired_patients() -> None:
    good, labels = fold(4, 200)
    good[:, 1] = labels
    noise = pairs_of(TWO, [(fold(5, 200)[0], labels)])
    found = gain(pairs_of(TWO, [(good, labels)]), noise)
    assert found.federated == 1.0
    assert 0 < found.low < found.difference < found.high
    same = gain(noise, noise)
    assert (same.low, same.difference, same.high) == (0.0, 0.0, 0.0)


def test_a_small_experiment_takes_what_it_says(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    plan = make_plan(
        training__rounds=2,
        modalities__shape__side="imaging",
        modalities__mutations__side="genes",
        simulation={"cohort": {"sites": 3, "patients": 60, "seed": 3}},
    )
    names = ("site-1", "site-2", "site-3")
    asked = list(settings(plan, names))
    assert len(asked) == 3 + 2 * 3
    assert asked[0][1] == {"site-1": {"mutations"}, "site-2": {"shape"}}
    assert all(set(part) == set(names) - set(hidden) for _, hidden, part in asked[3:])
    result = experiment(plan, folds=2, seed=0, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "missing.json").read_bytes()) == result
    rows = result["rows"]
    assert len(rows) == 2 * (3 * 2 + 6 * 2)
    assert all(0 <= r["federated"] <= 1 and r["ci"][0] <= r["difference"] <= r["ci"][1] for r in rows)
    assert table(result).count("\n") == 1 + 2 * 3
    assert len({r["alone"] for r in rows if r["site"] == "site-1" and r["task"] == "survival"}) == 3


def test_new_patients_are_many_and_draws_are_not_repeated(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    plan = make_plan(
        training__rounds=1,
        modalities__shape__side="imaging",
        modalities__mutations__side="genes",
        simulation={"cohort": {"sites": 3, "patients": 60, "seed": 3}},
    )
    with pytest.raises(ConfigError, match="add --draws"):
        experiment(plan, folds=2, seed=0, out=tmp_path, new=4)
    begun: list[tuple[int, str]] = []
    more: dict[str, Any] = {
        "folds": 2,
        "seed": 0,
        "out": tmp_path / "out",
        "new": 4,
        "announce": lambda *what: begun.append(what),
    }
    first = experiment(plan, draws=2, **more)
    assert {draw for draw, _ in begun} == {0, 1}
    # Four in five are tested, of five times as many as the study has.
    site = {r["site"]: r["patients"] for r in first["rows"] if r["draw"] == 0}
    assert 0.75 * 4 * 60 < sum(site.values()) < 4.5 * 60
    assert len({r["federated"] for r in first["rows"] if r["setting"] == "site-1 without shape"}) > 2
    begun.clear()
    assert experiment(plan, draws=2, **more) == first
    assert not begun
    with pytest.raises(ConfigError, match="of another study, or with other options"):
        experiment(plan, draws=2, **{**more, "seed": 1})


def rows_of(*differences: list[float]) -> dict[str, Any]:
    """A result of several draws: a list of the hospitals' differences for each."""
    rows = [
        {
            "draw": d, "setting": "s", "part": "p", "task": "t", "site": f"site-{i}",
            "federated": 0.7 + v, "alone": 0.7, "difference": v, "ci": None,
        }
        for d, values in enumerate(differences)
        for i, v in enumerate(values)
    ]  # fmt: skip
    return {"draws": len(differences), "rows": rows}


def test_the_interval_of_several_draws_is_over_draws() -> None:
    drawn = [[0.10, -0.02], [0.14, -0.03], [0.12, -0.04]]
    row = table(rows_of(*drawn)).splitlines()[2]
    means = [np.mean(d) for d in drawn]
    low, high = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert f"{np.mean(means):+.3f} ({low:.3f} to {high:.3f})" in row
    # The second hospital is below its own score in every draw, beyond what three draws vary.
    low, high = stats.ttest_1samp([d[1] for d in drawn], 0).confidence_interval(0.95)
    assert high < 0
    assert row.endswith(f"| 1 of 2 | 1 | -0.030 ({low:+.3f} to {high:+.3f}), site-1 |")


def test_what_cannot_be_measured_is_refused(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a"):
        experiment(make_plan(), folds=2, seed=0, out=tmp_path)
    few = make_plan(simulation={"cohort": {"sites": 2, "patients": 60, "seed": 3}})
    with pytest.raises(ConfigError, match="three hospitals"):
        experiment(few, folds=2, seed=0, out=tmp_path)
