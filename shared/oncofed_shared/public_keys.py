"""Ed25519 public keys as 32 bytes, as they stand in rosters and documents, and as two people compare them by telephone."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

__all__ = ["KEY_BYTES", "SIGNATURE_BYTES", "is_signed", "key_fingerprint", "public_of"]

KEY_BYTES, SIGNATURE_BYTES = 32, 64


def public_of(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of a private key's public half."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def key_fingerprint(raw: bytes) -> str:
    """SHA-256 of a key's 32 bytes, its first 128 bits in groups of four hex digits."""
    digits = hashlib.sha256(raw).hexdigest()[:32]
    return " ".join(digits[i : i + 4] for i in range(0, 32, 4))


def is_signed(raw: bytes, signature: bytes, content: bytes) -> bool:
    """Whether the holder of a public key signed this content; False also for what is no key or no signature."""
    if (len(raw), len(signature)) != (KEY_BYTES, SIGNATURE_BYTES):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, content)
    except (InvalidSignature, ValueError):
        return False
    return True
