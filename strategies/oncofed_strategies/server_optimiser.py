"""The server's optimiser as two functions: `init` makes a state, `apply` takes a state and a mean update to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed_shared.plan import Strategy

__all__ = ["STRATEGIES", "ServerState", "apply", "init"]

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


def _fedavg(weights: list[torch.Tensor], rule: Strategy) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=rule.rate)


def _fedavgm(weights: list[torch.Tensor], rule: Strategy) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=rule.rate, momentum=rule.momentum)


def _fedadam(weights: list[torch.Tensor], rule: Strategy) -> torch.optim.Optimizer:
    return torch.optim.Adam(weights, lr=rule.rate, betas=rule.betas, eps=rule.tau)


def _fedadagrad(weights: list[torch.Tensor], rule: Strategy) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(weights, lr=rule.rate, eps=rule.tau)


STRATEGIES: Mapping[str, Callable[[list[torch.Tensor], Strategy], torch.optim.Optimizer]] = {
    "fedavg": _fedavg,
    "fedavgm": _fedavgm,
    "fedadam": _fedadam,
    "fedadagrad": _fedadagrad,
}


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
    optimiser = STRATEGIES[rule.name]([weight], rule)
    for name, value in state.memory.items():
        optimiser.state[weight][name] = torch.from_numpy(np.array(value)).reshape(() if name == "step" else (-1,))
    weight.grad = torch.from_numpy(-mean_update)
    optimiser.step()
    kept = {
        k: np.atleast_1d(np.asarray(v, dtype=np.float64)) for k, v in optimiser.state[weight].items() if v is not None
    }
    return ServerState(parameters=weight.detach().numpy(), memory=kept)
