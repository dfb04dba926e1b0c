"""A search sees training patients alone, finds what is better, and never ends worse than where it began."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_shared.errors import ConfigError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan, parse
from oncofed_simulations.compare_search import changed, search, space_of
from oncofed_simulations.compare_source import TEST, TRAIN, InnerSource, hospital_groups
from oncofed_simulations.compare_variants import chosen_variants, restricted

EMPHASIS = "modalities.genes.emphasis"


def plan_of(ranges: dict[str, Any] | None = None, **training: Any) -> Plan:
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": {"two": {"kind": "classification", "label": "two", "classes": ["no", "yes"]}},
            "modalities": {"clinical": {"patterns": ["c_*"]}, "genes": {"patterns": ["{gene}_rna"]}},
            "training": {"rounds": 1, **training},
            "simulation": {} if ranges is None else {"search": ranges},
        }
    )


def near_two(plan: Plan) -> float:
    return 1 - abs(math.log(plan.modalities["genes"].emphasis / 2))


def test_a_search_comes_near_the_best_and_repeats_itself():
    plan = plan_of({EMPHASIS: {"low": 0.2, "high": 5.0, "log": True}})
    found = search(plan, trials=40, seed=0, score=near_two)
    assert found.planned == pytest.approx(1 - math.log(2))
    assert found.values[EMPHASIS] == pytest.approx(2, rel=0.1)
    assert found.plan.modalities["genes"].emphasis == found.values[EMPHASIS]
    assert found.plan.modalities["clinical"].emphasis == 1
    assert search(plan, trials=40, seed=0, score=near_two).values == found.values


@pytest.mark.parametrize(
    "score", [lambda plan: 0.9 if plan.modalities["genes"].emphasis == 1 else 0.1, lambda plan: None]
)
@pytest.mark.parametrize("low", [0.2, 1.5])
def test_where_nothing_is_better_the_plan_stays(score: Any, low: float):
    plan = plan_of({EMPHASIS: {"low": low, "high": 5.0}})
    found = search(plan, trials=6, seed=1, score=score)
    assert found.plan.hash == plan.hash
    assert found.score == found.planned


def test_no_plan_is_scored_twice():
    asked: list[str] = []

    def score(plan: Plan) -> float:
        asked.append(plan.hash)
        return 0.5

    search(plan_of({"training.batch": {"choices": [8, 16]}}, batch=8), trials=10, seed=0, score=score)
    assert sorted(asked) == sorted(set(asked))
    assert len(asked) == 2


def test_without_a_table_it_is_the_rate_the_dropout_and_the_batch():
    space = space_of(plan_of(batch=32, rate=0.3))
    assert set(space) == {"training.rate", "training.dropout", "training.batch"}
    assert space["training.rate"].bounds == pytest.approx((0.1, 0.9))
    assert space["training.batch"].choices == (16, 32, 64)
    assert set(space_of(plan_of())) == {"training.rate", "training.dropout"}


def test_a_key_of_a_modality_that_a_variant_lacks_is_left_out():
    plan = plan_of({EMPHASIS: {"low": 0.2, "high": 5.0}, "training.rate": {"low": 0.1, "high": 1.0}})
    (clinical,), _ = chosen_variants(plan, "clinical")
    assert set(space_of(clinical.plan)) == {"training.rate"}


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("training.speed", {"low": 1, "high": 2}, "speed"),
        ("nothing.rate", {"low": 1, "high": 2}, "the plan has no such table"),
        ("rate", {"low": 1, "high": 2}, "the plan has no such table"),
        ("training.rate", {"low": -1, "high": 2}, "-1"),
        ("training.rate", {"low": 2, "high": 1}, "give either choices"),
        ("training.rate", {"low": 0, "high": 1, "log": True}, "give either choices"),
        ("training.batch", {"choices": [1, 2], "low": 1}, "give either choices"),
        ("training.batch", {"choices": [1, "some"]}, "some"),
        ("training.batch", {"choices": [1]}, "choices"),
        ("training.rate", {"least": 1}, "least"),
    ],
)
def test_what_cannot_be_searched_is_named(path: str, content: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        space_of(plan_of({path: content}))


def test_a_change_reaches_its_key_alone():
    plan = plan_of()
    made = changed(plan, {EMPHASIS: 2.0, "training.rate": 0.5})
    assert made.modalities["genes"].emphasis == 2
    assert made.training.rate == 0.5
    assert changed(made, {EMPHASIS: 1.0, "training.rate": plan.training.rate}).hash == plan.hash


# -- who is seen by a search ----------------------------------------------------------------------------------------------------


class _Outer:
    """A hospital with given parts and labels."""

    name = "alpha"
    trial = Trial(seed=3, fold=1)

    def __init__(self, parts: list[int], labels: list[int]) -> None:
        self.parts = np.array(parts, dtype=np.int64)
        self.labels = SimpleNamespace(labels={"two": np.array(labels)}, patients=tuple(range(len(parts))))

    def cohort(self, plan: Plan) -> Any:
        del plan
        return self.labels

    def split(self, plan: Plan, cohort: Any, trial: Trial) -> Any:
        del plan, cohort, trial
        return self.parts


@given(st.binary(max_size=60), st.integers(2, 5))
def test_folds_inside_training_patients_hold_out_each_once_and_touch_nobody_else(patients: bytes, folds: int):
    parts, labels = [p % 4 - 1 for p in patients], [p // 4 % 2 for p in patients]
    outer: Any = _Outer(parts, labels)
    plan, cohort = plan_of(), outer.cohort(None)
    inner = [InnerSource(outer, fold=f, folds=folds).split(plan, cohort, outer.trial) for f in range(folds)]
    training = outer.parts == TRAIN
    for made in inner:
        assert (made[~training] == -1).all()
        assert np.isin(made[training], (TRAIN, TEST)).all()
    assert (np.sum([made == TEST for made in inner], axis=0) == training).all()
    for label in (0, 1):
        counts = [int(((made == TEST) & (outer.labels.labels["two"] == label)).sum()) for made in inner]
        assert max(counts) - min(counts) <= 1


def test_a_whole_hospital_is_held_out_or_trains():
    outer: Any = _Outer([0, 0, 2, 0], [0, 1, 0, 1])
    held, kept = (
        InnerSource(outer, fold=0, folds=3, group=g).split(plan_of(), outer.labels, outer.trial) for g in (0, 1)
    )
    assert held.tolist() == [TEST, TEST, -1, TEST]
    assert kept.tolist() == [TRAIN, TRAIN, -1, TRAIN]


@given(
    st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 400), min_size=3, max_size=20), st.integers(2, 3)
)
def test_groups_of_hospitals_are_about_equal_and_none_is_empty(sizes: dict[str, int], groups: int):
    made = hospital_groups(sizes, groups)
    assert set(made) == set(sizes)
    filled = [sum(sizes[n] for n, g in made.items() if g == k) for k in range(groups)]
    assert max(filled) - min(filled) <= max(sizes.values())
    if min(sizes.values()) > 0:
        assert set(made.values()) == set(range(groups))
    assert hospital_groups(dict(reversed(sizes.items())), groups) == made


def test_a_restriction_requires_the_modalities_that_it_names():
    plan = plan_of()
    made = restricted(plan, "genes, clinical")
    assert made.modalities["genes"].required
    assert made.modalities["clinical"].required
    assert restricted(plan, "").hash == plan.hash
    with pytest.raises(ConfigError, match="no modality 'scan'"):
        restricted(plan, "genes,scan")
