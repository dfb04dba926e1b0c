"""One round of DP-SGD at a site: parameters in, a noised change out.

Opacus (Yousefpour et al. 2021) validates the network; clipping, sampling and noise are ours, because Opacus writes down the
gradient of every patient, and draws noise from a generator that can be predicted, as floats.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.validators import ModuleValidator
from torch import Tensor

from oncofed_client.integer_step import integer_sum, places_of, sample
from oncofed_client.noise import add_discrete_gaussian
from oncofed_client.patient_gradients import Loss, backward, per_patient
from oncofed_client.randomness import Randomness
from oncofed_client.training import TrainingSet, doubled, optimiser_step
from oncofed_shared.determinism import one_thread
from oncofed_shared.errors import ConfigError
from oncofed_shared.layout import Layout
from oncofed_shared.losses import Target, patient_losses, targets
from oncofed_shared.messages import Arrays
from oncofed_shared.network import FusionNetwork
from oncofed_shared.penalties import strengths
from oncofed_shared.plan import ClassificationTask, Plan
from oncofed_shared.privacy import Mechanism

__all__ = ["check_private", "private_update"]

INVENTED = 12
"""Invented patients on whom a loss is tried."""
TOLERANCE = 1e-6


def private_update(
    plan: Plan,
    network: FusionNetwork,
    layout: Layout,
    data: TrainingSet,
    parameters: Arrays,
    *,
    mechanism: Mechanism,
    random: Randomness,
    key: str,
    terms: Sequence[Callable[[Tensor], Tensor]] = (),
    loss: Loss = patient_losses,
) -> NDArray[np.float64]:
    """Train from `parameters` for the plan's local steps, each of them noised: `local_update` under a private plan.

    Args:
        network: scratch network of the plan's shape; its parameters are overwritten.
        layout: of all parameters.
        mechanism: what this site does under the plan.
        random: draws samples and noise.
        key: session, site and round; decides nothing here, since a private plan has no dropout.
        terms: what an aggregation rule adds to the gradient, from parameters and earlier noised updates alone.

    Returns:
        (parameters + 2,): public count x change of each parameter, the public count, and 0: losses stay at the site.

    Guarantees:
        - Patients enter through `integer_sum` of a Poisson sample plus integer noise and in no other way.
        - An empty sample is a step: noise alone.
        - The divisor and the weight are constants of the plan.
    """
    del key
    before, weights = layout.flatten(parameters), network.vector
    weights.copy_(torch.from_numpy(before))
    step, (decay, l1) = optimiser_step(plan, weights), strengths(plan, network)
    integers = mechanism.integers(layout.size)
    scale = integers.grain / mechanism.expected_batch
    penalised = bool(plan.training.weight_decay or plan.training.deep_decay or plan.training.l1)
    gradient = torch.empty_like(weights)
    with per_patient(network) as hooked:
        for _ in range(plan.training.local_steps):
            rows = sample(random, mechanism.sampling_rate, len(data))
            total = integer_sum(hooked, plan, data, rows, integers, loss=loss)
            add_discrete_gaussian(random, integers.share_sigma, total)
            gradient.copy_(torch.from_numpy(total)).mul_(scale)
            if penalised:
                gradient += decay * weights + l1 * weights.sign()
            for term in terms:
                gradient += term(weights)
            step(gradient)
    change = (weights.numpy().astype(np.float64) - before) * mechanism.patients
    return np.concatenate([change, [mechanism.patients, 0.0]])


def check_private(plan: Plan, network: FusionNetwork, *, width: int, loss: Loss = patient_losses) -> None:
    """Refuse a network or a loss in which patients are not separate, before any real patient is read.

    Args:
        width: number of columns that the network reads.

    Guarantees:
        - A network with batch statistics, or a layer without per-patient gradients, is refused (Opacus's validator).
        - A loss that is not one number per patient, each of this patient alone, is refused, the Cox partial likelihood among
          them: it is tried on invented patients, all together and one by one.
        - So is a machine whose arithmetic lets a patient's last bits depend on who else is in the batch: that is tried too.

    Raises:
        ConfigError: with the reason.
    """
    found = [str(e) for e in ModuleValidator.validate(network.train(), strict=False)]
    if found:
        raise ConfigError(*(f"model: this network cannot be trained privately: {f}" for f in found))
    trial = copy.deepcopy(network).to(torch.float64).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trial.parameters():
            # The first values predict the same for everybody, which would hide what couples patients.
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        invented = doubled(_invented(plan, width, network.reads, generator, INVENTED))
        together = loss(plan, trial(invented.values, invented.seen), invented.goals)
        singles = [invented.rows(torch.tensor([i])) for i in range(INVENTED)]
        alone = [loss(plan, trial(s.values, s.seen), s.goals).reshape(-1) for s in singles]
    apart = torch.cat(alone)
    if together.shape != (INVENTED,) or apart.shape != together.shape:
        raise ConfigError("tasks: the loss is not one number per patient, so nobody's share in it can be bounded")
    if not torch.allclose(together, apart, rtol=TOLERANCE, atol=TOLERANCE):
        raise ConfigError(
            "tasks: a patient's loss depends on who else is in the batch, as in the Cox partial likelihood; clipping "
            "would then not bound what a patient changes. Use a loss that is a sum over patients"
        )
    own = trial.to(torch.float64 if plan.training.dtype == "float64" else torch.float32)
    _see_places(plan, own, [_invented(plan, width, network.reads, generator, places_of(plan)) for _ in range(2)], loss)


def _see_places(plan: Plan, network: FusionNetwork, invented: Sequence[TrainingSet], loss: Loss) -> None:
    """See that a place's numbers are its patient's alone, to the last bit, on this machine.

    Raises:
        ConfigError: they are not, or a layer has no gradient per patient.
    """
    first, second = invented
    kept = torch.arange(len(first)) % 3 == 0
    # Every third place holds the same patient in both batches.
    index = torch.where(kept, torch.arange(len(first)), len(first) + torch.arange(len(first)))
    both = TrainingSet(
        values=torch.cat([first.values, second.values]),
        seen=torch.cat([first.seen, second.seen]),
        goals={
            n: Target(goal=torch.cat([t.goal, o.goal]), weight=torch.cat([t.weight, o.weight]))
            for (n, t), o in zip(first.goals.items(), second.goals.values(), strict=True)
        },
    )
    with one_thread(), per_patient(network) as hooked:
        lengths = [backward(hooked, plan, batch, loss).lengths for batch in (first, both.rows(index))]
    if not torch.equal(lengths[0][kept], lengths[1][kept]):
        raise ConfigError(
            "model: on this machine the last bits of a patient's gradient depend on who else is in the batch, so what he changes "
            "cannot be bounded; use the versions of torch and of the processor's libraries that are pinned"
        )


def _invented(plan: Plan, width: int, reads: int, generator: torch.Generator, count: int) -> TrainingSet:
    """Patients that nobody is: values, gaps and labels from a fixed generator."""
    labels: dict[str, NDArray[np.float64]] = {}
    weights: dict[str, NDArray[np.float64]] = {}
    for name, task in plan.tasks.items():
        if isinstance(task, ClassificationTask):
            labels[name] = torch.randint(len(task.classes), (count,), generator=generator).numpy()
            weights[name] = np.ones(len(task.classes))
        else:
            days = torch.rand(count, generator=generator, dtype=torch.float64) * task.edges[-1]
            event = (torch.arange(count) % 3 > 0).to(torch.float64)
            labels[name] = torch.stack([days, event], dim=1).numpy()
    dtype = torch.float64 if plan.training.dtype == "float64" else torch.float32
    return TrainingSet(
        values=torch.randn(count, reads, generator=generator).to(dtype),
        seen=(torch.rand(count, width, generator=generator) > 0.2).to(dtype),
        goals=targets(plan, labels, weights),
    )
