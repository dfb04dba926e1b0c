"""What must hold of a request before a site does anything for it, one function per check, in the order of `door`.

Each raises with the code that goes to the aggregator.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from oncofed_client.approvals import Approval, approval_of
from oncofed_client.door_memory import DoorMemory, Model
from oncofed_client.known_rosters import SECONDS_PER_DAY, keep_roster
from oncofed_client.settings import Policy
from oncofed_shared.errors import PolicyRefusal, RemoteProtocolError
from oncofed_shared.messages import Count, End, Errand, Request, from_bytes
from oncofed_shared.roster import RosterEpoch
from oncofed_shared.sealed import SealedRequest
from oncofed_shared.sights import agreeing, model_of, moment_of, needed
from oncofed_shared.signed_study import SignedStudy

__all__ = [
    "BACKWARDS_SECONDS",
    "Asked",
    "check_addressed",
    "check_clock",
    "check_epoch",
    "check_model_shown",
    "check_plan_key",
    "check_run",
    "check_scope",
    "known_study",
    "members_of",
    "message_of",
]

BACKWARDS_SECONDS = 5.0
"""How far a clock may be set back by those who keep it right; entries then go on with the time of the last one."""
Asked = Request | Errand


def known_study(state: Path, request: SealedRequest) -> Approval:
    """The study that a request names, if it was ever approved here.

    Raises:
        PolicyRefusal: code `unapproved-plan`.
        DataError: the study's files here are damaged.
    """
    approval = approval_of(state, request.study_id)
    if approval is None:
        raise PolicyRefusal("the study was never approved at this site", code="unapproved-plan")
    return approval


def check_addressed(request: SealedRequest, approval: Approval, *, site: str) -> None:
    """See that a request is for this site, and that its study was not withdrawn.

    Raises:
        RemoteProtocolError: code `other-site`.
        PolicyRefusal: code `withdrawn`.
    """
    if request.site != site:
        raise RemoteProtocolError("the request is for another site", code="other-site")
    if approval.withdrawn:
        raise PolicyRefusal("the approval of this study was withdrawn", code="withdrawn")


def check_plan_key(study: SignedStudy, policy: Policy | None) -> None:
    """See that the site's policy lets the plan key of a study decide here (protocol, rule 2).

    Raises:
        PolicyRefusal: code `policy`.
    """
    allowed = () if policy is None else policy.plan_keys
    if allowed and study.plan_key.hex() not in allowed:
        raise PolicyRefusal("policy.plan_keys: does not have the key that signed this study", code="policy")


def check_epoch(
    state: Path, request: SealedRequest, study: SignedStudy, *, site: str, key: bytes, now: float
) -> RosterEpoch:
    """The roster epoch that came with a request, if this site may act under it.

    Guarantees:
        - A site that was revoked, or whose newest epoch is older than the study allows, answers nothing.
        - A revoked step key has nothing answered from the message on that brings the epoch.

    Raises:
        RemoteProtocolError: code `roster-epoch`: not the plan key's, lower than one seen, or than the study's own.
        PolicyRefusal: `revoked`, `step-key`, `stale-roster`; `roster-epoch`: this site's key is not the one of the study or of
            the epoch.
    """
    epoch = keep_roster(state, request.roster, plan_key=study.plan_key, now=now)
    if epoch.number < study.epoch:
        raise RemoteProtocolError(
            f"roster epoch {epoch.number} came, and the study was made under {study.epoch}", code="roster-epoch"
        )
    standing = epoch.standing(site, key)
    if standing == "revoked":
        raise PolicyRefusal(f"roster epoch {epoch.number} has revoked this site's key", code="revoked")
    if standing != "member" or study.roster.get(site) != key:
        raise PolicyRefusal(
            f"this site's key is not the one that roster epoch {epoch.number} and the study have for it",
            code="roster-epoch",
        )
    if study.step_key in epoch.step_keys:
        raise PolicyRefusal(
            f"roster epoch {epoch.number} has revoked the step key that signs this study's messages", code="step-key"
        )
    if now > epoch.issued + study.epoch_days * SECONDS_PER_DAY:
        raise PolicyRefusal(
            f"the newest roster epoch that has come is older than {study.epoch_days:g} days: a newer one may be held back",
            code="stale-roster",
        )
    return epoch


def members_of(study: SignedStudy, epoch: RosterEpoch) -> dict[str, bytes]:
    """The study's sites whose keys hold."""
    return {s: k for s, k in study.roster.items() if epoch.standing(s, k) == "member"}


def check_clock(study: SignedStudy, *, clock: float, last: float) -> float:
    """The time to act under: the clock's, or that of the last entry where the clock is a moment behind it.

    Args:
        last: when the newest entry of ledger or receipts was written.

    Raises:
        PolicyRefusal: code `clock`: time has run backwards; code `expired`: the study is over.
    """
    if clock < last - BACKWARDS_SECONDS:
        raise PolicyRefusal(
            f"the clock is {last - clock:.0f} seconds behind the last entry of ledger or receipts: set it right",
            code="clock",
        )
    now = max(clock, last)
    if now > study.expires:
        raise PolicyRefusal("the study has expired", code="expired")
    return now


def message_of(request: SealedRequest) -> Asked:
    """The message in a request.

    Raises:
        RemoteProtocolError: code `malformed`: no message, or one that sites send.
    """
    try:
        message = from_bytes(request.body)
    except RemoteProtocolError as error:
        raise RemoteProtocolError(*error.problems, code="malformed") from None
    if not isinstance(message, Request | Errand):
        raise RemoteProtocolError(f"a {type(message).__name__} is not a request", code="malformed")
    return message


def check_scope(approval: Approval, message: Asked) -> None:
    """See that what is asked was approved: counting by itself, all else as training; to be told of the end needs either.

    Raises:
        PolicyRefusal: code `unapproved-plan`.
    """
    scope = "counting" if isinstance(message, Count) else "training"
    if not isinstance(message, End) and scope not in approval.scopes:
        raise PolicyRefusal(f"the study is not approved for {scope} at this site", code="unapproved-plan")


def check_run(study: SignedStudy, message: Asked) -> None:
    """See that a message belongs to the one run that the study is.

    Raises:
        RemoteProtocolError: code `other-run`: another plan, trial or session.
    """
    head = message.head
    if (head.plan_hash, head.trial, head.session) != (study.plan.hash, study.trial, study.session):
        raise RemoteProtocolError("the message is of another plan, trial or session than the study", code="other-run")


def check_model_shown(
    memory: DoorMemory,
    request: SealedRequest,
    message: Asked,
    study: SignedStudy,
    *,
    members: Mapping[str, bytes],
    site: str,
) -> Model | None:
    """The model that a message brings and its moment, if the others were shown the same ones so far; None where it brings none.

    Guarantees:
        - One model for each moment of a study.
        - A new model is used only after a quorum has signed the last one that this site was sent.

    Raises:
        RemoteProtocolError: code `other-model`.
    """
    moment = moment_of(study, message)
    if not moment:
        return None
    model = Model(moment=moment, model=model_of(message))
    known = memory.model_at(study.id, moment)
    if known is not None and known != model.model:
        raise RemoteProtocolError(f"this site was sent another model before ({moment})", code="other-model")
    last = memory.last_model(study.id)
    if known is None and last is not None:
        agreed = agreeing(
            request.sights,
            study=study,
            site=site,
            moment=last.moment,
            model=last.model,
            holds=lambda name: name in members,
        )
        wanted = needed(study, last.moment)
        if len(agreed) < wanted:
            raise RemoteProtocolError(
                f"{len(agreed)} other sites have signed the model that this site was sent ({last.moment}), and {wanted} are "
                "needed: the others may have been sent another one",
                code="other-model",
            )
    return model
