"""Scores that a private study releases: rows for `result.json`, and the report's section on them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from oncofed_server.released import released_scores
from oncofed_server.report import render
from oncofed_shared.consortium import TablesMechanism
from oncofed_shared.errors import LocalProtocolError
from oncofed_shared.noised_scores import noised_scores
from oncofed_shared.noised_tables import coarse_counts, coarse_entries, coarse_size
from oncofed_shared.plan import Plan, parse

STUDY: dict[str, Any] = {
    "study": {"name": "released", "purpose": "Try how scores are released."},
    "tasks": {
        "response": {"kind": "classification", "label": "response", "classes": ["no", "yes"]},
        "os": {"kind": "survival", "time": "t", "event": "e", "edges": [0, 180, 365, 730], "horizon": 365},
    },
    "modalities": {"clinical": {"patterns": ["x*"], "scaling": "none", "range": [0, 1]}},
    "model": {"layers": 0},
    "training": {"rounds": 10, "optimiser": "sgd", "rate": 1.0},
    "privacy": {
        "noise": "consortium", "epsilon": 3.0, "delta": 1e-5, "clip_norm": 1.0, "sampling_rate": 0.5,
        "score_epsilon": 3.0, "patients": {"a": 200, "b": 100, "c": 100, "d": 80},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def plan() -> Plan:
    return parse(STUDY)


@pytest.fixture(scope="module")
def mechanism(plan: Plan) -> TablesMechanism:
    return TablesMechanism.for_plan(plan, cells=coarse_size(plan), entries=coarse_entries(plan))


@pytest.fixture(scope="module")
def counts(plan: Plan) -> np.ndarray[Any, np.dtype[np.float64]]:
    random = np.random.default_rng(3)
    risk = random.uniform(0.05, 0.95, size=400)
    yes = random.random(400) < risk
    days = np.where(random.random(400) < risk, random.uniform(1, 365, 400), random.uniform(366, 900, 400))
    predictions = {"response": np.stack([1 - risk, risk], 1), "os": np.repeat((1 - risk)[:, None], 3, 1)}
    labels = {"response": yes.astype(float), "os": np.stack([days, np.ones(400)], 1)}
    return coarse_counts(plan, predictions, labels)


def noised(counts: np.ndarray[Any, np.dtype[np.float64]], mechanism: TablesMechanism, present: int) -> Any:
    return counts + np.random.default_rng(0).normal(size=counts.size) * mechanism.noise_std(present)


def test_rows_have_every_score_with_what_it_costs(plan, mechanism, counts):
    rows = released_scores(plan, noised(counts, mechanism, 4), mechanism, 4)
    assert [(row["task"], row["metric"]) for row in rows] == [
        ("response", "auc"), ("response", "brier"), ("response", "calibration"),
        ("os", "c_index"), ("os", "brier"), ("os", "calibration"),
    ]  # fmt: skip
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    for row in rows:
        assert (row["epsilon"], row["delta"]) == (3.0, 1e-5)
        assert row["noise_std"] == mechanism.noise_std(4)
        assert abs(row["patients"] - 400) < 6 * row["noise_std"] * math.sqrt(coarse_size(plan))
        assert row["ci"][0] <= row["value"] <= row["ci"][1]


def test_the_noise_counted_on_is_that_of_the_sites_present(plan, mechanism, counts):
    """Each site adds a share, so more sites make wider intervals; the value of given counts stays."""
    few, many = (released_scores(plan, counts, mechanism, present)[0] for present in (3, 12))
    assert many["noise_std"] == pytest.approx(2 * few["noise_std"])
    assert many["value"] == few["value"]
    assert many["ci"][1] - many["ci"][0] > few["ci"][1] - few["ci"][0]
    plain = noised_scores(plan, counts, noise_std=few["noise_std"])["response"]["auc"]
    assert {key: few[key] for key in plain} == plain


def test_counts_of_another_plan_are_refused(plan, mechanism, counts):
    with pytest.raises(LocalProtocolError, match="expected 35 finite numbers"):
        released_scores(plan, counts[:-1], mechanism, 4)


def result(rows: list[dict[str, Any]], exact: float | None = 0.8123) -> dict[str, Any]:
    arm = {"overall": 0.79, "exact": exact, "per_seed": [0.71, 0.72]}
    return {"study": "s", "seeds": [5, 6], "tasks": {"response": {"auc": {"federated": arm}}}, "released": rows}


def test_report_shows_released_scores_beside_exact_ones_that_are_marked(plan, mechanism, counts):
    rows = released_scores(plan, noised(counts, mechanism, 4), mechanism, 4)
    page = render(result(rows))
    section = page[page.index('<section id="released">') : page.index('<section id="not">')]
    for row in rows:
        for value in (row["value"], *row["ci"], *(end for point in row.get("points", ()) for end in point["ci"])):
            assert f'<data value="{value}">' in section
    assert '<data value="0.8123">0.812</data>' in section
    assert "exact: not released" in section
    assert "not released, simulation only" in section
    assert f'<data value="{rows[0]["noise_std"]}">' in section
    # All but the AUC have no exact score here: a dash with its reason.
    assert "no exact score is in this result" in section


def test_report_without_the_key_is_as_before_and_with_an_empty_one_too():
    whole = result([])
    bare = {key: value for key, value in whole.items() if key != "released"}
    assert render(whole) == render(bare)
    assert "Released scores" not in render(bare)


def test_report_gives_the_reason_of_a_score_that_is_withheld_and_the_seed_of_a_run():
    row = {"task": "response", "metric": "auc", "value": None, "ci": None, "why": "too <few>", "patients": -3}
    page = render(result([{**row, "seed": 6}, {**row, "seed": 7}]))
    section = page[page.index('<section id="released">') : page.index('<section id="not">')]
    assert "too &lt;few&gt;" in section
    assert "response, AUC, seed 6" in section
    assert '<data value="0.72">0.720</data>' in section
    assert '<data value="-3.0">-3</data>' in section
    assert "0.812" not in section


@pytest.mark.parametrize(
    "odd", [None, 3, "x", [None], [[]], [{"task": None}], [{"points": [3], "ci": [1]}], [{"ci": ["a", {}]}]]
)
def test_report_survives_anything_under_the_key(odd):
    render({"released": odd})
