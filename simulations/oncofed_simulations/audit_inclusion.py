"""Who is in which step: whether a site's code samples as the accountant counts (Poisson: each patient by a coin of his own)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from oncofed_client.integer_step import consortium_share
from oncofed_client.patient_gradients import Loss
from oncofed_client.private_training import private_update
from oncofed_client.randomness import Randomness
from oncofed_client.session import training_set
from oncofed_client.training import TrainingSet
from oncofed_shared.consortium import ConsortiumMechanism
from oncofed_shared.features import Preparation, network_columns
from oncofed_shared.integer_noise import sampled_rate
from oncofed_shared.layout import Layout
from oncofed_shared.losses import Target, patient_losses
from oncofed_shared.network import build
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan
from oncofed_shared.privacy import Mechanism
from oncofed_simulations.audit_canaries import invented_canaries
from oncofed_simulations.audit_statistics import RARE

__all__ = ["InclusionAudit", "audit_inclusion", "judged_inclusion"]

PATIENTS, STEPS = 200, 64
MARK = 2.0**-20
"""A patient is known again by his weight in the loss: one, and this times his number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InclusionAudit:
    """Inclusions of some patients in some steps.

    Attributes:
        rate, claimed: part of all places that were taken, and what the accountant counts with.
        p_rate: of so many inclusions, two-tailed, as the others.
        p_steps: of how much the sizes of steps differ; a batch of fixed size differs too little.
        p_patients: of how much patients' numbers of inclusions differ; a batch that stays the same differs too much, and turns in
            which everybody comes once too little.
        p_next: of how often a patient who was in a step is in the next one.
    """

    patients: int
    steps: int
    rate: float
    claimed: float
    p_rate: float
    p_steps: float
    p_patients: float
    p_next: float

    @property
    def wrong(self) -> tuple[str, ...]:
        """What correct sampling would show with a probability below RARE, all four together."""
        names = ("p_rate", "p_steps", "p_patients", "p_next")
        return tuple(name.removeprefix("p_") for name in names if getattr(self, name) < RARE / len(names))

    def facts(self) -> dict[str, Any]:
        """For `audit.json`."""
        return asdict(self) | {"wrong": list(self.wrong)}


def _two_tailed(below: float, above: float) -> float:
    return float(min(1.0, 2 * min(below, above)))


def judged_inclusion(entered: NDArray[np.bool_], claimed: float) -> InclusionAudit:
    """Compare inclusions, (steps, patients), with independent coins of the claimed rate.

    Where the claim is that everybody is always in, only the rate can be wrong.
    """
    steps, patients = entered.shape
    count = int(entered.sum())
    made = {"patients": patients, "steps": steps, "rate": count / entered.size, "claimed": claimed}
    if claimed == 1:
        return InclusionAudit(**made, p_rate=float(count == entered.size), p_steps=1.0, p_patients=1.0, p_next=1.0)
    whole, each = stats.binom(entered.size, claimed), claimed * (1 - claimed)

    def dispersion(counts: NDArray[np.int64], of: int) -> float:
        spread = stats.chi2(len(counts))
        found = float(((counts - of * claimed) ** 2).sum() / (of * each))
        return _two_tailed(spread.cdf(found), spread.sf(found))

    centred = entered - claimed
    following = float((centred[1:] * centred[:-1]).sum()) / (each * np.sqrt((steps - 1) * patients))
    return InclusionAudit(
        **made,
        p_rate=_two_tailed(float(whole.cdf(count)), float(whole.sf(count - 1))),
        p_steps=dispersion(entered.sum(axis=1), patients),
        p_patients=dispersion(entered.sum(axis=0), steps),
        p_next=float(2 * stats.norm.sf(abs(following))),
    )


class _Recorder:
    """A loss like any other, which writes down whose it is."""

    def __init__(self, patients: int) -> None:
        self.entered = np.zeros(patients, dtype=bool)

    def __call__(self, plan: Plan, logits: Mapping[str, Tensor], goals: Mapping[str, Target]) -> Tensor:
        weight = next(iter(goals.values())).weight
        first = (weight if weight.dim() == 1 else weight[:, 0]).to(torch.float64)
        self.entered[((first - 1) / MARK).round().to(torch.int64).numpy()] = True
        return patient_losses(plan, logits, goals)


def _marked(plan: Plan, preparation: Preparation, seed: int) -> TrainingSet:
    """Canaries in double precision, each with a weight of his own."""
    cohort = invented_canaries(plan, preparation.columns, count=PATIENTS, seed=seed)
    data = training_set(plan, preparation, cohort, slice(None))
    goals = {}
    for name, target in data.goals.items():
        weight = torch.ones_like(target.weight, dtype=torch.float64)
        own = 1 + MARK * torch.arange(PATIENTS, dtype=torch.float64)
        goals[name] = replace(target, weight=weight * (own if weight.dim() == 1 else own[:, None]))
    return replace(data, goals=goals)


def audit_inclusion(plan: Plan, preparation: Preparation, *, seed: int) -> InclusionAudit:
    """Let a site's code make steps, one after another, of patients who can be told apart.

    Args:
        plan: of `attacked_plan`.
    """
    privacy = plan.privacy
    assert not isinstance(privacy, NoPrivacy)  # noqa: S101 - `attacked_plan` makes no other
    step, data = _step(plan, preparation), _marked(plan, preparation, seed)
    entered = []
    for number in range(STEPS):
        known = plan.simulation.noise_seed
        random = Randomness.from_os() if known is None else Randomness.repeatable(f"{known}|inclusion|{seed}|{number}")
        recorder = _Recorder(PATIENTS)
        step(data, random, recorder)
        entered.append(recorder.entered)
    return judged_inclusion(np.array(entered), sampled_rate(privacy.sampling_rate))


def _step(plan: Plan, preparation: Preparation) -> Callable[[TrainingSet, Randomness, Loss], object]:
    """A site's own code for a step at the plan's first parameters."""
    network = build(plan, network_columns(plan, preparation), seed=0)
    layout = Layout.of(network)
    parameters = {n: p.detach().numpy().copy() for n, p in network.named.items()}
    if isinstance(plan.privacy, ConsortiumPrivacy):
        whole = ConsortiumMechanism.for_plan(plan, parameters=layout.size)
        return lambda data, random, loss: consortium_share(
            plan, network, layout, data, parameters, mechanism=whole, random=random, loss=loss
        )
    assert not isinstance(plan.privacy, NoPrivacy)  # noqa: S101 - as above
    own = Mechanism.for_plan(plan, next(iter(plan.privacy.patients)))
    return lambda data, random, loss: private_update(
        plan, network, layout, data, parameters, mechanism=own, random=random, key="audit", loss=loss
    )
