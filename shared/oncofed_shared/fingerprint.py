"""What two people read to each other by telephone to know that they hold the same key."""

from __future__ import annotations

import hashlib

__all__ = ["key_fingerprint", "same_fingerprint"]

_DIGITS = 32


def key_fingerprint(raw: bytes) -> str:
    """SHA-256 of a raw public key, its first 128 bits in groups of four hex digits."""
    digits = hashlib.sha256(raw).hexdigest()[:_DIGITS]
    return " ".join(digits[i : i + 4] for i in range(0, _DIGITS, 4))


def same_fingerprint(typed: str, raw: bytes) -> bool:
    """Whether what somebody typed, with or without blanks, is a key's whole fingerprint."""
    return "".join(typed.split()).lower() == key_fingerprint(raw).replace(" ", "")
