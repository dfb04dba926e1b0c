"""What a site's data officer has decided about studies: approved for training, for counting, withdrawn; each decision signed.

    state/studies/<study id>.study            the study's file, as it was signed
    state/studies/<study id>.decisions.json   decisions in order, each a document signed by the site's identity

They are read again for every message, so that a withdrawal acts on the next one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from oncofed_client.identity import identity_of, public_half, raw_public
from oncofed_client.site_keys import current_key, own_keys
from oncofed_shared.errors import DataError, PolicyRefusal
from oncofed_shared.public_keys import key_fingerprint, public_of
from oncofed_shared.signed_document import MAX_DOCUMENT, read_document, sign_document
from oncofed_shared.signed_study import SignedStudy, read_study
from oncofed_shared.storage import write_whole

__all__ = [
    "DECISION_KIND",
    "STUDIES",
    "Approval",
    "Decision",
    "Scope",
    "approval_of",
    "approvals",
    "approve",
    "approved",
    "decisions",
    "withdraw",
]

STUDIES, DECISION_KIND = "studies", "decision"
Scope = Literal["training", "counting"]
_SCOPES = ("training", "counting")
_ID = re.compile(r"[0-9a-f]{64}")
_WORDS = {"approve", "withdraw"}
_MOST_DECISIONS, _LONGEST_TEXT = 1000, 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One decision about a study.

    Attributes:
        what: `approve` or `withdraw`.
        scope: what was approved; empty for a withdrawal, which ends every approval.
        at: seconds since 1970.
        by, reason: as the person wrote them; may be empty.
    """

    study_id: str
    site: str
    what: str
    scope: str
    at: float
    by: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Approval:
    """A study that was approved here at some time, and what holds of that now.

    Attributes:
        scopes: what is approved; empty once it is withdrawn.
        decided: all decisions in order.
    """

    study: SignedStudy
    scopes: frozenset[str]
    decided: tuple[Decision, ...]

    @property
    def withdrawn(self) -> bool:
        """Whether the last word was a withdrawal."""
        return not self.scopes


def _paths(state: Path, study_id: str) -> tuple[Path, Path]:
    if not _ID.fullmatch(study_id):
        raise DataError("a study's id is 64 hex digits", code="unapproved-plan")
    return state / STUDIES / f"{study_id}.study", state / STUDIES / f"{study_id}.decisions.json"


def approve(
    state: Path,
    content: bytes,
    *,
    now: float,
    site: str,
    plan_key: bytes | None = None,
    scope: Scope = "training",
    by: str = "",
    where: str = "study",
) -> SignedStudy:
    """Approve a signed study; the study. What the site's policy and data say about it is for the caller to show before.

    Args:
        content: the file.
        now: seconds since 1970.
        site: this site's name.
        plan_key: the key that this site was enrolled under; None takes any.
        by: who decides.

    Guarantees:
        - What is approved is the file's signed content, whole: one bit of it changed is another study, which is not approved.
        - An approval for counting does not let anything be trained, nor the other way about.
        - Written whole or not at all.

    Raises:
        DataError: not a signed study, of another protocol version, or not signed by `plan_key`.
        PolicyRefusal: this site with its key is not in its roster (code `roster`), or it has expired (`expired`).
    """
    study = read_study(content, plan_key=plan_key, where=where)
    listed = study.roster.get(site)
    if listed is None:
        raise PolicyRefusal(
            f"{where}: its roster has no site '{site}'; ask the aggregator for a study with it", code="roster"
        )
    own = public_of(current_key(state))
    if listed not in own_keys(state):
        raise PolicyRefusal(
            f"{where}: its roster has {key_fingerprint(listed)} for '{site}', and this site's key is "
            f"{key_fingerprint(own)}; the aggregator must use the key that this site enrolled with",
            code="roster",
        )
    if now > study.expires:
        raise PolicyRefusal(f"{where}: has expired; ask for one that is signed anew", code="expired")
    study_path, _ = _paths(state, study.id)
    write_whole(study_path, content, private=True)
    _decide(state, Decision(study_id=study.id, site=site, what="approve", scope=scope, at=now, by=by, reason=""))
    return study


def withdraw(state: Path, study_id: str, *, now: float, site: str, reason: str = "", by: str = "") -> None:
    """Take back every approval of a study. The next message of it is refused.

    Raises:
        PolicyRefusal: it was never approved here (code `unapproved-plan`).
    """
    if approval_of(state, study_id) is None:
        raise PolicyRefusal("this study was never approved at this site", code="unapproved-plan")
    _decide(state, Decision(study_id=study_id, site=site, what="withdraw", scope="", at=now, by=by, reason=reason))


def _decide(state: Path, decision: Decision) -> None:
    _, path = _paths(state, decision.study_id)
    known = _documents(_content(path), str(path)) if path.exists() else []
    body = {
        "study": decision.study_id,
        "site": decision.site,
        "number": len(known) + 1,
        "what": decision.what,
        "scope": decision.scope,
        "at": float(decision.at),
        "by": decision.by[:_LONGEST_TEXT],
        "reason": decision.reason[:_LONGEST_TEXT],
    }
    made = json.loads(sign_document(DECISION_KIND, body, identity_of(state)))
    write_whole(path, (json.dumps([*known, made], indent=1) + "\n").encode(), private=True)


def _content(path: Path) -> bytes:
    """A file of decisions; nothing where it cannot be read or is too large to be one."""
    with suppress(OSError):
        if path.stat().st_size <= MAX_DOCUMENT:
            return path.read_bytes()
    return b""


def _documents(content: bytes, where: str) -> list[Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: cannot be read, or is damaged; approve the study again") from None
    if not isinstance(found, list) or len(found) > _MOST_DECISIONS:
        raise DataError(f"{where}: is not a list of decisions; approve the study again")
    return found


def decisions(state: Path, study_id: str) -> tuple[Decision, ...]:
    """Decisions about a study in order; none where there are none.

    Raises:
        DataError: the file is damaged, or a decision is not signed by this site.
    """
    _, path = _paths(state, study_id)
    if not path.exists():
        return ()
    return _decided(_content(path), raw_public(public_half(state)), study_id, str(path))


@lru_cache(maxsize=16)
def _decided(content: bytes, signer: bytes, study_id: str, where: str) -> tuple[Decision, ...]:
    found = []
    for number, document in enumerate(_documents(content, where), 1):
        body = read_document(json.dumps(document).encode(), DECISION_KIND, signer=signer, where=where).body
        if (body.get("study"), body.get("number")) != (study_id, number) or body.get("what") not in _WORDS:
            raise DataError(f"{where}: decision {number} does not belong here: one was removed, added or moved")
        found.append(
            Decision(
                study_id=study_id,
                site=str(body["site"]),
                what=str(body["what"]),
                scope=str(body["scope"]),
                at=float(body["at"]),
                by=str(body["by"]),
                reason=str(body["reason"]),
            )
        )
    return tuple(found)


@lru_cache(maxsize=16)
def _study(content: bytes, where: str) -> SignedStudy:
    return read_study(content, plan_key=None, where=where)


def approval_of(state: Path, study_id: str) -> Approval | None:
    """What holds of a study at this site now; None where it was never approved.

    Raises:
        DataError: its files are damaged, or were changed.
    """
    study_path, _ = _paths(state, study_id)
    decided = decisions(state, study_id)
    if not decided:
        return None
    try:
        study = _study(study_path.read_bytes(), str(study_path))
    except OSError as error:
        raise DataError(f"{study_path}: cannot be read ({error.strerror}); approve the study again") from None
    if study.id != study_id:
        raise DataError(f"{study_path}: is another study than its name says; it was replaced")
    scopes: frozenset[str] = frozenset()
    for decision in decided:
        scopes = scopes | {decision.scope} if decision.what == "approve" else frozenset()
    return Approval(study=study, scopes=scopes & set(_SCOPES), decided=decided)


def approvals(state: Path) -> Mapping[str, Approval]:
    """All studies that were ever approved here, by id, withdrawn ones too; a damaged one is an error.

    Raises:
        DataError: a study's files are damaged.
    """
    folder = state / STUDIES
    names = sorted(p.name.removesuffix(".study") for p in folder.glob("*.study")) if folder.is_dir() else []
    found = {name: approval_of(state, name) for name in names if _ID.fullmatch(name)}
    return MappingProxyType({name: a for name, a in found.items() if a is not None})


def approved(state: Path, *, scope: Scope = "training") -> dict[str, SignedStudy]:
    """The studies that are approved now, by id.

    Raises:
        DataError: a study's files are damaged.
    """
    return {name: a.study for name, a in approvals(state).items() if scope in a.scopes}
