"""A site's half of an aggregation rule: what local training adds to its gradients, sends beside its change, and keeps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oncofed_client.training import TrainingSet, local_update
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.holders import has_modalities, sent_counts, without_own
from oncofed_shared.layers import load_parameters
from oncofed_shared.layout import Layout
from oncofed_shared.losses import patient_losses
from oncofed_shared.messages import Arrays
from oncofed_shared.network import FusionNetwork
from oncofed_shared.plan import Plan

__all__ = ["CONTROL", "LocalUpdate", "Term", "check_control", "fair", "train_round"]

Flat = NDArray[np.float64]
LocalUpdate = Callable[..., Flat]
"""`local_update`, or what a private plan has in its place; they take the same arguments."""
Term = Callable[[Tensor], Tensor]
"""From the network's current parameters to what is added to their gradient; vectors in the order of the whole layout."""

CONTROL = "control"
SMALLEST_LOSS = 1e-10
"""Added to a loss before it is raised to a power below zero; as in the authors' code and in Flower's."""


def check_control(plan: Plan, layout: Layout, control: Flat) -> None:
    """Compare the control of a `Train` message with the plan.

    Raises:
        RemoteProtocolError: it is there without SCAFFOLD, has another length than the shared parameters, or is not finite.
    """
    size = layout.size if plan.strategy.name == "scaffold" else 0
    if len(control) != size or not np.isfinite(control).all():
        raise RemoteProtocolError("the control does not fit the plan's rule and network")


def _proximal(anchor: Tensor, strength: Tensor) -> Term:
    """FedProx: the gradient of mu / 2 ||w - w_global||^2 (Li et al. 2020, eq. 2)."""
    return lambda weights: strength * (weights - anchor)


def _drift(correction: Tensor) -> Term:
    """SCAFFOLD: c - c_i is added to every gradient (Karimireddy et al. 2020, eq. 3)."""
    return lambda _: correction


def _terms(plan: Plan, whole: Layout, shared: NDArray[np.bool_] | slice, parameters: Arrays, shift: Flat) -> list[Term]:
    rule = plan.strategy
    dtype = torch.float64 if plan.training.dtype == "float64" else torch.float32
    if rule.name == "fedprox" and rule.mu:
        anchor, strength = whole.flatten(parameters), np.zeros(whole.size)
        strength[shared] = rule.mu
        return [_proximal(torch.from_numpy(anchor).to(dtype), torch.from_numpy(strength).to(dtype))]
    if rule.name == "scaffold":
        correction = np.zeros(whole.size)
        correction[shared] = shift
        return [_drift(torch.from_numpy(correction).to(dtype))]
    return []


def _mean_loss(plan: Plan, network: FusionNetwork, data: TrainingSet, parameters: Arrays) -> float:
    """F_k: mean loss over all training patients at the given parameters, without dropout and without penalties."""
    load_parameters(network, parameters)
    network.eval()
    with torch.no_grad():
        return float(patient_losses(plan, network(data.values, data.seen), data.goals).mean())


def fair(plan: Plan, total: Flat, loss: float) -> Flat:
    """q-FedAvg's Delta_k and h_k (Li et al. 2020, algorithm 2, lines 5 and 6), over L = 1 / training.rate, times patients.

    With dw = the change: Delta_k / L = F^q dw and h_k / L = q F^(q-1) L ||dw||^2 + F^q.
    """
    q, patients = plan.strategy.q or 0.0, total[-2]
    base = loss + SMALLEST_LOSS
    change = total[:-2]
    length = float(np.sum((change / patients) ** 2)) / plan.training.rate
    h = q * base ** (q - 1) * length + base**q
    return np.concatenate([change * base**q, [patients * h], total[-2:]])


def _shared(
    plan: Plan, network: FusionNetwork, data: TrainingSet, total: Flat, shared: NDArray[np.bool_] | slice
) -> tuple[Flat, ...]:
    """What leaves of an update of all parameters; under `average = "holders"` with this site's patients for each modality it has.

    Under privacy every site has noise in every coordinate, and who has what does not show.
    """
    change = total[:-2]
    if not sent_counts(plan):
        return (change[shared],)
    has = has_modalities(network, data.seen)
    return without_own(network, change, has)[shared], np.where(has, total[-2], 0.0)


def train_round(
    plan: Plan,
    network: FusionNetwork,
    data: TrainingSet,
    parameters: Arrays,
    *,
    whole: Layout,
    layout: Layout,
    control: Flat,
    kept: Arrays,
    key: str,
    update: LocalUpdate = local_update,
) -> tuple[Flat, Arrays]:
    """Train one round as the plan's rule wants it.

    Args:
        parameters: all parameters of the network, shared and local.
        whole: the network's layout.
        layout: that of the shared parameters.
        control: SCAFFOLD's c, (shared,), or empty.
        kept: what this site held when the round began.
        key: decides batches and dropout.
        update: how a site trains.

    Returns:
        - (shared + extra + 2,): patients x change, what the rule or `average` appends, patients, sum of losses.
        - What the site holds after the round.
    """
    rule = plan.strategy
    own = kept.get(CONTROL, np.zeros(len(control)))
    weighs = rule.name == "qfedavg" and len(data) > 0
    loss = _mean_loss(plan, network, data, parameters) if weighs else 0.0
    shared = layout.places(whole)
    terms = _terms(plan, whole, shared, parameters, control - own)
    total = update(plan, network, whole, data, parameters, key=key, terms=terms)
    total = np.concatenate([*_shared(plan, network, data, total, shared), total[-2:]])
    after = dict(kept)
    # Under a private plan noise trains the layers of an empty site too: that it is empty must not show.
    if len(data) > 0 or plan.privacy.noise != "none":
        after |= {n: p.detach().numpy().copy() for n, p in network.named.items() if n not in layout.shapes}
        if rule.name == "scaffold":
            # Option II: c_i+ = c_i - c + (x - y_i) / (K eta).
            after[CONTROL] = own - control - total[:-2] / (total[-2] * plan.training.local_steps * plan.training.rate)
    if weighs:
        total = fair(plan, total, loss)
    elif rule.name == "qfedavg":
        total = np.zeros(layout.size + 3)
    return total, after
