"""Roster epochs: who is enrolled and who was revoked, numbered and signed by the plan key.

A study's roster is fixed when the study is signed. An epoch says which of these keys still hold. The newest one travels with every
request, so that a revocation acts on the next message; a site keeps the highest that it has seen, and a study says how old that may
be, because a relay could hold the newer one back (protocol, rule 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from oncofed_shared.errors import ConfigError, DataError
from oncofed_shared.plan_fields import Name
from oncofed_shared.public_keys import KEY_BYTES
from oncofed_shared.signed_document import read_document, sign_document
from oncofed_shared.strict import Frozen, validate

__all__ = ["MAX_ROSTER", "ROSTER_KIND", "KeyHex", "RosterEpoch", "Standing", "read_roster", "write_roster"]

ROSTER_KIND = "roster"
MAX_ROSTER = 1 << 16
"""Bytes of an epoch: it travels with every request."""
KeyHex = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * KEY_BYTES}}}$")]
Standing = Literal["member", "revoked", "other-key", "absent"]


class _Body(Frozen):
    number: Annotated[int, Field(ge=1, lt=1 << 53)]
    issued: Annotated[float, Field(ge=0)]
    sites: Annotated[dict[Name, KeyHex], Field(max_length=400)]
    revoked: Annotated[dict[Name, KeyHex], Field(max_length=400)]


@dataclass(frozen=True, kw_only=True, slots=True)
class RosterEpoch:
    """Who is enrolled.

    Attributes:
        number: a site never goes back to a lower one.
        issued: seconds since 1970.
        sites: raw identity keys that hold, by site.
        revoked: raw identity keys that hold no more, by site.
        plan_key: 32 bytes, who signed it.
        content: the signed file.
    """

    number: int
    issued: float
    sites: Mapping[str, bytes]
    revoked: Mapping[str, bytes]
    plan_key: bytes
    content: bytes

    def standing(self, site: str, key: bytes) -> Standing:
        """What this epoch says of a site's key."""
        if self.revoked.get(site) == key:
            return "revoked"
        if site not in self.sites:
            return "absent"
        return "member" if self.sites[site] == key else "other-key"


def write_roster(
    *,
    number: int,
    issued: float,
    sites: Mapping[str, bytes],
    revoked: Mapping[str, bytes],
    key: Ed25519PrivateKey,
) -> bytes:
    """Sign an epoch with the plan key.

    Raises:
        ConfigError: a name or a key is none, one key belongs to two sites, or there are too many sites for a message.
    """
    body = {
        "number": number,
        "issued": float(issued),
        "sites": {s: k.hex() for s, k in sites.items()},
        "revoked": {s: k.hex() for s, k in revoked.items()},
    }
    validate(_Body, body, "roster")
    problems = _mistakes(sites, revoked)
    content = sign_document(ROSTER_KIND, body, key)
    if len(content) > MAX_ROSTER:
        problems.append(f"{len(content)} bytes; an epoch has at most {MAX_ROSTER}")
    if problems:
        raise ConfigError(*(f"roster: {p}" for p in problems))
    return content


def _mistakes(sites: Mapping[str, bytes], revoked: Mapping[str, bytes]) -> list[str]:
    problems = [f"{s}: has a key that is revoked" for s, k in sites.items() if revoked.get(s) == k]
    if len(set(sites.values())) != len(sites):
        problems.append("two sites have one key")
    return problems


def read_roster(content: bytes, *, plan_key: bytes | None, where: str = "roster") -> RosterEpoch:
    """Read an epoch and check its signature.

    Args:
        plan_key: who must have signed it; None takes any, and the caller decides about `plan_key` of the result.

    Raises:
        DataError: not such a document, not signed by this key, or its content is impossible.
    """
    if len(content) > MAX_ROSTER:
        raise DataError(f"{where}: has {len(content)} bytes; an epoch has at most {MAX_ROSTER}", code="document")
    document = read_document(content, ROSTER_KIND, signer=plan_key, where=where)
    try:
        body = validate(_Body, document.body, where)
    except ConfigError as error:
        raise DataError(*error.problems, code="document") from None
    sites = {s: bytes.fromhex(k) for s, k in body.sites.items()}
    revoked = {s: bytes.fromhex(k) for s, k in body.revoked.items()}
    problems = _mistakes(sites, revoked)
    if problems:
        raise DataError(*(f"{where}: {p}" for p in problems), code="document")
    return RosterEpoch(
        number=body.number, issued=body.issued, sites=sites, revoked=revoked, plan_key=document.key, content=content
    )
