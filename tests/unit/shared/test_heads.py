"""Heads of ordered classes and of competing risks: losses written out one patient at a time, and predictions that add up."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from opacus.validators import ModuleValidator

from oncofed_client.patient_gradients import backward, per_patient
from oncofed_client.private_training import check_private
from oncofed_client.training import TrainingSet
from oncofed_shared.errors import ConfigError
from oncofed_shared.heads import FIRST_HAZARD, baseline_width, joined, outputs, shares_of_order
from oncofed_shared.losses import patient_losses, predict, targets
from oncofed_shared.network import build
from oncofed_shared.plan import Plan, SurvivalTask, parse
from oncofed_shared.plan_sizes import SIZES

EDGES = [0.0, 100.0, 300.0, 900.0]
STAGE = {"kind": "classification", "label": "s", "classes": ["I", "II", "III", "IV"], "ordered": True}
RISKS = {
    "kind": "survival", "time": "t", "event": "e", "edges": EDGES, "horizon": 300, "causes": ["relapse", "death"],
}  # fmt: skip
ONE = {k: v for k, v in RISKS.items() if k != "causes"}
LOGIT = st.floats(-8, 8)
COLUMNS = {"m": ("a", "b", "c"), "n": ("d", "e")}


def plan_of(task: dict[str, Any], **model: Any) -> Plan:
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": {"t": task},
            "modalities": {"m": {"patterns": ["*"]}, "n": {"patterns": ["*"]}},
            "model": {"width": 4, "feedforward": 6, **model},
            "training": {"rounds": 1, "dtype": "float64"},
        }
    )


def losses(plan: Plan, logits: np.ndarray, labels: np.ndarray, weights: Any = None) -> torch.Tensor:
    goals = targets(plan, {"t": labels}, {"t": np.ones(4) if weights is None else np.array(weights)})
    return patient_losses(plan, {"t": torch.tensor(logits)}, goals)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@given(arrays(np.float64, (5, 3), elements=LOGIT), st.lists(st.integers(-1, 3), min_size=5, max_size=5))
@settings(max_examples=80)
def test_the_loss_of_an_ordered_class_is_that_of_its_thresholds(logits: np.ndarray, labels: list[int]) -> None:
    weights = [1.0, 2.0, 0.5, 3.0]
    expected = [
        0.0 if k < 0 else weights[k] * -sum(math.log(sigmoid(z) if k > j else sigmoid(-z)) for j, z in enumerate(row))
        for k, row in zip(labels, logits, strict=True)
    ]
    made = losses(plan_of(STAGE), logits, np.array(labels), weights)
    assert np.allclose(np.asarray(made), expected)


@given(arrays(np.float64, (6, 3), elements=LOGIT))
@settings(max_examples=80)
def test_shares_of_ordered_classes_are_probabilities_whatever_the_thresholds(logits: np.ndarray) -> None:
    shares = np.asarray(predict(plan_of(STAGE), {"t": torch.tensor(logits)})["t"])
    assert shares.shape == (6, 4)
    assert (shares >= 0).all()
    assert np.allclose(shares.sum(axis=1), 1)
    falling = np.sort(logits, axis=1)[:, ::-1].copy()
    above = 1 / (1 + np.exp(-falling))
    ranked = np.asarray(shares_of_order(torch.tensor(falling)))
    assert np.allclose(ranked[:, 1:][:, ::-1].cumsum(axis=1)[:, ::-1], above)


def test_an_ordered_head_has_one_score_and_starts_with_equal_classes() -> None:
    plan = plan_of(STAGE)
    task = plan.tasks["t"]
    assert (outputs(task, proportional=True), outputs(task, proportional=False), baseline_width(task)) == (1, 1, 3)
    network = build(plan, COLUMNS, seed=0).eval()
    with torch.no_grad():
        shares = predict(plan, network(torch.randn(4, 5).double(), torch.ones(4, 5).double()))["t"]
    assert np.allclose(shares, 0.25, atol=1e-6)


def likelihood(days: float, cause: float, hazards: np.ndarray) -> float:
    """Of one patient, from (causes, intervals) hazards, by the definition of discrete time."""
    made = 1.0
    for k, (start, stop) in enumerate(itertools.pairwise(EDGES)):
        stayed = 1 - hazards[:, k].sum()
        if cause > 0:
            if days <= stop and (k == 0 or days > start):
                return made * float(hazards[int(cause) - 1, k])
            made *= stayed
        elif days >= (start + stop) / 2:
            made *= stayed
    return made


LABEL = st.tuples(
    st.sampled_from([0.0, 50.0, 100.0, 200.0, 300.0, 600.0, 900.0]) | st.floats(0, 1000), st.integers(0, 2)
)


@given(st.lists(LABEL, min_size=1, max_size=6), st.data())
@settings(max_examples=120)
def test_the_loss_of_competing_risks_is_the_negative_log_likelihood(labels: Any, data: st.DataObject) -> None:
    logits = data.draw(arrays(np.float64, (len(labels), 6), elements=LOGIT))
    each = logits.reshape(-1, 2, 3)
    hazards = np.exp(each) / (1 + np.exp(each).sum(axis=1, keepdims=True))
    expected = [-math.log(likelihood(d, c, h)) for (d, c), h in zip(labels, hazards, strict=True)]
    made = losses(plan_of(RISKS), logits, np.array(labels, dtype=float))
    assert np.allclose(np.asarray(made), expected, rtol=1e-6, atol=1e-9)


def test_nobody_without_a_label_counts() -> None:
    made = losses(plan_of(RISKS), np.zeros((2, 6)), np.array([[np.nan, np.nan], [50.0, 2.0]]))
    assert made.tolist() == pytest.approx([0.0, math.log(3)])


@given(arrays(np.float64, (4, 6), elements=LOGIT))
@settings(max_examples=80)
def test_incidences_add_up_with_those_who_had_nothing(logits: np.ndarray) -> None:
    made = np.asarray(predict(plan_of(RISKS), {"t": torch.tensor(logits)})["t"]).reshape(4, 2, 3)
    each = logits.reshape(-1, 2, 3)
    hazards = np.exp(each) / (1 + np.exp(each).sum(axis=1, keepdims=True))
    stayed = np.cumprod(1 - hazards.sum(axis=1), axis=1)
    assert np.allclose(made.sum(axis=1) + stayed, 1)
    first = hazards[:, :, 0]
    assert np.allclose(made[:, :, 0], first)
    assert np.allclose(made[:, :, 1], first + stayed[:, None, 0] * hazards[:, :, 1])
    assert (np.diff(made, axis=2) >= -1e-12).all()


def test_with_one_cause_that_never_happens_it_is_survival() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 3))
    both = np.concatenate([logits, np.full((5, 3), -60.0)], axis=1)
    labels = np.array([[50.0, 1], [150, 0], [900, 1], [20, 0], [400, 1]])
    assert np.allclose(
        np.asarray(losses(plan_of(RISKS), both, labels)), np.asarray(losses(plan_of(ONE), logits, labels))
    )
    survival = predict(plan_of(ONE), {"t": torch.tensor(logits)})["t"]
    assert np.allclose(predict(plan_of(RISKS), {"t": torch.tensor(both)})["t"][:, :3], 1 - survival)


def test_a_cause_has_one_score_in_all_its_intervals() -> None:
    task = plan_of(RISKS).tasks["t"]
    assert isinstance(task, SurvivalTask)
    made = joined(task, torch.tensor([[1.0, -2.0]]), torch.arange(6.0)[None])
    assert made.tolist() == [[1, 2, 3, 1, 2, 3]]
    assert (outputs(task, proportional=True), outputs(task, proportional=False), baseline_width(task)) == (2, 6, 6)


def test_before_training_any_cause_together_is_as_likely_as_one_event() -> None:
    plan = plan_of(RISKS)
    network = build(plan, COLUMNS, seed=0).eval()
    with torch.no_grad():
        made = predict(plan, network(torch.randn(2, 5).double(), torch.ones(2, 5).double()))["t"]
    assert np.allclose(made[:, [0, 3]].sum(axis=1), sigmoid(FIRST_HAZARD), atol=1e-6)


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("hazards", ["proportional", "free"])
@pytest.mark.parametrize("task", [STAGE, RISKS], ids=["ordered", "competing"])
def test_every_patient_has_a_gradient_of_his_own(task: dict[str, Any], hazards: str, size: str) -> None:
    plan = plan_of(task, hazards=hazards, **SIZES[size])
    network = build(plan, COLUMNS, seed=0)
    assert ModuleValidator.validate(network.train(), strict=True) == []
    check_private(plan, network, width=5)
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.tensor(rng.normal(size=p.shape) * 0.3))
    labels = rng.integers(0, 4, 6) if task is STAGE else np.column_stack([rng.uniform(0, 900, 6), np.arange(6) % 3])
    data = TrainingSet(
        values=torch.tensor(rng.normal(size=(6, 5))),
        seen=torch.tensor(rng.random((6, 5)) < 0.7).double(),
        goals=targets(plan, {"t": labels}, {"t": np.ones(4)}),
    )
    with per_patient(network) as hooked:
        rows = backward(hooked, plan, data, patient_losses).each()
    for i in range(6):
        one = data.rows(torch.tensor([i]))
        loss = patient_losses(plan, network(one.values, one.seen), one.goals).sum()
        own = torch.autograd.grad(loss, list(network.named.values()), materialize_grads=True)
        assert torch.allclose(rows[i], torch.cat([g.flatten() for g in own]), rtol=1e-5, atol=1e-8)


PRIVATE = {
    "noise": "site", "epsilon": 3.0, "delta": 1e-5, "clip_norm": 1.0, "sampling_rate": 0.5, "patients": {"a": 100},
}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ({**STAGE, "classes": ["I", "II"]}, {}, "tasks.t.ordered: needs three classes"),
        ({**RISKS, "causes": ["relapse"]}, {}, "tasks.t.causes"),
        ({**RISKS, "causes": ["relapse", "relapse"]}, {}, "tasks.t.causes: must be distinct"),
        ({**RISKS, "causes": ["a.b", "c"]}, {}, "tasks.t.causes"),
        (RISKS, {"privacy": PRIVATE}, "tasks.t.causes: cannot be used with privacy"),
    ],
)
def test_what_does_not_fit_is_refused(task: dict[str, Any], more: dict[str, Any], message: str) -> None:
    content = plan_of(STAGE).model_dump(mode="json")
    content["modalities"] = {"m": {"patterns": ["*"], "scaling": "none"}}
    with pytest.raises(ConfigError, match=message):
        parse({**content, "tasks": {"t": task}, **more})


def test_plans_without_them_keep_their_bytes() -> None:
    plain = {k: v for k, v in STAGE.items() if k != "ordered"}
    assert b"ordered" not in plan_of(plain).canonical
    assert b"causes" not in plan_of(ONE).canonical
