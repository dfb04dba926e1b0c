"""A study as a consortium signs it: the plan, exactly one run of it, who takes part with which keys, and until when.

The plan key, which is kept offline, signs it once. Everything that a site lets be decided elsewhere is in here, and so in
`id`, which is
what a data officer approves: the protocol's version and the cipher suite, the trial and the session, the roster with every
identity
key, and the short-lived step key that signs messages.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from oncofed_shared.errors import ConfigError, DataError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import NoPrivacy, Plan
from oncofed_shared.plan_fields import Name
from oncofed_shared.roster import KeyHex
from oncofed_shared.secagg.group import SUITE
from oncofed_shared.signed_document import canonical, read_document, sign_document
from oncofed_shared.strict import Frozen, validate

__all__ = ["PROTOCOL", "STUDY_KIND", "SignedStudy", "read_study", "write_study"]

PROTOCOL = 1
"""Version of what crosses the wire; part of every study and every message."""
STUDY_KIND = "study"


class _Trial(Frozen):
    seed: Annotated[int, Field(ge=0, lt=1 << 53)]
    fold: Annotated[int, Field(ge=-1)]
    resplit: bool


class _Body(Frozen):
    protocol: int
    suite: str
    plan: Plan
    trial: _Trial
    session: Annotated[str, Field(pattern=r"^[a-z0-9-]{8,64}$")]
    step_key: KeyHex
    roster: Annotated[dict[Name, KeyHex], Field(min_length=1, max_length=400)]
    epoch: Annotated[int, Field(ge=1, lt=1 << 53)]
    epoch_days: Annotated[float, Field(gt=0)]
    created: Annotated[float, Field(ge=0)]
    expires: Annotated[float, Field(ge=0)]
    quorum: Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedStudy:
    """A study whose signature holds.

    Attributes:
        id: SHA-256 in hex of the signed body: what is approved, and what every message names.
        plan: without `[simulation]`.
        trial, session: the one run that this study is.
        step_key: 32 bytes, signs messages.
        plan_key: 32 bytes, signed this and signs roster epochs.
        roster: raw identity keys by site.
        protocol, suite: of the messages and of the secure sums.
        epoch: the roster epoch that it was made under.
        epoch_days: how old the newest roster epoch may be, in days.
        created, expires: seconds since 1970.
        quorum: fewest sites with whom the run goes on.
        content: the signed file.
    """

    id: str
    plan: Plan
    trial: Trial
    session: str
    step_key: bytes
    plan_key: bytes
    roster: Mapping[str, bytes]
    protocol: int
    suite: str
    epoch: int
    epoch_days: float
    created: float
    expires: float
    quorum: int
    content: bytes

    @property
    def name(self) -> str:
        """The study's name, for people."""
        return self.plan.study.name

    @property
    def trainers(self) -> tuple[str, ...]:
        """Sites that train, in order: under a private plan those whose patients it counts, otherwise all."""
        privacy = self.plan.privacy
        return tuple(sorted(self.roster if isinstance(privacy, NoPrivacy) else privacy.patients))


def _mistakes(body: _Body, plan_key: str) -> list[str]:
    problems = []
    privacy = body.plan.privacy
    roster = body.roster
    trainers = set(roster) if isinstance(privacy, NoPrivacy) else set(privacy.patients)
    if not trainers <= set(roster):
        problems.append(f"roster: lacks {', '.join(sorted(trainers - set(roster)))}, whom privacy.patients names")
    if len({*roster.values(), body.step_key, plan_key}) != len(roster) + 2:
        problems.append("roster: every site, the step key and the plan key must be different keys")
    if not len(trainers) < 2 * body.quorum <= 2 * len(trainers):
        problems.append(
            f"quorum: is {body.quorum}; with {len(trainers)} sites that train it must be more than half of them, so that "
            "no two groups of sites can be shown different models"
        )
    if body.expires <= body.created:
        problems.append("expires: must be after created")
    return problems


def write_study(
    *,
    plan: Plan,
    trial: Trial,
    step_key: bytes,
    roster: Mapping[str, bytes],
    epoch: int,
    epoch_days: float,
    created: float,
    expires: float,
    quorum: int,
    key: Ed25519PrivateKey,
    session: str | None = None,
) -> bytes:
    """Sign a study with the plan key; `[simulation]` is left out.

    Args:
        session: of the one run; random without it.

    Raises:
        ConfigError: its parts do not fit each other; every mistake at once.
    """
    body = {
        "protocol": PROTOCOL,
        "suite": SUITE,
        "plan": json.loads(plan.canonical),
        "trial": asdict(trial),
        "session": session or secrets.token_hex(16),
        "step_key": step_key.hex(),
        "roster": {s: k.hex() for s, k in roster.items()},
        "epoch": epoch,
        "epoch_days": float(epoch_days),
        "created": float(created),
        "expires": float(expires),
        "quorum": quorum,
    }
    content = sign_document(STUDY_KIND, body, key)
    try:
        read_study(content, plan_key=None)
    except DataError as error:
        raise ConfigError(*error.problems) from None
    return content


def read_study(content: bytes, *, plan_key: bytes | None, where: str = "study") -> SignedStudy:
    """Read a study and check it.

    Args:
        plan_key: who must have signed it; None takes any, and the caller decides about `plan_key` of the result.

    Guarantees:
        - Everything in the result was signed by `plan_key`, and changes `id`.
        - Another protocol version or cipher suite is refused.
        - Its plan has one hash, whoever reads it.

    Raises:
        DataError: code `document` or `signature`; code `version` for a study of another protocol version or suite.
    """
    document = read_document(content, STUDY_KIND, signer=plan_key, where=where)
    _check_version(document.body, where)
    try:
        body = validate(_Body, document.body, where)
    except ConfigError as error:
        raise DataError(*error.problems, code="document") from None
    if canonical(document.body["plan"]) != body.plan.canonical:
        raise DataError(f"{where}: plan: is not written out whole, or was written by another version", code="document")
    problems = _mistakes(body, document.key.hex())
    if problems:
        raise DataError(*(f"{where}: {p}" for p in problems), code="document")
    return SignedStudy(
        id=document.digest,
        plan=body.plan,
        trial=Trial(seed=body.trial.seed, fold=body.trial.fold, resplit=body.trial.resplit),
        session=body.session,
        step_key=bytes.fromhex(body.step_key),
        plan_key=document.key,
        roster={s: bytes.fromhex(k) for s, k in body.roster.items()},
        protocol=body.protocol,
        suite=body.suite,
        epoch=body.epoch,
        epoch_days=body.epoch_days,
        created=body.created,
        expires=body.expires,
        quorum=body.quorum,
        content=content,
    )


def _check_version(body: Mapping[str, Any], where: str) -> None:
    version, suite = body.get("protocol"), body.get("suite")
    if type(version) is not int or version != PROTOCOL or suite != SUITE:
        raise DataError(
            f"{where}: is for another protocol version or cipher suite than this program's ({PROTOCOL}, {SUITE}); "
            "the aggregator and all sites must run the same one",
            code="version",
        )
