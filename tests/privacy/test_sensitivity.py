"""What one patient can change in a step's sum: by brute force, for every shape of the network and every loss."""

from __future__ import annotations

import copy

import pytest
import torch

from oncofed_client.private_training import check_private, clipped_sum, per_patient
from oncofed_client.training import TrainingSet
from oncofed_shared.errors import ConfigError
from oncofed_shared.losses import patient_losses
from oncofed_shared.privacy import Mechanism

C = 0.1
SHAPES = {
    "transformer and linear path": {},
    "linear path alone": {"model.layers": 0},
    "no linear path": {"model.linear_path": False},
    "two layers, free hazards": {"model.layers": 2, "model.hazards": "free"},
    "no block scaling": {"model.block_scaling": False, "model.layers": 0},
    "double": {"training.dtype": "float64"},
    "wide": {"model.width": 16, "model.heads": 4, "model.feedforward": 32},
}
LOSSES = {
    "survival": {
        "tasks": {"survival": {"kind": "survival", "time": "t", "event": "e", "edges": [0, 100, 300, 700], "horizon": 300}}
    },
    "two classes": {
        "tasks": {"r": {"kind": "classification", "label": "r", "classes": ["no", "yes"]}},
        "main_task": "r",
        "training.class_weights": {"r": [1.0, 2.0]},
    },
    "three classes": {"tasks": {"g": {"kind": "classification", "label": "g", "classes": ["I", "II", "III"]}}, "main_task": "g"},
    "all together": {},
}  # fmt: skip
everything = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def rows(patients: TrainingSet, *chosen: int) -> TrainingSet:
    return patients.rows(torch.tensor(chosen, dtype=torch.long))


def sum_of(hooked, case, batch, bound=C):
    return clipped_sum(hooked, case.plan, batch, bound, patient_losses)


@everything
@every_shape
def test_removing_any_one_of_64_patients_moves_the_sum_by_at_most_the_bound(make, shape, loss) -> None:
    case = make({**shape, **loss})
    everybody = range(64)
    clip_to = Mechanism.for_plan(case.plan, "alpha").clip_to
    with per_patient(case.network) as hooked:
        whole = sum_of(hooked, case, case.patients, clip_to)
        moved = [
            float(
                (whole - sum_of(hooked, case, rows(case.patients, *(j for j in everybody if j != i)), clip_to)).norm()
            )
            for i in everybody
        ]
    # What is charged: the clip norm itself, with nothing added for rounding.
    assert max(moved) <= C
    if case.plan.training.dtype == "float64":
        assert max(moved) <= clip_to * (1 + 1e-13)
    # The bound is one that patients reach: it is not kept because nothing happens.
    assert max(moved) > C * 0.999
    assert min(moved) >= 0


@everything
@every_shape
def test_per_patient_gradients_are_those_of_one_by_one_autograd(make, shape, loss) -> None:
    case = make({**shape, **loss}, count=16)
    alone = []
    for i in range(16):
        one, network = rows(case.patients, i), copy.deepcopy(case.network)
        patient_losses(case.plan, network(one.values, one.seen), one.goals).sum().backward()
        by_name = [p for _, p in sorted(network.named_parameters())]
        alone.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in by_name]))
    with per_patient(case.network) as hooked:
        # A bound that nobody reaches leaves gradients as they are.
        together = [sum_of(hooked, case, rows(case.patients, i), 1e9) for i in range(16)]
        everybody = sum_of(hooked, case, case.patients, 1e9)
    scale = max(float(g.abs().max()) for g in alone)
    for a, b in zip(alone, together, strict=True):
        assert float((a - b).abs().max()) <= 1e-5 * scale
    assert float((torch.stack(alone).double().sum(dim=0) - everybody).abs().max()) <= 1e-5 * 16 * scale


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_a_patient_whose_gradient_is_not_finite_contributes_zero(make, bad) -> None:
    case = make(count=8)
    values = case.patients.values.clone()
    values[3], seen = bad, case.patients.seen.clone()
    seen[3] = 1
    spoiled = TrainingSet(values=values, seen=seen, goals=case.patients.goals)
    with per_patient(case.network) as hooked:
        with_him = sum_of(hooked, case, spoiled)
        without = sum_of(hooked, case, rows(case.patients, 0, 1, 2, 4, 5, 6, 7))
    assert torch.isfinite(with_him).all()
    assert torch.allclose(with_him, without, atol=1e-9)


def test_a_short_gradient_is_unchanged_and_nobody_gives_zero(make) -> None:
    case = make(count=5)
    with per_patient(case.network) as hooked:
        first = sum_of(hooked, case, rows(case.patients, 0), 1e9)
        at_its_length = sum_of(hooked, case, rows(case.patients, 0), float(first.norm()) * 1.001)
        assert torch.equal(first, at_its_length)
        assert not sum_of(hooked, case, case.patients.rows(torch.zeros(0, dtype=torch.long))).any()


def test_the_hooks_are_gone_afterwards(make) -> None:
    case = make(count=5)
    with per_patient(case.network):
        pass
    assert not any(hasattr(p, "grad_sample") for p in case.network.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in case.network.modules())


def cox(plan, logits, goals):  # noqa: ARG001 - a loss is handed the plan
    """Negative partial likelihood (Cox 1972), in Breslow's form, a term per patient: each looks at all who are at risk."""
    risk = logits["survival"].mean(dim=1)
    ends = goals["survival"].weight.sum(dim=1)
    event = goals["survival"].goal.sum(dim=1)
    at_risk = ends[None, :] >= ends[:, None]
    return event * (torch.logsumexp(risk.masked_fill(~at_risk, -torch.inf), dim=1) - risk)


def batch_mean(plan, logits, goals):
    losses = patient_losses(plan, logits, goals)
    return losses - losses.mean()


@everything
@every_shape
def test_our_losses_are_accepted(make, shape, loss) -> None:
    case = make({**shape, **loss}, count=1)
    check_private(case.plan, case.network, width=12)


@pytest.mark.parametrize("loss", [cox, batch_mean])
def test_a_loss_that_couples_patients_is_refused(make, loss) -> None:
    case = make({"tasks": LOSSES["survival"]["tasks"]}, count=1)
    with pytest.raises(ConfigError, match="depends on who else is in the batch"):
        check_private(case.plan, case.network, width=12, loss=loss)


def test_the_cox_loss_would_have_broken_the_bound(make) -> None:
    case = make({"tasks": LOSSES["survival"]["tasks"]})
    bound = 5.0
    with per_patient(case.network) as hooked:
        whole = clipped_sum(hooked, case.plan, case.patients, bound, cox)
        rest = [rows(case.patients, *(j for j in range(64) if j != i)) for i in range(64)]
        moved = [float((whole - clipped_sum(hooked, case.plan, r, bound, cox)).norm()) for r in rest]
    assert max(moved) > 1.02 * bound


def test_a_loss_of_the_batch_as_one_number_is_refused(make) -> None:
    case = make(count=1)
    with pytest.raises(ConfigError, match="not one number per patient"):
        check_private(case.plan, case.network, width=12, loss=lambda p, x, g: patient_losses(p, x, g).mean())


def test_a_network_with_batch_statistics_is_refused(make) -> None:
    case = make(count=1)
    case.network.norm = torch.nn.BatchNorm1d(4)
    with pytest.raises(ConfigError, match="cannot be trained privately"):
        check_private(case.plan, case.network, width=12)
