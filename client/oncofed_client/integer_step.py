"""A site's part in a step of DP-SGD as integers: who enters, what each of them contributes, and the noise.

The integers of a patient are those of his gradient computed alone. Gradients of a batch are computed together, and their last bits
depend on who else is in it; so where a coordinate lies so near to the middle between two integers that those bits could decide, the
patient is computed alone. A sum of such integers changes by one patient's bound, exactly, when one patient is removed.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oncofed_client.noise import discrete_gaussian
from oncofed_client.patient_gradients import Hooked, Loss, gradients, per_patient
from oncofed_client.randomness import Randomness
from oncofed_client.training import TrainingSet
from oncofed_shared.consortium import ConsortiumMechanism, TablesMechanism
from oncofed_shared.integer_noise import IntegerNoise
from oncofed_shared.layout import Layout
from oncofed_shared.losses import patient_losses
from oncofed_shared.messages import Arrays
from oncofed_shared.network import FusionNetwork
from oncofed_shared.plan import ConsortiumPrivacy, Plan

__all__ = ["MICROBATCH", "NEAR", "consortium_share", "integer_sum", "patient_integers", "sample", "tables_share"]

MICROBATCH = 64
"""Patients whose gradients are in memory at once, where a plan does not say."""
NEAR = 2.0**-40
"""In bounds: how near to the middle between two integers a coordinate may lie and be rounded as computed with others. What a batch
changes in it is below a hundredth of this: tests/privacy measures it for every shape of network and every loss."""
BLOCK = 2**20
"""Coordinates that are rounded at once."""


def sample(random: Randomness, rate: float, patients: int) -> Tensor:
    """Poisson sampling: each patient enters with the rate, whatever the others do.

    Returns:
        Rows that entered, ascending; perhaps none.

    Guarantees:
        - The inclusion of a patient is independent of all others and of every other step.
    """
    return torch.from_numpy(np.flatnonzero(random.uniforms(patients) < rate))


def _rounded(rows: Tensor, integers: IntegerNoise) -> tuple[Tensor, Tensor]:
    """Clipped whole, in integer steps: (n, d) integers, and whose are too near to a middle to be sure of."""
    norms = torch.linalg.vector_norm(rows, dim=1) / integers.grain
    finite = torch.isfinite(norms)
    factors = torch.where(finite, (integers.clip_to / norms).clamp(max=1.0), 0.0) / integers.grain
    # Zero times infinity is not zero.
    scaled = torch.where(finite[:, None], rows, 0.0) * factors[:, None]
    whole = torch.round(scaled)
    near = ((scaled - whole).abs() > 0.5 - NEAR * integers.bound).any(dim=1)
    made = whole.to(torch.int64)
    # Exact, as sums of integers are. Clipping has left room for rounding; who is still too long contributes zero.
    made[(made * made).sum(dim=1) > integers.bound**2] = 0
    return made, near


def patient_integers(
    hooked: Hooked, plan: Plan, batch: TrainingSet, integers: IntegerNoise, loss: Loss
) -> NDArray[np.int64]:
    """What each patient of a batch contributes, (patients, parameters).

    Guarantees:
        - A patient's row depends on nobody else.
        - Its Euclidean length is at most `integers.bound`, exactly.
        - A gradient that is not finite gives zeros.
    """
    rows = gradients(hooked, plan, batch, loss)
    step = max(1, BLOCK // max(1, rows.shape[1]))
    parts = [_rounded(part, integers) for part in torch.split(rows, step)]
    made = torch.cat([p for p, _ in parts]).numpy()
    if len(batch) > 1:
        for i in np.flatnonzero(torch.cat([n for _, n in parts]).numpy()):
            alone = gradients(hooked, plan, batch.rows(torch.tensor([i])), loss)
            made[i] = _rounded(alone, integers)[0][0].numpy()
    return made


def integer_sum(
    hooked: Hooked,
    plan: Plan,
    data: TrainingSet,
    rows: Tensor,
    integers: IntegerNoise,
    *,
    loss: Loss = patient_losses,
    microbatch: int = MICROBATCH,
) -> NDArray[np.int64]:
    """Sum over the sampled patients of their clipped gradients, (parameters,), in integer steps.

    Args:
        rows: who is in the sample.
        microbatch: how many gradients are in memory at once.

    Guarantees:
        - Removing one patient changes it by a vector of length `integers.bound` at most, exactly.
        - The size of microbatches does not change it.
        - Nobody gives zero.
    """
    total = np.zeros(integers.parameters, dtype=np.int64)
    for part in torch.split(rows, microbatch):
        if len(part):
            total += patient_integers(hooked, plan, data.rows(part), integers, loss).sum(axis=0)
    return total


def consortium_share(
    plan: Plan,
    network: FusionNetwork,
    layout: Layout,
    data: TrainingSet,
    parameters: Arrays,
    *,
    mechanism: ConsortiumMechanism,
    random: Randomness,
    loss: Loss = patient_losses,
) -> NDArray[np.int64]:
    """A site's share of a step, to be masked and summed: (parameters,) in the order of the layout.

    Args:
        network: scratch network of the plan's shape; its parameters are overwritten.
        layout: of all parameters.
        data: the site's training patients.
        mechanism: of the plan, for so many parameters.
        random: draws the sample, then the noise.

    Guarantees:
        - Patients enter by `sample` and `integer_sum` and in no other way; an empty sample is a share of noise alone.
        - No coordinate exceeds `mechanism.room + mechanism.tail`, so that the sum of all sites fits the ring. The cut is before the
          noise and moves no two sums further apart.
    """
    privacy = plan.privacy
    microbatch = privacy.microbatch if isinstance(privacy, ConsortiumPrivacy) else MICROBATCH
    network.vector.copy_(torch.from_numpy(layout.flatten(parameters)))
    rows = sample(random, mechanism.sampling_rate, len(data))
    with per_patient(network) as hooked:
        total = integer_sum(hooked, plan, data, rows, mechanism.integers, loss=loss, microbatch=microbatch)
    share = np.clip(total, -mechanism.room, mechanism.room)
    share += discrete_gaussian(random, mechanism.share_sigma, len(total))
    return share


def tables_share(counts: NDArray[np.int64], *, mechanism: TablesMechanism, random: Randomness) -> NDArray[np.int64]:
    """A site's share of the noised tables, (cells,) counts to integers to be masked and summed.

    Args:
        counts: over test patients, each in at most `mechanism.entries` cells.

    Guarantees:
        - No number exceeds `mechanism.room + mechanism.tail`; the cut is before the noise.

    Raises:
        ValueError: these are not the mechanism's cells.
    """
    if counts.shape != (mechanism.cells,):
        message = f"{counts.shape} counts for {mechanism.cells} cells"
        raise ValueError(message)
    most = math.floor(mechanism.room / mechanism.unit)
    share: NDArray[np.int64] = np.clip(counts.astype(np.int64), -most, most) * mechanism.unit
    share += discrete_gaussian(random, mechanism.share_sigma, mechanism.cells)
    return share
