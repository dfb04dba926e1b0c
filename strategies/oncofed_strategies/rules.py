"""Given the sums of a round, what is the next global model? One function per rule, looked up by the plan's name for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.plan import Plan
from oncofed_shared.rules import RULES, Rule
from oncofed_strategies.server_optimiser import ServerState, apply

__all__ = ["STRATEGIES", "StrategyEntry", "Sums", "advance", "control"]

Flat = NDArray[np.float64]
CONTROL = "control"


@dataclass(frozen=True, kw_only=True)
class Sums:
    """What a round's updates add up to.

    Attributes:
        change: (d,) sum over the sites that answered of patients x change; under q-FedAvg times F^q.
        extra: (k,) sums of what the rule appends.
        patients: training patients behind these sums.
        population: training patients of all sites of the run, asked in this round or not.
        behind: (d,) patients behind each coordinate, under `average = "holders"`; None: all of them behind every one.
    """

    change: Flat
    extra: Flat
    patients: float
    population: float
    behind: Flat | None = None

    @property
    def mean(self) -> Flat:
        """The change, (d,), over the patients behind it."""
        return self.change / (self.patients if self.behind is None else self.behind)


Step = Callable[[Plan, ServerState, Sums, float], ServerState]


def _mean(plan: Plan, state: ServerState, sums: Sums, progress: float) -> ServerState:
    """One step of the server's optimiser along the mean over patients."""
    return apply(plan.strategy, state, sums.mean, progress=progress)


def control(plan: Plan, state: ServerState) -> Flat:
    """What a `Train` message carries beside the parameters: SCAFFOLD's c, (d,), zero before the first round; or (0,)."""
    if plan.strategy.name != "scaffold":
        return np.zeros(0)
    return state.memory.get(CONTROL, np.zeros(len(state.parameters)))


def _scaffold(plan: Plan, state: ServerState, sums: Sums, progress: float) -> ServerState:
    """SCAFFOLD's server, weighted by patients (Karimireddy et al. 2020, algorithm 1).

    Option II has c_i+ - c_i = -c + (x - y_i) / (K eta): the sites' control changes follow from their updates, and need not be
    sent. With n_i patients at site i, n at the sites that answered and N at all, c stays the mean of all c_i over patients:

        c+ = c + sum n_i (c_i+ - c_i) / N = c (1 - n / N) - sum n_i (y_i - x) / (N K eta)
    """
    before = control(plan, state)
    scale = sums.population * plan.training.local_steps * plan.training.rate
    after = before * (1 - sums.patients / sums.population) - sums.change / scale
    moved = apply(plan.strategy, state, sums.change / sums.patients, progress=progress)
    return replace(moved, memory={CONTROL: after})


def _qfedavg(plan: Plan, state: ServerState, sums: Sums, progress: float) -> ServerState:
    """q-FedAvg's server (Li et al. 2020, algorithm 2, line 7): w - sum Delta_k / sum h_k, both weighted by patients and over L."""
    return apply(plan.strategy, state, sums.change / sums.extra[0], progress=progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class StrategyEntry:
    """A rule's facts and its step at the aggregator."""

    facts: Rule
    step: Step


_STEPS: Mapping[str, Step] = {"scaffold": _scaffold, "qfedavg": _qfedavg}

STRATEGIES: Mapping[str, StrategyEntry] = MappingProxyType(
    {name: StrategyEntry(facts=facts, step=_STEPS.get(name, _mean)) for name, facts in RULES.items()}
)
"""Every rule that a plan may name."""


def advance(plan: Plan, state: ServerState, sums: Sums, *, progress: float = 0.0) -> ServerState:
    """The state after a round.

    Args:
        progress: part of the rounds that is over, in [0, 1), for the schedule of the rate.

    Guarantees:
        - The result depends on the arguments alone; none of them is changed.
        - Only sums over sites enter, never what one site sent.
    """
    return STRATEGIES[plan.strategy.name].step(plan, state, sums, progress)
