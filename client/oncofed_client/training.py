"""One round of local training: parameters in, the sum over patients of their change out."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oncofed_client.augmented import augmenter
from oncofed_shared.layout import Layout
from oncofed_shared.losses import Target, patient_losses
from oncofed_shared.messages import Arrays
from oncofed_shared.network import FusionNetwork
from oncofed_shared.penalties import strengths
from oncofed_shared.plan import Plan

__all__ = ["TrainingSet", "doubled", "local_update", "optimiser_step", "seeded_dropout"]


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """A site's patients as tensors.

    Attributes:
        values: (n, columns + voxels), scaled values, and behind them the voxels of patches, in the plan's dtype.
        seen: (n, columns), presence.
        goals: per task, rows as in `values`.
    """

    values: Tensor
    seen: Tensor
    goals: dict[str, Target]

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Tensor, *, into: Tensor | None = None) -> TrainingSet:
        """The patients at `index`; their values in memory that is given, or in new."""
        return TrainingSet(
            values=torch.index_select(self.values, 0, index, out=into),
            seen=self.seen[index],
            goals={n: Target(goal=t.goal[index], weight=t.weight[index]) for n, t in self.goals.items()},
        )


def doubled(batch: TrainingSet) -> TrainingSet:
    """The same patients in double precision, which changes no value."""

    def double(values: Tensor) -> Tensor:
        return values.to(torch.float64) if values.is_floating_point() else values

    goals = {n: Target(goal=double(t.goal), weight=double(t.weight)) for n, t in batch.goals.items()}
    return TrainingSet(values=double(batch.values), seen=double(batch.seen), goals=goals)


def _batches(plan: Plan, data: TrainingSet, key: str) -> Iterator[TrainingSet]:
    """`local_steps` batches; shuffled anew when all patients were used, by a generator that the key alone decides."""
    training = plan.training
    if training.batch == "all" or training.batch >= len(data):
        for _ in range(training.local_steps):
            yield data
        return
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    order = torch.randperm(len(data), generator=generator)
    for _ in range(training.local_steps):
        if len(order) < training.batch:
            order = torch.cat([order, torch.randperm(len(data), generator=generator)])
        yield data.rows(order[: training.batch])
        order = order[training.batch :]


def optimiser_step(plan: Plan, weights: Tensor) -> Callable[[Tensor], None]:
    """The plan's rule as a function of the gradient that changes the weights, (size,) both."""
    training = plan.training
    if training.optimiser == "adam":
        joined = torch.nn.Parameter(weights)
        adam = torch.optim.Adam([joined], lr=training.rate)

        def moment(gradient: Tensor) -> None:
            joined.grad = gradient
            adam.step()

        return moment
    if not training.momentum:
        return lambda gradient: _descend(weights, gradient, training.rate)
    velocity = torch.zeros_like(weights)

    def descend(gradient: Tensor) -> None:
        # As torch.optim.SGD, whose bookkeeping takes as long as a small network's whole step.
        velocity.mul_(training.momentum).add_(gradient)
        weights.sub_(velocity, alpha=training.rate)

    return descend


def _descend(weights: Tensor, gradient: Tensor, rate: float) -> None:
    weights.sub_(gradient, alpha=rate)


@contextmanager
def seeded_dropout(plan: Plan, key: str) -> Iterator[None]:
    """Draw the same dropout masks wherever the key is the same, and leave the process's own generator as it was."""
    training = plan.training
    if not (training.dropout or training.input_dropout or training.modality_dropout):
        yield
        return
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also look for every kind of device: as long as a small step.
        torch.default_generator.manual_seed(zlib.crc32(key.encode()))
        yield


def local_update(
    plan: Plan,
    network: FusionNetwork,
    layout: Layout,
    data: TrainingSet,
    parameters: Arrays,
    *,
    key: str,
    terms: Sequence[Callable[[Tensor], Tensor]] = (),
) -> NDArray[np.float64]:
    """Train from `parameters` for the plan's local steps.

    Args:
        network: scratch network of the plan's shape; its parameters are overwritten.
        layout: of all parameters.
        key: session, site and round; decides batches and dropout, and nothing else does.
        terms: what an aggregation rule adds to the gradient at the current parameters, both in the order of the layout.

    Returns:
        (parameters + 2,): patients x change of each parameter, patients, sum of losses at `parameters`.
    """
    patients = len(data)
    if patients == 0:
        return np.zeros(layout.size + 2)
    # One vector for all parameters: an optimiser works by coordinate, and one long step is faster than many short ones.
    before, weights = layout.flatten(parameters), network.vector
    weights.copy_(torch.from_numpy(before))
    if not network.training:
        network.train()
    leaves = list(network.named.values())
    step, (decay, l1) = optimiser_step(plan, weights), strengths(plan, network)
    penalised = bool(plan.training.weight_decay or plan.training.deep_decay or plan.training.l1)
    first_loss, vary = None, augmenter(plan, key)
    with seeded_dropout(plan, f"dropout|{key}"):
        for batch in _batches(plan, data, key):
            values = batch.values if vary is None else vary(batch.values, batch.seen)
            mean = patient_losses(plan, network(values, batch.seen), batch.goals).sum() / len(batch)
            gradients = torch.autograd.grad(mean, leaves, materialize_grads=True)
            if first_loss is None:
                first_loss = float(mean.detach()) * patients
            gradient = torch.cat([g.flatten() for g in gradients])
            if penalised:
                gradient = gradient + decay * weights + l1 * weights.sign()
            for term in terms:
                gradient += term(weights)
            step(gradient)
    change = (weights.numpy().astype(np.float64) - before) * patients
    return np.concatenate([change, [patients, first_loss or 0.0]])
