"""The newest state of a site's ledger in a few bytes, and the signatures of others under it.

A site cannot prove by itself that its ledger is the newest: a copy from last month is as sound as it was then. So each upload
carries the ledger's head; the aggregator and the peers sign it back. A ledger that lacks what others have signed was rolled back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from oncofed_shared.errors import RemoteProtocolError

__all__ = ["MAX_HEAD", "MAX_WITNESS", "Head", "Witness", "sign_head", "sign_witness"]

MAX_HEAD, MAX_WITNESS, MAX_NAME = 1024, 2048, 128
_HEAD_LABEL, _WITNESS_LABEL = b"oncofed ledger head 1|", b"oncofed ledger witness 1|"


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A ledger's newest entry, as others see it.

    Attributes:
        site: whose ledger.
        epoch, number: of the entry.
        hash: 32 bytes, of the entry and so of all before.
        sealed: what all entries add up to, readable by the site alone, so that a restore loses no charge.
        signature: the site's.
    """

    site: str
    epoch: int
    number: int
    hash: bytes
    sealed: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """As it travels."""
        packed: bytes = msgpack.packb((*_fields(self), self.signature))
        return packed

    @classmethod
    def from_bytes(cls, content: bytes) -> Head:
        """Inverse of `to_bytes`; the signature is not looked at.

        Raises:
            RemoteProtocolError: these bytes are not a head.
        """
        values = _tuple_of(content, MAX_HEAD)
        if [type(v) for v in values] == [str, int, int, bytes, bytes, bytes]:
            site, epoch, number, digest, sealed, signature = values
            head = cls(site=site, epoch=epoch, number=number, hash=digest, sealed=sealed, signature=signature)
            sizes = (len(digest), len(signature)) == (32, 64) and len(site) <= MAX_NAME
            if sizes and min(epoch, number) >= 1 and head.to_bytes() == content:
                return head
        raise RemoteProtocolError("this is not the head of a ledger", code="ledger-head")

    def is_signed_by(self, key: Ed25519PublicKey) -> bool:
        """Whether the site that has this key made it."""
        return _verified(key, self.signature, _HEAD_LABEL + msgpack.packb(_fields(self)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Witness:
    """That somebody has seen a head.

    Attributes:
        name: the aggregator, or a peer.
        public_key: 32 bytes. Whoever reads it decides whether this key is one to believe.
        head: bytes of the head.
        signature: 64 bytes.
    """

    name: str
    public_key: bytes
    head: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """As it travels."""
        packed: bytes = msgpack.packb((self.name, self.public_key, self.head, self.signature))
        return packed

    @classmethod
    def from_bytes(cls, content: bytes) -> Witness:
        """Inverse of `to_bytes`; the signatures are not looked at.

        Raises:
            RemoteProtocolError: these bytes are not a witness.
        """
        values = _tuple_of(content, MAX_WITNESS)
        kinds = [type(v) for v in values]
        if kinds == [str, bytes, bytes, bytes] and len(values[0]) <= MAX_NAME:
            name, public_key, head, signature = values
            Head.from_bytes(head)
            witness = cls(name=name, public_key=public_key, head=head, signature=signature)
            if (len(public_key), len(signature)) == (32, 64) and witness.to_bytes() == content:
                return witness
        raise RemoteProtocolError("this is not the witness of a ledger", code="ledger-witness")

    @property
    def is_signed(self) -> bool:
        """Whether the holder of `public_key` signed it."""
        try:
            key = Ed25519PublicKey.from_public_bytes(self.public_key)
        except ValueError:
            return False
        return _verified(key, self.signature, _WITNESS_LABEL + msgpack.packb((self.name, self.head)))


def _tuple_of(content: bytes, largest: int) -> tuple[Any, ...]:
    """What a few bytes pack; nothing where they are too many, or no such thing."""
    if len(content) > largest:
        return ()
    try:
        values = msgpack.unpackb(content, use_list=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
        return ()
    return values if isinstance(values, tuple) else ()


def _fields(head: Head) -> tuple[str, int, int, bytes, bytes]:
    return head.site, head.epoch, head.number, head.hash, head.sealed


def _verified(key: Ed25519PublicKey, signature: bytes, content: bytes) -> bool:
    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def sign_head(key: Ed25519PrivateKey, *, site: str, epoch: int, number: int, digest: bytes, sealed: bytes) -> Head:
    """A site's head; equal content gives equal bytes."""
    content = msgpack.packb((site, epoch, number, digest, sealed))
    return Head(
        site=site, epoch=epoch, number=number, hash=digest, sealed=sealed, signature=key.sign(_HEAD_LABEL + content)
    )


def sign_witness(key: Ed25519PrivateKey, *, name: str, head: bytes) -> Witness:
    """Sign a head that was seen.

    Raises:
        RemoteProtocolError: these bytes are not a head.
    """
    Head.from_bytes(head)
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return Witness(
        name=name, public_key=public, head=head, signature=key.sign(_WITNESS_LABEL + msgpack.packb((name, head)))
    )
