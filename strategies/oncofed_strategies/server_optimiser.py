"""The server's optimiser as two functions: `init` makes a state, `apply` takes a state and a mean update to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed_shared.plan import Strategy
from oncofed_strategies.adaptive import Adaptive

__all__ = ["OPTIMISERS", "ServerState", "apply", "init"]

T = TypeVar("T")
Flat = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """All that the aggregator remembers between rounds.

    Attributes:
        parameters: (d,) the global model.
        memory: what the optimiser keeps: (d,) vectors and a step count, by name.
    """

    parameters: Flat
    memory: Mapping[str, Flat] = field(default_factory=dict)


def _sgd(weights: list[torch.Tensor], rule: Strategy) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=rule.rate)


def _fedavgm(weights: list[torch.Tensor], rule: Strategy) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=rule.rate, momentum=_given(rule.momentum))


def _fedadam(weights: list[torch.Tensor], rule: Strategy) -> torch.optim.Optimizer:
    betas, tau = _given(rule.betas), _given(rule.tau)
    if rule.bias_correction in {"none", "flower"}:
        correction: Literal["none", "flower"] = "flower" if rule.bias_correction == "flower" else "none"
        return Adaptive(weights, rate=rule.rate, betas=betas, tau=tau, second="adam", correction=correction)
    return torch.optim.Adam(weights, lr=rule.rate, betas=betas, eps=tau)


def _fedyogi(weights: list[torch.Tensor], rule: Strategy) -> torch.optim.Optimizer:
    return Adaptive(weights, rate=rule.rate, betas=_given(rule.betas), tau=_given(rule.tau), second="yogi")


def _fedadagrad(weights: list[torch.Tensor], rule: Strategy) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(weights, lr=rule.rate, eps=_given(rule.tau))


def _given(value: T | None) -> T:
    """A parameter that the plan has filled in, because the rule reads it."""
    if value is None:
        message = "a plan fills in what its rule reads"
        raise AssertionError(message)
    return value


OPTIMISERS: Mapping[str, Callable[[list[torch.Tensor], Strategy], torch.optim.Optimizer]] = {
    "fedavgm": _fedavgm,
    "fedadam": _fedadam,
    "fedyogi": _fedyogi,
    "fedadagrad": _fedadagrad,
}
"""By the rule's name; every other rule takes a plain step of length `rate`."""


def init(parameters: Flat) -> ServerState:
    """The state before the first round."""
    return ServerState(parameters=parameters)


def apply(rule: Strategy, state: ServerState, mean_update: Flat, *, progress: float = 0.0) -> ServerState:
    """One step of the server's optimiser.

    Args:
        mean_update: (d,) mean over patients of the sites' changes.
        progress: part of the rounds that is over, in [0, 1), for the schedule of the rate.

    Guarantees:
        - The result depends on the arguments alone; the argument `state` is not changed.
    """
    weight = torch.from_numpy(state.parameters.copy()).requires_grad_()
    if rule.schedule == "linear":
        rule = rule.model_copy(update={"rate": rule.rate * (1 - progress)})
    optimiser = OPTIMISERS.get(rule.name, _sgd)([weight], rule)
    if rule.name in OPTIMISERS:
        for name, value in state.memory.items():
            optimiser.state[weight][name] = torch.from_numpy(np.array(value)).reshape(() if name == "step" else (-1,))
    weight.grad = torch.from_numpy(-mean_update)
    optimiser.step()
    kept = {
        k: np.atleast_1d(np.asarray(v, dtype=np.float64)) for k, v in optimiser.state[weight].items() if v is not None
    }
    return ServerState(parameters=weight.detach().numpy(), memory=kept)
