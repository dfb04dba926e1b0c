"""The mechanism of a plan and what it costs: calibrated below the target, checked against two other accountants."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from itertools import pairwise
from typing import Any

import pytest
from absl import logging as absl_logging
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant

from oncofed_shared.errors import ConfigError, ExitCode
from oncofed_shared.plan import parse
from oncofed_shared.privacy import (
    COARSE,
    LARGEST_NOISE,
    SMALLEST_NOISE,
    Mechanism,
    calibrate,
    epsilon_of,
    step_events,
)

PLAN: dict[str, Any] = {
    "study": {"name": "private", "purpose": "see that nobody is seen"},
    "main_task": "r",
    "tasks": {"r": {"kind": "classification", "label": "r", "classes": ["no", "yes"]}},
    "modalities": {"genes": {"scaling": "none", "patterns": ["g*"]}},
    "training": {"rounds": 30, "local_steps": 2},
    "privacy": {
        "noise": "site",
        "epsilon": 3,
        "delta": 1e-5,
        "clip_norm": 0.5,
        "sampling_rate": 0.25,
        "patients": {"alpha": 200, "beta": 40},
    },
}


def plan(**changes: Any) -> Any:
    content = copy.deepcopy(PLAN)
    content["privacy"] |= {k: v for k, v in changes.items() if k in content["privacy"]}
    content["training"] |= {k: v for k, v in changes.items() if k not in content["privacy"]}
    return parse(content)


GRID = [
    (q, sigma, steps, delta)
    for q, sigma, steps in (
        (0.05, 0.8, 200), (0.05, 1.5, 1000), (0.2, 2.0, 100), (0.2, 5.0, 300), (0.5, 5.0, 50), (0.9, 8.0, 30),
    )
    for delta in (1e-3, 1e-5)
]  # fmt: skip


@pytest.mark.parametrize(("q", "sigma", "steps", "delta"), GRID)
def test_epsilon_agrees_with_prv_and_is_never_above_renyi(q: float, sigma: float, steps: int, delta: float) -> None:
    absl_logging.set_verbosity(absl_logging.ERROR)
    ours = epsilon_of(sampling_rate=q, noise_multiplier=sigma, steps=steps, delta=delta)
    renyi = RdpAccountant()
    renyi.compose(step_events(sampling_rate=q, noise_multiplier=sigma, steps=steps))
    assert ours <= renyi.get_epsilon(delta)
    prv = PRVAccountant()
    prv.history = [(sigma, q, steps)]
    with warnings.catch_warnings():
        # Where it looks for its grid, not what it answers.
        warnings.filterwarnings("ignore", message="Optimal order is")
        theirs = prv.get_epsilon(delta, eps_error=0.01)
    assert ours == pytest.approx(theirs, rel=0.02)


def test_no_step_costs_nothing_and_each_step_more_costs_more() -> None:
    spent = [epsilon_of(sampling_rate=0.2, noise_multiplier=2.0, steps=n, delta=1e-5) for n in (0, 1, 2, 10, 50)]
    assert spent[0] == 0
    assert all(a < b for a, b in pairwise(spent))


def test_a_coarse_grid_overstates() -> None:
    for q, sigma, steps in ((0.2, 2.0, 100), (0.05, 1.0, 500), (1.0, 8.0, 30)):
        fine = epsilon_of(sampling_rate=q, noise_multiplier=sigma, steps=steps, delta=1e-5)
        coarse = epsilon_of(sampling_rate=q, noise_multiplier=sigma, steps=steps, delta=1e-5, grid=COARSE)
        assert fine <= coarse <= 1.01 * fine


@given(
    st.sampled_from([0.3, 1.0, 3.0, 8.0]),
    st.sampled_from([1e-4, 1e-6]),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.sampled_from([10, 100]),
)
@settings(max_examples=4, derandomize=True)
def test_calibrated_noise_costs_the_target_and_not_more(epsilon: float, delta: float, q: float, steps: int) -> None:
    sigma = calibrate(epsilon=epsilon, delta=delta, sampling_rate=q, steps=steps)
    spent = epsilon_of(sampling_rate=q, noise_multiplier=sigma, steps=steps, delta=delta)
    assert 0.97 * epsilon <= spent <= epsilon


def test_an_epsilon_that_no_noise_reaches_is_refused_before_the_run() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon: 0\.001 .*impossible") as caught:
        Mechanism.for_plan(plan(epsilon=0.001, sampling_rate=1.0, rounds=1000), "alpha")
    assert caught.value.exit_code is ExitCode.INPUT
    assert f"{LARGEST_NOISE:g}" in str(caught.value)


def test_an_epsilon_that_hides_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon: 5000 is so large") as caught:
        Mechanism.for_plan(plan(epsilon=5000), "alpha")
    assert f"{SMALLEST_NOISE:g}" in str(caught.value)


def test_a_site_outside_the_roster_has_no_mechanism() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.patients: has no 'gamma'"):
        Mechanism.for_plan(plan(), "gamma")


def test_a_plan_without_noise_has_no_mechanism() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.noise: is 'none'"):
        Mechanism.for_plan(parse({**PLAN, "privacy": {"noise": "none"}}), "alpha")


def test_a_mechanism_is_what_the_plan_says_and_its_event_is_what_it_does() -> None:
    made = Mechanism.for_plan(plan(), "alpha")
    assert made == Mechanism.for_plan(plan(), "alpha")
    assert (made.sampling_rate, made.clip_norm, made.steps, made.delta) == (0.25, 0.5, 60, 1e-5)
    assert made.expected_batch == 0.25 * 200
    assert made.noise_scale == made.noise_multiplier * 0.5
    assert made.relation is NeighboringRelation.ADD_OR_REMOVE_ONE
    step = PoissonSampledDpEvent(0.25, GaussianDpEvent(made.noise_multiplier))
    assert made.event == SelfComposedDpEvent(step, 60)
    assert 0.97 * 3 <= made.epsilon() <= 3
    assert 0 < made.epsilon(steps=10) < made.epsilon()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.noise_multiplier = 1.0  # type: ignore[misc]


def test_sites_differ_in_their_public_count_alone() -> None:
    alpha, beta = (Mechanism.for_plan(plan(), name) for name in ("alpha", "beta"))
    assert dataclasses.replace(alpha, site="beta", patients=40) == beta
