"""Whether a ledger is the newest: heads that others signed, totals sealed in them, and what a restore has lost.

A copy of a ledger from last month is sound in itself. Only what somebody else has kept can tell that it is old: the head file
beside it when the ledger alone was restored, and witnesses when the whole folder was.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from oncofed_client.budget import Cost
from oncofed_client.ledger_account import Account
from oncofed_shared.errors import RemoteProtocolError, StorageError
from oncofed_shared.renyi_filter import ORDERS
from oncofed_shared.witness import Head, sign_head

__all__ = ["HEAD_FILE", "contradiction", "head_of", "read_head", "seen_in", "unsealed", "write_head"]

HEAD_FILE = "ledger.head"
_SEAL = struct.Struct(f"<{2 * len(ORDERS) + 1}d")


def _cipher(key: Ed25519PrivateKey) -> AESGCM:
    return AESGCM(HKDF(SHA256(), 32, None, b"oncofed ledger totals 1").derive(key.private_bytes_raw()))


def head_of(account: Account, key: Ed25519PrivateKey, *, signer: Ed25519PrivateKey | None = None) -> Head:
    """The signed head of an account, with its totals sealed for the site itself by its first key.

    Args:
        signer: another key of the site that signs it in the first one's place.

    Guarantees:
        - Nobody without the site's identity key learns from it what was spent, or in how many studies.
        - Equal entries give equal bytes.
    """
    total, digest = account.total(), account.hashes[-1]
    content = _SEAL.pack(*total.pooled, *total.own, total.slack)
    # The nonce is the entry's hash: another content has another one.
    sealed = _cipher(key).encrypt(digest[:12], content, digest)
    return sign_head(
        signer or key, site=account.site, epoch=account.epoch, number=account.number, digest=digest, sealed=sealed
    )


def unsealed(head: Head, key: Ed25519PrivateKey) -> Cost | None:
    """The totals of one's own head; None where it has none that can be read."""
    try:
        values = np.array(_SEAL.unpack(_cipher(key).decrypt(head.hash[:12], head.sealed, head.hash)))
    except (InvalidTag, struct.error):
        return None
    n = len(ORDERS)
    return Cost(pooled=values[:n], own=values[n : 2 * n], slack=float(values[-1]))


def contradiction(account: Account, head: Head, key: Ed25519PrivateKey | None) -> str | None:
    """Why an account cannot be the newest, if this head of it, signed by the site, was seen by somebody; None where it can.

    A head of an earlier epoch may be of entries that a restore has lost, as long as what they charged was counted. Without the
    site's key the latter cannot be seen.
    """
    seen = f"somebody has seen entry {head.number} of epoch {head.epoch}"
    if head.site != account.site:
        return f"{seen} of site '{head.site}', under this site's key"
    if head.epoch > account.epoch or (head.epoch == account.epoch and head.number > account.number):
        return f"{seen}, and this ledger ends with entry {account.number} of epoch {account.epoch}: it was rolled back"
    restore = account.restore_after(head.epoch)
    if restore is not None and head.number >= restore[0]:
        lost = None if key is None else unsealed(head, key)
        if key is not None and (lost is None or lost.beyond(restore[1])):
            return f"{seen}, which a restore has lost, with charges that this ledger does not count"
        return None
    if account.hashes[head.number - 1] != head.hash:
        return (
            f"{seen}, and here stands another entry {head.number}: entries were lost and others written in their place"
        )
    return None


def seen_in(heads: Iterable[Head], key: Ed25519PrivateKey) -> dict[int, Cost]:
    """The most that heads which were seen charge, by epoch; a head whose totals cannot be read charges infinitely much."""
    found: dict[int, Cost] = {}
    for head in heads:
        total = unsealed(head, key)
        if total is None:
            endless = np.full(len(ORDERS), np.inf)
            total = Cost(pooled=endless, own=endless, slack=1.0)
        found[head.epoch] = total.larger(found.get(head.epoch, Cost.nothing()))
    return found


def write_head(path: Path, content: bytes) -> None:
    """Write the newest head beside the ledger.

    In place and without a sync: the ledger itself is synced, and a head that a power cut spoils is as if there were none.

    Raises:
        StorageError: it cannot be written. The ledger's entry stands all the same.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); free some space or check rights") from None


def read_head(path: Path, key: Ed25519PublicKey, *, known: bytes = b"") -> Head | None:
    """The head beside a ledger; None without one, with one that this site did not write, or with the one that is known."""
    try:
        content = path.read_bytes()
        head = None if content == known else Head.from_bytes(content)
    except (OSError, RemoteProtocolError):
        return None
    return head if head is not None and head.is_signed_by(key) else None
