"""Numbers of a result: computed from sums, hidden where few patients stand behind them, and always with a reason."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, roc_auc_score

from oncofed_server.results import alone_numbers, arm_numbers, binning_errors, drawn, shown, spread
from oncofed_shared.count_tables import score_grid
from oncofed_shared.metrics import compute, counts, interval, metric_names
from oncofed_shared.plan import Plan, parse
from oncofed_shared.scoring import WHOLE, split_vector, tabulate
from oncofed_shared.storage import dump_json

STUDY: dict[str, Any] = {
    "main_task": "os",
    "study": {"name": "s", "purpose": "a study for tests"},
    "tasks": {
        "os": {"kind": "survival", "time": "t", "event": "e", "edges": [0, 100, 300, 900], "horizon": 300},
        "r": {"kind": "classification", "label": "r", "classes": ["no", "yes"]},
    },
    "modalities": {"m": {"patterns": ["*"]}},
    "training": {"rounds": 1},
    "evaluation": {
        "score_bins": 64,
        "days_per_bin": 20,
        "bootstrap": 50,
        "minimum_shown": 8,
        "minimum_events": 2,
        "subgroups": {"sex": {"column": "sex", "values": ["f", "m"]}},
    },
}
PLAN = parse(STUDY)
SITES = ("a", "b", "c")


class People:
    """Test patients of one site with predictions that lie on the grid, so that the tables lose nothing of them."""

    def __init__(self, n: int, seed: int, *, event: float | None = None) -> None:
        rng = np.random.default_rng(seed)
        centres = score_grid(64).centre
        self.p = centres[rng.integers(5, 60, n)]
        risk = centres[rng.integers(5, 60, (n, 3))]
        self.curve = 1 - np.sort(risk, axis=1)
        self.r = (rng.random(n) < self.p).astype(np.int64)
        self.os = np.column_stack([rng.integers(0, 900, n), rng.integers(0, 2, n)]).astype(float)
        if event is not None:
            self.os[:, 1] = event
        self.sex = rng.integers(0, 2, n)

    def table(self, plan: Plan = PLAN) -> NDArray[np.float64]:
        predictions = {"os": self.curve, "r": np.column_stack([1 - self.p, self.p])}
        return tabulate(plan, predictions, {"os": self.os, "r": self.r}, {"sex": self.sex}, subgroups=True)


def tables(seed: int = 0, sizes: tuple[int, ...] = (40, 30, 20)) -> dict[str, NDArray[np.float64]]:
    return {s: People(n, 10 * seed + i).table() for i, (s, n) in enumerate(zip(SITES, sizes, strict=True))}


def own(vector: NDArray[np.float64], task: str, block: tuple[str, str] = WHOLE) -> dict[str, float | None]:
    part = split_vector(PLAN, vector, subgroups=True)[block][task]
    return compute(PLAN.tasks[task], PLAN.evaluation, part)


def each_metric() -> list[tuple[str, str]]:
    return [(t, m) for t in PLAN.task_names for m in metric_names(PLAN.tasks[t])]


# -- one arm ----------------------------------------------------------------------------------------------------------------


def test_overall_is_the_number_of_the_summed_table_and_the_mean_over_seeds() -> None:
    replicates = [tables(0), tables(1)]
    numbers = arm_numbers(PLAN, replicates, SITES)
    assert list(numbers) == ["os", "r"]
    totals = [np.sum(list(r.values()), axis=0) for r in replicates]
    for task, metric in each_metric():
        entry = numbers[task][metric]
        expected = [own(t, task)[metric] for t in totals]
        assert entry["per_seed"] == expected
        assert entry["overall"] == pytest.approx(np.mean(expected), rel=1e-15)
        for i, site in enumerate(SITES):
            per_site = np.mean([own(r[site], task)[metric] for r in replicates])
            assert entry["per_site"][site] == pytest.approx(per_site, rel=1e-15), i
        bounds = [
            interval(
                PLAN.tasks[task],
                PLAN.evaluation,
                split_vector(PLAN, t, subgroups=True)[WHOLE][task],
                draws=50,
                seed=0,
            )[metric]
            for t in totals
        ]
        np.testing.assert_allclose(entry["ci"], np.mean([b for b in bounds if b is not None], axis=0))


def test_numbers_of_subgroups_are_those_of_their_patients() -> None:
    replicates = [tables(0), tables(1)]
    entry = arm_numbers(PLAN, replicates, SITES)["r"]["auc"]["subgroups"]["sex"]
    totals = [np.sum(list(r.values()), axis=0) for r in replicates]
    for group in ("f", "m"):
        parts = [split_vector(PLAN, t, subgroups=True)["sex", group]["r"] for t in totals]
        expected = np.mean([compute(PLAN.tasks["r"], PLAN.evaluation, p)["auc"] for p in parts])
        assert entry[group]["overall"] == pytest.approx(expected)
        sizes = [counts(PLAN.tasks["r"], PLAN.evaluation, p)[0] for p in parts]
        assert entry[group]["patients"] == round(float(np.mean(sizes)))


def test_externals_have_numbers_of_their_own_and_count_nowhere_else() -> None:
    replicates = [tables(0)]
    numbers = arm_numbers(PLAN, replicates, SITES[:2], externals=SITES[2:])
    without = arm_numbers(PLAN, replicates, SITES[:2])
    for task, metric in each_metric():
        entry = numbers[task][metric]
        assert entry["external"]["overall"] == own(replicates[0]["c"], task)[metric]
        assert entry["external"]["per_site"] == {"c": entry["external"]["overall"]}
        assert {k: v for k, v in entry.items() if k != "external"} == {
            k: v for k, v in without[task][metric].items() if k != "external"
        }
        assert without[task][metric]["external"]["why"] == {"overall": "no external site"}


# -- what is not shown ------------------------------------------------------------------------------------------------------


def unexplained(entry: dict[str, Any]) -> list[str]:
    """Numbers that are null without a reason, or have one without being null."""
    wrong = [] if (entry["overall"] is None) == ("overall" in entry.get("why", {})) else ["overall"]
    return wrong + [s for s, v in entry.get("per_site", {}).items() if (v is None) != (s in entry["why"])]


CASES = {
    "everything": [tables(0)],
    "a small site": [tables(0, (40, 30, 3))],
    "everybody is few": [tables(0, (3, 2, 1))],
    "a site without a table": [{s: t for s, t in tables(0).items() if s != "b"}],
    "no table at all": [{}],
    "no run at all": [],
    "nobody at a site": [tables(0, (40, 0, 20))],
    "a site without events": [tables(0) | {"b": People(30, 1, event=0).table()}],
    "no events anywhere": [{s: People(30, i, event=0).table() for i, s in enumerate(SITES)}],
    "one seed with, one without": [tables(0), {}],
}


@pytest.mark.parametrize("replicates", CASES.values(), ids=CASES)
def test_every_number_that_is_not_there_has_a_reason(replicates: list[Any]) -> None:
    numbers = arm_numbers(PLAN, replicates, SITES[:2], externals=SITES[2:])
    for task, metric in each_metric():
        entry = numbers[task][metric]
        assert unexplained(entry) == []
        assert unexplained(entry["external"]) == []
        for part in entry["subgroups"]["sex"].values():
            assert (part["overall"] is None) == ("why" in part)
    json.loads(dump_json(numbers))


def test_fewer_patients_than_the_minimum_hide_every_number() -> None:
    few = [tables(0, (40, 7, 20))]
    numbers = arm_numbers(PLAN, few, SITES)
    for task, metric in each_metric():
        entry = numbers[task][metric]
        assert entry["per_site"]["b"] is None
        assert entry["why"]["b"] == "fewer than 8 test patients"
        assert "b" not in entry["per_site_ci"]
        assert entry["overall"] is not None
    alone = arm_numbers(PLAN, few, ["b"])
    for task, metric in each_metric():
        entry = alone[task][metric]
        assert (entry["overall"], entry["ci"], entry["per_seed"]) == (None, None, [None])
        assert entry["why"]["overall"] == "fewer than 8 test patients"
        for part in entry["subgroups"]["sex"].values():
            assert (part["overall"], part["ci"], part["patients"]) == (None, None, None)
    assert drawn(PLAN, few, ["b"]) == {}
    every = spread(PLAN, few, ["b"], "per_split")
    assert all(e["per_split"] == [None] and e["overall"] is None for m in every.values() for e in m.values())


def test_at_the_minimum_numbers_are_shown() -> None:
    at = [tables(3, (8, 30, 20))]
    assert arm_numbers(PLAN, at, SITES)["r"]["accuracy"]["per_site"]["a"] is not None


def test_fewer_events_than_the_minimum_hide_survival_alone() -> None:
    people = People(30, 4, event=0)
    people.os[0] = [50, 1]
    numbers = arm_numbers(PLAN, [{"a": people.table()}], ["a"])
    assert numbers["os"]["c_index"]["overall"] is None
    assert numbers["os"]["c_index"]["why"]["overall"] == "fewer than 2 events among the test patients"
    assert numbers["r"]["auc"]["overall"] is not None
    assert sorted(drawn(PLAN, [{"a": people.table()}], ["a"])) == ["r"]


def test_one_class_hides_classification_alone() -> None:
    people = People(30, 5)
    people.r[:] = 1
    numbers = arm_numbers(PLAN, [{"a": people.table()}], ["a"])
    assert numbers["r"]["accuracy"]["overall"] is None
    assert "rarest class" in numbers["r"]["accuracy"]["why"]["overall"]
    assert numbers["os"]["brier"]["overall"] is not None


def test_many_seeds_of_few_patients_do_not_make_many_patients() -> None:
    few = [tables(k, (5, 2, 0)) for k in range(10)]
    assert drawn(PLAN, few, SITES) == {}
    assert arm_numbers(PLAN, few, SITES)["r"]["auc"]["overall"] is None


def test_shown_is_compute_or_nothing() -> None:
    enough, few = People(30, 1).table(), People(3, 1).table()
    for task in PLAN.task_names:
        part = split_vector(PLAN, enough, subgroups=True)[WHOLE][task]
        assert shown(PLAN, task, part) == compute(PLAN.tasks[task], PLAN.evaluation, part)
        hidden = shown(PLAN, task, split_vector(PLAN, few, subgroups=True)[WHOLE][task])
        assert hidden == dict.fromkeys(metric_names(PLAN.tasks[task]))


# -- sites alone ------------------------------------------------------------------------------------------------------------


def models() -> dict[str, list[dict[str, People]]]:
    """Per trained site and seed, its model's predictions for every site's patients, who are the same for every model."""
    made: dict[str, list[dict[str, People]]] = {}
    for k, trained in enumerate(SITES[:2]):
        for seed in range(2):
            people = {s: People(n, 100 * seed + i) for i, (s, n) in enumerate(zip(SITES, (40, 30, 20), strict=True))}
            for i, own_people in enumerate(people.values()):
                other = People(len(own_people.p), 1000 + 10 * k + i + seed)
                own_people.p = other.p
            made.setdefault(trained, []).append(people)
    return made


def test_alone_overall_is_the_unweighted_mean_over_trained_sites_of_the_score_on_all_test_patients() -> None:
    made = models()
    replicates = {s: [{n: p.table() for n, p in seed.items()} for seed in seeds] for s, seeds in made.items()}
    entry = alone_numbers(PLAN, replicates, SITES)["r"]
    for metric, score in (("auc", roc_auc_score), ("accuracy", lambda y, p: accuracy_score(y, p > 0.5))):
        on_all, on_own = {}, {}
        for site, seeds in made.items():
            pooled = [
                (np.concatenate([p.r for p in s.values()]), np.concatenate([p.p for p in s.values()])) for s in seeds
            ]
            on_all[site] = np.mean([score(y, p) for y, p in pooled])
            on_own[site] = np.mean([score(s[site].r, s[site].p) for s in seeds])
        assert entry[metric]["overall"] == pytest.approx(np.mean(list(on_all.values())), abs=1e-12)
        assert entry[metric]["per_site_on_all"] == pytest.approx(on_all, abs=1e-12)
        for site, value in on_own.items():
            assert entry[metric]["per_site"][site] == pytest.approx(value, abs=1e-12)
        # Nobody's test patients are left out because their site could not train.
        assert entry[metric]["per_site"]["c"] is None
        assert entry[metric]["why"] == {"c": "could not train a model of its own"}
        assert len(entry[metric]["per_seed"]) == 2
        assert np.mean(entry[metric]["per_seed"]) == pytest.approx(entry[metric]["overall"], abs=1e-12)


def test_alone_where_no_site_could_train_says_so() -> None:
    numbers = alone_numbers(PLAN, {}, SITES)
    for task, metric in each_metric():
        entry = numbers[task][metric]
        assert entry["overall"] is None
        assert set(entry["why"]) == {*SITES, "overall"}
    json.loads(dump_json(numbers))


def test_alone_of_a_site_with_few_test_patients_hides_its_own_number_and_counts_in_the_mean() -> None:
    few = {s: People(n, i).table() for i, (s, n) in enumerate(zip(SITES, (40, 3, 20), strict=True))}
    numbers = alone_numbers(PLAN, {"a": [few], "b": [few]}, SITES)
    entry = numbers["r"]["auc"]
    assert entry["per_site"]["b"] is None
    assert entry["why"]["b"] == "fewer than 8 test patients"
    assert entry["overall"] == pytest.approx(own(np.sum(list(few.values()), axis=0), "r")["auc"])


# -- over splits ------------------------------------------------------------------------------------------------------------


def test_spread_is_mean_and_deviation_over_splits() -> None:
    splits = [tables(k) for k in range(5)]
    made = spread(PLAN, splits, SITES, "per_split")
    for task, metric in each_metric():
        values = [own(np.sum(list(s.values()), axis=0), task)[metric] for s in splits]
        entry = made[task][metric]
        assert entry["per_split"] == values
        assert entry["overall"] == pytest.approx(np.mean(values))
        assert entry["sd"] == pytest.approx(np.std(values, ddof=1))
        np.testing.assert_allclose(entry["ci"], np.quantile(values, [0.025, 0.975]))
    one = spread(PLAN, splits[:1], SITES, "per_fold")["r"]["auc"]
    assert (one["sd"], one["ci"], len(one["per_fold"])) == (None, None, 1)


def test_figures_and_bounds_are_those_of_the_sum_over_sites_and_seeds() -> None:
    replicates = [tables(0), tables(1)]
    figures = drawn(PLAN, replicates, SITES)
    assert sorted(figures) == ["os", "r"]
    assert np.sum(figures["r"]["confusion"]) == 2 * 90
    assert drawn(PLAN, [], SITES) == {}
    assert binning_errors(PLAN, {}, SITES) == {}
    errors = binning_errors(PLAN, replicates[0], SITES)
    assert 0 <= errors["os"]["c_index"] < 0.05
    before = copy.deepcopy(replicates)
    arm_numbers(PLAN, replicates, SITES)
    for seed, again in zip(before, replicates, strict=True):
        for site in SITES:
            np.testing.assert_array_equal(seed[site], again[site])
