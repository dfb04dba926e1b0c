"""One round of local training: parameters in, the sum over patients of their change out."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oncofed_shared.layout import Layout
from oncofed_shared.losses import Target, patient_losses
from oncofed_shared.messages import Arrays
from oncofed_shared.network import FusionNetwork
from oncofed_shared.plan import Plan

__all__ = ["TrainingSet", "local_update", "penalties"]


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """A site's patients as tensors.

    Attributes:
        values, seen: (n, columns), scaled values and presence, in the plan's dtype.
        goals: per task, rows as in `values`.
    """

    values: Tensor
    seen: Tensor
    goals: dict[str, Target]

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Tensor) -> TrainingSet:
        """The patients at `index`."""
        return TrainingSet(
            values=self.values[index],
            seen=self.seen[index],
            goals={n: Target(goal=t.goal[index], weight=t.weight[index]) for n, t in self.goals.items()},
        )


def penalties(plan: Plan, network: FusionNetwork) -> list[tuple[torch.nn.Parameter, float, float]]:
    """Parameters with their L2 and L1 strength; biases, norms and baselines have neither.

    L2 adds decay / 2 * ||w||^2 and L1 adds l1 * ||w||_1 to the *mean* loss, so that the penalty does not depend on how many
    patients a site has, and a weighted mean over sites is the penalty of pooled training.
    """
    training = plan.training
    deep = training.weight_decay if training.deep_decay is None else training.deep_decay
    found = []
    for name, parameter in network.named.items():
        if parameter.dim() < 2 or name.startswith("baselines."):
            continue
        decay = training.weight_decay if name.startswith("linear.") else deep
        reads_input = name.startswith(("linear.", "tokenisers."))
        l1 = training.l1 if reads_input else 0.0
        if decay or l1:
            found.append((parameter, decay, l1))
    return found


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


def _optimiser(plan: Plan, network: FusionNetwork) -> torch.optim.Optimizer:
    training = plan.training
    if training.optimiser == "adam":
        return torch.optim.Adam(network.named.values(), lr=training.rate)
    return torch.optim.SGD(network.named.values(), lr=training.rate, momentum=training.momentum)


def local_update(
    plan: Plan, network: FusionNetwork, layout: Layout, data: TrainingSet, parameters: Arrays, *, key: str
) -> NDArray[np.float64]:
    """Train from `parameters` for the plan's local steps.

    Args:
        network: scratch network of the plan's shape; its parameters are overwritten.
        key: session, site and round; decides batches and dropout, and nothing else does.

    Returns:
        (parameters + 2,): patients x change of each parameter, patients, sum of losses at `parameters`.
    """
    patients = len(data)
    if patients == 0:
        return np.zeros(layout.size + 2)
    with torch.no_grad():
        for name, parameter in network.named.items():
            parameter.copy_(torch.from_numpy(parameters[name].copy()))
    if not network.training:
        network.train()
    optimiser, penalised = _optimiser(plan, network), penalties(plan, network)
    first_loss = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"dropout|{key}".encode()))
        for batch in _batches(plan, data, key):
            optimiser.zero_grad(set_to_none=True)
            losses = patient_losses(plan, network(batch.values, batch.seen), batch.goals)
            mean = losses.sum() / len(batch)
            torch.autograd.backward([mean])
            if first_loss is None:
                first_loss = float(mean.detach()) * patients
            with torch.no_grad():
                for weight, decay, l1 in penalised:
                    if weight.grad is not None:
                        weight.grad += decay * weight + l1 * weight.sign() if l1 else decay * weight
            optimiser.step()
    after = {n: p.detach().numpy() for n, p in network.named.items()}
    change = (layout.flatten(after) - layout.flatten(parameters)) * patients
    return np.concatenate([change, [patients, first_loss or 0.0]])
