"""Who a site is: one Ed25519 key, made once, readable by its owner alone, its public half beside it."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from oncofed_client.private_file import make_once, read_secret
from oncofed_shared.errors import DataError
from oncofed_shared.public_keys import key_fingerprint
from oncofed_shared.storage import write_whole

__all__ = ["KEY_FILE", "PUBLIC_FILE", "fingerprint_of", "identity_of", "public_half", "raw_public", "read_public"]

KEY_FILE, PUBLIC_FILE = "identity.key", "identity.pub"


def raw_public(key: Ed25519PublicKey) -> bytes:
    """The 32 bytes of a public key, as they stand in a roster."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def fingerprint_of(key: Ed25519PublicKey) -> str:
    """What two people compare by telephone: SHA-256 of the key's 32 bytes, in groups of four hex digits."""
    return key_fingerprint(raw_public(key))


def identity_of(folder: Path) -> Ed25519PrivateKey:
    """The key of a site's state folder; made when there is none.

    Guarantees:
        - Made once: two processes that ask at the same time get the same key, and a key that exists is never replaced.
        - The file is its owner's alone (0600), and so is a folder that is made for it (0700).

    Raises:
        DataError: the file is not such a key, or others may read it.
        StorageError: the folder cannot be written.
    """
    path = folder / KEY_FILE
    if not os.path.lexists(path):
        _make(path)
    content = read_secret(path)
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise DataError(
            f"{path}: is not a site's identity key, or it is damaged; bring it back from a backup"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError(f"{path}: is a key of another kind; expected Ed25519")
    public = folder / PUBLIC_FILE
    if not public.exists():
        write_whole(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    if raw_public(public_half(folder)) != raw_public(key.public_key()):
        raise DataError(f"{public}: is not the public half of {KEY_FILE} beside it; one of them was replaced")
    return key


def _make(path: Path) -> None:
    """Write a new key; whoever comes second leaves the first one's."""
    make_once(path, Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def public_half(folder: Path) -> Ed25519PublicKey:
    """The public key that stands beside a site's identity.

    Raises:
        DataError: it is absent or is not such a key.
    """
    return read_public(folder / PUBLIC_FILE)


def read_public(path: Path) -> Ed25519PublicKey:
    """A public key from a file.

    Raises:
        DataError: it is absent or is not such a key.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); it is made with the site's identity") from None
    except (ValueError, UnsupportedAlgorithm):
        raise DataError(f"{path}: is not a public key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise DataError(f"{path}: is a key of another kind; expected Ed25519")
    return key
