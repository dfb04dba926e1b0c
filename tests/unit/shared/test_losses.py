"""Losses: a sum over patients, equal to the likelihood written down one patient and one interval at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional as F  # noqa: N812 - the field's own name

from oncofed_shared.losses import Target, patient_losses, predict, targets
from oncofed_shared.plan import Plan, parse

EDGES = [0.0, 100.0, 300.0, 900.0]
MIDDLES = [50.0, 200.0, 600.0]
SURVIVAL = {"kind": "survival", "time": "t", "event": "e", "edges": EDGES, "horizon": 300}


def plan_of(tasks: dict[str, Any]) -> Plan:
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": tasks,
            "modalities": {"m": {"patterns": ["*"]}},
            "training": {"rounds": 1, "dtype": "float64"},
        }
    )


OS = plan_of({"os": SURVIVAL})
TWO = plan_of({"r": {"kind": "classification", "label": "r", "classes": ["a", "b"]}})
THREE = plan_of({"r": {"kind": "classification", "label": "r", "classes": ["a", "b", "c"]}})
ALL = plan_of(
    {
        "os": {**SURVIVAL, "weight": 2.0},
        "two": {"kind": "classification", "label": "two", "classes": ["a", "b"]},
        "three": {"kind": "classification", "label": "three", "classes": ["a", "b", "c"], "weight": 0.25},
    }
)

DAYS = st.sampled_from([0.0, *EDGES[1:], *MIDDLES]) | st.floats(0, 1200)
LABEL = st.tuples(DAYS, st.sampled_from([0.0, 1.0])) | st.just((math.nan, math.nan))
LABELS = st.lists(LABEL, min_size=1, max_size=8)
LOGIT = st.floats(-8, 8)


def survival_losses(labels: list[tuple[float, float]], logits: np.ndarray) -> np.ndarray:
    goals = targets(OS, {"os": np.array(labels)}, {})
    return np.asarray(patient_losses(OS, {"os": torch.tensor(logits)}, goals))


def brute_force(days: float, event: float, logits: np.ndarray) -> float:
    """-log of the likelihood of one patient, from hazards, by the definition of discrete time."""
    if math.isnan(days):
        return 0.0
    hazards = [1 / (1 + math.exp(-v)) for v in logits]
    likelihood = 1.0
    for k, (hazard, stop, middle) in enumerate(zip(hazards, EDGES[1:], MIDDLES, strict=True)):
        if event == 1:
            first = k == 0 or days > EDGES[k]
            if days <= stop and first:
                likelihood *= hazard
            if days <= stop:
                break
            likelihood *= 1 - hazard
        elif days >= middle:
            likelihood *= 1 - hazard
    return -math.log(likelihood)


@given(LABELS, st.data())
@settings(max_examples=150)
def test_survival_loss_is_the_negative_log_likelihood(labels: list[tuple[float, float]], data: st.DataObject) -> None:
    logits = data.draw(arrays(np.float64, (len(labels), 3), elements=LOGIT))
    expected = [brute_force(*label, row) for label, row in zip(labels, logits, strict=True)]
    np.testing.assert_allclose(survival_losses(labels, logits), expected, rtol=1e-9, atol=1e-9)


def pycox_nll_logistic_hazard(phi: torch.Tensor, index: torch.Tensor, events: torch.Tensor) -> torch.Tensor:
    """The loss of pycox (Kvamme & Borgan 2019, eq. 2): binary cross-entropy summed up to the patient's interval."""
    wanted = torch.zeros_like(phi).scatter(1, index[:, None], events[:, None])
    each = F.binary_cross_entropy_with_logits(phi, wanted, reduction="none")
    return each.cumsum(1).gather(1, index[:, None]).view(-1)


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=8), st.data())
@settings(max_examples=60)
def test_survival_loss_is_pycoxs_where_both_say_the_same(cases: list[tuple[int, bool]], data: st.DataObject) -> None:
    """An event in interval k, or a censoring at its end, is pycox's index k."""
    phi = torch.tensor(data.draw(arrays(np.float64, (len(cases), 3), elements=LOGIT)))
    labels = [(EDGES[k + 1] - (1 if event else 0), float(event)) for k, event in cases]
    index = torch.tensor([k for k, _ in cases])
    events = torch.tensor([float(e) for _, e in cases], dtype=torch.float64)
    expected = pycox_nll_logistic_hazard(phi, index, events)
    np.testing.assert_allclose(survival_losses(labels, phi.numpy()), expected.numpy(), rtol=1e-9, atol=1e-12)


def at_risk(days: float, event: float) -> tuple[list[float], list[float]]:
    target = targets(OS, {"os": np.array([[days, event]])}, {})["os"]
    return target.weight[0].tolist(), target.goal[0].tolist()


def test_an_event_on_day_0_is_an_event_of_the_first_interval() -> None:
    assert at_risk(0, 1) == ([1, 0, 0], [1, 0, 0])


def test_an_event_on_an_edge_belongs_to_the_interval_that_ends_there() -> None:
    assert at_risk(100, 1) == ([1, 0, 0], [1, 0, 0])
    assert at_risk(math.nextafter(100, 200), 1) == ([1, 1, 0], [0, 1, 0])
    assert at_risk(900, 1) == ([1, 1, 1], [0, 0, 1])


def test_an_event_after_the_last_edge_is_survival_of_all_that_is_modelled() -> None:
    assert at_risk(901, 1) == ([1, 1, 1], [0, 0, 0])


def test_a_censored_patient_survived_the_intervals_whose_middle_he_passed() -> None:
    assert at_risk(0, 0) == ([0, 0, 0], [0, 0, 0])
    assert at_risk(math.nextafter(50, 0), 0) == ([0, 0, 0], [0, 0, 0])
    assert at_risk(50, 0) == ([1, 0, 0], [0, 0, 0])
    assert at_risk(199, 0) == ([1, 0, 0], [0, 0, 0])
    assert at_risk(200, 0) == ([1, 1, 0], [0, 0, 0])
    assert at_risk(5000, 0) == ([1, 1, 1], [0, 0, 0])


def test_a_patient_without_a_label_contributes_nothing() -> None:
    assert at_risk(math.nan, math.nan) == ([0, 0, 0], [0, 0, 0])
    goals = targets(TWO, {"r": np.array([-1, 1])}, {"r": np.array([1.0, 3.0])})
    losses = patient_losses(TWO, {"r": torch.zeros(2, 1, dtype=torch.float64)}, goals)
    np.testing.assert_allclose(losses.numpy(), [0, 3 * math.log(2)])


@given(arrays(np.float64, (6, 3), elements=LOGIT), st.lists(st.integers(-1, 2), min_size=6, max_size=6))
@settings(max_examples=50)
def test_classification_is_weighted_cross_entropy(logits: np.ndarray, labels: list[int]) -> None:
    weights = np.array([1.0, 0.5, 2.0])
    goals = targets(THREE, {"r": np.array(labels)}, {"r": weights})
    ours = patient_losses(THREE, {"r": torch.tensor(logits)}, goals).numpy()
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    theirs = [0.0 if k < 0 else -weights[k] * log_p[i, k] for i, k in enumerate(labels)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    two = targets(TWO, {"r": np.minimum(labels, 1)}, {"r": weights[:2]})
    ours = patient_losses(TWO, {"r": torch.tensor(logits[:, :1])}, two).numpy()
    p = 1 / (1 + np.exp(-logits[:, 0]))
    pairs = zip(np.minimum(labels, 1), p, strict=True)
    theirs = [0.0 if k < 0 else -weights[k] * math.log(v if k else 1 - v) for k, v in pairs]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


# -- the sum over patients --------------------------------------------------------------------------------------------------


def everything(n: int, seed: int) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    sizes = {"os": 3, "two": 1, "three": 3}
    logits = {t: torch.tensor(rng.normal(size=(n, k))) for t, k in sizes.items()}
    days = np.column_stack([rng.uniform(0, 1000, n), rng.integers(0, 2, n)])
    days[rng.random(n) < 0.3] = np.nan
    return logits, {"os": days, "two": rng.integers(-1, 2, n), "three": rng.integers(-1, 3, n)}


WEIGHTS = {"two": np.array([1.0, 2.0]), "three": np.ones(3)}


def loss_of(rows: Any, logits: dict[str, torch.Tensor], labels: dict[str, np.ndarray]) -> np.ndarray:
    goals = targets(ALL, {t: v[rows] for t, v in labels.items()}, WEIGHTS)
    return np.asarray(patient_losses(ALL, {t: v[rows] for t, v in logits.items()}, goals))


@given(st.integers(1, 12), st.integers(0, 2**31), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_the_loss_is_additive_over_patients(n: int, seed: int, random: Any) -> None:
    logits, labels = everything(n, seed)
    together = loss_of(slice(None), logits, labels)
    assert together.shape == (n,)
    rows = list(range(n))
    random.shuffle(rows)
    cut = random.randint(0, n)
    parts = np.concatenate([loss_of(rows[:cut], logits, labels), loss_of(rows[cut:], logits, labels)])
    np.testing.assert_allclose(parts, together[rows], rtol=1e-12)


def test_tasks_are_added_with_their_weights() -> None:
    logits, labels = everything(6, 1)
    together = loss_of(slice(None), logits, labels)
    parts = []
    for task, weight in {"os": 2.0, "two": 1.0, "three": 0.25}.items():
        spec = ALL.tasks[task].model_copy(update={"weight": 1.0})
        plan = plan_of({task: spec.model_dump(mode="json")})
        goals = targets(plan, {task: labels[task]}, WEIGHTS)
        parts.append(weight * np.asarray(patient_losses(plan, logits, goals)))
    np.testing.assert_allclose(np.sum(parts, axis=0), together, rtol=1e-12)


def test_gradients_are_finite_at_extreme_logits() -> None:
    logits = torch.tensor([[1e4, -1e4, 1e4]] * 4, dtype=torch.float64, requires_grad=True)
    goals = targets(OS, {"os": np.array([[0, 1], [150, 1], [900, 0], [np.nan, np.nan]])}, {})
    torch.autograd.backward([patient_losses(OS, {"os": logits}, goals).sum()])
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


# -- predictions ------------------------------------------------------------------------------------------------------------


@given(arrays(np.float64, (5, 3), elements=st.floats(-700, 700)))
@settings(max_examples=80)
def test_survival_curves_begin_at_most_at_1_and_never_rise(logits: np.ndarray) -> None:
    curves = predict(OS, {"os": torch.tensor(logits)})["os"]
    assert np.all((curves >= 0) & (curves <= 1))
    assert np.all(np.diff(curves, axis=1) <= 0)


@given(arrays(np.float64, (4, 3), elements=LOGIT))
@settings(max_examples=50)
def test_survival_is_the_product_of_what_is_left_in_each_interval(logits: np.ndarray) -> None:
    curves = predict(OS, {"os": torch.tensor(logits)})["os"]
    np.testing.assert_allclose(curves, np.cumprod(1 - 1 / (1 + np.exp(-logits)), axis=1), rtol=1e-9)


@given(arrays(np.float64, (4, 3), elements=st.floats(-50, 50)))
@settings(max_examples=50)
def test_probabilities_add_up_to_1_in_either_kind_of_classification(logits: np.ndarray) -> None:
    for plan, columns in ((TWO, 1), (THREE, 3)):
        shown = predict(plan, {"r": torch.tensor(logits[:, :columns])})["r"]
        assert shown.shape == (4, columns if columns > 1 else 2)
        np.testing.assert_allclose(shown.sum(axis=1), 1, rtol=1e-12)
    two = predict(TWO, {"r": torch.tensor(logits[:, :1])})["r"]
    np.testing.assert_allclose(two[:, 1], 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-9)


@pytest.mark.parametrize("plan", [OS, TWO, THREE, ALL], ids=["survival", "two", "three", "all"])
def test_nobody_is_no_loss_and_no_prediction(plan: Plan) -> None:
    logits, labels = everything(0, 0)
    logits["r"] = torch.zeros(0, 3 if plan is THREE else 1, dtype=torch.float64)
    labels["r"] = np.zeros(0, np.int64)
    weights = {**WEIGHTS, "r": np.ones(3)}
    goals: dict[str, Target] = targets(plan, {t: labels[t] for t in plan.tasks}, weights)
    assert patient_losses(plan, logits, goals).shape == (0,)
    assert all(len(p) == 0 for p in predict(plan, logits).values())
