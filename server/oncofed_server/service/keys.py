"""Private keys in files of their own: made once, readable by their owner alone."""

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

from oncofed_shared.errors import ConfigError, DataError, StorageError
from oncofed_shared.storage import write_whole

__all__ = ["new_key", "public_file", "read_key", "read_public_key", "write_secret"]


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, and that was not there before.

    Raises:
        ConfigError: there is a file of this name already.
        StorageError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise ConfigError(f"{path}: is there already, and a key is never replaced; choose another name") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); choose another folder") from None


def public_file(path: Path) -> Path:
    """Where the public half of a private key lies."""
    return path.with_name(f"{path.stem}.pub")


def new_key(path: Path) -> Ed25519PrivateKey:
    """Make an Ed25519 key in a new file, with its public half beside it.

    Guarantees:
        - An existing file is never replaced.
        - The private half is its owner's alone (0600).

    Raises:
        ConfigError: there is a file of this name already.
    """
    key = Ed25519PrivateKey.generate()
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    write_whole(public_file(path), key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return key


def read_key(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 key.

    Raises:
        DataError: it is absent, is no such key, or others may read it.
    """
    try:
        mode = path.stat().st_mode
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise DataError(f"{path}: is not a private key, or it is damaged") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError(f"{path}: is a key of another kind; expected Ed25519")
    if mode & 0o077:
        raise DataError(f"{path}: others than its owner may read it; make it 0600, or a new one if they did")
    return key


def read_public_key(path: Path) -> bytes:
    """The 32 bytes of an Ed25519 public key from a PEM file.

    Raises:
        DataError: it is absent or is not such a key.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, UnsupportedAlgorithm):
        raise DataError(
            f"{path}: is not a public key; expected the .pub file of `oncofed-aggregator plan-key`"
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise DataError(f"{path}: is a key of another kind; expected Ed25519")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)
