"""The site's own secret: pseudonyms, addresses in the cache, and the encryption of what lies there (G-35, G-51).

One random key in one file, readable by its owner alone. Everything else is derived from it by HKDF, each purpose with a name
of its own, so that nothing made for one purpose is of use for another.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from oncofed_shared.errors import StorageError
from oncofed_shared.storage import write_whole

__all__ = ["KEY_FILE", "SiteKey"]

KEY_FILE = "site.key"
_BYTES = 32


class SiteKey:
    """The site's key, and what is derived from it.

    Guarantees:
        - Equal patients have equal pseudonyms under one key, and unrelated ones under another.
        - What was sealed under one label opens under this label alone, and not after a bit of it changed.
        - Equal content under an equal label seals to equal bytes (AES-SIV, RFC 5297), so that a cache can be compared.

    Args:
        secret: 32 random bytes.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _BYTES:
            raise ValueError(f"a site's key has {_BYTES} bytes")
        self._names = self._derived(secret, b"names", 32)
        self._addresses = self._derived(secret, b"addresses", 32)
        self._seal = AESSIV(self._derived(secret, b"entries", 64))

    @staticmethod
    def _derived(secret: bytes, purpose: bytes, length: int) -> bytes:
        return HKDF(algorithm=SHA256(), length=length, salt=None, info=b"oncofed/prepare/1/" + purpose).derive(secret)

    @staticmethod
    def open(folder: Path) -> SiteKey:
        """The key in a site's state folder; a new one where there is none.

        Raises:
            StorageError: it cannot be read or written, is damaged, or others may read it.
        """
        path = folder / KEY_FILE
        try:
            if not path.exists():
                write_whole(path, secrets.token_bytes(_BYTES).hex().encode() + b"\n", private=True)
            if path.stat().st_mode & 0o077:
                raise StorageError(f"{path}: others than its owner may read it; run: chmod 600 {path}")
            secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except OSError as error:
            raise StorageError(f"{path}: cannot be used ({error.strerror}); check its rights") from None
        except ValueError:
            secret = b""
        if len(secret) != _BYTES:
            raise StorageError(f"{path}: is damaged; delete it together with the cache beside it and preprocess anew")
        return SiteKey(secret)

    def pseudonym(self, patient: str) -> str:
        """A patient's name in the cache: a keyed hash, 32 hex digits."""
        return hmac.new(self._names, patient.encode(), sha256).hexdigest()[:32]

    def digest(self, *parts: bytes) -> str:
        """A keyed hash of some parts, in their order; 32 hex digits."""
        made = hmac.new(self._addresses, digestmod=sha256)
        for part in parts:
            made.update(len(part).to_bytes(8, "big") + part)
        return made.hexdigest()[:32]

    def digest_chunks(self, chunks: Iterable[bytes]) -> str:
        """A keyed hash of a file's content, read piece by piece; 32 hex digits."""
        made = hmac.new(self._addresses, b"file", digestmod=sha256)
        for chunk in chunks:
            made.update(chunk)
        return made.hexdigest()[:32]

    def seal(self, label: str, content: bytes) -> bytes:
        """Encrypt and authenticate, bound to a label."""
        # AES-SIV refuses the empty text, so one byte goes before it.
        return self._seal.encrypt(b"\x01" + content, [label.encode()])

    def unseal(self, label: str, sealed: bytes) -> bytes | None:
        """Open what was sealed under this label; None when it was not, or was changed since."""
        try:
            return self._seal.decrypt(sealed, [label.encode()])[1:]
        except (InvalidTag, ValueError):
            return None

    def __repr__(self) -> str:
        return "SiteKey(...)"

    def __reduce__(self) -> str:
        raise TypeError("a site's key does not leave its process")
