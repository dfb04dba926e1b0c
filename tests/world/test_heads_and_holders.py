"""Ordered classes, competing causes, focal loss, modality dropout and averages over holders, in whole studies."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from oncofed_shared.holders import patients_behind
from oncofed_shared.layout import Layout
from oncofed_shared.messages import Trial
from oncofed_shared.network import build
from oncofed_simulations.consortium import Run

TRIAL = Trial(seed=1)
GRADE = {
    "kind": "classification", "table": "clinical", "label": "grade", "classes": ["low", "middle", "high"], "ordered": True,
}  # fmt: skip
RISKS = {
    "kind": "survival", "table": "clinical", "time": "os_days", "event": "os_event",
    "edges": [0, 90, 180, 365, 730, 1460], "horizon": 365, "causes": ["relapse", "death"],
}  # fmt: skip
EXACT = {"rounds": 4, "dtype": "float64", "validate_every": 100, "rate": 0.3}


@pytest.fixture
def competing(world: Any) -> Any:
    """The three hospitals with a second cause, and a study of it and of the grade."""
    for hospital in world.hospitals:
        clinical = hospital.tables["clinical"]
        clinical["os_event"] = ["2" if e == "1" and i % 3 == 0 else e for i, e in enumerate(clinical["os_event"])]
    world.content["tasks"] = {"risks": RISKS, "grade": GRADE}
    return world


def parameters(run: Run) -> np.ndarray[Any, Any]:
    assert run.state.server is not None
    return run.state.server.parameters


@pytest.mark.parametrize("hazards", ["proportional", "free"])
def test_federated_is_pooled_for_ordered_classes_and_competing_causes(competing: Any, hazards: str) -> None:
    world = competing.change(training={**EXACT, "loss": "focal"}, model={"hazards": hazards}).write()
    consortium = world.consortium()
    together, pooled = consortium.federated(TRIAL), consortium.pooled(TRIAL)
    assert np.abs(parameters(together) - parameters(pooled)).max() < 1e-6
    moved = Layout.of(build(world.plan, together.state.preparation.columns, seed=1))
    assert np.abs(parameters(together)).max() > 0
    assert len(parameters(together)) == moved.size


def test_a_whole_study_reports_the_new_metrics(competing: Any, simulate: Callable[..., Any]) -> None:
    world = competing.change(
        training={"modality_dropout": 0.2, "loss": "focal", "gamma": 1.0},
        strategy={"average": "holders"},
        evaluation={"minimum_shown": 3, "reference": {"age": {"features": ["age"]}}},
    ).write()
    done = simulate(*world.arguments())
    assert done.code == 0, done.err
    result = json.loads((world.out / "result.json").read_bytes())
    assert set(result["tasks"]["risks"]) == {"c_index", "brier", "c_index.death", "brier.death"}
    assert {"kappa", "class_distance", "auc"} <= set(result["tasks"]["grade"])
    for metric in ("c_index", "brier.death"):
        assert 0 <= result["tasks"]["risks"][metric]["federated"]["overall"] <= 1
        assert 0 <= result["tasks"]["risks"][metric]["reference"]["overall"] <= 1
    drawn = result["figures"]["risks"]["federated"]
    assert drawn["cause"] == "relapse"
    assert drawn["incidence"]
    report = (world.out / "report.html").read_text(encoding="utf-8")
    for words in ("weighted kappa", "classes off", "C-index (death)", "Incidence of relapse", "in this order"):
        assert words in report


def test_a_number_that_is_no_cause_is_a_mistake_at_the_site(competing: Any, simulate: Callable[..., Any]) -> None:
    competing.hospitals[0].tables["clinical"]["os_event"][3] = "7"
    assert simulate(*competing.write().arguments()).code == 0
    result = json.loads((competing.out / "result.json").read_bytes())
    (excluded,) = result["excluded"]
    assert excluded["name"] == "alpha"
    assert "os_event" in excluded["why"]
    assert "expected one of: 0, 1, 2" in excluded["why"]


def step(world: Any, average: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Run]:
    """First and next parameters of one round of plain averaging."""
    world.change(
        training={**EXACT, "rounds": 1}, strategy={"name": "fedavg", "average": average}, model={"fusion": "late"}
    )
    run = world.consortium(store=world.root / average).federated(TRIAL)
    network = build(world.plan, run.state.preparation.columns, seed=TRIAL.seed)
    return Layout.of(network).flatten({n: p.detach().numpy() for n, p in network.named.items()}), parameters(run), run


def test_holders_take_the_step_as_if_the_others_were_not_there(world: Any) -> None:
    # The first hospital lacks genes and the last radiomics.
    world.write()
    first, plain, run = step(world, "patients")
    start, held, _ = step(world, "holders")
    assert np.array_equal(first, start)
    trained = {s: d.parts["train"] for s, d in run.state.descriptions.items()}
    everybody = sum(trained.values())
    genes, shapes = everybody - trained["alpha"], everybody - trained["gamma"]
    network = build(world.plan, run.state.preparation.columns, seed=TRIAL.seed)
    behind = patients_behind(network, everybody, np.array([everybody, genes, shapes], dtype=float))
    assert set(behind.tolist()) == {everybody, genes, shapes}
    assert np.allclose(held - start, (plain - first) * everybody / behind, atol=1e-9)
    assert np.abs(plain - first)[behind == genes].max() > 1e-3


def test_where_everybody_has_everything_holders_is_the_plain_mean(world: Any, hospitals_of: Callable[..., Any]) -> None:
    world.hospitals = hospitals_of((40, 30))
    whole = hospitals_of((40,))[0]
    world.hospitals[0].tables["genes"] = whole.tables["genes"]
    rows = world.hospitals[1].tables["genes"]
    world.hospitals[1].tables["radiomics"] = {
        "patient_id": rows["patient_id"],
        **{f"shape_{r}": rows[f"G{r}_rna"] for r in range(5)},
    }
    world.write()
    _, plain, _ = step(world, "patients")
    _, held, _ = step(world, "holders")
    assert np.abs(plain - held).max() < 1e-9


def test_a_restarted_run_with_hidden_modalities_ends_with_the_same_bytes(world: Any) -> None:
    world.change(training={"modality_dropout": 0.4, "local_steps": 2}, strategy={"average": "holders"}).write()
    one = world.consortium(store=world.root / "one").federated(TRIAL)
    two = world.consortium(store=world.root / "two").federated(TRIAL)
    assert parameters(one).tobytes() == parameters(two).tobytes()
    world.change(training={"modality_dropout": 0.0})
    other = world.consortium(store=world.root / "three").federated(TRIAL)
    assert parameters(one).tobytes() != parameters(other).tobytes()
