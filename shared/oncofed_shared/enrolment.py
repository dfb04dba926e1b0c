"""How a site and an aggregator come to know each other: a request that the site signs, an answer that the aggregator signs.

Both are signed documents. A person carries them; their fingerprints are compared by telephone, because a file can be replaced on
the way. Private halves of keys are in neither.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from cryptography.x509 import load_pem_x509_certificate
from pydantic import Field, ValidationError

from oncofed_shared.errors import DataError
from oncofed_shared.public_keys import is_signed, public_of
from oncofed_shared.signed_document import canonical, read_document, sign_document
from oncofed_shared.strict import Frozen

__all__ = [
    "SITE_NAME",
    "Enrolment",
    "EnrolmentRequest",
    "read_enrolment",
    "read_enrolment_request",
    "write_enrolment",
    "write_enrolment_request",
]

REQUEST, ANSWER = "enrolment-request", "enrolment"
_RENEWAL = b"oncofed identity renewal\0"
SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+ -]{0,63}")
"""What a site may be called: a name that is a file's name too."""
_Name = Annotated[str, Field(pattern=f"^{SITE_NAME.pattern}$")]
_Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_NodeKey = Annotated[str, Field(pattern=r"^ecdsa-sha2-nistp384 [A-Za-z0-9+/=]{20,400}$")]
_Address = Annotated[str, Field(pattern=r"^([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}$")]
_Body = TypeVar("_Body", bound=Frozen)
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----\s*")


@dataclass(frozen=True, kw_only=True, slots=True)
class EnrolmentRequest:
    """What a site asks with.

    Attributes:
        site: its name in rosters.
        identity: raw Ed25519 public key, which signed the request.
        node_key: OpenSSH text of the ECDSA P-384 key with which its gate shows itself, without a comment.
        digest: SHA-256 of the request's bytes, in hex: an answer names it.
        former: raw public key that this identity takes the place of, which has signed that; None in a first request.
    """

    site: str
    identity: bytes
    node_key: str
    digest: str
    former: bytes | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Enrolment:
    """What a site is told.

    Attributes:
        site, identity, request: whom it answers; `request` is the digest of the request.
        aggregator: its name.
        address: HOST:PORT for the gate.
        certificate: PEM of the authority that signed the aggregator's TLS certificate.
        plan_key: raw Ed25519 public key that signs studies and rosters.
        roster: the newest roster epoch as its own signed document, or None while there is none.
        issued: seconds since 1970.
        signer: raw Ed25519 public key that signed the answer.
    """

    site: str
    identity: bytes
    request: str
    aggregator: str
    address: str
    certificate: str
    plan_key: bytes
    roster: bytes | None
    issued: float
    signer: bytes


class _RequestBody(Frozen):
    site: _Name
    identity: _Key
    node_key: _NodeKey
    former: _Key | None = None
    former_signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")] | None = None


class _AnswerBody(Frozen):
    site: _Name
    identity: _Key
    request: _Key
    aggregator: _Name
    address: _Address
    certificate: Annotated[str, Field(max_length=20_000)]
    plan_key: _Key
    roster: Annotated[str, Field(max_length=2_000_000)] | None
    issued: Annotated[float, Field(ge=0, allow_inf_nan=False)]


def write_enrolment_request(
    *, site: str, node_key: str, key: Ed25519PrivateKey, former: Ed25519PrivateKey | None = None
) -> bytes:
    """A site's request, signed by its identity.

    Args:
        site: its name.
        node_key: OpenSSH text of its gate's public key.
        key: its identity.
        former: the identity that `key` takes the place of, where a site renews its own.

    Raises:
        DataError: the name or the node's key has another form.
    """
    identity = public_of(key).hex()
    body = {"site": site, "identity": identity, "node_key": node_key}
    if former is not None:
        handed = _handed_over(site, node_key, identity, public_of(former).hex())
        body |= {"former": public_of(former).hex(), "former_signature": former.sign(handed).hex()}
    _checked(_RequestBody, body, REQUEST)
    return sign_document(REQUEST, body, key)


def _handed_over(site: str, node_key: str, identity: str, former: str) -> bytes:
    """What a former identity signs: that this one, of this site with this gate, takes its place."""
    return _RENEWAL + canonical({"site": site, "node_key": node_key, "identity": identity, "former": former})


def read_enrolment_request(content: bytes, *, where: str = "enrolment request") -> EnrolmentRequest:
    """Read a request.

    Args:
        content: of the file.
        where: the file's name, for messages.

    Guarantees:
        - The identity that it names has signed it; so has the former one, if it names one.

    Raises:
        DataError: it is no request, is damaged, or was signed by another key.
    """
    document = read_document(content, REQUEST, signer=None, where=where)
    body = _checked(_RequestBody, document.body, REQUEST)
    identity = bytes.fromhex(body.identity)
    if identity != document.key:
        raise DataError(
            "enrolment request: was signed by another key than it names; make a new one with "
            "`oncofed-site enrol request`",
            code="signature",
        )
    _check_node_key(body.node_key)
    former = None if body.former is None else bytes.fromhex(body.former)
    if former is not None:
        handed = _handed_over(body.site, body.node_key, body.identity, former.hex())
        if former == identity or not is_signed(former, bytes.fromhex(body.former_signature or ""), handed):
            raise DataError(
                f"{where}: the key that is to be replaced has not signed that; make a new one with "
                "`oncofed-site enrol request --renew`",
                code="signature",
            )
    return EnrolmentRequest(
        site=body.site,
        identity=identity,
        node_key=body.node_key,
        digest=hashlib.sha256(content).hexdigest(),
        former=former,
    )


def write_enrolment(
    request: EnrolmentRequest,
    *,
    aggregator: str,
    address: str,
    certificate: str,
    plan_key: bytes,
    roster: bytes | None,
    issued: float,
    key: Ed25519PrivateKey,
) -> bytes:
    """The aggregator's answer to a request; the arguments are those of `Enrolment`, `key` signs.

    Raises:
        DataError: an argument has another form.
    """
    body = {
        "site": request.site,
        "identity": request.identity.hex(),
        "request": request.digest,
        "aggregator": aggregator,
        "address": address,
        "certificate": certificate,
        "plan_key": plan_key.hex(),
        "roster": None if roster is None else base64.b64encode(roster).decode(),
        "issued": float(issued),
    }
    _check_certificate(_checked(_AnswerBody, body, ANSWER).certificate)
    return sign_document(ANSWER, body, key)


def read_enrolment(content: bytes, *, where: str = "answer to an enrolment") -> Enrolment:
    """Read an answer.

    Args:
        content: of the file.
        where: the file's name, for messages.

    Guarantees:
        - It was signed by the key under `signer`; whose that is, a person has to ask by telephone.

    Raises:
        DataError: it is no answer, or it is damaged.
    """
    document = read_document(content, ANSWER, signer=None, where=where)
    body = _checked(_AnswerBody, document.body, ANSWER)
    _check_certificate(body.certificate)
    return Enrolment(
        site=body.site,
        identity=bytes.fromhex(body.identity),
        request=body.request,
        aggregator=body.aggregator,
        address=body.address,
        certificate=body.certificate,
        plan_key=bytes.fromhex(body.plan_key),
        roster=None if body.roster is None else _decoded(body.roster),
        issued=body.issued,
        signer=document.key,
    )


def _checked(kind: type[_Body], body: Any, what: str) -> _Body:
    try:
        return kind.model_validate(dict(body))
    except ValidationError as error:
        wrong = ", ".join(sorted({str(e["loc"][0]) if e["loc"] else "body" for e in error.errors()}))
        raise DataError(f"{what}: {wrong}: has another form than this version writes; ask for a new file") from None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("enrolment: the roster in it is damaged; ask for a new file") from None


def _check_node_key(text: str) -> None:
    try:
        key = load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise DataError("enrolment request: the gate's key is not an ECDSA P-384 key; make a new request")


def _check_certificate(text: str) -> None:
    try:
        if _CERTIFICATE.fullmatch(text):
            load_pem_x509_certificate(text.encode())
            return
    except ValueError:
        pass
    raise DataError("enrolment: the certificate in it cannot be read; expected one in PEM form; ask for a new file")
