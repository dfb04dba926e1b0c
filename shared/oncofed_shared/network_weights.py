"""How much each modality counts in a patient's prediction (C-09), for every fusion.

- `weighted_sum` and `late`: the weights of the sum.
- `transformer` and `two_way`: how much the summary reads of each modality's tokens, through all layers (attention rollout, Abnar
  & Zuidema 2020): attention between the sides and in each layer is averaged over heads, counts as much as the residual path
  beside it, and is multiplied along the way.
- all others, and the linear path alone: by how much the outputs of all tasks together change where the modality is taken away.

The first two say how a vector was made, and not which modality was right; with `linear_path`, that path is not in them. In the
last one it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oncofed_shared.network import FusionNetwork
from oncofed_shared.network_fusion import Late, WeightedSum

__all__ = ["modality_weights"]


def modality_weights(network: FusionNetwork, values: Tensor, seen: Tensor) -> dict[str, Tensor]:
    """How much each modality counts in each patient's prediction.

    Args:
        network: trained; its dropout is left out here.
        values: (n, columns + voxels), anything where missing.
        seen: (n, columns), 1 where observed.

    Returns:
        Per modality that has columns (n,): from 0, which an absent one has, to 1, which they add up to where there is any.
    """
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            found = _weights(network, values, seen)
    finally:
        network.train(training)
    present = torch.stack([seen[:, columns].amax(dim=1) for columns in network.places.values()], dim=1)
    # What says nothing of any modality says it of all that are there alike.
    found = found * present
    total = found.sum(dim=1, keepdim=True)
    found = torch.where(total > 0, found, present)
    found = found / found.sum(dim=1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
    return dict(zip(network.places, found.unbind(dim=1), strict=True))


def _weights(network: FusionNetwork, values: Tensor, seen: Tensor) -> Tensor:
    """(n, modalities), not negative, of any sum."""
    if network.deep and network.transformer:
        held = network.attended(values, seen)
        return held @ network.tokenisers.member.to(held.dtype)
    if network.deep and isinstance(network.fusion, Late | WeightedSum):
        return network.fusion.weights(network.tokenisers.present(seen))
    whole = torch.cat(list(network(values, seen).values()), dim=1)
    changes = []
    for columns in network.places.values():
        without = seen.clone()
        without[:, columns] = 0
        changes.append((torch.cat(list(network(values, without).values()), dim=1) - whole).abs().sum(dim=1))
    return torch.stack(changes, dim=1)
