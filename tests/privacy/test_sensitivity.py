"""What one patient can change in a step's integers: by brute force, for every shape of the network and every loss."""

from __future__ import annotations

import copy
from typing import get_args

import numpy as np
import pytest
import torch

from oncofed_client.integer_step import NEAR, integer_sum, patient_integers
from oncofed_client.patient_gradients import doubled, gradients, per_patient
from oncofed_client.private_training import check_private
from oncofed_client.training import TrainingSet
from oncofed_shared.errors import ConfigError
from oncofed_shared.integer_noise import IntegerNoise
from oncofed_shared.losses import patient_losses
from oncofed_shared.network_fusion import JOINS
from oncofed_shared.plan_sizes import SIZES, Fusion
from oncofed_shared.privacy import Mechanism

SHAPES = {
    "transformer and linear path": {},
    "linear path alone": {"model.layers": 0},
    "no linear path": {"model.linear_path": False},
    "two layers, free hazards": {"model.layers": 2, "model.hazards": "free"},
    "no block scaling": {"model.block_scaling": False, "model.layers": 0},
    "double": {"training.dtype": "float64"},
    "wide": {"model.width": 16, "model.heads": 4, "model.feedforward": 32},
    **{fusion: {"model.fusion": fusion} for fusion in JOINS},
    "two ways": {
        "model.fusion": "two_way",
        "modalities.clinical.side": "imaging",
        "modalities.genes.side": "genes",
    },
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


def of(case, clip_norm=None) -> IntegerNoise:
    """The grid of the case's plan, or one on which another length is the bound."""
    if clip_norm is None:
        return Mechanism.for_plan(case.plan, "alpha").integers(case.layout.size)
    return IntegerNoise.sized(parameters=case.layout.size, clip_norm=clip_norm, noise_multiplier=1.0)


def without(i: int, count: int = 64) -> torch.Tensor:
    return torch.tensor([j for j in range(count) if j != i])


@everything
@every_shape
def test_removing_any_one_of_64_patients_moves_the_integers_by_at_most_the_bound(make, shape, loss) -> None:
    case = make({**shape, **loss})
    integers = of(case)
    with per_patient(case.network) as hooked:
        whole = integer_sum(hooked, case.plan, case.patients, torch.arange(64), integers)
        moved = [whole - integer_sum(hooked, case.plan, case.patients, without(i), integers) for i in range(64)]
    # Squares of integers, so that nothing is rounded in the comparison.
    squares = [sum(int(v) ** 2 for v in m) for m in moved]
    assert max(squares) <= integers.bound**2
    # The bound is one that patients reach, and rounding costs them less than a thousandth of it.
    assert max(squares) > (0.999 * integers.bound) ** 2
    assert integers.clip_to > 0.999 * integers.bound


@everything
@every_shape
def test_a_patient_s_integers_are_his_alone_whoever_is_computed_with_him(make, shape, loss) -> None:
    case = make({**shape, **loss}, count=24)
    integers = of(case)
    with per_patient(case.network) as hooked:
        together = patient_integers(hooked, case.plan, case.patients, integers, patient_losses).clone()
        batch = gradients(hooked, case.plan, case.patients, patient_losses).clone()
        for i in range(24):
            one = rows(case.patients, i)
            alone = patient_integers(hooked, case.plan, one, integers, patient_losses)
            assert torch.equal(together[i], alone[0])
            # What the batch does to last bits is far below what would be noticed: a hundredth of NEAR.
            single = gradients(hooked, case.plan, one, patient_losses)[0]
            length = max(float(single.norm()), integers.clip_norm)
            assert float((batch[i] - single).abs().max()) <= NEAR / 100 * length
        for size in (5, 17, 100):
            whole = integer_sum(hooked, case.plan, case.patients, torch.arange(24), integers, microbatch=size)
            assert np.array_equal(whole, together.numpy().astype(np.int64).sum(axis=0))


def test_a_coordinate_near_the_middle_of_two_integers_is_computed_alone(make) -> None:
    case = make({"model.layers": 0}, count=8)
    with per_patient(case.network) as hooked:
        exact = gradients(hooked, case.plan, rows(case.patients, 3), patient_losses).clone()[0]
        asked = []

        def watched(plan, logits, goals):
            asked.append(len(next(iter(logits.values()))))
            return patient_losses(plan, logits, goals)

        # A grid on which a coordinate of one patient lies in the very middle, and nobody is clipped.
        largest = float(exact.abs().max())
        grain = largest / (int(largest / 1e-4) + 0.5)
        integers = IntegerNoise(parameters=len(exact), clip_norm=grain * 2**26, bound=2**26, share_sigma=8.0)
        patient_integers(hooked, case.plan, case.patients, integers, watched)
    assert asked[0] == 8
    assert set(asked[1:]) == {1}
    assert len(asked) > 1


def compared_with_autograd(case, count: int) -> torch.Tensor:
    """Gradients of all patients at once, (count, parameters), after they were found to be those of each alone."""
    alone = []
    for i in range(count):
        one, network = doubled(rows(case.patients, i)), copy.deepcopy(case.network).double()
        patient_losses(case.plan, network(one.values, one.seen), one.goals).sum().backward()
        by_name = [p for _, p in sorted(network.named_parameters())]
        alone.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in by_name]))
    with per_patient(case.network) as hooked:
        together = gradients(hooked, case.plan, case.patients, patient_losses)
        assert torch.allclose(together, torch.stack(alone), rtol=1e-9, atol=1e-11)
        return together.clone()


@everything
@every_shape
def test_per_patient_gradients_are_those_of_one_by_one_autograd(make, shape, loss) -> None:
    assert compared_with_autograd(make({**shape, **loss}, count=16), 16).any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fusion", get_args(Fusion))
def test_per_patient_gradients_are_right_for_every_fusion_in_every_size(make, fusion, size) -> None:
    model = {"fusion": fusion, "size": size}
    case = make({"model": model, "modalities.clinical.side": "imaging", "modalities.genes.side": "genes"}, count=4)
    # One patient lacks the first modality, and one the second.
    case.patients.seen[1, :3], case.patients.seen[2, 3:] = 0, 0
    assert compared_with_autograd(case, 4).any(dim=1).all()


@everything
def test_a_short_gradient_is_only_rounded_and_a_long_one_only_shortened(make, loss) -> None:
    case = make(loss, count=16)
    with per_patient(case.network) as hooked:
        exact = gradients(hooked, case.plan, case.patients, patient_losses).clone().numpy()
        lengths = np.linalg.norm(exact, axis=1)
        for clip_norm in (2 * lengths.max(), np.median(lengths), lengths[lengths > 0].min() / 3):
            integers = of(case, float(clip_norm))
            made = patient_integers(hooked, case.plan, case.patients, integers, patient_losses).numpy() * integers.grain
            to = integers.clip_to * integers.grain
            expected = exact * np.minimum(1, to / np.maximum(lengths, 1e-300))[:, None]
            assert np.abs(made - expected).max() <= integers.grain * 0.5000001


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_patient_whose_gradient_is_not_finite_contributes_zero(make, bad) -> None:
    case = make(count=8)
    values = case.patients.values.clone()
    values[3], seen = bad, case.patients.seen.clone()
    seen[3] = 1
    spoiled = TrainingSet(values=values, seen=seen, goals=case.patients.goals)
    integers = of(case)
    with per_patient(case.network) as hooked:
        with_him = integer_sum(hooked, case.plan, spoiled, torch.arange(8), integers)
        rest = integer_sum(hooked, case.plan, spoiled, without(3, 8), integers)
        him = integer_sum(hooked, case.plan, spoiled, torch.tensor([3]), integers)
    assert np.array_equal(with_him, rest)
    assert rest.any()
    assert not him.any()


def test_who_is_too_long_after_rounding_contributes_zero(make) -> None:
    case = make()
    # As if there were no parameters to be rounded: on so coarse a grid rounding makes some vectors longer than the bound.
    careless = IntegerNoise(parameters=0, clip_norm=0.01, bound=16, share_sigma=8.0)
    with per_patient(case.network) as hooked:
        made = patient_integers(hooked, case.plan, case.patients, careless, patient_losses)
        squares = (made * made).sum(dim=1)
        assert float(squares.max()) <= 16**2
        assert 0 < int((squares == 0).sum()) < 64


def test_nobody_gives_zero(make) -> None:
    case = make(count=5)
    with per_patient(case.network) as hooked:
        assert not integer_sum(hooked, case.plan, case.patients, torch.arange(0), of(case)).any()


def test_the_hooks_are_gone_afterwards(make) -> None:
    case = make(count=5)
    with per_patient(case.network) as hooked:
        twin = hooked.network
    for network in (case.network, twin):
        assert not any(m._forward_hooks or m._backward_hooks for m in network.modules())
        assert all(p.grad is None for p in network.parameters())


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
    integers = of(case, 5.0)
    with per_patient(case.network) as hooked:

        def total(chosen):
            # All in one batch, as the coupled loss would have it; no row is computed alone.
            part = case.patients.rows(chosen)
            made = gradients(hooked, case.plan, part, cox)
            lengths = torch.linalg.vector_norm(made, dim=1, keepdim=True)
            return (made * (integers.clip_norm / lengths).clamp(max=1)).sum(dim=0)

        whole = total(torch.arange(64))
        moved = [float((whole - total(without(i))).norm()) for i in range(64)]
    assert max(moved) > 1.02 * integers.clip_norm


def test_a_loss_of_the_batch_as_one_number_is_refused(make) -> None:
    case = make(count=1)
    with pytest.raises(ConfigError, match="not one number per patient"):
        check_private(case.plan, case.network, width=12, loss=lambda p, x, g: patient_losses(p, x, g).mean())


def test_a_network_with_batch_statistics_is_refused(make) -> None:
    case = make(count=1)
    case.network.norm = torch.nn.BatchNorm1d(4)
    with pytest.raises(ConfigError, match="cannot be trained privately"):
        check_private(case.plan, case.network, width=12)


def test_a_layer_without_a_gradient_per_patient_is_refused(make) -> None:
    case = make(count=1)
    case.network.extra = torch.nn.PReLU()
    with pytest.raises(ConfigError, match="PReLU has no gradient per patient"):
        check_private(case.plan, case.network, width=12)


def test_a_layer_that_is_used_twice_has_the_gradient_of_both_uses(make) -> None:
    case = make({"model.layers": 2}, count=6)
    first, second = case.network.layers
    case.network.layers[1] = first
    case.network.named = dict(sorted(case.network.named_parameters()))
    case.network._vector = None
    del second
    with per_patient(case.network) as hooked:
        rows_ = gradients(hooked, case.plan, case.patients, patient_losses).clone()
        for i in range(6):
            one = doubled(rows(case.patients, i))
            loss = patient_losses(case.plan, hooked.network(one.values, one.seen), one.goals).sum()
            own = torch.autograd.grad(loss, list(hooked.network.named.values()), allow_unused=True)
            hooked.noted()
            flat = [
                torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(own, hooked.places, strict=True)
            ]
            assert torch.allclose(rows_[i], torch.cat(flat), rtol=1e-9, atol=1e-12)
