"""A site's one door: sealed bytes in, sealed bytes out. No socket, no Flower; the clock is an argument.

In this order: size, form, version; the study approved here; signed by its step key. Whoever fails so far gets `sealed.REFUSED`,
always the same bytes. Then: the message itself, for this site, not withdrawn, the time, the roster epoch, what was approved,
this run, its number, the model. What fails there is answered with a sealed `Refusal` and its code. Then `Site.handle`, the egress
check, sealed, stored, receipt, out.

Everything that may change while the process runs (approvals, withdrawals, revocations) is read again for each request.
"""

from __future__ import annotations

import contextlib
import hashlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oncofed_client.approvals import Approval
from oncofed_client.counting import count
from oncofed_client.deliveries import keep_model
from oncofed_client.door_checks import (
    Asked,
    check_addressed,
    check_clock,
    check_epoch,
    check_model_shown,
    check_plan_key,
    check_run,
    check_scope,
    known_study,
    members_of,
    message_of,
)
from oncofed_client.door_memory import DOOR_FILE, DoorMemory, Model, Stored
from oncofed_client.egress import ANSWERS, check_reply
from oncofed_client.gene_files import with_gene_files
from oncofed_client.identity import identity_of
from oncofed_client.outbox import reply_id_of
from oncofed_client.receipts import RECEIPTS_FILE, Receipts
from oncofed_client.reply_tick import seconds_to_tick
from oncofed_client.settings import load_settings
from oncofed_client.site import Site
from oncofed_client.site_keys import own_keys
from oncofed_client.source import FolderSource
from oncofed_shared.errors import OncofedError, RemoteProtocolError
from oncofed_shared.messages import (
    Contribute,
    Count,
    Deliver,
    Delivered,
    End,
    Ended,
    ErrandReply,
    Head,
    Refusal,
    Reply,
    Train,
    to_bytes,
)
from oncofed_shared.plan import NoPrivacy, Plan
from oncofed_shared.public_keys import public_of
from oncofed_shared.sealed import REFUSED, SealedRequest, open_request, seal_reply, verify_request
from oncofed_shared.sights import sign_sight
from oncofed_shared.signed_study import SignedStudy

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from oncofed_client.contributor import Contributor

__all__ = ["Door", "Log", "open_door"]

Log = Callable[[str, Mapping[str, Any]], None]
"""Takes an event's name and its fields: `code`, `study`, `number`, `kind`, `text`. None holds anything about a patient."""
Answer = Reply | ErrandReply
_INTERNAL, _TEXT = "internal", "the site's own log has the reason"


@dataclass(kw_only=True, slots=True)
class _Case:
    """One believed request, and what the checks have found of it so far."""

    request: SealedRequest
    study: SignedStudy
    head: Head
    key: Ed25519PrivateKey
    now: float = 0.0
    message: Asked | None = None
    model: Model | None = None


class Door:
    """One site's answers to sealed requests.

    Args:
        site: what it does; its plans and its contributor are set here, for each request.
        state: the site's state folder.
        clock: seconds since 1970.
        contributor: makes what the site needs for private plans; asked once, when the first one comes.
        placed: the plan as this site reads it, with the place of the public files that it names.
        log: the site's own log.

    Guarantees:
        - Nothing is answered but with a signature under bytes that the step key of a study approved here has signed, for
          this site, this run, and not before; everything else gets the same few bytes, or a refusal with a code.
        - The same request is answered with the same bytes, as long as it is the study's newest; an older one is refused.
        - What leaves was checked against its request and plan, is stored, and has a receipt on the disk.
        - Every refusal has a line in the log, and neither the line nor the refusal has anything about a patient.
        - Whatever the bytes are, `handle` returns bytes and raises nothing.
    """

    def __init__(
        self,
        site: Site,
        state: Path,
        *,
        clock: Callable[[], float],
        contributor: Callable[[], Contributor] | None = None,
        placed: Callable[[Plan], Plan] = lambda plan: plan,
        log: Log = lambda event, fields: None,
    ) -> None:
        self.site, self.state = site, state
        self._placed = placed
        self._clock, self._logs = clock, log
        self._make_contributor = contributor
        self._contributor: Contributor | None = None
        self._key = identity_of(state)
        self._memory = DoorMemory(state / DOOR_FILE)
        self._receipts = Receipts(state / RECEIPTS_FILE, site=site.name, key=self._key, now=clock())

    def close(self) -> None:
        """Close the site's files."""
        self._memory.close()
        self._receipts.close()

    def _log(self, event: str, fields: Mapping[str, Any]) -> None:
        """A line in the site's log. One that cannot be written changes no answer: receipts are what must not be lost."""
        with contextlib.suppress(Exception):
            self._logs(event, fields)

    def leaves_in(self, elapsed: float) -> float:
        """How many seconds a reply has to wait yet, `elapsed` seconds after its request arrived (protocol, rule 11)."""
        policy = self.site.policy
        return seconds_to_tick(elapsed, 0.0 if policy is None else policy.reply_tick)

    def handle(self, content: bytes) -> bytes:
        """Answer one sealed request."""
        study_id = ""
        try:
            request = open_request(content)
            approval = known_study(self.state, request)
            study_id = request.study_id
            verify_request(request, approval.study)
        except OncofedError as error:
            self._log("unbelieved", {"code": error.code, "study": study_id})
            return REFUSED
        except Exception as error:  # noqa: BLE001 - whatever bytes provoke, nothing of it leaves
            self._log("unbelieved", {"code": _INTERNAL, "study": study_id, "text": _place(error)})
            return REFUSED
        return self._believed(request, approval)

    def _believed(self, request: SealedRequest, approval: Approval) -> bytes:
        study = approval.study
        # Until the message itself is read, a refusal has the head of the study's run.
        head = Head(session=study.session, step=0, attempt=0, plan_hash=study.plan.hash, trial=study.trial)
        case = _Case(request=request, study=study, head=head, key=self._key)
        try:
            stored = self._admitted(case, approval)
            return self._answered(case) if stored is None else self._again(case, stored)
        except OncofedError as error:
            return self._refused(case, error.code, error.problems)
        except Exception as error:  # noqa: BLE001 - a traceback could hold a patient's value
            return self._refused(case, _INTERNAL, (_place(error),))

    def _admitted(self, case: _Case, approval: Approval) -> Stored | None:
        """Make every check; the stored reply, if this very request was answered before."""
        request, study, site = case.request, case.study, self.site.name
        # First, so that every refusal repeats the head that it answers.
        message = case.message = message_of(request)
        case.head = message.head
        check_addressed(request, approval, site=site)
        # A study names one of the site's keys; one that names none is refused with the first.
        case.key = own_keys(self.state).get(study.roster.get(site, b""), self._key)
        check_plan_key(study, self.site.policy)
        case.now = check_clock(study, clock=self._clock(), last=self._last_entry())
        epoch = check_epoch(self.state, request, study, site=site, key=public_of(case.key), now=case.now)
        members = members_of(study, epoch)
        check_scope(approval, message)
        check_run(study, message)
        self._set_up(case, members)
        stored = self._memory.stored(study.id, request.number, request.digest)
        if stored is not None:
            return stored
        case.model = check_model_shown(self._memory, request, message, study, members=members, site=site)
        self._memory.take(study.id, request.number, request.digest)
        return None

    def _last_entry(self) -> float:
        """When the newest entry of receipts or ledger was written."""
        known = self._contributor
        return max(self._receipts.last_at, 0.0 if known is None else known.ledger.last_at())

    def _set_up(self, case: _Case, members: Mapping[str, bytes]) -> None:
        """Let the site know one plan, the keys that hold, and the time: those of this request."""
        study, now = case.study, case.now
        self.site.plans = {study.plan.hash: self._placed(study.plan)}
        self.site.contributor = None
        if isinstance(study.plan.privacy, NoPrivacy) or self._make_contributor is None:
            return
        if self._contributor is None:
            self._contributor = self._make_contributor()
        contributor = self.site.contributor = self._contributor
        contributor.identities = lambda: members
        contributor.trusted = (study.step_key,)
        contributor.clock = lambda: now
        contributor.signs_as(case.key)

    def _answered(self, case: _Case) -> bytes:
        message, study = case.message, case.study
        if message is None:
            raise RemoteProtocolError("there is no message", code="malformed")
        reply = self._reply(message, study)
        check_reply(study.plan, message, reply, site=self.site.name)
        if isinstance(reply, Refusal):
            return self._refused(case, reply.code, self._journal())
        sight = b""
        if case.model is not None:
            sight = sign_sight(
                case.key, study_id=study.id, site=self.site.name, moment=case.model.moment, model=case.model.model
            )
        sealed = self._sealed(case, reply, sight)
        self._memory.keep(study.id, case.request.digest, sealed, model=case.model)
        return self._again(case, Stored(reply=sealed, receipt=False))

    def _reply(self, message: Asked, study: SignedStudy) -> Answer:
        match message:
            case Count():
                return count(self.site, study.plan, message)
            case Deliver(head=head):
                digest = keep_model(self.state, study, message)
                # The run is over: what its plan reserved and never asked for is free again.
                self.site.end(head)
                return Delivered(head=head, site=self.site.name, digest=digest)
            case End(head=head):
                self.site.end(head)
                return Ended(head=head, site=self.site.name)
            case _:
                return self.site.handle(message)

    def _again(self, case: _Case, stored: Stored) -> bytes:
        """Hand a stored reply over; with its receipt, if the process ended before that was written."""
        message = case.message
        kind = ANSWERS[type(message)].__name__
        if not stored.receipt:
            charge = self._charge(message)
            self._receipt(case, stored.reply, kind, charge=charge)
            self._memory.receipted(case.study.id, case.request.digest)
        self._log("answered", self._fields(case) | {"kind": kind})
        return stored.reply

    def _charge(self, message: Asked | None) -> tuple[int, int, float]:
        """Entry of the ledger, steps, and epsilon of the whole study, for a reply that was charged; zeros for others."""
        contributor = self.site.contributor
        if contributor is None or not isinstance(message, Train | Contribute):
            return 0, 0, 0.0
        reserved = contributor.ledger.reservation(reply_id_of(message))
        if reserved is None:
            return 0, 0, 0.0
        epsilon = next((p.epsilon for p in contributor.ledger.plans() if p.plan == reserved.plan), 0.0)
        return reserved.entry, reserved.steps, epsilon

    def _refused(self, case: _Case, code: str, problems: tuple[str, ...]) -> bytes:
        """A refusal with its receipt; where that cannot be written, the few bytes that need none."""
        self._log("refused", self._fields(case) | {"code": code})
        for problem in problems:
            self._log("reason", self._fields(case) | {"code": code, "text": problem})
        refusal = Refusal(head=case.head, site=self.site.name, code=code, text=_TEXT)
        try:
            sealed = self._sealed(case, refusal, b"")
            self._receipt(case, sealed, "Refusal", code=code)
        except OncofedError as error:
            self._log("reason", self._fields(case) | {"code": error.code, "text": "; ".join(error.problems)})
            return REFUSED
        return sealed

    def _sealed(self, case: _Case, reply: Answer, sight: bytes) -> bytes:
        return seal_reply(
            to_bytes(reply),
            request_digest=case.request.digest,
            study_id=case.study.id,
            site=self.site.name,
            key=case.key,
            sight=sight,
        )

    def _receipt(
        self, case: _Case, sealed: bytes, kind: str, *, code: str = "", charge: tuple[int, int, float] = (0, 0, 0.0)
    ) -> None:
        entry, steps, epsilon = charge
        self._receipts.append(
            at=case.now or self._clock(),
            study_id=case.study.id,
            number=case.request.number,
            step=case.head.step,
            kind=kind,
            code=code,
            sha256=hashlib.sha256(sealed).hexdigest(),
            size=len(sealed),
            charge=entry,
            steps=steps,
            epsilon=epsilon,
        )

    def _journal(self) -> tuple[str, ...]:
        """What the site has noted for its own eyes since the last time."""
        found = tuple(self.site.journal)
        self.site.journal.clear()
        return found

    @staticmethod
    def _fields(case: _Case) -> dict[str, Any]:
        return {"study": case.study.id, "number": case.request.number, "step": case.head.step}


def _place(error: Exception) -> str:
    """An exception without its text, which could hold anything."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def open_door(
    data: Path, state: Path, *, clock: Callable[[], float], log: Log = lambda event, fields: None, synced: bool = True
) -> Door:
    """The door of a site's folders.

    Args:
        data: the folder with `site.toml` and the patients' files.
        state: the site's own.
        clock: seconds since 1970.
        synced: False only in a test, where nothing is handed to anybody.

    Raises:
        ConfigError: `site.toml` is absent or wrong.
        DataError: identity, receipts or door file are damaged.
        StorageError: the state folder cannot be written.
    """
    settings = load_settings(data)
    name = settings.site.name

    def contributor() -> Contributor:
        from oncofed_client.contributor import Contributor  # noqa: PLC0415 - accountants take seconds to import

        return Contributor(site=name, state=state, identities=dict, policy=settings.policy, clock=clock, synced=synced)

    site = Site(
        FolderSource(data, settings, state=state),
        {},
        minimum_cohort=settings.policy.minimum_cohort,
        policy=settings.policy,
        state=state,
    )
    return Door(
        site,
        state,
        clock=clock,
        contributor=contributor,
        placed=lambda plan: with_gene_files(plan, settings, data),
        log=log,
    )
