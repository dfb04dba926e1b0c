"""The adaptive rules of Reddi et al. 2021 that `torch.optim` does not have, as an optimiser of its kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch

__all__ = ["Adaptive"]


class Adaptive(torch.optim.Optimizer):
    """Algorithm 2 of Reddi et al. 2021, Adaptive federated optimization, with the gradient g as the negative of their Delta.

        m = beta_1 m + (1 - beta_1) g
        v = beta_2 v + (1 - beta_2) g^2                   Adam
        v = v - (1 - beta_2) g^2 sign(v - g^2)            Yogi (Zaheer et al. 2018)
        x = x - rate m / (sqrt(v) + tau)

    Both moments start at zero, as in Flower; the paper lets v start at tau^2 or more.

    Args:
        correction: `flower` multiplies the rate by sqrt(1 - beta_2^(t+1)) / (1 - beta_1^(t+1)) in round t = 1, 2, .. . That is
            Kingma & Ba's shorthand with the exponent one too high, as Flower 1.41 has it.
    """

    def __init__(
        self,
        weights: Iterable[torch.Tensor],
        *,
        rate: float,
        betas: tuple[float, float],
        tau: float,
        second: Literal["adam", "yogi"],
        correction: Literal["none", "flower"] = "none",
    ) -> None:
        super().__init__(weights, {"lr": rate, "betas": betas, "tau": tau})
        self.second = second
        self.correction = correction

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every weight once."""
        del closure
        for group in self.param_groups:
            one, two = group["betas"]
            for weight in group["params"]:
                memory = self.state[weight]
                for name in ("exp_avg", "exp_avg_sq"):
                    memory.setdefault(name, torch.zeros_like(weight))
                memory["step"] = memory.get("step", torch.zeros((), dtype=torch.float64)) + 1
                gradient, square = weight.grad, weight.grad**2
                mean = memory["exp_avg"] = one * memory["exp_avg"] + (1 - one) * gradient
                before = memory["exp_avg_sq"]
                if self.second == "yogi":
                    spread = before - (1 - two) * square * torch.sign(before - square)
                else:
                    spread = two * before + (1 - two) * square
                memory["exp_avg_sq"] = spread
                rate = group["lr"]
                if self.correction == "flower":
                    count = float(memory["step"]) + 1
                    rate *= (1 - two**count) ** 0.5 / (1 - one**count)
                weight.sub_(rate * mean / (spread.sqrt() + group["tau"]))
