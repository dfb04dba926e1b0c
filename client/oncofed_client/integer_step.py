"""A site's part in a step of DP-SGD as integers: who enters, the rounded sum of what they contribute, and the noise.

A patient's gradient is clipped whole, and the sum is rounded once. Those who enter stand in a random order in batches of a fixed
number of places. Without one of them, the last may be thought to stand in the empty place: then everybody else's numbers are the
same to the last bit, and what rounding and the one who moved may change is kept off the clip norm (docs/noise.md).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oncofed_client.egress import check_share
from oncofed_client.exact_noise import exact_gaussian
from oncofed_client.noise import CHUNK, add_discrete_gaussian
from oncofed_client.patient_gradients import Hooked, Loss, backward, per_patient, placed
from oncofed_client.randomness import Randomness
from oncofed_client.training import TrainingSet
from oncofed_shared.consortium import ConsortiumMechanism, TablesMechanism
from oncofed_shared.determinism import one_thread
from oncofed_shared.errors import LocalProtocolError
from oncofed_shared.integer_noise import MOST_PATIENTS, MOST_PLACES, IntegerNoise
from oncofed_shared.layout import Layout
from oncofed_shared.losses import patient_losses
from oncofed_shared.messages import Arrays
from oncofed_shared.network import FusionNetwork
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan

__all__ = [
    "MICROBATCH",
    "consortium_share",
    "integer_sum",
    "numbers_share",
    "places_of",
    "sample",
    "tables_share",
]

MICROBATCH = 64
"""Most places of a batch, where a plan does not say."""
FEWEST_PLACES = 8


def places_of(plan: Plan) -> int:
    """Places of a batch: a constant of the plan, a power of two where the plan's microbatch is one.

    As many as a step's sample of the largest site hardly ever exceeds, and no more than the plan's microbatch.
    """
    privacy = plan.privacy
    most = min(privacy.microbatch, MOST_PLACES) if isinstance(privacy, ConsortiumPrivacy) else MICROBATCH
    if isinstance(privacy, NoPrivacy):
        return most
    expected = privacy.sampling_rate * max(privacy.patients.values())
    usual = expected + 2 * math.sqrt(expected * (1 - privacy.sampling_rate))
    return min(most, 1 << math.ceil(math.log2(max(usual, FEWEST_PLACES))))


def sample(random: Randomness, rate: float, patients: int) -> Tensor:
    """Poisson sampling: each patient enters with the rate, whatever the others do.

    Returns:
        Rows that entered, perhaps none, in random order.

    Guarantees:
        - The inclusion of a patient is independent of all others and of every other step.
        - Every order of those who entered is equally likely.
    """
    coins = random.uniforms(patients)
    entered = np.flatnonzero(coins < rate)
    # Coins below the rate are uniform there; further bits, because equal coins must not fall back on the order of rows.
    order = np.lexsort((random.words(len(entered)), random.words(len(entered)), coins[entered]))
    return torch.from_numpy(entered[order])


def integer_sum(
    hooked: Hooked,
    plan: Plan,
    data: TrainingSet,
    rows: Tensor,
    integers: IntegerNoise,
    *,
    loss: Loss = patient_losses,
) -> NDArray[np.int64]:
    """Sum over the sampled patients of their clipped gradients, (parameters,), rounded to integer steps.

    Args:
        rows: who is in the sample, in the order of `sample`.

    Returns:
        (parameters,), in memory of `hooked.room`: the next sum over this network overwrites it.

    Guarantees:
        - With one patient replaced by the last one of `rows`, who then stands there no longer, it changes by a vector of length
          `integers.bound` at most. So removing a patient changes a random order's sum, paired with another of the same chance, by
          that at most.
        - A patient with a gradient that is not finite, or whose square is not in the network's precision, contributes zero.
        - Nobody gives zero.

    Raises:
        LocalProtocolError: more patients are in the sample than the margin for rounding allows.
        ConfigError: see `patient_gradients.backward`.
    """
    if len(rows) > MOST_PATIENTS:
        raise LocalProtocolError("more patients are in a sample than rounding was reckoned for")
    total = hooked.room.taken("total", integers.parameters)
    if not len(rows):
        return _rounded(total.zero_().numpy())
    places = places_of(plan)
    # The numbers of a place must be made in the same way in every batch, for which no thread may come between.
    with one_thread():
        for i, part in enumerate(torch.split(rows, places)):
            made = backward(hooked, plan, placed(data, part, places, hooked.room), loss)
            factors = (integers.clip_to * integers.grain / made.lengths).clamp(max=1.0) / integers.grain
            factors[len(part) :] = 0
            made.add(factors, total, first=i == 0)
    return _rounded(total.numpy())


def _rounded(total: NDArray[np.float64]) -> NDArray[np.int64]:
    """To the nearest integers, in the same memory, piece by piece: what lies between stays in the processor's cache."""
    whole = total.view(np.int64)
    for start in range(0, len(total), CHUNK):
        whole[start : start + CHUNK] = np.rint(total[start : start + CHUNK])
    return whole


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
    network.vector.copy_(torch.from_numpy(layout.flatten(parameters)))
    rows = sample(random, mechanism.sampling_rate, len(data))
    with per_patient(network) as hooked:
        total = integer_sum(hooked, plan, data, rows, mechanism.integers, loss=loss)
    check_share(total, size=mechanism.integers.parameters, largest=mechanism.bound * len(rows))
    share = np.clip(total, -mechanism.room, mechanism.room)
    add_discrete_gaussian(random, mechanism.share_sigma, share)
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
        add_discrete_gaussian(random, mechanism.share_sigma, share)
    else:
        share += exact_gaussian(mechanism.share_sigma, mechanism.cells)
    return share
