"""What one patient can change in a step's integers: by brute force, for every shape of the network and every loss."""

from __future__ import annotations

import copy
from typing import get_args

import numpy as np
import pytest
import torch

from oncofed_client.integer_step import integer_sum, places_of
from oncofed_client.patient_gradients import backward, per_patient, placed
from oncofed_client.private_training import check_private
from oncofed_client.training import TrainingSet, doubled
from oncofed_shared.determinism import one_thread
from oncofed_shared.errors import ConfigError, LocalProtocolError
from oncofed_shared.integer_noise import CANCELLED, FLOATS, IntegerNoise, see_sums
from oncofed_shared.losses import patient_losses
from oncofed_shared.network_fusion import JOINS
from oncofed_shared.plan_sizes import SIZES, Fusion
from oncofed_shared.privacy import Mechanism

from .conftest import changed

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


def without(order: torch.Tensor, i: int) -> torch.Tensor:
    """The sample without the patient in a place, who is replaced by the last: the order with which docs/noise.md pairs it."""
    left = order[:-1].clone()
    if i < len(left):
        left[i] = order[-1]
    return left


@everything
@every_shape
def test_removing_any_one_of_64_patients_moves_the_integers_by_at_most_the_bound(make, shape, loss) -> None:
    case = make({**shape, **loss, "privacy.patients": {"alpha": 40}})
    integers, order = of(case), torch.randperm(64, generator=torch.Generator().manual_seed(6))
    # Batches of 32 places, so that the last patient moves to another one.
    assert places_of(case.plan) == 32
    with per_patient(case.network) as hooked:
        whole = integer_sum(hooked, case.plan, case.patients, order, integers).copy()
        moved = [whole - integer_sum(hooked, case.plan, case.patients, without(order, i), integers) for i in range(64)]
    # Squares of integers, so that nothing is rounded in the comparison.
    squares = [sum(int(v) ** 2 for v in m) for m in moved]
    assert max(squares) <= integers.bound**2
    # The bound is one that patients reach, and what rounding costs them is a thousandth of it, and floats half of that.
    assert max(squares) > (0.9975 * integers.bound) ** 2
    assert integers.clip_to > 0.9985 * integers.bound


@everything
@every_shape
def test_a_patient_s_numbers_are_his_alone_whoever_is_computed_with_him(make, shape, loss) -> None:
    case = make({**shape, **loss}, count=48)
    order = torch.arange(32)
    others = torch.where(order % 3 > 0, order + 16, order)
    with one_thread(), per_patient(case.network) as hooked:
        made = []
        for chosen in (order, others):
            passed = backward(hooked, case.plan, placed(case.patients, chosen, 32), patient_losses)
            made.append((passed.lengths, passed.each()[::3]))
    assert torch.equal(made[0][0][::3], made[1][0][::3])
    # To the last bit: what is zero for all others adds nothing.
    assert torch.equal(made[0][1], made[1][1])
    assert made[0][1].any()


@everything
@every_shape
def test_what_a_patient_s_place_changes_is_a_sixteenth_of_what_is_kept_for_it(make, shape, loss) -> None:
    case = make({**shape, **loss}, count=32)
    integers = of(case)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(7))

    def clipped(hooked, chosen):
        passed = backward(hooked, case.plan, placed(case.patients, chosen, 32), patient_losses)
        factors = (integers.clip_norm / passed.lengths).clamp(max=1)
        return passed.each() * factors[:, None]

    with one_thread(), per_patient(case.network) as hooked:
        here, there = clipped(hooked, torch.arange(32)), clipped(hooked, order)
    apart = torch.linalg.vector_norm(here[order] - there, dim=1)
    assert float(apart.max()) <= FLOATS / 2 / 16 * integers.clip_norm


def gradients(hooked, plan, batch, loss=patient_losses) -> tuple[torch.Tensor, torch.Tensor]:
    """Everybody's gradient, (n, parameters), and its length."""
    passed = backward(hooked, plan, batch, loss)
    return passed.each(), passed.lengths


def compared_with_autograd(case, count: int) -> torch.Tensor:
    """Gradients of all patients at once, (count, parameters), after they were found to be those of each alone."""
    alone = []
    for i in range(count):
        one, network = doubled(rows(case.patients, i)), copy.deepcopy(case.network).double()
        patient_losses(case.plan, network(one.values, one.seen), one.goals).sum().backward()
        by_name = [p for _, p in sorted(network.named_parameters())]
        alone.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in by_name]))
    exact = torch.stack(alone)
    true = torch.linalg.vector_norm(exact, dim=1)
    with per_patient(case.network) as hooked:
        together, lengths = gradients(hooked, case.plan, rows(case.patients, *range(count)))
    # Of the plan's own precision: single, or double.
    tolerance = 1e-9 if case.network.vector.dtype is torch.float64 else 1e-5
    assert torch.allclose(together, exact, rtol=tolerance, atol=tolerance * float(true.max()))
    # A length may be taken for a hair longer, and never for shorter than what is summed.
    assert torch.allclose(lengths, true, rtol=max(tolerance, 1e-6), atol=tolerance * float(true.max()))
    assert (lengths >= torch.linalg.vector_norm(together, dim=1) * (1 - 1e-14)).all()
    return together


@everything
@every_shape
def test_per_patient_gradients_are_those_of_one_by_one_autograd(make, shape, loss) -> None:
    assert compared_with_autograd(make({**shape, **loss}, count=16), 16).any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fusion", get_args(Fusion))
def test_per_patient_gradients_are_right_for_every_fusion_in_every_size(make, fusion, size) -> None:
    model = {"fusion": fusion, "size": size}
    sides = {"modalities.clinical.side": "imaging", "modalities.genes.side": "genes"}
    case = make({"model": model, **sides, "training.dtype": "float64"}, count=4)
    # One patient lacks the first modality, and one the second.
    case.patients.seen[1, :3], case.patients.seen[2, 3:] = 0, 0
    assert compared_with_autograd(case, 4).any(dim=1).all()


@everything
def test_a_short_gradient_is_only_rounded_and_a_long_one_only_shortened(make, loss) -> None:
    case = make(loss, count=16)
    with per_patient(case.network) as hooked:
        exact, lengths = (made.numpy() for made in gradients(hooked, case.plan, case.patients))
        for clip_norm in (2 * lengths.max(), np.median(lengths), lengths[lengths > 0].min() / 3):
            integers = of(case, float(clip_norm))
            made = np.array([alone(hooked, case, i, integers) for i in range(16)]) * integers.grain
            to = integers.clip_to * integers.grain
            expected = exact * np.minimum(1, to / np.maximum(lengths, 1e-300))[:, None]
            assert np.abs(made - expected).max() <= integers.grain * 0.5 + 1e-5 * clip_norm


def alone(hooked, case, i: int, integers: IntegerNoise) -> np.ndarray:
    return integer_sum(hooked, case.plan, case.patients, torch.tensor([i]), integers).copy()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_patient_whose_gradient_is_not_finite_contributes_zero(make, bad) -> None:
    case = make(count=8)
    values = case.patients.values.clone()
    values[3], seen = bad, case.patients.seen.clone()
    seen[3] = 1
    spoiled = TrainingSet(values=values, seen=seen, goals=case.patients.goals)
    integers = of(case)
    with per_patient(case.network) as hooked:
        with_him = integer_sum(hooked, case.plan, spoiled, torch.tensor([0, 1, 2, 4, 3]), integers).copy()
        rest = integer_sum(hooked, case.plan, spoiled, torch.tensor([0, 1, 2, 4]), integers).copy()
        him = integer_sum(hooked, case.plan, spoiled, torch.tensor([3]), integers)
    assert np.array_equal(with_him, rest)
    assert rest.any()
    assert not him.any()


def test_batches_of_any_number_of_places_give_the_same_but_for_last_bits(make) -> None:
    case = make({"training.dtype": "float64"})
    integers, sums = of(case), []
    for expected in (4, 8, 16, 64):
        plan = changed({"training.dtype": "float64", "privacy.patients": {"alpha": expected, "beta": 1}})
        with per_patient(case.network) as hooked:
            sums.append(integer_sum(hooked, plan, case.patients, torch.arange(64), integers).copy())
    assert max(int(np.abs(s - sums[0]).max()) for s in sums) <= 1
    assert any(places_of(changed({"privacy.patients": {"alpha": n}})) != 8 for n in (4, 64))


def test_an_empty_place_holds_nobody_and_a_full_batch_nobody_twice(make) -> None:
    case = make({"training.dtype": "float64"}, count=9)
    integers = of(case)
    with per_patient(case.network) as hooked:
        nine = integer_sum(hooked, case.plan, case.patients, torch.arange(9), integers).copy()
        each = sum(alone(hooked, case, i, integers) for i in range(9))
    assert np.abs(nine - each).max() <= 5


def test_places_are_a_constant_of_the_plan(make) -> None:
    del make
    sizes = {n: places_of(changed({"privacy.patients": {"alpha": n}})) for n in (1, 20, 60, 100, 500, 5000)}
    assert sizes == {1: 8, 20: 16, 60: 64, 100: 64, 500: 64, 5000: 64}


def test_a_sample_too_large_for_the_margin_is_refused(make) -> None:
    case = make(count=2)
    with per_patient(case.network) as hooked, pytest.raises(LocalProtocolError, match="rounding was reckoned"):
        integer_sum(hooked, case.plan, case.patients, torch.zeros(2**19 + 1, dtype=torch.long), of(case))


@pytest.mark.parametrize(
    ("places", "tokens", "held"), [(64, 8192, True), (64, 8193, False), (512, 128, True), (512, 129, False)]
)
def test_a_layer_whose_sums_could_err_by_more_than_the_margin_is_refused(places, tokens, held) -> None:
    # 4 x (terms) x 2**-53 x patients x (what cancelled, in lengths): docs/noise.md.
    assert (4 * places * tokens * 2.0**-53 * places * CANCELLED**-0.5 <= FLOATS / 2) or not held
    if held:
        see_sums(places=places, tokens=tokens)
    else:
        with pytest.raises(ConfigError, match=r"lower privacy\.microbatch"):
            see_sums(places=places, tokens=tokens)


def test_nobody_gives_zero_and_what_the_last_step_left_in_memory_is_in_no_sum(make) -> None:
    case = make(count=5)
    with per_patient(case.network) as hooked:
        everybody = integer_sum(hooked, case.plan, case.patients, torch.arange(5), of(case)).copy()
        # As doubles, small negative integers are no numbers.
        assert (everybody < 0).any()
        again = integer_sum(hooked, case.plan, case.patients, torch.arange(5), of(case)).copy()
        nobody = integer_sum(hooked, case.plan, case.patients, torch.arange(0), of(case))
    assert np.array_equal(everybody, again)
    assert not nobody.any()


def test_the_hooks_are_gone_afterwards(make) -> None:
    case = make(count=5)
    with per_patient(case.network) as hooked:
        backward(hooked, case.plan, case.patients, patient_losses)
    assert not any(m._forward_hooks or m._backward_hooks for m in case.network.modules())
    assert all(p.grad is None for p in case.network.parameters())


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
            # All in one batch, as the coupled loss would have it.
            made, lengths = gradients(hooked, case.plan, case.patients.rows(chosen), cox)
            return (made * (integers.clip_norm / lengths).clamp(max=1)[:, None]).sum(dim=0)

        whole = total(torch.arange(64))
        moved = [float((whole - total(without(torch.arange(64), i))).norm()) for i in range(64)]
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
    case = make({"model.layers": 2, "training.dtype": "float64"}, count=6)
    case.network.layers[1] = case.network.layers[0]
    case.network.named = dict(sorted(case.network.named_parameters()))
    case.network._vector = None
    compared_with_autograd(case, 6)


def test_a_machine_that_lets_patients_touch_is_refused(make, monkeypatch) -> None:
    case = make(count=1)
    gelu = torch.nn.functional.gelu
    # As if a sum over the batch had ended up in everybody's last bits.
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x: gelu(x) + 1e-9 * x.detach().sum())
    with pytest.raises(ConfigError, match="on this machine the last bits"):
        check_private(case.plan, case.network, width=12)
