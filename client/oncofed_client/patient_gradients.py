"""Each patient's own gradient, in double precision, by Opacus's rules for each kind of layer (Yousefpour et al. 2021)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from opacus.grad_sample.grad_sample_module import GradSampleModule
from torch import Tensor, nn

from oncofed_client.training import TrainingSet
from oncofed_shared.errors import ConfigError
from oncofed_shared.losses import Target
from oncofed_shared.network import FusionNetwork
from oncofed_shared.plan import Plan

__all__ = ["Hooked", "Loss", "doubled", "gradients", "per_patient"]

Loss = Callable[[Plan, Mapping[str, Tensor], Mapping[str, Target]], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooked:
    """A network in double precision whose layers note what went in and what came out.

    Attributes:
        network: what is hooked; `network.vector` sets its parameters.
        places: start and stop of each parameter's coordinates in a row.
    """

    network: FusionNetwork
    places: dict[nn.Parameter, tuple[int, int]]
    _room: list[Tensor] = field(default_factory=list)
    _noted: list[tuple[nn.Module, Tensor, Tensor]] = field(default_factory=list)

    def rows(self, patients: int) -> Tensor:
        """Room for the gradients of a batch, (patients, parameters) float64, all zero.

        Taken from the system once and not at every step: new pages of memory take longer than what is written to them.
        """
        if not self._room or len(self._room[0]) < patients:
            size = max(stop for _, stop in self.places.values())
            self._room[:] = [torch.empty(patients, size, dtype=torch.float64)]
        return self._room[0][:patients].zero_()

    def note(self, layer: nn.Module, inputs: tuple[Tensor, ...], made: Tensor) -> None:
        """Hook of a layer's forward pass."""
        self._noted.append((layer, inputs[0].detach(), made))

    def noted(self) -> list[tuple[nn.Module, Tensor, Tensor]]:
        """Layer, input and output of each use of a layer since this was last asked."""
        taken = list(self._noted)
        self._noted.clear()
        return taken


def _layers(network: nn.Module) -> list[nn.Module]:
    """Modules with parameters of their own.

    Raises:
        ConfigError: Opacus has no per-patient gradient for one of them.
    """
    found = [m for m in network.modules() if next(m.parameters(recurse=False), None) is not None]
    unknown = sorted({type(m).__name__ for m in found} - {t.__name__ for t in GradSampleModule.GRAD_SAMPLERS})
    if unknown:
        raise ConfigError(f"model: {', '.join(unknown)} has no gradient per patient, so it cannot be trained privately")
    return found


_TWINS: WeakKeyDictionary[FusionNetwork, FusionNetwork] = WeakKeyDictionary()


@contextmanager
def per_patient(network: FusionNetwork) -> Iterator[Hooked]:
    """Put hooks on a double-precision twin of a network, which has its parameters, and take them off at the end.

    Raises:
        ConfigError: a layer has no per-patient gradient.
    """
    twin = _TWINS.get(network)
    if twin is None:
        twin = _TWINS[network] = copy.deepcopy(network).to(torch.float64).train()
    twin.vector.copy_(network.vector)
    places, start = {}, 0
    for parameter in twin.named.values():
        places[parameter] = (start, start + parameter.numel())
        start += parameter.numel()
    hooked = Hooked(network=twin, places=places)
    handles = [layer.register_forward_hook(hooked.note) for layer in _layers(twin)]
    try:
        yield hooked
    finally:
        for handle in handles:
            handle.remove()


def doubled(batch: TrainingSet) -> TrainingSet:
    """The same patients in double precision, which changes no value."""

    def double(values: Tensor) -> Tensor:
        return values.to(torch.float64) if values.is_floating_point() else values

    goals = {n: Target(goal=double(t.goal), weight=double(t.weight)) for n, t in batch.goals.items()}
    return TrainingSet(values=double(batch.values), seen=double(batch.seen), goals=goals)


def gradients(hooked: Hooked, plan: Plan, batch: TrainingSet, loss: Loss) -> Tensor:
    """Each patient's gradient, (patients, parameters) float64, in the order of the layout; overwritten by the next batch's."""
    rows = hooked.rows(len(batch))
    if len(batch) == 0:
        return rows
    own = doubled(batch)
    hooked.noted()
    losses = loss(plan, hooked.network(own.values, own.seen), own.goals)
    uses = hooked.noted()
    # By what a layer gave, and not by its parameters: their gradients would be sums over the batch, which nobody needs.
    grown = torch.autograd.grad(losses.sum(), [made for _, _, made in uses], allow_unused=True)
    with torch.no_grad():
        for (layer, inputs, _), back in zip(uses, grown, strict=True):
            if back is None:
                continue
            for parameter, each in GradSampleModule.GRAD_SAMPLERS[type(layer)](layer, [inputs], back).items():
                start, stop = hooked.places[parameter]
                # A layer may be used more than once.
                rows[:, start:stop] += each.flatten(start_dim=1)
    return rows
