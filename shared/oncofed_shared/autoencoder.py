"""An autoencoder of a modality's columns, trained by sums of gradients: a step is the same as over pooled patients.

The loss of a patient is the sum over the columns that were observed of (x - x')^2.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's own name

from oncofed_shared.plan_reduction import Autoencoder

__all__ = ["code_sums", "codes", "first_parameters", "gradient_sums", "parameter_count", "width", "written_step"]

Values = NDArray[np.float64]
Memory = dict[str, Values]


def width(settings: Autoencoder, columns: int) -> int:
    """Numbers in a code; never more than columns."""
    return min(settings.components, columns)


def _shapes(settings: Autoencoder, columns: int) -> list[tuple[int, int]]:
    """(out, in) of each layer: down to the code, and up again."""
    down = [columns, *([settings.hidden] if settings.hidden else []), width(settings, columns)]
    there = list(zip(down[1:], down[:-1], strict=True))
    return there + [(into, out) for out, into in reversed(there)]


def parameter_count(settings: Autoencoder, columns: int) -> int:
    """Weights and biases of all layers."""
    return sum(out * into + out for out, into in _shapes(settings, columns))


def first_parameters(settings: Autoencoder, columns: int, seed: int) -> Values:
    """First values, which the seed alone decides, (parameters,): weights and biases uniform as in torch's linear layers."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for out, into in _shapes(settings, columns):
        bound = 1 / math.sqrt(max(into, 1))
        drawn = torch.rand(out * into + out, generator=generator, dtype=torch.float64)
        parts.append((2 * drawn - 1) * bound)
    return torch.cat(parts).numpy()


def _layers(settings: Autoencoder, columns: int, parameters: Tensor) -> list[tuple[Tensor, Tensor]]:
    layers, start = [], 0
    for out, into in _shapes(settings, columns):
        middle, stop = start + out * into, start + out * into + out
        layers.append((parameters[start:middle].view(out, into), parameters[middle:stop]))
        start = stop
    return layers


def _through(layers: list[tuple[Tensor, Tensor]], values: Tensor) -> Tensor:
    """Layers with a GELU between them, and none behind the last."""
    for i, (weight, bias) in enumerate(layers):
        values = F.linear(F.gelu(values) if i else values, weight, bias)
    return values


def gradient_sums(settings: Autoencoder, parameters: Values, values: Values, seen: NDArray[np.bool_]) -> Values:
    """A site's part of a step.

    Args:
        parameters: (parameters,).
        values: (n, columns), 0 where missing.
        seen: (n, columns).

    Returns:
        (2 + parameters,): patients, sum of losses, and of gradients.
    """
    leaf = torch.from_numpy(parameters.copy()).requires_grad_()
    table = torch.from_numpy(values)
    layers = _layers(settings, values.shape[1], leaf)
    half = len(layers) // 2
    made = _through(layers[half:], _through(layers[:half], table))
    loss = torch.where(torch.from_numpy(seen), made - table, 0).square().sum()
    (gradient,) = torch.autograd.grad(loss, [leaf])
    return np.concatenate([[float(len(values)), float(loss.detach())], gradient.numpy()])


def written_step(settings: Autoencoder, parameters: Values, memory: Memory, sums: Values) -> tuple[Values, Memory]:
    """One step of Adam along the mean gradient; both results are new."""
    leaf = torch.from_numpy(parameters.copy()).requires_grad_()
    adam = torch.optim.Adam([leaf], lr=settings.rate)
    for name, value in memory.items():
        adam.state[leaf][name] = torch.from_numpy(value.copy()).reshape(() if name == "step" else (-1,))
    leaf.grad = torch.from_numpy(sums[2:] / max(sums[0], 1.0))
    adam.step()
    kept = {n: np.atleast_1d(np.asarray(v, dtype=np.float64)) for n, v in adam.state[leaf].items()}
    return leaf.detach().numpy(), kept


def codes(settings: Autoencoder, parameters: Values, values: Values) -> Values:
    """(n, columns) to (n, components)."""
    layers = _layers(settings, values.shape[1], torch.from_numpy(parameters.copy()))
    return _through(layers[: len(layers) // 2], torch.from_numpy(values)).numpy()


def code_sums(settings: Autoencoder, parameters: Values, values: Values) -> Values:
    """(1 + 2 x components,): patients, and per number of the code its sum and sum of squares, by which it is scaled."""
    made = codes(settings, parameters, values)
    return np.concatenate([[float(len(values))], made.sum(axis=0), (made**2).sum(axis=0)])
