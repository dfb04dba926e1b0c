"""`strategy.average = "holders"`: which parameters are a modality's own, and how many patients stand behind each.

A parameter is a modality's own if nobody who lacks the modality can change it: its encoder, its columns in the linear path, its
part of a joining layer. Averaged over all patients, such a parameter moves in proportion to the share of patients whose hospital
has the modality; averaged over the holders, it moves as if the others were not there (B-40).
"""

from __future__ import annotations

import copy
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oncofed_shared.network import FusionNetwork
from oncofed_shared.plan import NoPrivacy, Plan

__all__ = ["constant_behind", "has_modalities", "patients_behind", "sent_counts", "without_own"]

Flat = NDArray[np.float64]
INVENTED = 6
"""Invented patients from whom it is read what belongs to whom: several, because one may leave half of a layer at rest."""
HALF = 0.5
_OWNERS: WeakKeyDictionary[FusionNetwork, NDArray[np.int64]] = WeakKeyDictionary()


def sent_counts(plan: Plan) -> int:
    """Numbers of patients that a site appends to its update, one for each modality; none under privacy, where they are public."""
    counted = plan.strategy.average == "holders" and isinstance(plan.privacy, NoPrivacy)
    return len(plan.modalities) if counted else 0


def _moved(network: FusionNetwork, values: Tensor, seen: Tensor, generator: torch.Generator) -> NDArray[np.bool_]:
    """(parameters,) which coordinates have a gradient for these patients, under a loss that is like no real one."""
    made = network(values, seen)
    weighted = [(out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum() for out in made.values()]
    grown = torch.autograd.grad(torch.stack(weighted).sum(), list(network.named.values()), materialize_grads=True)
    return np.concatenate([(g != 0).flatten().numpy() for g in grown])


def _owners(network: FusionNetwork) -> NDArray[np.int64]:
    """(parameters,) place of the modality that owns each coordinate, among all in order of their names; -1 for none.

    It is asked of the network itself, so that it holds for every encoder and fusion: a coordinate that has a gradient for
    patients with everything, and none for patients without a modality, is that modality's. One that needs two modalities is
    nobody's own.
    """
    known = _OWNERS.get(network)
    if known is not None:
        return known
    trial = copy.deepcopy(network).to(torch.float64).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trial.parameters():
            # The first values hold zeros, behind which nothing has a gradient.
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    member = trial.modality_dropout.member.to(torch.float64)
    values = torch.randn(INVENTED, trial.reads, generator=generator, dtype=torch.float64)
    full = (torch.rand(INVENTED, len(member), generator=generator) < HALF).to(torch.float64)
    # The first patient has everything; gaps in the others' modalities are read too.
    full[0] = 1
    everything = _moved(trial, values, full, generator)
    owners, claims = np.full(len(everything), -1), np.zeros(len(everything), dtype=np.int64)
    for place in range(member.shape[1]):
        mine = everything & ~_moved(trial, values, full * (1 - member[:, place]), generator)
        owners[mine] = place
        claims += mine
    owners[claims > 1] = -1
    _OWNERS[network] = owners
    return owners


def has_modalities(network: FusionNetwork, seen: Tensor) -> NDArray[np.bool_]:
    """(modalities,) which modalities at least one of these patients has, from (n, columns) of 0 and 1."""
    member = network.modality_dropout.member.to(seen.dtype)
    return np.asarray(((seen @ member) > 0).any(dim=0).numpy())


def without_own(network: FusionNetwork, change: Flat, has: NDArray[np.bool_]) -> Flat:
    """A change of all parameters, (parameters,), with 0 where they are a modality's own that the site does not have."""
    owners = _owners(network)
    # The last place stands for what is nobody's own.
    return np.where(np.append(has, True)[owners], change, 0.0)


def patients_behind(network: FusionNetwork, patients: float, counts: Flat) -> Flat:
    """How many patients stand behind each parameter, (parameters,).

    Args:
        patients: of all sites that answered.
        counts: (modalities,) of those among them that have the modality. Where it is 0 nobody moved its parameters.
    """
    return np.append(np.where(counts > 0, counts, patients), patients)[_owners(network)]


def constant_behind(network: FusionNetwork, plan: Plan, *, patients: float) -> Flat:
    """The same under privacy, from public numbers of the plan alone."""
    shares = plan.strategy.holders or {}
    counts = np.array([shares.get(name, 1.0) for name in sorted(plan.modalities)]) * patients
    return patients_behind(network, patients, counts)
