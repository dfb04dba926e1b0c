"""The account over studies: it composes as dp_accounting does, and its filter is a bound that was fixed before."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from absl import logging as absl_logging
from dp_accounting import ComposedDpEvent, GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant

from oncofed_client.budget import BudgetPolicy, Charge, Cost, cost_of, epsilon_of_charges
from oncofed_shared.errors import ConfigError
from oncofed_shared.renyi_filter import ORDERS, SLACK_SHARE, RenyiFilter, renyi_of

CHARGES = st.builds(
    Charge,
    sampling_rate=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    noise_multiplier=st.sampled_from([0.7, 2.0, 9.0]),
    own_noise_multiplier=st.sampled_from([0.0, 0.5, 2.0]),
    steps=st.integers(1, 200),
    part=st.sampled_from(["train", "test"]),
)


def composed(charges: list[Charge], *, own: bool) -> np.ndarray:
    """dp_accounting's own composition of charges of one part."""
    accountant = RdpAccountant(ORDERS)
    for c in charges:
        noise = c.own_noise_multiplier if own else c.noise_multiplier
        accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(c.sampling_rate, GaussianDpEvent(noise)), c.steps))
    return accountant.rdp


@given(st.lists(CHARGES, min_size=1, max_size=5))
@settings(max_examples=60)
def test_the_sum_over_plans_is_the_one_that_dp_accounting_composes(charges: list[Charge]) -> None:
    total = Cost.nothing()
    for c in charges:
        total = total + cost_of([c])
    np.testing.assert_allclose(total.pooled, composed(charges, own=False), rtol=1e-12)
    np.testing.assert_allclose(total.own, composed(charges, own=True), rtol=1e-12)


@given(st.lists(CHARGES, min_size=1, max_size=5))
@settings(max_examples=60)
def test_within_a_plan_a_patient_pays_for_the_part_that_he_is_in(charges: list[Charge]) -> None:
    both = cost_of(charges)
    parts = [[c for c in charges if c.part == part] for part in ("train", "test")]
    apart = [cost_of(part) for part in parts]
    np.testing.assert_array_equal(both.pooled, np.maximum(apart[0].pooled, apart[1].pooled))
    np.testing.assert_array_equal(both.own, np.maximum(apart[0].own, apart[1].own))


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    assert not renyi_of(sampling_rate=0.5, noise_multiplier=0.0, steps=0).any()
    assert np.isinf(renyi_of(sampling_rate=0.5, noise_multiplier=0.0, steps=1)).all()
    bound = RenyiFilter(epsilon=1.0, delta=1e-5)
    assert bound.epsilon_of(np.zeros(len(ORDERS))) == 0
    assert not bound.allows(np.full(len(ORDERS), np.inf))


@given(
    st.floats(0.1, 30), st.sampled_from([1e-3, 1e-5, 1e-8]), st.integers(0, 300), st.sampled_from([ORDERS, (4.0, 9.0)])
)
@settings(max_examples=60)
def test_the_filter_is_the_protocols_with_what_several_orders_cost(
    epsilon: float, delta: float, steps: int, orders: tuple[float, ...]
) -> None:
    spent = renyi_of(sampling_rate=0.1, noise_multiplier=2.0, steps=steps)
    bound = RenyiFilter(epsilon=epsilon, delta=delta, orders=orders)
    grid = np.linspace(1e-6, 10, 200_000)
    some = False
    for a, s in zip(ORDERS, spent, strict=True):
        # The largest value of (1 - e^-x) e^(-(a - 1) x), by looking.
        back = float(np.max((1 - np.exp(-grid)) * np.exp(-(a - 1) * grid)))
        offset = math.log(max(1.0, len(orders) * back) / (delta * (1 - SLACK_SHARE)))
        some |= a in orders and s <= epsilon - offset / (a - 1)
    # Without a charge nothing is learned, whatever the bound.
    assert bound.allows(spent) == (some or steps == 0) or abs(bound.epsilon_of(spent) - epsilon) < 1e-6
    # Never more generous than protocol 16 by itself.
    plain = any(s <= epsilon - math.log(1 / delta) / (a - 1) for a, s in zip(ORDERS, spent, strict=True))
    assert plain or steps == 0 or not bound.allows(spent)


@given(st.lists(CHARGES, min_size=1, max_size=4))
@settings(max_examples=40)
def test_what_is_allowed_stays_allowed_for_less(charges: list[Charge]) -> None:
    bound = RenyiFilter(epsilon=5.0, delta=1e-5)
    whole, less = cost_of(charges).pooled, cost_of(charges[1:]).pooled
    assert bound.epsilon_of(less) <= bound.epsilon_of(whole)
    assert bound.allows(less) or not bound.allows(whole)


def test_the_filters_epsilon_bounds_every_mixture_that_an_analyst_could_pick() -> None:
    """Analysts who choose the second study by the first one's result, for Gaussians where the truth can be computed.

    The first study shows x ~ N(0 or 1, s^2); the second one's noise depends on x, and both always pass the filter. The privacy
    loss of the whole is simulated; its exceedance of epsilon must stay below delta.
    """
    random = np.random.default_rng(5)
    bound = RenyiFilter(epsilon=2.5, delta=1e-2)
    first = renyi_of(sampling_rate=1.0, noise_multiplier=3.0, steps=1)
    noises = np.geomspace(0.5, 50, 400)
    curves = [first + renyi_of(sampling_rate=1.0, noise_multiplier=n, steps=1) for n in noises]
    smallest = next(n for n, c in zip(noises, curves, strict=True) if bound.allows(c))
    draws = 400_000
    x = random.normal(1.0, 3.0, draws)
    seen = (2 * x - 1) / (2 * 9.0)

    def beyond(least: float) -> float:
        # The greedy analyst: goes on with as little noise as he is let, only where the first study already told much.
        noise = np.where(seen > np.quantile(seen, 0.7), least, 50.0)
        loss = seen + (2 * random.normal(1.0, noise) - 1) / (2 * noise**2)
        return float(np.maximum(0.0, 1 - np.exp(bound.epsilon - loss)).mean())

    assert beyond(smallest) <= bound.delta
    # The second study is a real one, and with a third of its noise the bound would be broken.
    assert smallest < 3
    assert beyond(smallest / 3) > bound.delta


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "delta"),
    [(0.05, 0.8, 200, 1e-5), (0.2, 2.0, 100, 1e-3), (0.2, 5.0, 300, 1e-5), (0.5, 5.0, 50, 1e-5), (0.9, 8.0, 30, 1e-3)],
)
def test_rule_16_a_plans_epsilon_is_within_two_percent_of_prv_and_never_above_renyi(
    q: float, sigma: float, steps: int, delta: float
) -> None:
    absl_logging.set_verbosity(absl_logging.ERROR)
    made = Charge(sampling_rate=q, noise_multiplier=sigma, own_noise_multiplier=sigma / 3, steps=steps)
    ours = epsilon_of_charges([made], delta=delta)
    renyi = RdpAccountant().compose(SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)), steps))
    assert ours <= renyi.get_epsilon(delta)
    prv = PRVAccountant()
    prv.history = [(sigma, q, steps)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is")
        theirs = prv.get_epsilon(delta, eps_error=0.01)
    assert ours == pytest.approx(theirs, rel=0.02)
    # By this site's share alone, a third of the noise, at least as much is spent.
    assert epsilon_of_charges([made], delta=delta, own=True) > ours


def test_several_lines_of_a_plan_compose_as_one_event() -> None:
    lines = [
        Charge(sampling_rate=0.2, noise_multiplier=2.0, own_noise_multiplier=1.0, steps=20),
        Charge(sampling_rate=1.0, noise_multiplier=9.0, own_noise_multiplier=1.0, steps=1),
        Charge(sampling_rate=1.0, noise_multiplier=4.0, own_noise_multiplier=1.0, steps=1, part="test"),
    ]
    train = [epsilon_of_charges(lines[:1], delta=1e-5), epsilon_of_charges(lines[:2], delta=1e-5)]
    test = epsilon_of_charges(lines[2:], delta=1e-5)
    assert train[0] < train[1]
    assert epsilon_of_charges(lines, delta=1e-5) == max(train[1], test)
    renyi = RdpAccountant().compose(
        ComposedDpEvent([
            SelfComposedDpEvent(PoissonSampledDpEvent(0.2, GaussianDpEvent(2.0)), 20),
            GaussianDpEvent(9.0),
        ])
    )  # fmt: skip
    assert train[1] <= renyi.get_epsilon(1e-5)


def test_a_samplers_error_is_taken_from_delta_and_refused_where_it_is_more() -> None:
    exact = Charge(sampling_rate=0.2, noise_multiplier=2.0, own_noise_multiplier=2.0, steps=50)
    usual, slack = epsilon_of_charges([exact], delta=1e-5), 1e-10
    rough = Charge(sampling_rate=0.2, noise_multiplier=2.0, own_noise_multiplier=2.0, steps=50, slack=slack)
    assert usual < epsilon_of_charges([rough], delta=1e-5) < 1.1 * usual
    worse = Charge(sampling_rate=0.2, noise_multiplier=2.0, own_noise_multiplier=2.0, steps=50, slack=1e-6)
    assert epsilon_of_charges([worse], delta=1e-5) == math.inf
    limits = BudgetPolicy(epsilon_total=20.0)
    assert limits.objections(cost_of([exact])) == []
    (line,) = limits.objections(cost_of([worse]))
    assert "noise that differs" in line


@pytest.mark.parametrize(
    "numbers",
    [
        {"sampling_rate": 0.0}, {"sampling_rate": 1.1}, {"noise_multiplier": -1.0}, {"own_noise_multiplier": math.nan},
        {"noise_multiplier": math.inf}, {"steps": 0}, {"steps": 1.0}, {"part": "all"}, {"slack": 1.0},
    ],
)  # fmt: skip
def test_a_charge_of_other_numbers_is_none(numbers: dict[str, float]) -> None:
    usual = {"sampling_rate": 0.5, "noise_multiplier": 2.0, "own_noise_multiplier": 1.0}
    with pytest.raises(ConfigError, match="charge: "):
        Charge(**(usual | numbers))


@pytest.mark.parametrize(
    "numbers", [{"epsilon": 0.0}, {"delta": 0.0}, {"delta": 1.0}, {"orders": ()}, {"orders": (5.0,)}]
)
def test_a_filter_that_bounds_nothing_is_none(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="epsilon must be positive"):
        RenyiFilter(**({"epsilon": 1.0, "delta": 1e-5} | numbers))
