"""Masks: AES-256 in counter mode, straight into ring words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

__all__ = ["Words", "add_masks", "array_hash", "word"]

Words = NDArray[np.uint32] | NDArray[np.uint64]
"""Elements of the ring: unsigned integers that wrap."""
_CHUNK = 1 << 17
_COUNTER = bytes(16)


def word(ring_bits: int) -> np.dtype[np.uint32] | np.dtype[np.uint64]:
    """The array type of a ring."""
    return np.dtype(np.uint32) if ring_bits == 32 else np.dtype(np.uint64)


def add_masks(total: Words, terms: Iterable[tuple[bytes, bool]]) -> None:
    """Add masks to `total`, in place.

    Args:
        total: (d,) ring words.
        terms: (key, whether to subtract) of each mask. A key of 32 bytes makes one mask and nothing else: its counter
            starts at 0.

    Guarantees:
        - Adding and then subtracting a key's mask gives `total` back, bit for bit.
        - A shorter mask of a key is the beginning of a longer one; nothing else of it depends on `total`.
    """
    streams = [(Cipher(AES256(key), CTR(_COUNTER)).encryptor(), minus) for key, minus in terms]
    little = total.dtype.newbyteorder("<")
    per_chunk = _CHUNK // total.itemsize
    zeros = memoryview(bytes(_CHUNK))
    # `update_into` asks for up to one block more than it writes.
    buffer = bytearray(_CHUNK + 15)
    # In pieces that stay in the cache: each piece of `total` is read from memory once for all masks.
    for start in range(0, len(total), per_chunk):
        part = total[start : start + per_chunk]
        mask = np.frombuffer(buffer, dtype=little, count=len(part))
        for stream, minus in streams:
            stream.update_into(zeros[: part.nbytes], buffer)
            (np.subtract if minus else np.add)(part, mask, out=part)


def array_hash(words: Words) -> bytes:
    """SHA-256 of ring words as little-endian bytes."""
    return hashlib.sha256(np.ascontiguousarray(words, dtype=words.dtype.newbyteorder("<")).data).digest()
