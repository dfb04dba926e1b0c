"""Random numbers that nobody can predict: AES in counter mode, keyed by the operating system.

torch and numpy draw from generators whose state can be computed from what they gave before. Noise from those can be taken away.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

__all__ = ["Randomness"]

KEY_BYTES, BLOCK_BYTES = 32, 16
_ZEROS = memoryview(bytes(1 << 17))


class Randomness:
    """A stream of random numbers. Make one with `from_os`; `repeatable` is for simulations.

    Attributes:
        repeats: whether somebody could make the same stream again.

    Guarantees:
        - `from_os`: 256 bits of the operating system's entropy per stream; two streams have nothing in common.
        - `uniforms`: multiples of 2**-53 in [0, 1), each equally likely.
        - `repeatable`: the label alone decides the stream.
    """

    def __init__(self, key: bytes, start: bytes, *, repeats: bool = True) -> None:
        self.repeats = repeats
        self._stream = Cipher(AES256(key), CTR(start)).encryptor()

    @classmethod
    def from_os(cls) -> Randomness:
        """A stream that nobody can repeat."""
        return cls(os.urandom(KEY_BYTES), os.urandom(BLOCK_BYTES), repeats=False)

    @classmethod
    def repeatable(cls, label: str) -> Randomness:
        """The stream of a label: for simulations, where it protects nobody."""
        key = hashlib.sha256(f"oncofed simulated noise|{label}".encode()).digest()
        return cls(key, bytes(BLOCK_BYTES))

    def words(self, count: int) -> NDArray[np.uint64]:
        """(count,) of 64 random bits each."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")

    def halves(self, count: int) -> NDArray[np.uint16]:
        """(count,) of 16 random bits each; what is left of a word is not used again."""
        room = 8 * ((count + 3) // 4)
        # The cipher wants a block's length less one beyond what it writes.
        made = np.empty(room + BLOCK_BYTES, dtype=np.uint8)
        self._stream.update_into(_ZEROS[:room] if room <= len(_ZEROS) else bytes(room), made.data)
        return made[: 2 * count].view("<u2")

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """(count,) in [0, 1)."""
        return np.asarray((self.words(count) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)
