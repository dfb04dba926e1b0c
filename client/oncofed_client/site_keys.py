"""The keys with which a site signs towards others: its first identity, and those that took its place.

    state/identity.key         the first one; it signs the site's own records (ledger, receipts, decisions) for good
    state/keys/next.key        made by `enrol request --renew`, not yet answered
    state/keys/<hex>.key       renewed ones; each signs for the studies whose roster names it
    state/keys/current         public half of the newest, in hex

Records stay with one key, so that a chain of years has one, and nobody else ever checks them against a roster.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from oncofed_client.identity import identity_of
from oncofed_client.private_file import make_once, read_secret
from oncofed_shared.errors import DataError
from oncofed_shared.public_keys import public_of
from oncofed_shared.storage import write_whole

__all__ = ["current_key", "next_key", "own_keys", "pending_key", "renewed_publics", "take_next"]

KEYS, NEXT, CURRENT = "keys", "next.key", "current"
_NAME = re.compile(r"[0-9a-f]{16}\.key")


def _read(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(read_secret(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError(f"{path}: is not a site's key, or it is damaged; bring it back from a backup")
    return key


def _renewed(state: Path) -> list[Ed25519PrivateKey]:
    folder = state / KEYS
    return [_read(p) for p in sorted(folder.iterdir()) if _NAME.fullmatch(p.name)] if folder.is_dir() else []


def renewed_publics(state: Path) -> list[Ed25519PublicKey]:
    """Public halves of the keys that took the first one's place; none is made.

    Raises:
        DataError: one is damaged, or others may read it.
    """
    return [key.public_key() for key in _renewed(state)]


def own_keys(state: Path) -> dict[bytes, Ed25519PrivateKey]:
    """All keys that this site signs with, by their public half; made where there is none.

    Raises:
        DataError: one is damaged, or others may read it.
        StorageError: the folder cannot be written.
    """
    return {public_of(key): key for key in (identity_of(state), *_renewed(state))}


def current_key(state: Path) -> Ed25519PrivateKey:
    """The one that new studies are to name.

    Raises:
        DataError: it is damaged or gone.
    """
    path = state / KEYS / CURRENT
    if not path.exists():
        return identity_of(state)
    try:
        return own_keys(state)[bytes.fromhex(path.read_text(encoding="ascii"))]
    except (ValueError, KeyError):
        raise DataError(f"{path}: names no key that is here; bring {KEYS} back from a backup") from None


def pending_key(state: Path) -> Ed25519PrivateKey | None:
    """The key that was asked for and not answered yet; None without one."""
    path = state / KEYS / NEXT
    return _read(path) if path.exists() else None


def next_key(state: Path) -> Ed25519PrivateKey:
    """A key that is to take the current one's place; the same one until it has done so."""
    path = state / KEYS / NEXT
    made = Ed25519PrivateKey.generate()
    make_once(path, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return _read(path)


def take_next(state: Path, public: bytes) -> None:
    """Let the pending key be the current one, if it is this one; whatever ends the process in between, it can be done again.

    Guarantees:
        - No key is ever lost: those before stay, for the studies that name them.
    """
    pending = pending_key(state)
    if pending is None or public_of(pending) != public:
        return
    folder = state / KEYS
    make_once(folder / f"{public.hex()[:16]}.key", (folder / NEXT).read_bytes())
    write_whole(folder / CURRENT, public.hex().encode(), private=True)
    with suppress(FileNotFoundError):
        (folder / NEXT).unlink()
