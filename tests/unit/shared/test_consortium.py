"""The consortium's mechanism: what the plan says, what shares carry, what it costs, what fits the ring."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from typing import Any

import numpy as np
import pytest
from absl import logging as absl_logging
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant

from oncofed_shared.consortium import (
    ConsortiumMechanism,
    TablesMechanism,
    gaussian_epsilon,
    server_counts,
    server_gradient,
)
from oncofed_shared.errors import ConfigError
from oncofed_shared.integer_noise import (
    ERRORS,
    FLOATS,
    SAMPLER_ERROR,
    SMALLEST_SHARE,
    SMOOTHING,
    UNLIKE_GAUSSIAN,
    IntegerNoise,
    sampled_rate,
    see_errors,
)
from oncofed_shared.plan import parse
from oncofed_shared.privacy import Mechanism, step_events

PLAN: dict[str, Any] = {
    "study": {"name": "private", "purpose": "see that nobody is seen"},
    "tasks": {"r": {"kind": "classification", "label": "r", "classes": ["no", "yes"]}},
    "modalities": {"genes": {"scaling": "none", "patterns": ["g*"]}},
    "training": {"rounds": 30},
    "privacy": {
        "noise": "consortium",
        "epsilon": 3,
        "delta": 1e-5,
        "clip_norm": 0.5,
        "sampling_rate": 0.25,
        "patients": {f"site-{i}": 100 + i for i in range(8)},
    },
}


def plan(rounds: int = 30, **privacy: Any) -> Any:
    content = copy.deepcopy(PLAN)
    content["privacy"] |= privacy
    content["training"]["rounds"] = rounds
    return parse(content)


def test_a_mechanism_is_what_the_plan_says() -> None:
    made = ConsortiumMechanism.for_plan(plan(drop=1, spare_steps=5), parameters=300)
    assert made == ConsortiumMechanism.for_plan(plan(drop=1, spare_steps=5), parameters=300)
    assert (made.sampling_rate, made.clip_norm, made.delta, made.epsilon_target) == (0.25, 0.5, 1e-5, 3)
    assert (made.steps, made.sites, made.drop, made.collude, made.ring_bits) == (35, 8, 1, 1, 32)
    assert made.expected_batch == 0.25 * sum(PLAN["privacy"]["patients"].values())
    assert made.grain * made.bound == 0.5
    assert made.charge()[0] == PoissonSampledDpEvent(0.25, GaussianDpEvent(made.noise_multiplier))
    assert made.charge()[1] == PoissonSampledDpEvent(0.25, GaussianDpEvent(made.own_noise_multiplier))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.steps = 1  # type: ignore[misc]


@given(
    sites=st.integers(3, 40),
    numbers=st.tuples(st.integers(0, 12), st.integers(1, 12)),
    parameters=st.sampled_from([1, 17, 300, 5000, 10**6]),
    clip_norm=st.floats(1e-3, 1e3),
)
def test_honest_shares_carry_the_whole_noise_and_nothing_wraps(sites, numbers, parameters, clip_norm) -> None:
    drop, collude = numbers
    try:
        asked = plan(
            patients={f"site-{i}": 60 for i in range(sites)},
            drop=drop,
            collude=collude,
            clip_norm=clip_norm,
            ring_bits=64,
        )
    except ConfigError:
        return
    made = ConsortiumMechanism.for_plan(asked, parameters=parameters)
    honest = sites - drop - collude
    # What those who neither drop nor collude add, less what smoothing takes, is what is accounted.
    carried = math.sqrt(honest * made.share_sigma**2 - SMOOTHING**2) / made.bound
    assert carried == pytest.approx(made.noise_multiplier, rel=1e-12)
    assert made.share_sigma >= SMALLEST_SHARE
    # Rounding takes less than a thousandth of the clip norm, of a large model's a 128th at most, floating point what is kept for
    # it, and neither ever adds to it.
    assert (1 - (1e-3 if parameters < 17_180 else 1 / 128) - FLOATS) * made.bound <= made.integers.clip_to
    assert made.integers.clip_to + math.sqrt(parameters) + FLOATS * made.bound <= made.bound * (1 + 1e-15)
    # All sites at their largest, on one coordinate.
    assert sites * (made.room + made.tail) < 2 ** (made.ring_bits - 1)
    assert made.room >= 60 * made.bound
    # More sites present, more noise; never less than planned.
    assert made.noise_std(sites - drop) >= made.noise_std(honest) >= made.noise_multiplier * made.clip_norm


def test_a_ring_that_is_too_small_is_refused_before_the_run() -> None:
    many = {f"site-{i}": 3000 for i in range(40)}
    wide = ConsortiumMechanism.for_plan(plan(patients=many, delta=1e-7, ring_bits=64), parameters=10**6)
    assert 2**31 < wide.sites * (wide.room + wide.tail) < 2**63
    with pytest.raises(ConfigError, match=r"privacy\.ring_bits: 32 bits have no room for 40 sites .*; take 64"):
        ConsortiumMechanism.for_plan(plan(patients=many, delta=1e-7), parameters=10**6)


def test_the_grid_of_a_large_model_is_no_finer_than_rounding_needs() -> None:
    def bound(parameters: int) -> int:
        return IntegerNoise.sized(parameters=parameters, clip_norm=1.0, noise_multiplier=1.0).bound

    assert [bound(d) for d in (1, 16, 17, 4295, 17_179)] == [2**12, 2**12, 2**13, 2**17, 2**17]
    assert [bound(d) for d in (17_180, 100_000, 2**20, 2**20 + 1, 2**22 + 1)] == [2**17, 2**17, 2**17, 2**18, 2**19]


def test_a_share_that_is_too_narrow_is_refused() -> None:
    with pytest.raises(ConfigError, match="integer steps wide, below 8"):
        IntegerNoise.sized(parameters=1, clip_norm=1.0, noise_multiplier=0.3, shares=40_000)


def test_more_parameters_than_doubles_are_exact_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="1000000000000 parameters are more than"):
        IntegerNoise.sized(parameters=10**12, clip_norm=1.0, noise_multiplier=1.0)


def test_epsilon_is_the_plan_s_bound_and_counts_the_spare_steps() -> None:
    made = ConsortiumMechanism.for_plan(plan(spare_steps=10), parameters=300)
    assert 0.97 * 3 <= made.epsilon() <= 3
    assert made.epsilon(steps=0) == 0
    assert made.epsilon(steps=30) < made.epsilon(steps=40) == made.epsilon()
    # As a single site with all the patients would have it: noise is drawn once.
    content = copy.deepcopy(PLAN)
    content["training"]["rounds"] = 40
    content["privacy"] |= {"noise": "site", "patients": {"everybody": 828}}
    assert made.noise_multiplier == Mechanism.for_plan(parse(content), "everybody").noise_multiplier


@pytest.mark.parametrize(("rate", "rounds", "epsilon"), [(0.25, 30, 3), (0.1, 200, 1), (0.8, 60, 8)])
def test_epsilon_agrees_with_prv_and_is_never_above_renyi(rate: float, rounds: int, epsilon: float) -> None:
    absl_logging.set_verbosity(absl_logging.ERROR)
    made = ConsortiumMechanism.for_plan(plan(rounds=rounds, sampling_rate=rate, epsilon=epsilon), parameters=300)
    ours, rate = made.epsilon(), made.sampling_rate
    renyi = RdpAccountant()
    renyi.compose(step_events(sampling_rate=rate, noise_multiplier=made.noise_multiplier, steps=made.steps))
    assert ours <= renyi.get_epsilon(made.delta)
    prv = PRVAccountant()
    prv.history = [(made.noise_multiplier, rate, made.steps)]
    with warnings.catch_warnings():
        # Where it looks for its grid, not what it answers.
        warnings.filterwarnings("ignore", message="Optimal order is")
        theirs = prv.get_epsilon(made.delta, eps_error=0.01)
    assert ours == pytest.approx(theirs, rel=0.02)


def test_by_its_own_share_alone_less_holds_and_it_is_said() -> None:
    made = ConsortiumMechanism.for_plan(plan(), parameters=300)
    assert made.own_noise_multiplier == pytest.approx(made.noise_multiplier / math.sqrt(7), rel=1e-6)
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    for _ in range(made.steps):
        accountant.compose(made.charge()[1])
    assert made.epsilon() < made.epsilon_alone() == pytest.approx(accountant.get_epsilon(made.delta), rel=0.02)
    assert made.epsilon_alone(0) == 0
    # Everybody in every step: one Gaussian.
    everybody = ConsortiumMechanism.for_plan(plan(sampling_rate=1.0), parameters=300)
    one = everybody.own_noise_multiplier / math.sqrt(everybody.steps)
    assert everybody.epsilon_alone() == pytest.approx(gaussian_epsilon(noise_multiplier=one, delta=1e-5), rel=1e-4)
    # Of a share among very many next to nothing is left.
    many = plan(patients={f"site-{i}": 60 for i in range(60)}, epsilon=8, sampling_rate=1.0)
    assert ConsortiumMechanism.for_plan(many, parameters=10).epsilon_alone() == math.inf


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-7])
def test_epsilon_of_one_gaussian_is_the_accountant_s(sigma: float, delta: float) -> None:
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    accountant.compose(GaussianDpEvent(sigma))
    assert gaussian_epsilon(noise_multiplier=sigma, delta=delta) == pytest.approx(
        accountant.get_epsilon(delta), abs=2e-4
    )


def test_the_errors_of_a_whole_run_are_inside_delta() -> None:
    made = ConsortiumMechanism.for_plan(plan(rounds=1000, epsilon=8), parameters=10**6)
    assert made.error() == pytest.approx(1002 * 1e6 * (8 * SAMPLER_ERROR + UNLIKE_GAUSSIAN), rel=1e-12)
    assert (1 + math.exp(8)) * made.error() < ERRORS * made.delta
    # The ratio of smoothing: twice 2.1 exp(-2 pi^2 s^2), and as much again for each further share, of 8 / sqrt 2 at least.
    ratio = 4.2 * math.exp(-2 * math.pi**2 * SMOOTHING**2)
    assert ratio + 50 * 4.2 * math.exp(-2 * math.pi**2 * SMALLEST_SHARE**2 / 2) < UNLIKE_GAUSSIAN
    assert see_errors(error=1e-30, epsilon=3, delta=1e-5)
    assert not see_errors(error=1e-30, epsilon=60, delta=1e-5)
    with pytest.raises(ConfigError, match="so large that the errors of drawing noise"):
        ConsortiumMechanism.for_plan(plan(rounds=500, epsilon=35, sampling_rate=1.0), parameters=10**6)


@given(st.floats(1e-12, 1.0))
def test_the_rate_that_is_accounted_is_the_coins(rate: float) -> None:
    used = sampled_rate(rate)
    assert rate <= used <= rate + 2.0**-53
    # Coins are multiples of 2**-53: those below the rate are this many.
    assert used * 2**53 == math.ceil(rate * 2**53)


def test_the_gradient_is_over_the_expected_batch_and_never_a_count() -> None:
    made = ConsortiumMechanism.for_plan(plan(), parameters=3)
    total = np.array([made.bound, -7, 0], dtype=np.int64)
    gradient = server_gradient(total, made)
    assert gradient.dtype == np.float64
    assert gradient == pytest.approx([0.5 / made.expected_batch, -7 * made.grain / made.expected_batch, 0])


def test_tables_of_test_patients_have_a_mechanism_of_their_own() -> None:
    asked = plan(score_epsilon=2.0)
    one, four = (TablesMechanism.for_plan(asked, cells=1000, entries=e) for e in (1, 4))
    for made, entries in ((one, 1), (four, 4)):
        carried = math.sqrt(7 * made.share_sigma**2 - SMOOTHING**2) / (made.unit * math.sqrt(entries))
        assert carried == pytest.approx(made.noise_multiplier, rel=1e-12)
        assert 0.97 * 2 <= made.epsilon() <= 2 < made.epsilon_alone()
        assert made.sites * (made.room + made.tail) < 2**31
        assert made.share_sigma >= SMALLEST_SHARE
        assert made.charge()[0] == GaussianDpEvent(made.noise_multiplier)
    # Who counts in four cells needs twice the noise.
    assert four.noise_std(8) == pytest.approx(2 * one.noise_std(8), rel=0.01)
    assert server_counts(np.array([one.unit * 5, -one.unit]), one).tolist() == [5, -1]
    with pytest.raises(ConfigError, match=r"privacy\.score_epsilon: is missing"):
        TablesMechanism.for_plan(plan(), cells=1000)


@pytest.mark.parametrize("noise", ["none", "site"])
def test_another_plan_has_no_shares(noise: str) -> None:
    content = copy.deepcopy(PLAN)
    content["privacy"] = {"noise": "none"} if noise == "none" else content["privacy"] | {"noise": "site"}
    with pytest.raises(ConfigError, match=f"privacy.noise: is '{noise}'"):
        ConsortiumMechanism.for_plan(parse(content), parameters=3)
