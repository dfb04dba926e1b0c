"""Named parameters as one flat vector, and back, in an order that every machine agrees on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

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
    def size(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(s)) for s in self.shapes.values())

    def arrays(self, flat: NDArray[np.float64], dtype: str) -> Arrays:
        """(size,) to named arrays of `dtype`."""
        made: Arrays = {}
        start = 0
        for name, shape in self.shapes.items():
            stop = start + int(np.prod(shape))
            made[name] = flat[start:stop].reshape(shape).astype(dtype)
            start = stop
        return made

    def flatten(self, arrays: Arrays) -> NDArray[np.float64]:
        """Named arrays to (size,) float64."""
        return np.concatenate([np.asarray(arrays[n], np.float64).ravel() for n in self.shapes])

    def check(self, arrays: Arrays) -> None:
        """Compare arrays with the layout.

        Raises:
            RemoteProtocolError: another name, another shape, no floats or a value that is not finite.
        """
        same = {n: a.shape for n, a in arrays.items()} == dict(self.shapes)
        if not same or any(a.dtype.kind != "f" for a in arrays.values()):
            raise RemoteProtocolError("parameters are not those of the plan's network")
        if not all(bool(np.isfinite(a).all()) for a in arrays.values()):
            raise RemoteProtocolError("parameters hold a value that is not finite", code="diverged")
