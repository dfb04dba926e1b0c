"""How far a patient's privacy is spent over studies that were each chosen after seeing what the earlier ones gave.

Epsilons of studies chosen in advance may be composed by any accountant. A study that is chosen by looking at the last one's results
may not, because the accountant then depends on the results. A *filter* may be asked again before every study (Rogers et al. 2016;
Feldman and Zrnic 2021; Lecuyer 2021): it lets a study through only while the sum stays under a bound that was fixed at the start.

The sum is of Renyi divergences, at the orders of ORDERS, by dp_accounting. A study may run while at least one order a keeps it
under `epsilon - ln(max(1, m c(a)) / delta) / (a - 1)`, with m the number of orders that the policy uses and
c(a) = (1 - 1/a)^(a - 1) / a. m is what it costs that the order may be chosen at the end, when the results are known; c(a) is what
the conversion to epsilon and delta gives back (Canonne, Kamath, Steinke 2020). docs/ledger.md has the proof.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dp_accounting import DpEvent

__all__ = ["ORDERS", "SLACK_SHARE", "RenyiFilter", "renyi_of", "step_event", "sum_of"]

ORDERS = (2.0, 3.0, 4.0, 6.0, 9.0, 14.0, 24.0, 48.0)
"""Every order that an account keeps. Between an epsilon of 0.5 and one of 20 one of them is within 3 % of the best."""
SLACK_SHARE = 1e-3
"""Part of delta that is kept for what samplers and truncation cost; the rest is the filter's."""

Curve = NDArray[np.float64]
"""(len(ORDERS),) Renyi divergences, one per order; infinite where nothing is promised."""


def step_event(*, sampling_rate: float, noise_multiplier: float) -> DpEvent:
    """One step of Poisson-sampled Gaussian noise; without noise, a step that promises nothing."""
    # The accountant takes a second to import, and settings need only ORDERS.
    from dp_accounting import GaussianDpEvent, NonPrivateDpEvent, PoissonSampledDpEvent  # noqa: PLC0415

    if noise_multiplier <= 0:
        return NonPrivateDpEvent()
    return PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier))


@lru_cache(maxsize=512)
def _one_step(sampling_rate: float, noise_multiplier: float) -> tuple[float, ...]:
    from dp_accounting import NeighboringRelation  # noqa: PLC0415 - see `step_event`
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415

    accountant = RdpAccountant(ORDERS, NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(step_event(sampling_rate=sampling_rate, noise_multiplier=noise_multiplier))
    return tuple(float(r) for r in accountant.rdp)


def renyi_of(*, sampling_rate: float, noise_multiplier: float, steps: int) -> Curve:
    """What `steps` steps cost at each of ORDERS (Mironov, Talwar, Zhang 2019, by dp_accounting).

    Guarantees:
        - It is what dp_accounting's own composition gives.
        - No step costs nothing; without noise a step costs infinitely much.
    """
    if steps == 0:
        return np.zeros(len(ORDERS))
    return steps * np.array(_one_step(sampling_rate, noise_multiplier))


@dataclass(frozen=True, kw_only=True, slots=True)
class RenyiFilter:
    """A bound on all studies together, fixed before the first of them.

    Attributes:
        epsilon, delta: of one patient over all studies.
        orders: some of ORDERS.

    Guarantees:
        - While `allows` was true before each of any number of studies, chosen in any way from the results of the earlier ones, all
          of them together are (epsilon, delta)-differentially private.
        - What it allowed for a sum it also allows for any smaller one.
    """

    epsilon: float
    delta: float
    orders: tuple[float, ...] = ORDERS

    def __post_init__(self) -> None:
        """Refuse numbers that bound nothing."""
        if not (self.epsilon > 0 and 0 < self.delta < 1) or not self.orders or not set(self.orders) <= set(ORDERS):
            message = f"epsilon must be positive, delta between 0 and 1, and orders some of {ORDERS}"
            raise ValueError(message)

    def _offsets(self) -> Curve:
        """(len(ORDERS),) What the conversion from each order adds; infinite for an order that is not used."""
        share = -math.log(self.delta * (1 - SLACK_SHARE))

        def offset(a: float) -> float:
            back = (a - 1) * math.log1p(-1 / a) - math.log(a)
            return (share + max(0.0, math.log(len(self.orders)) + back)) / (a - 1)

        return np.array([offset(a) if a in self.orders else math.inf for a in ORDERS])

    def allows(self, spent: Curve, *, slack: float = 0.0) -> bool:
        """Whether a sum stays under the bound at some order.

        Args:
            spent: (len(ORDERS),) sum over everything that was or may be released.
            slack: sum of total variation distances between the noise that is drawn and the noise that is accounted.
        """
        return self.epsilon_of(spent) <= self.epsilon and slack <= self.largest_slack

    @property
    def largest_slack(self) -> float:
        """Total variation distance that SLACK_SHARE of delta pays for: (1 + e^epsilon) times it."""
        return SLACK_SHARE * self.delta / (1 + math.exp(min(self.epsilon, 500.0)))

    def epsilon_of(self, spent: Curve) -> float:
        """The smallest epsilon whose filter would allow a sum; 0 where nothing was spent."""
        if not np.any(spent):
            return 0.0
        return float(np.min(np.asarray(spent) + self._offsets()))


def sum_of(curves: Sequence[Curve]) -> Curve:
    """(len(ORDERS),) sum of curves; zeros for none."""
    return np.sum(curves, axis=0) if len(curves) else np.zeros(len(ORDERS))
