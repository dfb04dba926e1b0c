"""Roster epochs: who is enrolled and who was revoked, numbered and signed by the plan key.

A study's roster is fixed when the study is signed. An epoch says which of these keys still hold. The newest one travels with every
request, so that a revocation acts on the next message; a site keeps the highest that it has seen, and a study says how old that may
be, because a relay could hold the newer one back (protocol, rule 1).

What an earlier version of oncofed could not say, several revoked keys of one name, former keys and revoked step keys, is written
only where there is some: an epoch without them is read by that version too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from oncofed_shared.errors import ConfigError, DataError
from oncofed_shared.plan_fields import Name
from oncofed_shared.public_keys import KEY_BYTES
from oncofed_shared.signed_document import read_document, sign_document
from oncofed_shared.strict import Frozen, validate

__all__ = ["MAX_ROSTER", "ROSTER_KIND", "KeyHex", "Keys", "RosterEpoch", "Standing", "read_roster", "write_roster"]

ROSTER_KIND = "roster"
MAX_ROSTER = 1 << 16
"""Bytes of an epoch: it travels with every request."""
KeyHex = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * KEY_BYTES}}}$")]
Standing = Literal["member", "revoked", "other-key", "absent"]
Keys = Mapping[str, tuple[bytes, ...]]
"""Raw public keys by site."""
_Several = Annotated[tuple[KeyHex, ...], Field(min_length=1, max_length=400)]


class _Body(Frozen):
    number: Annotated[int, Field(ge=1, lt=1 << 53)]
    issued: Annotated[float, Field(ge=0)]
    sites: Annotated[dict[Name, KeyHex], Field(max_length=400)]
    revoked: Annotated[dict[Name, KeyHex | _Several], Field(max_length=400)]
    former: Annotated[dict[Name, _Several], Field(max_length=400)] = Field(default_factory=dict)
    step_keys: Annotated[tuple[KeyHex, ...], Field(max_length=400)] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RosterEpoch:
    """Who is enrolled.

    Attributes:
        number: a site never goes back to a lower one.
        issued: seconds since 1970.
        sites: raw identity key of each site, which new studies name.
        former: earlier keys of a site that has changed its own: they hold for the studies that name them.
        revoked: raw identity keys that hold no more, by the name that had them; each stays for good.
        step_keys: raw step keys that were revoked: nothing that they sign is done.
        plan_key: 32 bytes, who signed it.
        content: the signed file.
    """

    number: int
    issued: float
    sites: Mapping[str, bytes]
    former: Keys
    revoked: Keys
    step_keys: frozenset[bytes]
    plan_key: bytes
    content: bytes

    @property
    def gone(self) -> frozenset[bytes]:
        """All revoked identity keys, whoever had them."""
        return frozenset(key for keys in self.revoked.values() for key in keys)

    def standing(self, site: str, key: bytes) -> Standing:
        """What this epoch says of a site's key; a revoked one is revoked under every name."""
        if key in self.gone:
            return "revoked"
        if site not in self.sites:
            return "absent"
        return "member" if key in (self.sites[site], *self.former.get(site, ())) else "other-key"


def write_roster(
    *,
    number: int,
    issued: float,
    sites: Mapping[str, bytes],
    revoked: Keys,
    key: Ed25519PrivateKey,
    former: Keys | None = None,
    step_keys: Iterable[bytes] = (),
) -> bytes:
    """Sign an epoch with the plan key; the arguments are those of `RosterEpoch`, `key` signs.

    Raises:
        ConfigError: a name or a key is none, one key belongs to two sites, or there are too many sites for a message.
    """
    body: dict[str, Any] = {
        "number": number,
        "issued": float(issued),
        "sites": {s: k.hex() for s, k in sites.items()},
        "revoked": {s: _one_or_several(keys) for s, keys in revoked.items() if keys},
    }
    later = {
        "former": {s: [k.hex() for k in keys] for s, keys in (former or {}).items() if keys},
        "step_keys": sorted(k.hex() for k in step_keys),
    }
    body |= {name: value for name, value in later.items() if value}
    problems = _mistakes(validate(_Body, body, "roster"))
    content = sign_document(ROSTER_KIND, body, key)
    if len(content) > MAX_ROSTER:
        problems.append(f"{len(content)} bytes; an epoch has at most {MAX_ROSTER}")
    if problems:
        raise ConfigError(*(f"roster: {p}" for p in problems))
    return content


def _one_or_several(keys: tuple[bytes, ...]) -> str | list[str]:
    return keys[0].hex() if len(keys) == 1 else [k.hex() for k in keys]


def _revoked(body: _Body) -> dict[str, tuple[str, ...]]:
    return {s: (keys,) if isinstance(keys, str) else keys for s, keys in body.revoked.items()}


def _mistakes(body: _Body) -> list[str]:
    gone = {k for keys in _revoked(body).values() for k in keys}
    problems = [f"{s}: has a key that is revoked" for s, k in body.sites.items() if k in gone]
    for site, keys in body.former.items():
        if site not in body.sites or gone & set(keys):
            problems.append(f"{site}: has former keys that are revoked, or no key of its own")
    holding = [*body.sites.values(), *(k for keys in body.former.values() for k in keys)]
    if len(set(holding)) != len(holding):
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
    problems = _mistakes(body)
    if problems:
        raise DataError(*(f"{where}: {p}" for p in problems), code="document")
    return RosterEpoch(
        number=body.number,
        issued=body.issued,
        sites={s: bytes.fromhex(k) for s, k in body.sites.items()},
        former=_raw(body.former),
        revoked=_raw(_revoked(body)),
        step_keys=frozenset(bytes.fromhex(k) for k in body.step_keys),
        plan_key=document.key,
        content=content,
    )


def _raw(keys: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[bytes, ...]]:
    return {site: tuple(bytes.fromhex(k) for k in several) for site, several in keys.items()}
