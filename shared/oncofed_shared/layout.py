"""Named parameters as one flat vector, and back, in an order that every machine agrees on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.messages import Arrays

__all__ = ["Layout", "fingerprint"]


def fingerprint(arrays: Arrays) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in name order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = arrays[name]
        digest.update(f"{name}|{value.dtype.name}|{value.shape}|".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a network's parameters, sorted by name."""

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, network: torch.nn.Module) -> Layout:
        """The layout of a network."""
        return cls({n: tuple(p.shape) for n, p in sorted(network.named_parameters())})

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of coordinates of each parameter."""
        return tuple(math.prod(s) for s in self.shapes.values())

    @cached_property
    def size(self) -> int:
        """Number of parameters."""
        return sum(self.sizes)

    @cached_property
    def _stops(self) -> list[int]:
        """Where each parameter but the last ends."""
        return list(accumulate(self.sizes))[:-1]

    def places(self, whole: Layout) -> NDArray[np.bool_] | slice:
        """Which coordinates of a larger layout belong to this one, (whole.size,); a slice when all do."""
        if len(self.shapes) == len(whole.shapes):
            return slice(None)
        return np.repeat(np.array([n in self.shapes for n in whole.shapes], dtype=bool), whole.sizes)

    def arrays(self, flat: NDArray[np.float64], dtype: str) -> Arrays:
        """(size,) to named arrays of `dtype`."""
        parts = np.split(flat.astype(dtype), self._stops)
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def flatten(self, arrays: Arrays) -> NDArray[np.float64]:
        """Named arrays to (size,) float64."""
        return np.concatenate([arrays[n] for n in self.shapes], axis=None, dtype=np.float64)

    def check(self, arrays: Arrays) -> None:
        """Compare arrays with the layout.

        Raises:
            RemoteProtocolError: another name, another shape, no floats or a value that is not finite.
        """
        same = arrays.keys() == self.shapes.keys()
        if not same or any(arrays[n].shape != s or arrays[n].dtype.kind != "f" for n, s in self.shapes.items()):
            raise RemoteProtocolError("parameters are not those of the plan's network")
        if not np.isfinite(self.flatten(arrays)).all():
            raise RemoteProtocolError("parameters hold a value that is not finite", code="diverged")
