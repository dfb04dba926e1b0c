"""A site's account of what its patients' privacy has been spent on: written before anything leaves, and never after.

The order for one reply (protocol, rule 12): `reserve`, compute, `Outbox.keep`, `commit`, hand over. Whatever is killed in between,
what is charged is never less than what was handed over: a plan is charged with all its steps from its approval on, a reservation
that is never committed stays charged, and one may be taken back only by the process that made it, before it was committed.

Every method that writes takes the time from its caller; there is no clock in here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_client.budget import BudgetPolicy, Charge, Cost, cost_of, epsilon_of_charges
from oncofed_client.identity import raw_public
from oncofed_client.ledger_account import FORMAT, Account, PlanAccount, Reservation, charge_body, cost_body
from oncofed_client.ledger_chain import FIRST_LINK, make_chain, parse_row, sign_row
from oncofed_client.ledger_file import LedgerFile
from oncofed_client.ledger_freshness import HEAD_FILE, contradiction, head_of
from oncofed_client.ledger_verify import verify
from oncofed_shared.errors import LocalProtocolError, PolicyRefusal, RemoteProtocolError
from oncofed_shared.witness import Witness

__all__ = ["HEAD_FILE", "LEDGER_FILE", "Ledger", "verify"]

LEDGER_FILE = "ledger.sqlite3"
CLAIM_TOLERANCE = 1e-3
"""By how much accountants with different grids may differ; a plan that costs more than it promises by more than this is refused."""


class Ledger(LedgerFile):
    """The one ledger of a site, for all its cohorts and studies. Make it with `create`, `open` or `begin_epoch`.

    Each takes the ledger's file (the newest head is kept beside it), the site's name and identity key, and `synced`: False only in
    a simulation, where nothing is handed to anybody and a power cut may lose entries.

    Guarantees:
        - What an ending call has written is on the disk; a call that fails has written nothing, or its whole entry.
        - Together, all plans that were ever approved keep the limits of the policies that they were approved under.
        - Charged is at least released: nothing is committed that was not reserved, and nothing reserved that no plan has left.
        - A reply's id has one request, for ever.
        - Two processes or threads see each other's entries before they decide.
    """

    @classmethod
    def create(cls, path: Path, *, site: str, key: Ed25519PrivateKey, now: float, synced: bool = True) -> Self:
        """Make a site's ledger.

        Args:
            now: seconds since 1970.

        Raises:
            StorageError: there is one, or it cannot be written.
            PolicyRefusal: there was one; its head is still here.
        """
        if path.with_name(HEAD_FILE).exists() and not path.exists():
            raise PolicyRefusal(
                f"{path}: is gone, and {HEAD_FILE} beside it says that it existed; bring it back from a backup and begin "
                "a new epoch, because an empty ledger forgets what was spent",
                code="rolled-back",
            )
        body = {"format": FORMAT, "public_key": raw_public(key.public_key()).hex()}
        make_chain(
            path, sign_row(key, number=1, site=site, epoch=1, at=now, kind="open", body=body, previous=FIRST_LINK)
        )
        made = cls(path, site=site, key=key, synced=synced)
        made._keep_head()
        return made

    @classmethod
    def open(cls, path: Path, *, site: str, key: Ed25519PrivateKey, synced: bool = True) -> Self:
        """Open a site's ledger and check all of it.

        Raises:
            DataError: it is absent, damaged, edited, or another site's.
            PolicyRefusal: it is an old copy (code `rolled-back`): `begin_epoch` is the way on.
        """
        made = cls(path, site=site, key=key, synced=synced)
        try:
            made._check_fresh()
            made._keep_head()
        except BaseException:
            made.close()
            raise
        return made

    @classmethod
    def begin_epoch(
        cls,
        path: Path,
        *,
        site: str,
        key: Ed25519PrivateKey,
        now: float,
        witnesses: Collection[Witness] = (),
        synced: bool = True,
    ) -> Self:
        """Go on with a ledger that was restored from a backup.

        All plans that it knows end and stay charged with all their steps; what the newest head that anybody has seen charges beyond
        that is charged too. Then the ledger is silent until a witness has signed the new epoch's head.

        Args:
            witnesses: the newest heads that the aggregator and the peers have of this site.

        Raises:
            DataError: the restored file is damaged.
            RemoteProtocolError: a witness is not signed, or not of this site's head.
        """
        made = cls(path, site=site, key=key, synced=synced)
        try:
            made._begin_epoch(now, witnesses)
        except BaseException:
            made.close()
            raise
        return made

    @classmethod
    def succeed(
        cls, path: Path, *, site: str, key: Ed25519PrivateKey, now: float, spent: Cost, synced: bool = True
    ) -> Self:
        """Make the ledger of a site that has a new identity, with what it had spent under the old one.

        It is silent until a witness has signed its head, as after a restore.

        Args:
            spent: all that the old ledger counts, whatever is open in it with all its steps.

        Guarantees:
            - Charged from the first moment: there is no ledger without it, whatever is killed.

        Raises:
            StorageError: there is a ledger, or it cannot be written.
        """
        body = {"format": FORMAT, "public_key": raw_public(key.public_key()).hex()}
        first = sign_row(key, number=1, site=site, epoch=1, at=now, kind="open", body=body, previous=FIRST_LINK)
        owed = {"lost": [{"epoch": 1, "total": cost_body(spent)}]}
        link = parse_row(first).hash
        make_chain(
            path, first, sign_row(key, number=2, site=site, epoch=2, at=now, kind="epoch", body=owed, previous=link)
        )
        made = cls(path, site=site, key=key, synced=synced)
        made._keep_head()
        return made

    # What is written.

    def approve(
        self,
        plan_hash: str,
        *,
        study: str,
        charges: tuple[Charge, ...],
        epsilon: float,
        delta: float,
        policy: BudgetPolicy,
        now: float,
    ) -> int:
        """Reserve a whole plan, or refuse it; the entry's number. Asked again with the same, the same entry.

        Args:
            study: its name, for people.
            charges: all steps that the plan may ever take, the spare ones too.
            epsilon, delta: what the plan promises to a patient.

        Raises:
            PolicyRefusal: code `budget`: a limit of the policy would be passed, over all studies together or by this one.
            LocalProtocolError: the charges cost more than the plan promises.
        """
        body = {
            "plan": plan_hash,
            "study": study,
            "charges": [charge_body(c) for c in charges],
            "epsilon": float(epsilon),
            "delta": float(delta),
            "policy": policy.as_body(),
        }
        costs = epsilon_of_charges(charges, delta=delta)
        if costs > epsilon * (1 + CLAIM_TOLERANCE):
            raise LocalProtocolError(
                f"study {study}: promises epsilon {epsilon:g} at delta {delta:g}, and its charges cost {costs:.4g}; "
                "the plan's noise and its promise do not belong together",
                code="claim",
            )
        with self._writing() as account:
            known = account.plans.get(plan_hash)
            if known is not None and known.state == "open":
                if (known.charges, known.epsilon, known.delta) != (charges, body["epsilon"], body["delta"]):
                    raise LocalProtocolError(
                        f"study {study}: this plan was approved with other charges", code="other-charges"
                    )
                return known.entry
            objections = policy.objections_to(epsilon=epsilon, delta=delta)
            objections += policy.objections(account.total() + cost_of(charges))
            if objections:
                raise PolicyRefusal(*(f"study {study}: {o}" for o in objections), code="budget")
            return self._append("approve", body, now)

    def reserve(self, plan_hash: str, reply_id: str, request_hash: str, charge: Charge, *, now: float) -> int:
        """Charge a reply before it is computed; the entry's number. The same id and request give the same entry.

        Args:
            reply_id: of session, step, attempt and request.
            charge: costs no more per step than one of the plan's charges, which it is counted as.

        Raises:
            RemoteProtocolError: the id had another request (code `other-request`), or is over (`reply-is-over`).
            PolicyRefusal: the plan is not approved (`unapproved-plan`), or has no steps left (`budget`).
        """
        with self._writing() as account:
            known = account.replies.get(reply_id)
            plan = account.plans.get(plan_hash)
            if known is not None:
                return _again(known, plan_hash, request_hash, charge, plan)
            if plan is None or plan.state != "open":
                raise PolicyRefusal("the plan is not approved at this site, or is over", code="unapproved-plan")
            covering = [i for i, c in enumerate(plan.charges) if c.covers(charge)]
            # Its own line first: a dearer one, which would do as well, may be the only one that another release has.
            lines = sorted(covering, key=lambda i: replace(plan.charges[i], steps=charge.steps) != charge)
            if not lines:
                raise LocalProtocolError(
                    "a step that costs so much is not among the plan's charges", code="other-charges"
                )
            line = next((i for i in lines if charge.steps <= plan.charges[i].steps - plan.used[i]), None)
            if line is None:
                total = sum(plan.charges[i].steps for i in lines)
                left = total - sum(plan.used[i] for i in lines)
                raise PolicyRefusal(
                    f"study {plan.study}: {charge.steps} steps asked, {left} left of the {total} reserved at its approval",
                    code="budget",
                )
            body = {
                "plan": plan_hash,
                "reply": reply_id,
                "request": request_hash,
                "line": line,
                "steps": charge.steps,
            }
            number = self._append("reserve", body, now)
            self._mine.add(number)
            return number

    def commit(self, entry: int, reply_hash: str, *, now: float) -> None:
        """Say that a reply is stored and may be handed over; from here on it can never be taken back.

        Raises:
            LocalProtocolError: there is no such reservation, it is void or spent, or had another reply.
        """
        with self._writing() as account:
            reservation = _reservation(account, entry)
            if reservation.state == "committed" and reservation.reply_hash == reply_hash:
                return
            if reservation.state != "open":
                raise LocalProtocolError(
                    f"entry {entry}: is {reservation.state}; nothing may be handed over", code="not-open"
                )
            self._append("commit", {"entry": entry, "reply_hash": reply_hash}, now)

    def void(self, entry: int, *, now: float) -> None:
        """Take a reservation back of which no byte was handed over.

        Guarantees:
            - Only the object that made the reservation may; after a crash nobody knows what was handed over.

        Raises:
            LocalProtocolError: it is committed, spent, or another process's.
        """
        with self._writing() as account:
            reservation = _reservation(account, entry)
            if reservation.state == "void":
                return
            if reservation.state != "open" or entry not in self._mine:
                raise LocalProtocolError(
                    f"entry {entry}: is {reservation.state} or was made by another process; it stays charged",
                    code="not-open",
                )
            self._append("void", {"entry": entry}, now)

    def end_plan(self, plan_hash: str, *, now: float) -> None:
        """A plan is over: what it reserved and never asked for is free again; what is open is spent.

        Raises:
            PolicyRefusal: it is not open.
        """
        with self._writing() as account:
            plan = account.plans.get(plan_hash)
            if plan is None or plan.state != "open":
                raise PolicyRefusal("the plan is not approved at this site, or is over", code="unapproved-plan")
            self._append("close", {"plan": plan_hash}, now)

    def witness(self, witness: Witness, *, trusted: Collection[bytes]) -> None:
        """Keep what somebody has signed of this ledger, and notice if it is newer than the ledger.

        Args:
            trusted: public keys, 32 bytes each, of the aggregator and the peers.

        Raises:
            RemoteProtocolError: not signed, by nobody who is known, or not a head of this site.
            PolicyRefusal: code `rolled-back`: the ledger is an old copy. It answers nothing more.
        """
        if witness.public_key not in trusted:
            raise RemoteProtocolError("a ledger's head is signed by somebody who is not in the roster", code="witness")
        head = self._witnessed(witness)
        with self._lock, self._chain.transaction():
            self._catch_up()
            self._chain.add_witness(witness.name, witness.public_key, witness.head, witness.signature)
            why = contradiction(self._account, head, self._key)
        if why is not None:
            raise self._rolled_back(why)

    # What is read.

    def head(self, signer: Ed25519PrivateKey | None = None) -> bytes:
        """The newest entry's head, signed, for others to sign back: what every upload carries.

        Args:
            signer: the site's key that a study names, if it has taken the first one's place.
        """
        with self._lock:
            self._catch_up()
            return head_of(self._account, self._key, signer=signer).to_bytes()

    def plans(self) -> tuple[PlanAccount, ...]:
        """Every plan that was ever approved, in order of approval. They are the ledger's own: read them only."""
        with self._lock:
            self._catch_up()
            return self._account.all_plans()

    def reservation(self, reply_id: str) -> Reservation | None:
        """What was reserved for a reply. It is the ledger's own: read it only."""
        with self._lock:
            self._catch_up()
            return self._account.replies.get(reply_id)

    def last_at(self) -> float:
        """When the newest entry was written, in seconds since 1970."""
        with self._lock:
            self._catch_up()
            return self._account.at

    def total(self) -> Cost:
        """What one patient has paid at most, all studies together."""
        with self._lock:
            self._catch_up()
            return self._account.total()

    @property
    def debt(self) -> Cost:
        """What entries charged that a restore has lost."""
        return self._account.debt


def _reservation(account: Account, entry: int) -> Reservation:
    found = account.reservations.get(entry)
    if found is None:
        raise LocalProtocolError(f"entry {entry}: is not a reservation", code="not-open")
    return found


def _again(known: Reservation, plan_hash: str, request_hash: str, charge: Charge, plan: PlanAccount | None) -> int:
    """The entry of a reply that was reserved before."""
    same = (known.plan, known.request, known.steps) == (plan_hash, request_hash, charge.steps)
    if not same or plan is None or not plan.charges[known.line].covers(charge):
        raise RemoteProtocolError("this reply was asked for by another request", code="other-request")
    if known.state in {"void", "spent"}:
        raise RemoteProtocolError("this reply is over; a new attempt has an id of its own", code="reply-is-over")
    return known.entry
