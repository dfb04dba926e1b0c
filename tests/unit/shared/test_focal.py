"""The focal loss: Lin et al. 2017 written out, cross-entropy at gamma 0, and never a gradient that is not a number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_shared.errors import ConfigError
from oncofed_shared.losses import patient_losses, targets
from oncofed_shared.plan import Plan, parse

LOGIT = st.floats(-40, 40)
OS = {"kind": "survival", "time": "t", "event": "e", "edges": [0, 1, 2], "horizon": 1}


def plan_of(classes: int, tasks: dict[str, Any] | None = None, **training: Any) -> Plan:
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": tasks or {"r": {"kind": "classification", "label": "r", "classes": list("abcde"[:classes])}},
            "modalities": {"m": {"patterns": ["*"]}},
            "training": {"rounds": 1, "dtype": "float64", **training},
        }
    )


def losses(plan: Plan, logits: list[list[float]], labels: list[int], weights: list[float]) -> torch.Tensor:
    out = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    made = patient_losses(plan, {"r": out}, targets(plan, {"r": np.array(labels)}, {"r": np.array(weights)}))
    (grown,) = torch.autograd.grad(made.sum(), [out])
    assert torch.isfinite(grown).all()
    return made.detach()


@given(LOGIT, st.sampled_from([0, 1]), st.sampled_from([0.5, 1.0, 2.0, 5.0]))
@settings(max_examples=150)
def test_two_classes(logit: float, label: int, gamma: float) -> None:
    p = 1 / (1 + math.exp(-logit)) if label else 1 / (1 + math.exp(logit))
    wrong = 1 / (1 + math.exp(logit)) if label else 1 / (1 + math.exp(-logit))
    expected = 3.0 * wrong**gamma * -math.log(p)
    made = losses(plan_of(2, loss="focal", gamma=gamma), [[logit]], [label], [3.0, 3.0])
    assert float(made) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(st.lists(LOGIT, min_size=4, max_size=4), st.integers(0, 3), st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=150)
def test_four_classes(logits: list[float], label: int, gamma: float) -> None:
    shares = np.exp(np.array(logits) - max(logits))
    shares /= shares.sum()
    expected = 2.0 * (1 - shares[label]) ** gamma * -math.log(shares[label])
    made = losses(
        plan_of(4, loss="focal", gamma=gamma), [logits], [label], [1, 1, 1, 1.0][:label] + [2.0] * (4 - label)
    )
    assert float(made) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_gamma_zero_is_cross_entropy_and_the_default_is_two() -> None:
    logits, labels = [[0.3], [-2.0], [4.0]], [1, 0, -1]
    plain = losses(plan_of(2), logits, labels, [1.0, 1.0])
    assert torch.equal(losses(plan_of(2, loss="focal", gamma=0.0), logits, labels, [1.0, 1.0]), plain)
    assert plan_of(2, loss="focal").training.gamma == 2.0
    assert float(plain[2]) == 0.0


def test_hazards_are_left_alone() -> None:
    labels = {"os": np.array([[1.5, 1.0], [0.5, 0.0]]), "r": np.array([-1, -1])}
    tasks = {"os": OS, "r": {"kind": "classification", "label": "r", "classes": ["a", "b"]}}
    logits = {"os": torch.tensor([[0.2, -1.0], [1.0, 2.0]]).double(), "r": torch.zeros(2, 1).double()}

    def total(**training: Any) -> torch.Tensor:
        plan = plan_of(2, tasks, **training)
        return patient_losses(plan, logits, targets(plan, labels, {"r": np.ones(2)}))

    assert torch.equal(total(), total(loss="focal"))


@pytest.mark.parametrize(
    ("tasks", "training", "message"),
    [
        (None, {"gamma": 2.0}, "training.gamma: is of loss = 'focal'"),
        (None, {"loss": "focal", "gamma": -1.0}, "training.gamma"),
        ({"os": OS}, {"loss": "focal"}, "training.loss: 'focal' is of classifications"),
    ],
)
def test_what_does_not_fit_is_refused(tasks: Any, training: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(2, tasks, **training)


def test_a_plan_without_it_keeps_its_bytes() -> None:
    assert b"gamma" not in plan_of(2).canonical
    assert b'"loss"' not in plan_of(2).canonical
