"""Who a site is: one Ed25519 key, made once, readable by its owner alone, its public half beside it."""

from __future__ import annotations

import contextlib
import hashlib
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

from oncofed_shared.errors import DataError, StorageError
from oncofed_shared.storage import write_whole

__all__ = ["KEY_FILE", "PUBLIC_FILE", "fingerprint_of", "identity_of", "public_half", "raw_public", "read_public"]

KEY_FILE, PUBLIC_FILE = "identity.key", "identity.pub"


def raw_public(key: Ed25519PublicKey) -> bytes:
    """The 32 bytes of a public key, as they stand in a roster."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def fingerprint_of(key: Ed25519PublicKey) -> str:
    """What two people compare by telephone: SHA-256 of the key's 32 bytes, in groups of four hex digits."""
    digits = hashlib.sha256(raw_public(key)).hexdigest()[:32]
    return " ".join(digits[i : i + 4] for i in range(0, 32, 4))


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
    try:
        mode = path.stat().st_mode
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise DataError(
            f"{path}: is not a site's identity key, or it is damaged; bring it back from a backup"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError(f"{path}: is a key of another kind; expected Ed25519")
    if mode & 0o077:
        raise DataError(
            f"{path}: others than its owner may read it; make it 0600, and ask for a new enrolment if they did"
        )
    public = folder / PUBLIC_FILE
    if not public.exists():
        write_whole(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    if raw_public(public_half(folder)) != raw_public(key.public_key()):
        raise DataError(f"{public}: is not the public half of {KEY_FILE} beside it; one of them was replaced")
    return key


def _make(path: Path) -> None:
    """Write a new key; whoever comes second leaves the first one's."""
    content = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another folder"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


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
