"""One round of DP-SGD at a site: parameters in, a noised change out.

Opacus gives the gradient of every patient (Yousefpour et al. 2021) and validates the network; clipping, sampling and noise are
ours, because Opacus draws noise from a generator that can be predicted.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample.grad_sample_module import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor

from oncofed_client.randomness import Randomness
from oncofed_client.training import TrainingSet, optimiser_step, seeded_dropout, strengths
from oncofed_shared.errors import ConfigError
from oncofed_shared.layout import Layout
from oncofed_shared.losses import Target, patient_losses, targets
from oncofed_shared.messages import Arrays
from oncofed_shared.network import FusionNetwork
from oncofed_shared.plan import ClassificationTask, Plan
from oncofed_shared.privacy import Mechanism

__all__ = ["Hooked", "Loss", "check_private", "clipped_sum", "per_patient", "private_update", "sample"]

Loss = Callable[[Plan, Mapping[str, Tensor], Mapping[str, Target]], Tensor]
INVENTED = 12
"""Invented patients on whom a loss is tried."""
TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooked:
    """A network with Opacus's hooks, which leave a gradient per patient in each parameter's `grad_sample`.

    Attributes:
        weights: its parameters by name, as in a layout; walking the modules for them costs as much as a small step.
    """

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


@contextmanager
def per_patient(network: FusionNetwork) -> Iterator[Hooked]:
    """Put the hooks on, and take them off at the end."""
    if not network.training:
        network.train()
    module = GradSampleModule(network, loss_reduction="sum", strict=True)
    try:
        with warnings.catch_warnings():
            # They stand on modules that read data, which has no gradient: nothing is lost.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield Hooked(module=module, weights=tuple(network.named.values()))
    finally:
        module.to_standard_module()


def sample(random: Randomness, mechanism: Mechanism, patients: int) -> Tensor:
    """Poisson sampling: each patient enters with the mechanism's rate, whatever the others do.

    Returns:
        Rows that entered, ascending; perhaps none.

    Guarantees:
        - The inclusion of a patient is independent of all others and of every other step.
    """
    return torch.from_numpy(np.flatnonzero(random.uniforms(patients) < mechanism.sampling_rate))


def clipped_sum(hooked: Hooked, plan: Plan, batch: TrainingSet, bound: float, loss: Loss) -> Tensor:
    """Sum over patients of their clipped gradients, (parameters,) float64, in the order of the layout.

    Guarantees:
        - A patient's gradient over all parameters together is shortened to `bound` where it is longer, and unchanged otherwise.
        - Removing one patient moves the sum by at most `bound`, up to the rounding of the others' gradients.
        - A patient whose gradient is not finite contributes zero.
        - Nobody gives zero.
    """
    sizes = [p.numel() for p in hooked.weights]
    if len(batch) == 0:
        return torch.zeros(sum(sizes), dtype=torch.float64)
    hooked.forget()
    losses = loss(plan, hooked.module(batch.values, batch.seen), batch.goals)
    torch.autograd.backward([losses.sum()])
    rows = hooked.rows(len(batch), sum(sizes))
    for weight, part in zip(hooked.weights, torch.split(rows, sizes, dim=1), strict=True):
        own: Tensor | None = weight.grad_sample  # type: ignore[attr-defined]
        if own is None:
            part.zero_()
        else:
            part.copy_(own.flatten(start_dim=1))
    hooked.forget()
    norms = torch.linalg.vector_norm(rows, dim=1)
    finite = torch.isfinite(norms)
    if not bool(finite.all()):
        # Zero times infinity is not zero.
        rows[~finite] = 0
    factors = torch.where(finite, (bound / norms).clamp(max=1.0), 0.0)
    return factors @ rows


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
        key: session, site and round; decides dropout, which is public.
        terms: what an aggregation rule adds to the gradient, from parameters and earlier noised updates alone.

    Returns:
        (parameters + 2,): public count x change of each parameter, the public count, and 0: losses stay at the site.

    Guarantees:
        - Patients enter through `clipped_sum` of a Poisson sample plus noise and in no other way.
        - An empty sample is a step: noise alone.
        - The divisor and the weight are constants of the plan.
    """
    before, weights = layout.flatten(parameters), network.vector
    weights.copy_(torch.from_numpy(before))
    step, (decay, l1) = optimiser_step(plan, weights), strengths(plan, network)
    with seeded_dropout(plan, f"dropout|{key}"), per_patient(network) as hooked:
        for _ in range(plan.training.local_steps):
            batch = data.rows(sample(random, mechanism, len(data)))
            total = clipped_sum(hooked, plan, batch, mechanism.clip_to, loss)
            total += mechanism.noise_scale * torch.from_numpy(random.normals(len(total)))
            gradient = (total / mechanism.expected_batch).to(weights.dtype) + decay * weights + l1 * weights.sign()
            for term in terms:
                gradient = gradient + term(weights)
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
        invented = _invented(plan, width, generator)
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


def _invented(plan: Plan, width: int, generator: torch.Generator) -> TrainingSet:
    """Patients that nobody is: values, gaps and labels from a fixed generator."""
    labels: dict[str, NDArray[np.float64]] = {}
    weights: dict[str, NDArray[np.float64]] = {}
    for name, task in plan.tasks.items():
        if isinstance(task, ClassificationTask):
            labels[name] = torch.randint(len(task.classes), (INVENTED,), generator=generator).numpy()
            weights[name] = np.ones(len(task.classes))
        else:
            days = torch.rand(INVENTED, generator=generator, dtype=torch.float64) * task.edges[-1]
            event = (torch.arange(INVENTED) % 3 > 0).to(torch.float64)
            labels[name] = torch.stack([days, event], dim=1).numpy()
    goals = targets(plan, labels, weights)
    return TrainingSet(
        values=torch.randn(INVENTED, width, generator=generator, dtype=torch.float64),
        seen=(torch.rand(INVENTED, width, generator=generator) > 0.2).to(torch.float64),
        goals={n: Target(goal=_doubled(t.goal), weight=_doubled(t.weight)) for n, t in goals.items()},
    )


def _doubled(values: Tensor) -> Tensor:
    return values.to(torch.float64) if values.is_floating_point() else values
