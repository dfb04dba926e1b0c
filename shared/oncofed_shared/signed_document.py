"""One form for every signed file: a study, a roster epoch, an enrolment, an approval, a dossier.

    {"oncofed": KIND, "body": {...}, "key": 64 hex digits, "signature": 128 hex digits}

The signature (Ed25519) is over "oncofed document" | 0 | KIND | 0 | canonical JSON of the body: keys sorted, no spaces, ASCII.
How the
file itself is laid out means nothing, so that a person may look at it and an editor may re-indent it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_shared.errors import DataError
from oncofed_shared.public_keys import KEY_BYTES, SIGNATURE_BYTES, is_signed, key_fingerprint, public_of

__all__ = ["MAX_DOCUMENT", "SignedDocument", "canonical", "read_document", "sign_document"]

MAX_DOCUMENT = 1 << 24
_LABEL = b"oncofed document\0"
_KIND = re.compile(r"[a-z][a-z-]{0,39}")
_FIELDS = {"oncofed", "body", "key", "signature"}


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedDocument:
    """A file whose signature holds.

    Attributes:
        body: what was signed.
        key: 32 bytes, who signed it.
        digest: SHA-256 in hex of kind and canonical body; the name of a document whose name must be its content.
    """

    kind: str
    body: dict[str, Any]
    key: bytes
    digest: str


def canonical(body: Mapping[str, Any]) -> bytes:
    """A body's one form as bytes.

    Raises:
        ValueError, TypeError: it holds what JSON has not, such as a number that is not finite.
    """
    return json.dumps(dict(body), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _signed(kind: str, content: bytes) -> bytes:
    return _LABEL + kind.encode() + b"\0" + content


def sign_document(kind: str, body: Mapping[str, Any], key: Ed25519PrivateKey) -> bytes:
    """Sign a document; equal content and key give equal bytes.

    Args:
        kind: small letters and hyphens. A signature under one kind says nothing under another.
        body: JSON values; every key a text.
    """
    if not _KIND.fullmatch(kind):
        raise ValueError(f"{kind!r} is not a kind of document")
    content = canonical(body)
    envelope = {
        "oncofed": kind,
        "body": json.loads(content),
        "key": public_of(key).hex(),
        "signature": key.sign(_signed(kind, content)).hex(),
    }
    return (json.dumps(envelope, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()


def read_document(content: bytes, kind: str, *, signer: bytes | None, where: str = "file") -> SignedDocument:
    """Read a signed document and check it.

    Args:
        signer: the 32 bytes of the key that must have signed it; None takes any, and the caller decides about `key`.
        where: the file's name, for messages.

    Guarantees:
        - What is returned was signed, as this kind, by the key that is returned with it.
        - One bit changed in body, kind, key or signature: refused.
        - Whatever the bytes are, nothing but DataError is raised.

    Raises:
        DataError: code `document` for another form or kind, code `signature` for a wrong signature or signer.
    """
    fields = _parsed(content, where)
    found = fields["oncofed"]
    if found != kind:
        shown = found if isinstance(found, str) and _KIND.fullmatch(found) else "something else"
        raise DataError(f"{where}: is a signed {shown}; expected a signed {kind}", code="document")
    key, signature = _hex(fields["key"], KEY_BYTES), _hex(fields["signature"], SIGNATURE_BYTES)
    body = fields["body"]
    if not isinstance(body, dict) or key is None or signature is None:
        raise DataError(f"{where}: is not written as a signed {kind} is; ask for the file again", code="document")
    try:
        signed = canonical(body)
    except (ValueError, TypeError, RecursionError):
        raise DataError(f"{where}: holds a number that JSON has not; ask for the file again", code="document") from None
    if signer is not None and key != signer:
        raise DataError(
            f"{where}: is signed by {key_fingerprint(key)}; expected {key_fingerprint(signer)}. Compare the fingerprint by "
            "telephone before you trust another key",
            code="signature",
        )
    if not is_signed(key, signature, _signed(kind, signed)):
        raise DataError(
            f"{where}: its signature does not fit its content: it was changed or damaged; ask for the file again",
            code="signature",
        )
    digest = hashlib.sha256(_signed(kind, signed)).hexdigest()
    return SignedDocument(kind=kind, body=body, key=key, digest=digest)


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    if len(content) > MAX_DOCUMENT:
        raise DataError(f"{where}: has {len(content)} bytes; a signed file has at most {MAX_DOCUMENT}", code="document")
    try:
        fields = json.loads(content.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        raise DataError(f"{where}: is not a signed oncofed file, or it is damaged", code="document")
    return fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _hex(value: Any, size: int) -> bytes | None:
    """Bytes of small hex digits, of one length; None for anything else, so that a file has one spelling of them."""
    ok = isinstance(value, str) and re.fullmatch(r"[0-9a-f]*", value) is not None and len(value) == 2 * size
    return bytes.fromhex(value) if ok else None
