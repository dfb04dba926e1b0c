"""A private plan asks nothing of patients that is not charged: every mistake with its path."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from oncofed_shared.errors import ConfigError
from oncofed_shared.features import no_sums, prepare
from oncofed_shared.plan import parse
from oncofed_shared.releases import uncharged

STUDY: dict[str, Any] = {
    "study": {"name": "private", "purpose": "see that nobody is seen"},
    "tasks": {"r": {"kind": "classification", "label": "r", "classes": ["no", "yes"]}},
    "modalities": {
        "clinical": {
            "scaling": "constants",
            "columns": {
                "age": {"kind": "numeric", "center": 60, "spread": 12},
                "sex": {"kind": "categorical", "categories": ["f", "m"]},
                "stage": {"kind": "ordinal", "order": ["I", "II", "III"]},
            },
        },
        "genes": {"scaling": "minmax", "range": [0, 4], "patterns": ["g*"]},
    },
    "training": {"rounds": 3, "class_weights": {"r": [1.0, 2.0]}},
    "evaluation": {"split": {"train": 0.8, "validation": 0.0, "test": 0.2}},
    "privacy": {
        "noise": "site",
        "epsilon": 3,
        "delta": 1e-5,
        "clip_norm": 1,
        "sampling_rate": 0.5,
        "patients": {"alpha": 60, "beta": 40},
    },
}


def study(changes: dict[str, Any]) -> dict[str, Any]:
    """The study with values at dotted paths; `...` deletes."""
    content = copy.deepcopy(STUDY)
    for path, value in changes.items():
        *parents, last = path.split(".")
        here = content
        for name in parents:
            here = here.setdefault(name, {})
        if value is ...:
            del here[last]
        else:
            here[last] = value
    return content


MISTAKES = {
    "z-scores": ({"modalities.genes.scaling": "zscore"}, "modalities.genes.scaling: 'zscore' needs sums"),
    "z-scores by default": ({"modalities.genes.scaling": ...}, "modalities.genes.scaling: 'zscore' needs sums"),
    "no range": ({"modalities.genes.range": ...}, "modalities.genes.range: is missing; with privacy"),
    "no range of a column": (
        {"modalities.clinical": {"scaling": "minmax", "columns": {"age": {"kind": "numeric"}}}},
        "modalities.clinical.columns.age.range: is missing; with privacy",
    ),
    "no range of a rank": (
        {"modalities.clinical": {"scaling": "minmax", "columns": {"s": {"kind": "ordinal", "order": ["a", "b"]}}}},
        "modalities.clinical.columns.s.range: is missing; with privacy",
    ),
    "imputation": ({"modalities.genes.missing": "impute"}, "modalities.genes.missing: 'impute' needs the mean"),
    "balanced": ({"training.class_weights": "balanced"}, "training.class_weights: 'balanced' counts"),
    "batch": ({"training.batch": 16}, "training.batch: must be 'all' with privacy"),
    "folds": ({"evaluation.folds": 5}, "evaluation.folds: must be left out with privacy"),
    "re-splits": ({"evaluation.resplits": 5}, "evaluation.resplits: must be left out with privacy"),
    "delta": ({"privacy.delta": 0.01}, "privacy.delta: must be below 1 / (patients of all sites), 1 / 100"),
    "epsilon": ({"privacy.epsilon": 0}, "privacy.epsilon: Input should be greater than 0"),
    "rate": ({"privacy.sampling_rate": 1.5}, "privacy.sampling_rate: Input should be less than or equal to 1"),
    "norm": ({"privacy.clip_norm": ...}, "privacy.clip_norm: is missing"),
    "nobody": ({"privacy.patients": {}}, "privacy.patients: "),
    "site of nobody": ({"privacy.patients.beta": 0}, "privacy.patients.beta: Input should be greater"),
    "unknown key": ({"privacy.sigma": 1}, "privacy.sigma: unknown key"),
    "unknown noise": ({"privacy": {"noise": "central"}}, "privacy: "),
    "parameters without noise": ({"privacy.noise": "none"}, "privacy.clip_norm: unknown key"),
    "a centre without a spread": (
        {"modalities.clinical.columns.age.spread": ...},
        "modalities.clinical.columns.age.spread: center and spread go together",
    ),
    "a column's constants without 'constants'": (
        {"modalities.clinical.scaling": "none"},
        "modalities.clinical.spread: center and spread go with",
    ),
    "a column without any constants": (
        {"modalities.clinical.columns.dose": {"kind": "numeric"}},
        "modalities.clinical.spread: center and spread go with",
    ),
}


def problems(content: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(content)
    return list(caught.value.problems)


@pytest.mark.parametrize(("changes", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_its_path(changes: dict[str, Any], expected: str) -> None:
    found = problems(study(changes))
    assert any(line.startswith(f"study: {expected}") for line in found), found


def test_all_of_them_are_named_at_once() -> None:
    together = {
        "modalities.genes.scaling": "zscore",
        "modalities.genes.missing": "impute",
        "training.class_weights": "balanced",
        "training.batch": 16,
        "evaluation.folds": 5,
        "evaluation.resplits": 5,
    }
    paths = {line.split(": ")[1] for line in problems(study(together))}
    assert paths == set(together)


def test_the_same_without_privacy_is_no_mistake() -> None:
    changes = {"modalities.genes.scaling": "zscore", "training.batch": 16, "evaluation.folds": 5}
    parse(study({**changes, "privacy": {"noise": "none"}}))
    parse(study({**changes, "privacy": ...}))


def test_preparation_needs_no_patient() -> None:
    plan = parse(STUDY)
    columns = {"clinical": ("age", "sex=f", "sex=m", "stage"), "genes": ("g1", "g2")}
    made = prepare(plan, columns, no_sums(plan, columns))
    assert made.center.tolist() == [60, 0, 0, 0, 0, 0]
    assert made.spread.tolist() == [12, 1, 1, 1, 4, 4]
    assert made.fill.tolist() == [0] * 6
    assert made.class_weights["r"].tolist() == [1, 2]


def test_the_modality_s_constants_hold_for_columns_without_their_own() -> None:
    changes = {
        "modalities.clinical.columns.dose": {"kind": "numeric"},
        "modalities.clinical.center": 5,
        "modalities.clinical.spread": 2,
    }
    plan = parse(study(changes))
    columns = {"clinical": ("age", "sex=f", "sex=m", "stage", "dose"), "genes": ()}
    made = prepare(plan, columns, no_sums(plan, columns))
    assert np.array_equal(made.center, [60, 5, 5, 5, 5])
    assert np.array_equal(made.spread, [12, 2, 2, 2, 2])


def test_the_roster_and_the_rest_of_privacy_are_in_the_hash_and_the_noise_seed_is_not() -> None:
    plan = parse(STUDY)
    for path, value in (
        ("privacy.epsilon", 4),
        ("privacy.patients.alpha", 70),
        ("privacy.release_tables", True),
        ("privacy.sampling_rate", 0.4),
    ):
        assert parse(study({path: value})).hash != plan.hash
    assert parse(study({"simulation.noise_seed": 7})).hash == plan.hash


def test_what_is_uncharged_follows_from_the_plan() -> None:
    closed = uncharged(parse(STUDY))
    assert not any("tables" in line or "update" in line for line in closed)
    open_ = uncharged(parse(study({"privacy.release_tables": True})))
    added = set(open_) - set(closed)
    assert len(added) == 1
    assert "test patients" in next(iter(added))
    assert "validation" not in next(iter(added))
    split = {"train": 0.6, "validation": 0.2, "test": 0.2}
    assert any(
        "validation" in u for u in uncharged(parse(study({"privacy.release_tables": True, "evaluation.split": split})))
    )
    assert any("2 more training runs" in line for line in uncharged(parse(STUDY), runs=3))
    free = uncharged(parse(study({"privacy": ...})))
    assert any("update" in line for line in free)
    assert any("sums per column" in line for line in free)
    counted = uncharged(parse(study({"privacy": ..., "strategy.average": "holders"})))
    assert set(counted) - set(free) == {
        "each site's number of training patients for each modality that it has, in every round"
    }
