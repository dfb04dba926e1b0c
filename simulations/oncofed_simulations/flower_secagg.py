"""Flower's SecAgg+ of one client and of the server, as calls of its own functions: what `bench_secagg` compares with.

The calls and their order are those of `flwr.client.mod.secaggplus_mod` and of `SecAggPlusWorkflow` of the pinned version, without
messages, serialisation and key dealing: with them it would take longer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)
from numpy.typing import NDArray

__all__ = ["FlowerSecAgg"]

Arrays = list[NDArray[Any]]
CLIP, TARGET_BITS, RING_BITS, MAX_WEIGHT = 8.0, 22, 32, 1000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowerSecAgg:
    """One round of `sites` clients; everything that Flower does before the vectors exist is done in `create`.

    Attributes:
        secrets: private keys for the masks, by client.
        publics: public keys, by client.
        seeds: seeds of the own masks, by client.
        shares: of each client's seed and private key, for all clients.
    """

    sites: int
    threshold: int
    secrets: Sequence[bytes]
    publics: Sequence[bytes]
    seeds: Sequence[bytes]
    shares: Sequence[tuple[list[bytes], list[bytes]]]

    @classmethod
    def create(cls, *, sites: int, threshold: int) -> FlowerSecAgg:
        """Draw and share all keys."""
        pairs = [generate_key_pairs() for _ in range(sites)]
        secrets = [private_key_to_bytes(secret) for secret, _ in pairs]
        seeds = [os.urandom(32) for _ in range(sites)]
        shared = [
            (create_shares(seed, threshold, sites), create_shares(secret, threshold, sites))
            for seed, secret in zip(seeds, secrets, strict=True)
        ]
        publics = [public_key_to_bytes(public) for _, public in pairs]
        return cls(sites=sites, threshold=threshold, secrets=secrets, publics=publics, seeds=seeds, shares=shared)

    def mask(self, client: int, parameters: Arrays, examples: int) -> Arrays:
        """What a client uploads: `secaggplus_mod._collect_masked_vectors`."""
        target = 1 << TARGET_BITS
        weight = round(examples / MAX_WEIGHT * target)
        quantised = quantize(parameters_multiply(parameters, weight / target), CLIP, target)
        vector = factor_combine(weight, quantised)
        shapes = [a.shape for a in vector]
        vector = parameters_addition(vector, pseudo_rand_gen(self.seeds[client], 1 << RING_BITS, shapes))
        for other in range(self.sites):
            if other != client:
                mask = pseudo_rand_gen(self._pair(self.secrets[client], other), 1 << RING_BITS, shapes)
                add = parameters_addition if client > other else parameters_subtraction
                vector = add(vector, mask)
        return parameters_mod(vector, 1 << RING_BITS)

    @staticmethod
    def _exchange(secret: bytes, public: bytes) -> bytes:
        peer = bytes_to_public_key(public)
        if not isinstance(peer, ec.EllipticCurvePublicKey):
            raise TypeError(type(peer).__name__)
        return generate_shared_key(bytes_to_private_key(secret), peer)

    def _pair(self, secret: bytes, other: int) -> bytes:
        return self._exchange(secret, self.publics[other])

    def unmask(self, total: Arrays, missing: Sequence[int]) -> Arrays:
        """The mean, from the sum of the masked vectors of all but `missing`: `SecAggPlusWorkflow.unmask_stage`."""
        alive = [i for i in range(self.sites) if i not in missing]
        shapes = get_parameters_shape(total)
        for client, secret in self._recovered(alive).items():
            if client in alive:
                total = parameters_subtraction(total, pseudo_rand_gen(secret, 1 << RING_BITS, shapes))
                continue
            for other in alive:
                mask = pseudo_rand_gen(self._pair(secret, other), 1 << RING_BITS, shapes)
                total = (parameters_addition if client > other else parameters_subtraction)(total, mask)
        target = 1 << TARGET_BITS
        factor, vectors = factor_extract(parameters_mod(total, 1 << RING_BITS))
        mean = dequantize(vectors, CLIP, target)
        scale = target / np.asarray(factor).item()
        return [(vector - (len(alive) - 1) * CLIP) * scale for vector in mean]

    def _recovered(self, alive: Sequence[int]) -> Mapping[int, bytes]:
        """Seeds of the living, private keys of the others, from the shares that the living reveal."""
        kinds = {client: 0 if client in alive else 1 for client in range(self.sites)}
        return {c: combine_shares([self.shares[c][kind][i] for i in alive]) for c, kind in kinds.items()}
