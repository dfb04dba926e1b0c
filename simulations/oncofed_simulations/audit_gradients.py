"""Each patient's gradient as an attacker works it out who knows the patient and the model: not by the code that is audited."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from oncofed_client.training import TrainingSet, doubled
from oncofed_shared.features import Preparation, network_columns
from oncofed_shared.layout import Layout
from oncofed_shared.losses import Target, patient_losses
from oncofed_shared.network import build
from oncofed_shared.plan import Plan

__all__ = ["Attacker"]

AT_ONCE = 256
"""Patients whose gradients are made together."""


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """The plan's network in double precision. Make one with `of`.

    Attributes:
        layout: of all parameters.
    """

    plan: Plan
    network: torch.nn.Module
    layout: Layout

    @classmethod
    def of(cls, plan: Plan, preparation: Preparation) -> Attacker:
        """Over the columns of a preparation."""
        network = build(plan, network_columns(plan, preparation), seed=0)
        return cls(plan=plan, network=network.to(torch.float64).eval(), layout=Layout.of(network))

    def gradients(self, parameters: NDArray[np.float64], patients: TrainingSet) -> NDArray[np.float64]:
        """(patients, parameters), in the layout's order."""
        if len(patients) == 0:
            return np.zeros((0, self.layout.size))
        own = doubled(patients)
        names = sorted(own.goals)
        given = {n: torch.from_numpy(a) for n, a in self.layout.arrays(parameters, "float64").items()}
        each = (own.values, own.seen, [(own.goals[n].goal, own.goals[n].weight) for n in names])
        # Attention in steps that vmap knows.
        with sdpa_kernel(SDPBackend.MATH):
            made = vmap(grad(partial(self._loss, names)), in_dims=(None, 0, 0, 0), chunk_size=AT_ONCE)(given, *each)
        return np.asarray(torch.cat([made[n].flatten(start_dim=1) for n in self.layout.shapes], dim=1).numpy())

    def _loss(self, names: list[str], given: dict[str, Tensor], values: Tensor, seen: Tensor, goals: Any) -> Tensor:
        logits = functional_call(self.network, given, (values[None], seen[None]))
        targets = {n: Target(goal=g[None], weight=w[None]) for n, (g, w) in zip(names, goals, strict=True)}
        return patient_losses(self.plan, logits, targets)[0]

    def clipped(self, parameters: NDArray[np.float64], patients: TrainingSet, clip_norm: float) -> NDArray[np.float64]:
        """What each patient adds to a sum, in clip norms: (patients, parameters), each of length one at most."""
        made = self.gradients(parameters, patients) / clip_norm
        return np.asarray(made / np.maximum(1.0, np.linalg.norm(made, axis=1, keepdims=True)))
