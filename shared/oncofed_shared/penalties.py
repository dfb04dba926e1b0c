"""L2 and L1 penalties of the plan, by parameter and by coordinate; added by whoever makes a step."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from oncofed_shared.holders import constant_behind, sent_counts
from oncofed_shared.network import FusionNetwork
from oncofed_shared.plan import Plan

__all__ = ["penalties", "strengths"]


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
        reads_input = name.startswith(("linear.", "tokenisers.")) and not name.startswith("tokenisers.encoders.")
        l1 = training.l1 if reads_input else 0.0
        if decay or l1:
            found.append((parameter, decay, l1))
    return found


_STRENGTHS: WeakKeyDictionary[FusionNetwork, tuple[str, Tensor, Tensor]] = WeakKeyDictionary()


def strengths(plan: Plan, network: FusionNetwork) -> tuple[Tensor, Tensor]:
    """L2 and L1 strength of each coordinate of `network.vector`; worked out once per network."""
    kept = _STRENGTHS.get(network)
    if kept is None or kept[0] != plan.hash or kept[1].dtype != network.vector.dtype:
        known = {id(p): (decay, l1) for p, decay, l1 in penalties(plan, network)}
        each = [known.get(id(p), (0.0, 0.0)) for p in network.named.values()]
        spread = np.repeat(np.array(each), [p.numel() for p in network.named.values()], axis=0)
        if plan.strategy.average == "holders" and not sent_counts(plan):
            # Sites without the modality add their penalty too, and the sum is divided by the holders' share: it cancels.
            spread = spread * constant_behind(network, plan, patients=1.0)[:, None]
        decay, l1 = torch.from_numpy(spread.T.copy()).to(network.vector.dtype)
        kept = _STRENGTHS[network] = (plan.hash, decay, l1)
    return kept[1], kept[2]
