"""What crosses the wire between an aggregator and a site: a message of `messages` in a signed envelope.

    request = (version, "request", signed, signature by the study's step key)
    signed  = (study id, site, number, roster epoch, sights, body)
    reply   = (version, "reply", signed, signature by the site's identity)
    signed  = (study id, site, digest of the request, sight, length of the body | body | zeros)

as msgpack; signatures are over "oncofed request|reply" | version | SHA-256 of the signed bytes as they stand, so that nothing
has to be
written anew to be checked. Whatever carries these bytes, Flower, a proxy or a gate, can hold them back and can change nothing.

`number` counts a study's requests to one site. A request is known by its `digest`: study, site, number and body. Roster epoch
and sights
may be newer when it is sent again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.messages import MAX_BYTES
from oncofed_shared.public_keys import SIGNATURE_BYTES, is_signed
from oncofed_shared.roster import MAX_ROSTER
from oncofed_shared.signed_study import PROTOCOL, SignedStudy

__all__ = [
    "MAX_SEALED",
    "REFUSED",
    "SealedReply",
    "SealedRequest",
    "open_reply",
    "open_request",
    "seal_reply",
    "seal_request",
    "verify_request",
]

MAX_SIGHTS, MAX_SIGHT, DIGEST_BYTES = 400, 1024, 32
MAX_SEALED = MAX_BYTES + MAX_ROSTER + MAX_SIGHTS * MAX_SIGHT + 4096
PAD = 4096
"""A reply's body is padded to whole blocks of so many bytes, so that its length does not tell how many digits a number has."""
REFUSED: bytes = msgpack.packb((PROTOCOL, "refused", b"", b""))
"""What a site answers to whoever cannot prove to be the aggregator of a study that is approved there. Always the same bytes."""
_LENGTH = 8
_REQUEST, _REPLY, _DIGEST = "request", "reply", b"oncofed request digest"


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedRequest:
    """A request's fields. Nothing is checked but their form until `verify_request`.

    Attributes:
        study_id: of the signed study.
        site: whom it is for.
        number: of the request among those of this study to this site, rising.
        roster: the newest roster epoch that the aggregator has: a signed file.
        sights: what other sites have signed of the models that they were sent (`sights`).
        body: bytes of a message.
        digest: 32 bytes; equal for equal study, site, number and body.
        signed, signature: what was signed, and by whom it should be.
    """

    study_id: str
    site: str
    number: int
    roster: bytes
    sights: tuple[bytes, ...]
    body: bytes
    digest: bytes
    signed: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedReply:
    """A reply whose signature holds: bytes of a message, and what the site signs of the model that it was sent, or nothing."""

    body: bytes
    sight: bytes


def _to_sign(kind: str, signed: bytes) -> bytes:
    return f"oncofed {kind}".encode() + bytes([PROTOCOL]) + hashlib.sha256(signed).digest()


def _digest(study_id: str, site: str, number: int, body: bytes) -> bytes:
    packed = msgpack.packb((PROTOCOL, study_id, site, number, hashlib.sha256(body).digest()))
    return hashlib.sha256(_DIGEST + packed).digest()


def seal_request(
    body: bytes,
    *,
    study_id: str,
    site: str,
    number: int,
    roster: bytes,
    key: Ed25519PrivateKey,
    sights: tuple[bytes, ...] = (),
) -> bytes:
    """Sign a request with the study's step key; equal content gives equal bytes.

    Args:
        body: bytes of a message.
        number: from 1 on; one for each body, the same one only for the same body.
    """
    signed = msgpack.packb((study_id, site, number, roster, list(sights), body))
    content: bytes = msgpack.packb((PROTOCOL, _REQUEST, signed, key.sign(_to_sign(_REQUEST, signed))))
    return content


def open_request(content: bytes) -> SealedRequest:
    """A request's fields, of the right types and sizes; nothing of them is to be believed yet.

    Raises:
        RemoteProtocolError: code `oversized`, `malformed`, or `version` for another protocol version. Whatever the bytes are,
        nothing
            else is raised, and memory stays within a few times their length.
    """
    signed, signature = _opened(content, _REQUEST)
    study_id, site, number, roster, sights, body = _fields(signed, 6)
    kinds = [type(v) for v in (study_id, site, number, roster, sights, body)]
    if (
        kinds != [str, str, int, bytes, list, bytes]
        or not 1 <= number < 1 << 53
        or max(len(study_id), len(site)) > 64
        or len(roster) > MAX_ROSTER
        or any(type(s) is not bytes or len(s) > MAX_SIGHT for s in sights)
    ):
        raise _malformed("request")
    return SealedRequest(
        study_id=study_id,
        site=site,
        number=number,
        roster=roster,
        sights=tuple(sights),
        body=body,
        digest=_digest(study_id, site, number, body),
        signed=signed,
        signature=signature,
    )


def verify_request(request: SealedRequest, study: SignedStudy) -> None:
    """See that a request is of a study and signed by its step key.

    Guarantees:
        - One bit changed anywhere in the signed part or the signature: refused.

    Raises:
        RemoteProtocolError: code `signature`.
    """
    signed = is_signed(study.step_key, request.signature, _to_sign(_REQUEST, request.signed))
    if request.study_id != study.id or not signed:
        raise RemoteProtocolError("the request is not signed by the step key of its study", code="signature")


def seal_reply(
    body: bytes,
    *,
    request_digest: bytes,
    study_id: str,
    site: str,
    key: Ed25519PrivateKey,
    sight: bytes = b"",
) -> bytes:
    """Sign a reply with the site's identity; equal content gives equal bytes.

    Guarantees:
        - Bodies that fill the same number of blocks of PAD bytes give replies of one length.
    """
    padded = len(body).to_bytes(_LENGTH, "big") + body
    padded += bytes(-len(padded) % PAD)
    signed = msgpack.packb((study_id, site, request_digest, sight, padded))
    content: bytes = msgpack.packb((PROTOCOL, _REPLY, signed, key.sign(_to_sign(_REPLY, signed))))
    return content


def open_reply(content: bytes, *, request_digest: bytes, study_id: str, site: str, identity: bytes) -> SealedReply:
    """A reply's body and sight, if the site signed it as the answer to this very request.

    Args:
        identity: the site's 32 bytes in the study's roster.

    Raises:
        RemoteProtocolError: code `refused` if the site did not believe the request at all; `oversized`, `malformed`,
        `version`; `signature`
            for whatever the site did not sign, or signed for another request. Whatever the bytes are, nothing else is raised.
    """
    if content == REFUSED:
        raise RemoteProtocolError(
            f"{site}: does not believe the request; its own log says why (study not approved there, another step key, "
            "another version)",
            code="refused",
        )
    signed, signature = _opened(content, _REPLY)
    if not is_signed(identity, signature, _to_sign(_REPLY, signed)):
        raise RemoteProtocolError(f"{site}: the reply is not signed by the site's identity", code="signature")
    found_study, found_site, found_digest, sight, padded = _fields(signed, 5)
    if (found_study, found_site, found_digest) != (study_id, site, request_digest):
        raise RemoteProtocolError(f"{site}: the reply belongs to another request", code="signature")
    if type(sight) is not bytes or len(sight) > MAX_SIGHT or type(padded) is not bytes:
        raise _malformed("reply")
    size = int.from_bytes(padded[:_LENGTH], "big")
    if len(padded) != size + _LENGTH + -(size + _LENGTH) % PAD:
        raise _malformed("reply")
    return SealedReply(body=padded[_LENGTH : _LENGTH + size], sight=sight)


def _opened(content: bytes, kind: str) -> tuple[bytes, bytes]:
    if len(content) > MAX_SEALED:
        raise RemoteProtocolError(f"{len(content)} bytes; at most {MAX_SEALED}", code="oversized")
    version, found, signed, signature = _fields(content, 4)
    if type(version) is not int or version != PROTOCOL:
        raise RemoteProtocolError(f"another protocol version; this is version {PROTOCOL}", code="version")
    sizes = type(signed) is bytes and type(signature) is bytes and len(signature) == SIGNATURE_BYTES
    if found != kind or not sizes:
        raise _malformed(kind)
    return signed, signature


def _fields(content: bytes, count: int) -> list[Any]:
    """A list of values, without any table or extension in it."""
    try:
        values = msgpack.unpackb(
            content,
            max_str_len=64,
            max_bin_len=MAX_SEALED,
            max_array_len=MAX_SIGHTS,
            max_map_len=0,
            max_ext_len=0,
        )
    except Exception:  # noqa: BLE001 - whatever hostile bytes provoke is the peer's fault
        values = None
    if type(values) is not list or len(values) != count:
        raise _malformed("message")
    return values


def _malformed(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"these bytes are not a sealed {what}", code="malformed")
