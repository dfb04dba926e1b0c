"""Membership inference by likelihood ratios over shadow runs (LiRA: Carlini et al. 2022), with and without privacy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from oncofed_client.private_training import private_update
from oncofed_client.randomness import Randomness
from oncofed_client.training import TrainingSet, local_update
from oncofed_shared.features import Preparation, network_columns
from oncofed_shared.layers import load_parameters
from oncofed_shared.layout import Layout
from oncofed_shared.losses import patient_losses
from oncofed_shared.network import build
from oncofed_shared.plan import NoPrivacy, Plan, parse
from oncofed_shared.privacy import Mechanism
from oncofed_simulations.audit_statistics import rate_interval
from oncofed_simulations.consortium import POOLED

__all__ = ["FALSE_ALARMS", "audit_membership", "likelihood_ratios", "most_true_alarms", "true_alarms"]

SHADOWS, PATIENTS = 48, 200
"""Models, and patients of whom each model sees about a half. Few patients are easier to remember."""
FALSE_ALARMS = (0.001, 0.01, 0.1)
"""Rates of false alarms at which true alarms are counted."""


@dataclass(frozen=True, kw_only=True)
class _Training:
    """One place that has everybody, under one mechanism: nothing of this epsilon has less noise.

    Attributes:
        plan: with one site of that many patients, or without privacy.
    """

    plan: Plan
    preparation: Preparation

    def losses(self, patients: TrainingSet, inside: NDArray[np.bool_], random: Randomness) -> NDArray[np.float64]:
        """Loss of everybody under a model that was trained on those inside, (patients,)."""
        plan = self.plan
        network = build(plan, network_columns(plan, self.preparation), seed=0)
        layout, data = Layout.of(network), patients.rows(torch.from_numpy(np.flatnonzero(inside)))
        weights = layout.flatten({n: p.detach().numpy() for n, p in network.named.items()})
        dtype = plan.training.dtype
        for number in range(plan.training.rounds):
            parameters = layout.arrays(weights, dtype)
            if isinstance(plan.privacy, NoPrivacy):
                total = local_update(plan, network, layout, data, parameters, key=str(number))
            else:
                mechanism = Mechanism.for_plan(plan, POOLED)
                total = private_update(
                    plan, network, layout, data, parameters, mechanism=mechanism, random=random, key=str(number)
                )
            weights = weights + total[: layout.size] / total[-2]
        load_parameters(network, layout.arrays(weights, dtype))
        network.eval()
        with torch.no_grad():
            found = patient_losses(plan, network(patients.values, patients.seen), patients.goals)
        return found.numpy().astype(np.float64)


def likelihood_ratios(losses: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Each model in turn is the victim, and all others are shadows; scores that a patient was in, (models, patients).

    Losses are taken for normal for each patient, inside and outside, with means of his own and one spread for all.
    """
    models = len(losses)
    scores = np.zeros_like(losses)
    for victim in range(models):
        others = np.arange(models) != victim
        shadow, there = losses[others], inside[others]
        means, spreads = [], []
        for side in (there, ~there):
            count = np.maximum(side.sum(axis=0), 1)
            mean = np.where(side, shadow, 0).sum(axis=0) / count
            means.append(mean)
            spreads.append((np.where(side, shadow - mean, 0) ** 2).sum() / max(1, int(side.sum()) - side.shape[1]))
        (mean_in, mean_out), (var_in, var_out) = means, (max(v, 1e-24) for v in spreads)
        own = losses[victim]
        scores[victim] = (own - mean_out) ** 2 / (2 * var_out) - (own - mean_in) ** 2 / (2 * var_in)
    return scores


def true_alarms(scores: NDArray[np.float64], inside: NDArray[np.bool_], false: float) -> dict[str, float]:
    """Part of members who are called so when this part of non-members is, with an interval."""
    threshold = np.quantile(scores[~inside], 1 - false, method="higher")
    called = int((scores[inside] > threshold).sum())
    low, high = rate_interval(called, int(inside.sum()))
    return {"false": false, "true": called / int(inside.sum()), "low": low, "high": high}


def most_true_alarms(false: float, *, epsilon: float, delta: float) -> float:
    """What (epsilon, delta) leaves to any attack (Kairouz, Oh & Viswanath 2015)."""
    return min(1.0, math.exp(epsilon) * false + delta, 1 - math.exp(-epsilon) * (1 - delta - false))


def audit_membership(
    plan: Plan, preparation: Preparation, patients: TrainingSet, *, seed: int, shadows: int = SHADOWS
) -> dict[str, Any]:
    """Ask of each of some patients whether he was among those on whom a model was trained.

    Args:
        plan: of `attacked_plan`.
        patients: training patients of all sites; the first `PATIENTS` of a random order are asked about.

    Returns:
        `claimed` epsilon and delta; `private` and `control`, each with `auc` and `alarms`; `most` is what the claim allows.
    """
    privacy = plan.privacy
    assert not isinstance(privacy, NoPrivacy)  # noqa: S101 - `attacked_plan` makes no other
    rng = np.random.default_rng((seed, 2))
    asked = patients.rows(torch.from_numpy(rng.permutation(len(patients))[:PATIENTS]))
    inside = rng.random((shadows, len(asked))) < 0.5
    content = plan.model_dump(mode="json")
    kept = ("epsilon", "delta", "clip_norm", "sampling_rate")
    one = {k: content["privacy"][k] for k in kept} | {"noise": "site", "patients": {POOLED: max(1, len(asked) // 2)}}
    arms: Mapping[str, dict[str, Any]] = {"private": one, "control": {"noise": "none"}}
    made: dict[str, Any] = {"patients": len(asked), "shadows": shadows}
    known = plan.simulation.noise_seed
    for arm, table in arms.items():
        training = _Training(plan=parse(content | {"privacy": table}), preparation=preparation)
        streams = [
            Randomness.from_os() if known is None else Randomness.repeatable(f"{known}|shadow|{seed}|{i}")
            for i in range(shadows)
        ]
        losses = np.array([training.losses(asked, inside[i], streams[i]) for i in range(shadows)])
        scores = likelihood_ratios(losses, inside)
        alarms = [true_alarms(scores, inside, false) for false in FALSE_ALARMS]
        made[arm] = {"auc": float(roc_auc_score(inside.ravel(), scores.ravel())), "alarms": alarms}
    for alarm in made["private"]["alarms"]:
        alarm["most"] = most_true_alarms(alarm["false"], epsilon=privacy.epsilon, delta=privacy.delta)
    return made | {"claimed": {"epsilon": privacy.epsilon, "delta": privacy.delta}}
