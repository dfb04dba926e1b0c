"""The step after each round that makes all weights of a column zero together: a group LASSO on the input layers.

A plain step of pooled training followed by this one is proximal gradient descent (Parikh & Boyd 2014, sections 4.2 and 6.5.4). The
aggregator's step on the mean of the sites' gradients is that plain step, so that it alone must shrink, and no site does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.features import Preparation, network_columns
from oncofed_shared.layout import Layout
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.plan import Plan
from oncofed_shared.plan_reduction import GroupLasso

__all__ = ["column_weights", "group_strengths", "grouped", "shrunk", "step_length"]

Flat = NDArray[np.float64]


def _readers(network: FusionNetwork) -> Iterator[tuple[str, list[int]]]:
    """Names of the maps that read columns, and which column stands where in each; past the last are shares, which stay."""
    if network.linear is not None:
        yield "linear.weight", list(range(network.linear.in_features))
    if not network.deep:
        return
    tokens = network.tokenisers
    order, start = tokens.order.tolist(), 0
    if tokens.whole:
        yield "tokenisers.0.weight", tokens.order_whole.tolist()
    if tokens.each:
        for i, length in enumerate(tokens.lengths, int(tokens.whole)):
            yield f"tokenisers.{i}.weight", order[start : start + length]
            start += length


def column_weights(network: FusionNetwork, columns: int) -> NDArray[np.int64]:
    """Which column each coordinate of `Layout.flatten` reads, (parameters,); -1 for all others."""
    layout = Layout.of(network)
    made = {n: np.full(shape, -1, dtype=np.int64) for n, shape in layout.shapes.items()}
    for name, order in _readers(network):
        own = np.array(order, dtype=np.int64)
        made[name][:] = np.where(own < columns, own, -1)[None, :]
    return np.concatenate([made[n].ravel() for n in layout.shapes])


def grouped(plan: Plan) -> bool:
    """Whether a plan has a group LASSO."""
    return any(isinstance(m.reduction, GroupLasso) for m in plan.modalities.values())


def group_strengths(plan: Plan, preparation: Preparation) -> Flat:
    """Strength of the penalty on each of the network's columns, (columns,); 0 where a modality has none."""
    parts = []
    for name, own in sorted(network_columns(plan, preparation).items()):
        settings = plan.modalities[name].reduction
        parts.append(np.full(len(own), settings.strength if isinstance(settings, GroupLasso) else 0.0))
    return np.concatenate(parts)


def step_length(plan: Plan, progress: float) -> float:
    """How far along the mean gradient a round goes.

    Args:
        progress: part of the rounds that is over, in [0, 1).
    """
    rule = plan.strategy
    return plan.training.rate * rule.rate * ((1 - progress) if rule.schedule == "linear" else 1.0)


def shrunk(plan: Plan, preparation: Preparation, parameters: Flat, *, seed: int, progress: float) -> Flat:
    """Parameters after the step, (parameters,).

    The weights w of a column become max(0, 1 - step x strength / ||w||) w.
    """
    network = build(plan, network_columns(plan, preparation), seed=seed)
    strengths = group_strengths(plan, preparation)
    column = column_weights(network, len(strengths))
    inside = column >= 0
    lengths = np.sqrt(np.bincount(column[inside], weights=parameters[inside] ** 2, minlength=len(strengths)))
    cut = step_length(plan, progress) * strengths
    factor = np.where(cut > 0, np.maximum(0, 1 - cut / np.maximum(lengths, np.finfo(np.float64).tiny)), 1.0)
    made = parameters.copy()
    made[inside] *= factor[column[inside]]
    return made
