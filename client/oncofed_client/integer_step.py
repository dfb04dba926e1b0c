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

from oncofed_client.egress import check_share
from oncofed_client.exact_noise import exact_gaussian
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

__all__ = [
    "MICROBATCH",
    "NEAR",
    "consortium_share",
    "integer_sum",
    "numbers_share",
    "patient_integers",
    "sample",
    "tables_share",
]

MICROBATCH = 64
"""Patients whose gradients are in memory at once, where a plan does not say."""
NEAR = 2.0**-40
"""In bounds: how near to the middle between two integers a coordinate may lie and be rounded as computed with others. What a batch
changes in it is below a hundredth of this: tests/privacy measures it for every shape of network and every loss."""
HUGE, SLACK = 2.0**500, 1e-9
"""Length of a gradient above which it may be infinite in one batch and not in another; part of the bound from which squares are
summed exactly."""
BLOCK = 2**15
"""Coordinates that are rounded at once: they stay in the processor's cache."""


def sample(random: Randomness, rate: float, patients: int) -> Tensor:
    """Poisson sampling: each patient enters with the rate, whatever the others do.

    Returns:
        Rows that entered, ascending; perhaps none.

    Guarantees:
        - The inclusion of a patient is independent of all others and of every other step.
    """
    return torch.from_numpy(np.flatnonzero(random.uniforms(patients) < rate))


def _round(rows: Tensor, integers: IntegerNoise) -> Tensor:
    """Clip each row whole and round it to integer steps, in place; of whom that is not sure before he is computed alone, (n,).

    Integers are held as doubles, which are exact below 2**53: so are sums of their squares, which the bound keeps below 2**52.
    """
    norms = torch.linalg.vector_norm(rows, dim=1)
    unsure: Tensor = ~(norms < HUGE)
    if bool(unsure.any()):
        # Zero times infinity is not zero.
        rows[~torch.isfinite(norms)] = 0
    factors = (integers.clip_to * integers.grain / norms).clamp(max=1.0).nan_to_num() / integers.grain
    apart = rows.mul_(factors[:, None]).clone()
    rows.round_()
    unsure |= apart.sub_(rows).abs_().amax(dim=1) > 0.5 - NEAR * integers.bound
    # Clipping has left room for rounding, so nobody comes near to the bound; who were beyond it would contribute zero.
    for i in torch.nonzero(torch.linalg.vector_norm(rows, dim=1) > (1 - SLACK) * integers.bound).flatten():
        if float(rows[i] @ rows[i]) > integers.bound**2:
            rows[i] = 0
    return unsure


def patient_integers(hooked: Hooked, plan: Plan, batch: TrainingSet, integers: IntegerNoise, loss: Loss) -> Tensor:
    """What each patient of a batch contributes, (patients, parameters) integers as doubles; overwritten by the next batch's.

    Guarantees:
        - A patient's row depends on nobody else.
        - Its Euclidean length is at most `integers.bound`, exactly.
        - A gradient that is not finite gives zeros.
    """
    rows = gradients(hooked, plan, batch, loss)
    step = max(1, BLOCK // max(1, rows.shape[1]))
    unsure = torch.cat([_round(part, integers) for part in torch.split(rows, step)])
    if len(batch) == 1 or not bool(unsure.any()):
        return rows
    made = rows.clone()
    for i in torch.nonzero(unsure).flatten():
        alone = gradients(hooked, plan, batch.rows(i[None]), loss)
        _round(alone, integers)
        made[i] = alone[0]
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
            made = patient_integers(hooked, plan, data.rows(part), integers, loss)
            total += made.sum(dim=0).to(torch.int64).numpy()
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

    Raises:
        LocalProtocolError: before the noise, a coordinate is larger than so many clipped patients can make it.
    """
    privacy = plan.privacy
    microbatch = privacy.microbatch if isinstance(privacy, ConsortiumPrivacy) else MICROBATCH
    network.vector.copy_(torch.from_numpy(layout.flatten(parameters)))
    rows = sample(random, mechanism.sampling_rate, len(data))
    with per_patient(network) as hooked:
        total = integer_sum(hooked, plan, data, rows, mechanism.integers, loss=loss, microbatch=microbatch)
    check_share(total, size=mechanism.integers.parameters, largest=mechanism.bound * len(rows))
    share = np.clip(total, -mechanism.room, mechanism.room)
    share += discrete_gaussian(random, mechanism.share_sigma, len(total))
    return share


def tables_share(counts: NDArray[np.int64], *, mechanism: TablesMechanism, random: Randomness) -> NDArray[np.int64]:
    """A site's share of the noised tables, (cells,) counts to integers to be masked and summed.

    Args:
        counts: over test patients, each in at most `mechanism.entries` cells.
        random: a stream that repeats draws the noise, in a simulation; otherwise OpenDP does, exactly.

    Guarantees:
        - No number exceeds `mechanism.room + mechanism.tail`; the cut is before the noise.

    Raises:
        LocalProtocolError: these are not counts of the mechanism's cells.
    """
    most = math.floor(mechanism.room / mechanism.unit)
    whole = counts.astype(np.int64)
    check_share(whole, size=mechanism.cells, largest=np.iinfo(np.int64).max, smallest=0)
    return _noised(np.minimum(whole, most) * mechanism.unit, mechanism, random)


def numbers_share(
    total: NDArray[np.int64], *, patients: int, mechanism: TablesMechanism, random: Randomness
) -> NDArray[np.int64]:
    """A site's share of noised statistics, (cells,) integer steps to integers to be masked and summed.

    Args:
        total: over training patients, none of whom adds more than `mechanism.unit` to any number.
        patients: how many they are.
        random: as in `tables_share`.

    Guarantees:
        - No number exceeds `mechanism.room + mechanism.tail`; the cut is before the noise.

    Raises:
        LocalProtocolError: a number is larger than so many patients can make it.
    """
    check_share(total, size=mechanism.cells, largest=mechanism.unit * patients)
    return _noised(np.clip(total, -mechanism.room, mechanism.room), mechanism, random)


def _noised(share: NDArray[np.int64], mechanism: TablesMechanism, random: Randomness) -> NDArray[np.int64]:
    if random.repeats:
        share += discrete_gaussian(random, mechanism.share_sigma, mechanism.cells)
    else:
        share += exact_gaussian(mechanism.share_sigma, mechanism.cells)
    return share
