"""A step over the consortium: as Opacus makes it with pooled patients, with the noise that was planned, and within the ring."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import warnings

import numpy as np
import pytest
import torch
from opacus.grad_sample.grad_sample_module import GradSampleModule
from opacus.optimizers import DPOptimizer
from scipy import stats

from oncofed_client.integer_step import consortium_share, integer_sum, sample, tables_share
from oncofed_client.noise import discrete_gaussian
from oncofed_client.patient_gradients import per_patient
from oncofed_client.randomness import Randomness
from oncofed_client.training import TrainingSet, doubled
from oncofed_shared.consortium import ConsortiumMechanism, TablesMechanism, server_counts, server_gradient
from oncofed_shared.errors import LocalProtocolError
from oncofed_shared.losses import Target, patient_losses

SITES = {"alpha": 30, "beta": 20, "gamma": 14}
CONSORTIUM = {
    "training.local_steps": 1,
    "training.rounds": 50,
    "privacy": {
        "noise": "consortium",
        "epsilon": 3,
        "delta": 1e-4,
        "clip_norm": 0.5,
        "sampling_rate": 0.5,
        "patients": SITES,
        "microbatch": 8,
    },
}
SHAPES = {
    "linear": {"model.layers": 0},
    "transformer": {},
    "free hazards": {"model.layers": 2, "model.hazards": "free"},
    "weighted sum": {"model.fusion": "weighted_sum"},
    "kronecker": {"model.fusion": "kronecker"},
}


def share_of(case, data, mechanism, random, parameters=None):
    parameters = case.parameters if parameters is None else parameters
    return consortium_share(
        case.plan, case.network, case.layout, data, parameters, mechanism=mechanism, random=random
    )  # fmt: skip


def joined(parts: list[TrainingSet]) -> TrainingSet:
    """Patients of several sites in one set."""
    goals = {
        n: Target(
            goal=torch.cat([p.goals[n].goal for p in parts]), weight=torch.cat([p.goals[n].weight for p in parts])
        )
        for n in parts[0].goals
    }
    return TrainingSet(
        values=torch.cat([p.values for p in parts]), seen=torch.cat([p.seen for p in parts]), goals=goals
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_fifty_steps_are_those_of_pooled_opacus_with_the_same_patients_and_noise(make, shape) -> None:
    case = make({**CONSORTIUM, **shape, "training.dtype": "float64"})
    bounds = [0, *itertools.accumulate(SITES.values())]
    data = {n: case.patients.rows(torch.arange(a, b)) for n, a, b in zip(SITES, bounds, bounds[1:], strict=False)}
    layout, rate = case.layout, case.plan.training.rate
    mechanism = ConsortiumMechanism.for_plan(case.plan, parameters=layout.size)

    # Pooled DP-SGD by Opacus: its gradients, its clipping, its optimiser; its noise is none, and ours is added in its hook.
    pooled = copy.deepcopy(case.network).double().train()
    hooked = GradSampleModule(pooled, loss_reduction="sum")
    integers = mechanism.integers
    optimiser = DPOptimizer(
        torch.optim.SGD(pooled.parameters(), lr=rate),
        noise_multiplier=0.0,
        # The length to which ours are shortened, so that they may be rounded.
        max_grad_norm=integers.clip_to * integers.grain,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    noise = np.zeros(layout.size)

    def add_noise(_: DPOptimizer) -> None:
        for name, added in layout.arrays(noise * integers.grain, "float64").items():
            weight = pooled.named[name]
            weight.grad = (weight.grad + torch.from_numpy(added)) / mechanism.expected_batch

    optimiser.attach_step_hook(add_noise)
    weights = layout.flatten(case.parameters)
    first = weights.copy()
    for step in range(50):
        total, entered = np.zeros(layout.size, dtype=np.int64), []
        noise[:] = 0
        for name, own in data.items():
            parameters = layout.arrays(weights, "float64")
            total += share_of(case, own, mechanism, Randomness.repeatable(f"{name} {step}"), parameters)
            again = Randomness.repeatable(f"{name} {step}")
            entered.append(own.rows(sample(again, mechanism.sampling_rate, len(own))))
            noise += discrete_gaussian(again, mechanism.share_sigma, layout.size)
        weights -= rate * server_gradient(total, mechanism)
        batch = doubled(joined(entered))
        optimiser.zero_grad()
        with warnings.catch_warnings():
            # Hooks on modules that read data, which has no gradient.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            patient_losses(case.plan, hooked(batch.values, batch.seen), batch.goals).sum().backward()
        optimiser.step()
    theirs = layout.flatten({n: p.detach().numpy() for n, p in pooled.named.items()})
    assert np.abs(weights - theirs).max() <= 1e-4
    # They went somewhere, and not by noise alone.
    assert np.abs(weights - first).max() > 0.05


def planned(drop: int, collude: int):
    return {
        **CONSORTIUM,
        "model.width": 64,
        "model.feedforward": 2048,
        "privacy": CONSORTIUM["privacy"]
        | {"patients": {f"site-{i}": 20 for i in range(7)}, "drop": drop, "collude": collude},
    }


@pytest.mark.parametrize(("drop", "collude"), [(0, 1), (2, 1), (1, 2)])
def test_the_sum_has_the_planned_noise_whoever_drops_and_colludes(make, drop, collude) -> None:
    case = make(planned(drop, collude), count=1)
    nobody = case.patients.rows(torch.arange(0))
    mechanism = ConsortiumMechanism.for_plan(case.plan, parameters=case.layout.size)
    steps, sites = 4, 7
    drawn = np.array(
        [
            [share_of(case, nobody, mechanism, Randomness.repeatable(f"{drop} {s} {t}")) for t in range(steps)]
            for s in range(sites)
        ]
    )
    for present in (sites, sites - drop, sites - drop - collude):
        total = drawn[:present].sum(axis=0).ravel() * mechanism.grain
        assert len(total) > 1_000_000
        slack = 4.5 * np.sqrt(2 / len(total))
        assert abs(total.var() / mechanism.noise_std(present) ** 2 - 1) < slack
        assert abs(total.mean()) < 4.5 * mechanism.noise_std(present) / np.sqrt(len(total))
        assert stats.kstest(total / mechanism.noise_std(present), "norm").pvalue > 1e-3
    # What honest sites that are there add is the noise that was accounted, and not a part of it.
    accounted = mechanism.noise_multiplier * mechanism.clip_norm
    assert abs(total.var() / accounted**2 - 1) < slack
    flat = drawn.reshape(sites * steps, -1).astype(float)
    apart = np.corrcoef(flat)[np.triu_indices(sites * steps, 1)]
    assert np.abs(apart).max() < 5.5 / np.sqrt(flat.shape[1]), "no two sites and no two steps have anything in common"


def test_shares_on_the_ring_add_up_to_the_plain_sum(make) -> None:
    case = make(CONSORTIUM)
    mechanism = ConsortiumMechanism.for_plan(case.plan, parameters=case.layout.size)
    shares = [share_of(case, case.patients, mechanism, Randomness.repeatable(f"{i}")) for i in range(3)]
    on_ring = sum(s.astype(np.uint32) for s in shares)
    assert on_ring.dtype == np.uint32
    assert np.array_equal(on_ring.view(np.int32), sum(shares))
    assert max(int(np.abs(s).max()) for s in shares) <= mechanism.room + mechanism.tail


def test_who_enters_is_sampled_first_and_the_noise_comes_on_top(make) -> None:
    case = make(CONSORTIUM)
    mechanism = ConsortiumMechanism.for_plan(case.plan, parameters=case.layout.size)
    share = share_of(case, case.patients, mechanism, Randomness.repeatable("one"))
    again = Randomness.repeatable("one")
    rows = sample(again, mechanism.sampling_rate, len(case.patients))
    assert 0 < len(rows) < len(case.patients)
    with per_patient(case.network) as hooked:
        signal = integer_sum(hooked, case.plan, case.patients, rows, mechanism.integers)
    assert np.array_equal(share, signal + discrete_gaussian(again, mechanism.share_sigma, case.layout.size))
    assert not np.array_equal(share, share_of(case, case.patients, mechanism, Randomness.from_os()))


def test_a_crowd_is_cut_to_its_room_and_nobody_moves_further_for_it(make) -> None:
    case = make({**CONSORTIUM, "privacy.sampling_rate": 1.0})
    mechanism = ConsortiumMechanism.for_plan(case.plan, parameters=case.layout.size)
    # So many sites that this one's room is two patients long.
    room = 2 * mechanism.bound
    sites = (2 ** (mechanism.ring_bits - 1) - 1) // (room + mechanism.tail)
    tight = dataclasses.replace(mechanism, sites=sites)
    assert room <= tight.room < 1.1 * room

    def signal(rows):
        random = Randomness.repeatable("cut")
        share = share_of(case, case.patients.rows(rows), tight, random)
        again = Randomness.repeatable("cut")
        sample(again, 1.0, len(rows))
        return share - discrete_gaussian(again, tight.share_sigma, case.layout.size)

    whole = signal(torch.arange(64))
    assert np.abs(whole).max() == tight.room, "the cut was reached"
    for i in range(64):
        moved = whole - signal(torch.tensor([j for j in range(64) if j != i]))
        assert sum(int(v) ** 2 for v in moved) <= tight.bound**2


def test_tables_are_noised_and_cut(make) -> None:
    case = make({**CONSORTIUM, "privacy": CONSORTIUM["privacy"] | {"score_epsilon": 2}})
    mechanism = TablesMechanism.for_plan(case.plan, cells=400_000, entries=2)
    counts = np.arange(400_000) % 5
    shares = [tables_share(counts, mechanism=mechanism, random=Randomness.repeatable(f"{i}")) for i in range(3)]
    error = server_counts(sum(shares), mechanism) - 3 * counts
    assert abs(error.var() / mechanism.noise_std(3) ** 2 - 1) < 4.5 * np.sqrt(2 / len(error))
    assert abs(error.mean()) < 4.5 * mechanism.noise_std(3) / np.sqrt(len(error))
    assert abs(np.corrcoef(shares[0] - counts * mechanism.unit, shares[1])[0, 1]) < 4.5 / np.sqrt(len(error))
    crowd = np.full(400_000, 10**9)
    cut = tables_share(crowd, mechanism=mechanism, random=Randomness.repeatable("0"))
    assert int(np.abs(cut).max()) <= mechanism.room + mechanism.tail
    for wrong in (counts[1:], -counts):
        with pytest.raises(LocalProtocolError, match="stays here"):
            tables_share(wrong, mechanism=mechanism, random=Randomness.from_os())
