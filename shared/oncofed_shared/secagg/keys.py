"""Signatures, exchanged keys and derived keys: everything that is signed or derived says what it is for.

The bytes that are signed, and HKDF's info, are msgpack of (suite, purpose, parts): no two different lists of parts have the same
bytes, and a signature for one purpose is none for another.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgpack
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.secagg.group import SUITE, Group, Step

__all__ = [
    "agreement",
    "commit",
    "deal_key",
    "hashed",
    "pair_key",
    "public_key",
    "seal",
    "self_key",
    "sign",
    "unseal",
    "verify",
]

KEY_BYTES = 32
_NONCE = bytes(12)


def _bound(purpose: str, *parts: Any) -> bytes:
    content: bytes = msgpack.packb((SUITE, purpose, *parts))
    return content


def hashed(purpose: str, *parts: Any) -> bytes:
    """SHA-256 of parts, for one purpose."""
    return hashlib.sha256(_bound(purpose, *parts)).digest()


def sign(key: Ed25519PrivateKey, purpose: str, *parts: Any) -> bytes:
    """Sign parts for one purpose."""
    return key.sign(_bound(purpose, *parts))


def verify(group: Group, name: str, signature: bytes, purpose: str, *parts: Any) -> None:
    """Check a site's signature.

    Raises:
        RemoteProtocolError: code "member" if the group has no such site, "signature" if it did not sign this.
    """
    if name not in group.names:
        raise RemoteProtocolError(f"{purpose}: the group has no site of that name", code="member")
    try:
        Ed25519PublicKey.from_public_bytes(group.key(name)).verify(signature, _bound(purpose, *parts))
    except (InvalidSignature, ValueError):
        raise RemoteProtocolError(f"{purpose} of {name}: the signature does not fit", code="signature") from None


def public_key(secret: bytes) -> bytes:
    """X25519 public key of 32 secret bytes."""
    return agreement(secret).public_key().public_bytes_raw()


def commit(group: Group, name: str, number: int, seed: bytes) -> bytes:
    """What a site publishes of a self-mask's seed: of 256 random bits, it says nothing; two seeds never share it."""
    return hashed("seed", group.digest, name, number, seed)


def _derive(secret: bytes, purpose: str, *parts: Any) -> bytes:
    """HKDF-SHA256 (RFC 5869) to 32 bytes."""
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=_bound(purpose, *parts)).derive(secret)


def agreement(secret: bytes) -> X25519PrivateKey:
    """X25519 key of 32 secret bytes; making it costs as much as using it, so make it once for all peers."""
    return X25519PrivateKey.from_private_bytes(secret)


def _exchange(secret: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return secret.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        # A point of small order: its owner could make the mask predictable.
        raise RemoteProtocolError("a peer's public key is none that keys can be exchanged with", code="key") from None


def pair_key(
    group: Group, setup: bytes, step: Step, *, names: tuple[str, str], secret: X25519PrivateKey, public: bytes
) -> bytes:
    """Key of the mask that two sites share in a step; the same from either side.

    Args:
        group: bound into the key with its plan, session, roster and numbers.
        setup: hash of the adverts that the step's keys came with.
        step: bound into the key with its number, attempt, size, kind and the parameters' hash.
        names: of both sites, in any order.
        secret: X25519 secret of one of them, for this step.
        public: X25519 public key of the other, for this step.
    """
    shared = _exchange(secret, public)
    return _derive(shared, "pair mask", group.digest, setup, step.parts, sorted(names))


def self_key(group: Group, setup: bytes, step: Step, name: str, seed: bytes) -> bytes:
    """Key of a site's own mask in a step."""
    return _derive(seed, "self mask", group.digest, setup, step.parts, name)


def deal_key(
    group: Group, setup: bytes, block: int, *, sender: str, receiver: str, secret: X25519PrivateKey, public: bytes
) -> bytes:
    """Key under which `sender` sends `receiver` its shares of a block, once.

    Args:
        secret: X25519 transport secret of either of them.
        public: X25519 transport key of the other.
    """
    shared = _exchange(secret, public)
    return _derive(shared, "deal", group.digest, setup, block, sender, receiver)


def seal(key: bytes, content: bytes) -> bytes:
    """Encrypt and authenticate. A key seals one content only: the nonce is always the same."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, content, None)


def unseal(key: bytes, sealed: bytes, sender: str) -> bytes:
    """Inverse of `seal`.

    Raises:
        RemoteProtocolError: code "deal": `sender` did not seal it under this key, or it was changed.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, None)
    except (InvalidTag, ValueError):
        raise RemoteProtocolError(f"the sealed shares of {sender} cannot be opened", code="deal") from None
