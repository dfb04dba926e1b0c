"""A private round: who enters, what noise is added, what it is divided by, and that nothing else decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from oncofed_client import private_training
from oncofed_client.integer_step import sample
from oncofed_client.noise import discrete_gaussian
from oncofed_client.private_training import private_update
from oncofed_client.randomness import Randomness
from oncofed_client.training import local_update
from oncofed_shared.privacy import Mechanism

LINEAR = {"model.layers": 0, "training.local_steps": 1, "training.dtype": "float64"}


def silent(patch: pytest.MonkeyPatch) -> Randomness:
    """A stream by which noise is drawn as nothing: the clipped mean is left."""
    patch.setattr(private_training, "add_discrete_gaussian", lambda random, sigma, numbers: None)
    return Randomness.repeatable("silent")


def update(case, random, **changes):
    mechanism = Mechanism.for_plan(case.plan, "alpha")
    arguments = {"mechanism": mechanism, "random": random, "key": "0|alpha|1"} | changes
    return private_update(case.plan, case.network, case.layout, case.patients, case.parameters, **arguments)


def test_patients_enter_with_the_rate_each_for_himself(make) -> None:
    mechanism, random = Mechanism.for_plan(make().plan, "alpha"), Randomness.repeatable("coins")
    times, patients = 4000, 50
    entered = np.zeros((times, patients))
    for t in range(times):
        entered[t, sample(random, mechanism.sampling_rate, patients).numpy()] = 1
    rate = mechanism.sampling_rate
    assert stats.binomtest(int(entered.sum()), times * patients, rate).pvalue > 1e-3
    each = (entered.mean(axis=0) - rate) / np.sqrt(rate * (1 - rate) / times)
    assert stats.chi2.sf(float(each @ each), patients) > 1e-3
    # Poisson sampling and not a batch of fixed size: the number that enters is binomial.
    sizes = entered.sum(axis=1)
    assert sizes.var() == pytest.approx(patients * rate * (1 - rate), rel=0.1)
    pairs = np.corrcoef(entered.T)[np.triu_indices(patients, 1)]
    assert np.abs(pairs).max() < 5 / np.sqrt(times)
    steps = np.corrcoef(entered[:-1].ravel(), entered[1:].ravel())[0, 1]
    assert abs(steps) < 4.5 / np.sqrt(entered.size)


def test_every_order_of_those_who_entered_is_equally_likely() -> None:
    random, times = Randomness.repeatable("order"), 6000
    last, pairs = np.zeros(8), 0
    for _ in range(times):
        order = sample(random, 0.9, 8).tolist()
        if order:
            last[order[-1]] += 1
        pairs += order.index(0) < order.index(5) if {0, 5} <= set(order) else 0.5
    assert stats.chisquare(last).pvalue > 1e-3
    assert abs(pairs / times - 0.5) < 4.5 * 0.5 / np.sqrt(times)
    # With a rate of one too, where no coin decides anything.
    first = np.bincount([int(sample(random, 1.0, 5)[0]) for _ in range(times)], minlength=5)
    assert stats.chisquare(first).pvalue > 1e-3


def test_a_rate_of_one_takes_everybody_and_nobody_is_sampled_from_nobody() -> None:
    random = Randomness.repeatable("coins")
    assert sorted(sample(random, 1.0, 64).tolist()) == list(range(64))
    assert len(sample(random, 1.0, 0)) == 0


def test_without_noise_and_clipping_it_is_the_plain_step_over_the_public_count(make, monkeypatch) -> None:
    whole = {"privacy.clip_norm": 300.0, "privacy.sampling_rate": 1.0, "privacy.patients": {"alpha": 64}}
    case = make({**LINEAR, **whole, "training.weight_decay": 0.3, "training.l1": 0.1})
    plain = local_update(
        case.plan, case.network, case.layout, case.patients, parameters := case.parameters, key="0|alpha|1"
    )
    case.network.load_state_dict({n: torch.from_numpy(a) for n, a in parameters.items()})
    private = update(case, silent(monkeypatch))
    # The sum is rounded by up to half a grain, at a rate of 0.1.
    grain = Mechanism.for_plan(case.plan, "alpha").integers(case.layout.size).grain
    rounding = 0.1 * 0.51 * grain
    assert np.abs(private[:-2] - plain[:-2]).max() <= rounding
    assert np.abs(plain[:-2]).max() > 100 * rounding
    assert private[-2] == plain[-2] == 64
    assert private[-1] == 0, "losses stay at the site"


def test_divisor_and_weight_are_the_plan_s_whoever_is_there(make, monkeypatch) -> None:
    case = make({**LINEAR, "privacy.clip_norm": 300.0, "privacy.sampling_rate": 1.0})
    parameters = case.parameters
    whole, first, second = (
        private_update(
            case.plan,
            case.network,
            case.layout,
            case.patients.rows(torch.arange(start, stop)),
            parameters,
            mechanism=Mechanism.for_plan(case.plan, "alpha"),
            random=silent(monkeypatch),
            key="k",
        )
        for start, stop in ((0, 64), (0, 32), (32, 64))
    )
    assert whole[-2] == first[-2] == second[-2] == 60
    # A sum over patients divided by a constant: the halves add up, but for three roundings at a rate of 0.1.
    grain = Mechanism.for_plan(case.plan, "alpha").integers(case.layout.size).grain
    assert np.abs(first[:-2] + second[:-2] - whole[:-2]).max() <= 0.1 * 1.51 * grain
    assert np.abs(whole[:-2]).max() > 100 * grain


def test_the_noise_of_a_step_is_the_mechanism_s(make) -> None:
    case = make({**LINEAR, "model.layers": 1, "model.width": 64, "model.feedforward": 2048})
    nobody = case.patients.rows(torch.zeros(0, dtype=torch.long))
    mechanism = Mechanism.for_plan(case.plan, "alpha")
    drawn = []
    for k in range(4):
        parameters = case.parameters
        random = Randomness.repeatable(f"noise {k}")
        change = private_update(
            case.plan, case.network, case.layout, nobody, parameters, mechanism=mechanism, random=random, key="k"
        )
        step = -change[:-2] / mechanism.patients / case.plan.training.rate
        drawn.append(step * mechanism.expected_batch / mechanism.noise_scale)
    everything = np.concatenate(drawn)
    assert len(everything) > 1_000_000
    assert abs(everything.mean()) < 4.5 / np.sqrt(len(everything))
    assert abs(everything.var() - 1) < 4.5 * np.sqrt(2 / len(everything))
    assert stats.kstest(everything, "norm").pvalue > 1e-3
    for a, b in ((0, 1), (1, 2), (0, 3)):
        assert abs(np.corrcoef(drawn[a], drawn[b])[0, 1]) < 4.5 / np.sqrt(len(drawn[a]))


def test_an_empty_sample_is_a_step_of_noise_alone(make) -> None:
    case = make({**LINEAR, "training.local_steps": 3, "training.rate": 1.0})
    nobody = case.patients.rows(torch.zeros(0, dtype=torch.long))
    mechanism, d = Mechanism.for_plan(case.plan, "alpha"), case.layout.size
    change = private_update(
        case.plan, case.network, case.layout, nobody, case.parameters,
        mechanism=mechanism, random=Randomness.repeatable("empty"), key="k",
    )  # fmt: skip
    assert mechanism.steps == 3 * case.plan.training.rounds, "every step is charged, whoever was sampled"
    again = Randomness.repeatable("empty")
    integers = mechanism.integers(d)
    drawn = sum(discrete_gaussian(again, integers.share_sigma, d) for _ in range(3))
    noise = drawn * integers.grain / mechanism.expected_batch
    assert np.allclose(change[:-2], -noise * mechanism.patients)


def test_patients_move_the_model_beyond_the_noise(make) -> None:
    case = make({**LINEAR, "privacy.epsilon": 8})
    random = [Randomness.repeatable("same") for _ in range(2)]
    nobody = case.patients.rows(torch.zeros(0, dtype=torch.long))
    parameters = case.parameters
    with_them = update(case, random[0])
    mechanism = Mechanism.for_plan(case.plan, "alpha")
    sample(random[1], mechanism.sampling_rate, len(case.patients))  # the coins that were tossed for them
    without = private_update(
        case.plan, case.network, case.layout, nobody, parameters, mechanism=mechanism, random=random[1], key="k"
    )
    moved = np.linalg.norm(with_them[:-2] - without[:-2])
    most = len(case.patients) * mechanism.clip_norm / mechanism.expected_batch
    assert 0 < moved <= most * mechanism.patients * case.plan.training.rate * (1 + 1e-9)


def test_a_label_repeats_a_round_and_the_operating_system_does_not(make) -> None:
    first, again = (update(make(), Randomness.repeatable("one")) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, update(make(), Randomness.repeatable("two")))
    drawn = [update(make(), Randomness.from_os()) for _ in range(2)]
    assert not np.array_equal(*drawn)


def test_adam_works_too(make) -> None:
    changes = {"training.optimiser": "adam"}
    first, again = (update(make(changes), Randomness.repeatable("one")) for _ in range(2))
    assert np.isfinite(first).all()
    assert np.array_equal(first, again)
