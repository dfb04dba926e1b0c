"""What a step costs, what a site's policy allows, and how the costs of plans add up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from oncofed_shared.errors import ConfigError
from oncofed_shared.renyi_filter import ORDERS, Curve, RenyiFilter, renyi_of, step_event, sum_of

if TYPE_CHECKING:
    from oncofed_client.settings import Policy

__all__ = ["BudgetPolicy", "Charge", "Cost", "budget_policy", "cost_of", "epsilon_of_charges"]

Part = Literal["train", "validation", "test"]
FINE, COARSE, LARGE = 1e-4, 1e-3, 100.0
"""Grids of the privacy loss, and the epsilon from which on the Renyi accountant's must do: it promises nearly nothing anyway."""
_RENYI = (*range(2, 64), 80, 96, 128, 192, 256, 512)


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """What steps of one kind cost a patient.

    Attributes:
        sampling_rate: probability that a patient enters a step.
        noise_multiplier: of the pooled noise that holds under at most the plan's colluders.
        own_noise_multiplier: of the noise that holds by this site's own share alone; 0 where nothing does.
        steps: how many of them.
        part: whose patients; those of another part of the same plan are others, so that they pay in parallel.
        slack: total variation distance, per step, between the noise that is drawn and the noise that is charged.
    """

    sampling_rate: float
    noise_multiplier: float
    own_noise_multiplier: float
    steps: int = 1
    part: Part = "train"
    slack: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers that are no charge.

        Raises:
            ConfigError: with the name of the number.
        """
        numbers = (self.sampling_rate, self.noise_multiplier, self.own_noise_multiplier, self.slack)
        rules = {
            "sampling_rate must lie above 0 and be at most 1": 0 < self.sampling_rate <= 1,
            "noise_multiplier and own_noise_multiplier must be at least 0": min(numbers[1:3]) >= 0,
            "all numbers must be finite": all(map(math.isfinite, numbers)),
            "steps must be a whole number from 1 on": type(self.steps) is int and self.steps >= 1,
            "part must be 'train', 'validation' or 'test'": self.part in {"train", "validation", "test"},
            "slack must lie between 0 and 1": 0 <= self.slack < 1,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ConfigError(*(f"charge: {rule}" for rule in broken), code="charge")

    def covers(self, other: Charge) -> bool:
        """Whether a step of the other costs no patient more than a step of this one."""
        same = (self.sampling_rate, self.part) == (other.sampling_rate, other.part)
        noisier = (
            other.noise_multiplier >= self.noise_multiplier and other.own_noise_multiplier >= self.own_noise_multiplier
        )
        return same and noisier and other.slack <= self.slack


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one patient of the site pays at most, at each of ORDERS.

    Attributes:
        pooled: (len(ORDERS),) Renyi divergences against at most the plans' colluders.
        own: (len(ORDERS),) if all other sites collude.
        slack: total variation distance that sampler and truncation add.
    """

    pooled: Curve
    own: Curve
    slack: float

    @classmethod
    def nothing(cls) -> Cost:
        """No cost."""
        return cls(pooled=np.zeros(len(ORDERS)), own=np.zeros(len(ORDERS)), slack=0.0)

    def __add__(self, other: Cost) -> Cost:
        """Both, one after the other."""
        return Cost(pooled=self.pooled + other.pooled, own=self.own + other.own, slack=self.slack + other.slack)

    def larger(self, other: Cost) -> Cost:
        """At each order the larger of both."""
        return Cost(
            pooled=np.maximum(self.pooled, other.pooled),
            own=np.maximum(self.own, other.own),
            slack=max(self.slack, other.slack),
        )

    def beyond(self, other: Cost) -> Cost:
        """What this one has more than another, nowhere less than nothing."""

        def more(mine: Curve, theirs: Curve) -> Curve:
            # Two infinities: nothing is known of their difference, and nothing more than infinite can be owed.
            return np.where(mine > theirs, mine - np.where(np.isinf(theirs), 0.0, theirs), 0.0)

        return Cost(
            pooled=more(self.pooled, other.pooled),
            own=more(self.own, other.own),
            slack=max(0.0, self.slack - other.slack),
        )

    def __bool__(self) -> bool:
        """Whether it is anything at all."""
        return bool(self.pooled.any() or self.own.any() or self.slack > 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetPolicy:
    """How much a patient of the site may spend. None is no limit.

    Attributes:
        epsilon_total: over all studies, against at most the plans' colluders.
        epsilon_study: in one study, as its plan promises.
        epsilon_alone: over all studies, if all other sites collude.
        delta_total: probability with which the limits need not hold; no plan may promise with a larger one.
        orders: Renyi orders of the filter, some of ORDERS.
    """

    epsilon_total: float | None = None
    epsilon_study: float | None = None
    epsilon_alone: float | None = None
    delta_total: float = 1e-5
    orders: tuple[float, ...] = ORDERS

    def filter(self, epsilon: float) -> RenyiFilter:
        """The filter of one of the limits."""
        return RenyiFilter(epsilon=epsilon, delta=self.delta_total, orders=self.orders)

    def objections(self, total: Cost) -> list[str]:
        """Which limits a total passes, in plain words; none where it passes none."""
        found = []
        for name, limit, curve in (
            ("epsilon_total", self.epsilon_total, total.pooled),
            ("epsilon_alone", self.epsilon_alone, total.own),
        ):
            if limit is None:
                continue
            bound = self.filter(limit)
            if not bound.allows(curve, slack=total.slack):
                would = bound.epsilon_of(curve)
                reason = (
                    f"{would:.4g}" if would > limit else f"noise that differs by {total.slack:.2g} from the one charged"
                )
                found.append(
                    f"policy.{name}: is {limit:g} at delta {self.delta_total:g}, and this would make it {reason}"
                )
        return found

    def objections_to(self, *, epsilon: float, delta: float) -> list[str]:
        """What is wrong with what one plan promises; nothing where it may be promised."""
        found = []
        if self.epsilon_study is not None and epsilon > self.epsilon_study:
            found.append(f"policy.epsilon_study: is {self.epsilon_study:g}, and the plan promises only {epsilon:g}")
        limited = (self.epsilon_total, self.epsilon_study, self.epsilon_alone) != (None, None, None)
        if limited and delta > self.delta_total:
            found.append(f"policy.delta_total: is {self.delta_total:g}, and the plan's delta is {delta:g}")
        return found

    def as_body(self) -> dict[str, Any]:
        """As a ledger's entry keeps it."""
        return {
            "epsilon_total": self.epsilon_total,
            "epsilon_study": self.epsilon_study,
            "epsilon_alone": self.epsilon_alone,
            "delta_total": self.delta_total,
            "orders": list(self.orders),
        }

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> BudgetPolicy:
        """Inverse of `as_body`."""
        return cls(**{**body, "orders": tuple(body["orders"])})


def budget_policy(policy: Policy) -> BudgetPolicy:
    """The part of a site's policy that its ledger keeps."""
    return BudgetPolicy(
        epsilon_total=policy.epsilon_total,
        epsilon_study=policy.epsilon_study,
        epsilon_alone=policy.epsilon_alone,
        delta_total=policy.delta_total,
        orders=policy.orders,
    )


def cost_of(charges: Iterable[Charge]) -> Cost:
    """What charges of one plan cost a patient, who is in one part of it only: the larger of the parts, at each order."""
    parts: dict[str, list[Charge]] = {}
    for charge in charges:
        parts.setdefault(charge.part, []).append(charge)
    costs = [
        Cost(
            pooled=sum_of([_curve(c, c.noise_multiplier) for c in part]),
            own=sum_of([_curve(c, c.own_noise_multiplier) for c in part]),
            slack=sum(c.slack * c.steps for c in part),
        )
        for part in parts.values()
    ]
    if not costs:
        return Cost.nothing()
    return Cost(
        pooled=np.max([c.pooled for c in costs], axis=0),
        own=np.max([c.own for c in costs], axis=0),
        slack=max(c.slack for c in costs),
    )


def _curve(charge: Charge, noise_multiplier: float) -> Curve:
    return renyi_of(sampling_rate=charge.sampling_rate, noise_multiplier=noise_multiplier, steps=charge.steps)


def epsilon_of_charges(charges: Iterable[Charge], *, delta: float, own: bool = False) -> float:
    """Epsilon of one fixed plan by privacy loss distributions, never below the true one: the larger of the plan's parts.

    Args:
        delta: of the plan. What the charges' slack costs is taken from it first.
        own: what holds by this site's own share alone, instead of what holds against at most the plan's colluders.

    Guarantees:
        - It is an upper bound, within 2 % of the PRV accountant and never above the Renyi accountant, as far as the slack is 0.
        - No charge costs nothing; without noise nothing is promised (infinite).
    """
    parts: dict[str, list[tuple[float, float, int, float]]] = {}
    for c in charges:
        noise = c.own_noise_multiplier if own else c.noise_multiplier
        parts.setdefault(c.part, []).append((c.sampling_rate, noise, c.steps, c.slack))
    found = 0.0
    bounds = sorted(((_renyi_bound(tuple(sorted(part)), delta), sorted(part)) for part in parts.values()), reverse=True)
    for (above, left), lines in bounds:
        # A distribution takes half a second: not for a part that costs no more than another one, whatever it would say.
        if above > found:
            steps = tuple(line[:3] for line in lines)
            exact = above if above > LARGE else _pld_epsilon(steps, left, COARSE if above > LARGE / 5 else FINE)
            found = max(found, min(exact, above))
    return found


def _event(steps: Iterable[tuple[float, float, int]]) -> Any:
    # The accountant takes a second to import, and most commands need it not.
    from dp_accounting import ComposedDpEvent, SelfComposedDpEvent  # noqa: PLC0415

    return ComposedDpEvent(
        [SelfComposedDpEvent(step_event(sampling_rate=q, noise_multiplier=n), count) for q, n, count in steps]
    )


@lru_cache(maxsize=256)
def _renyi_bound(lines: tuple[tuple[float, float, int, float], ...], delta: float) -> tuple[float, float]:
    """Epsilon by the Renyi accountant, infinite where nothing is promised, and what the slack leaves of delta."""
    if any(noise <= 0 for _, noise, _, _ in lines):
        return math.inf, 0.0
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415 - as above

    # (epsilon, delta) of the charged noise is (epsilon, delta + (1 + e^epsilon) slack) of the drawn one; the Renyi epsilon
    # is no less than the one that comes out.
    slack = sum(steps * s for _, _, steps, s in lines)
    above = float(RdpAccountant(_RENYI).compose(_event(line[:3] for line in lines)).get_epsilon(delta / 2))
    left = delta - (1 + math.exp(min(above, 500.0))) * slack
    return (above, left) if left >= delta / 2 else (math.inf, 0.0)


@lru_cache(maxsize=256)
def _pld_epsilon(steps: tuple[tuple[float, float, int], ...], delta: float, grid: float) -> float:
    """Epsilon by privacy loss distributions; parts that differ in their slack alone mostly have the same."""
    from dp_accounting import NeighboringRelation  # noqa: PLC0415 - as above
    from dp_accounting.pld import PLDAccountant  # noqa: PLC0415

    return float(PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, grid).compose(_event(steps)).get_epsilon(delta))
