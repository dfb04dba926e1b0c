"""Each patient's own gradient, in double precision, by Opacus's hooks (Yousefpour et al. 2021)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from opacus.grad_sample.grad_sample_module import GradSampleModule
from torch import Tensor

from oncofed_client.training import TrainingSet
from oncofed_shared.losses import Target
from oncofed_shared.network import FusionNetwork
from oncofed_shared.plan import Plan

__all__ = ["Hooked", "Loss", "doubled", "gradients", "per_patient"]

Loss = Callable[[Plan, Mapping[str, Tensor], Mapping[str, Target]], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooked:
    """A network in double precision with hooks, which leave a gradient per patient in each parameter's `grad_sample`.

    Attributes:
        network: what is hooked; `network.vector` sets its parameters.
        weights: its parameters by name, as in a layout; walking the modules for them costs as much as a small step.
    """

    network: FusionNetwork
    module: GradSampleModule
    weights: tuple[torch.nn.Parameter, ...]
    _room: list[Tensor] = field(default_factory=list)

    def rows(self, patients: int, size: int) -> Tensor:
        """Room for the gradients of a batch, (patients, size) float64, with what the last batch left in it.

        Taken from the system once and not at every step: new pages of memory take longer than what is written to them.
        """
        if not self._room or len(self._room[0]) < patients:
            self._room[:] = [torch.empty(patients, size, dtype=torch.float64)]
        return self._room[0][:patients]

    def forget(self) -> None:
        """Take the gradients of the last batch away."""
        for weight in self.weights:
            weight.grad, weight.grad_sample = None, None  # type: ignore[attr-defined]


_TWINS: WeakKeyDictionary[FusionNetwork, FusionNetwork] = WeakKeyDictionary()


@contextmanager
def per_patient(network: FusionNetwork) -> Iterator[Hooked]:
    """Put hooks on a double-precision twin of a network, which has its parameters, and take them off at the end."""
    twin = _TWINS.get(network)
    if twin is None:
        twin = _TWINS[network] = copy.deepcopy(network).to(torch.float64).train()
    twin.vector.copy_(network.vector)
    module = GradSampleModule(twin, loss_reduction="sum", strict=True)
    try:
        with warnings.catch_warnings():
            # They stand on modules that read data, which has no gradient: nothing is lost.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield Hooked(network=twin, module=module, weights=tuple(twin.named.values()))
    finally:
        module.to_standard_module()


def doubled(batch: TrainingSet) -> TrainingSet:
    """The same patients in double precision, which changes no value."""

    def double(values: Tensor) -> Tensor:
        return values.to(torch.float64) if values.is_floating_point() else values

    goals = {n: Target(goal=double(t.goal), weight=double(t.weight)) for n, t in batch.goals.items()}
    return TrainingSet(values=double(batch.values), seen=double(batch.seen), goals=goals)


def gradients(hooked: Hooked, plan: Plan, batch: TrainingSet, loss: Loss) -> Tensor:
    """Each patient's gradient, (patients, parameters) float64, in the order of the layout; overwritten by the next batch's."""
    sizes = [p.numel() for p in hooked.weights]
    rows = hooked.rows(len(batch), sum(sizes))
    if len(batch) == 0:
        return rows
    hooked.forget()
    own = doubled(batch)
    losses = loss(plan, hooked.module(own.values, own.seen), own.goals)
    torch.autograd.backward([losses.sum()])
    for weight, part in zip(hooked.weights, torch.split(rows, sizes, dim=1), strict=True):
        each: Tensor | None = weight.grad_sample  # type: ignore[attr-defined]
        if each is None:
            part.zero_()
        else:
            part.copy_(each.flatten(start_dim=1))
    hooked.forget()
    return rows
