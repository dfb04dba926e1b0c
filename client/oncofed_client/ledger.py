"""A site's account of what its patients' privacy has been spent on: written before anything leaves, and never after.

The order for one reply (protocol, rule 12): `reserve`, compute, `Outbox.keep`, `commit`, hand over. Whatever is killed in between,
what is charged is never less than what was handed over: a plan is charged with all its steps from its approval on, a reservation
that is never committed stays charged, and one may be taken back only by the process that made it, before it was committed.

Every method that writes takes the time from its caller; there is no clock in here.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_client.budget import BudgetPolicy, Charge, Cost, cost_of, epsilon_of_charges
from oncofed_client.identity import raw_public
from oncofed_client.ledger_account import FORMAT, Account, PlanAccount, Reservation, charge_body, cost_body
from oncofed_client.ledger_chain import FIRST_LINK, Chain, check_row, make_chain, parse_row, sign_row
from oncofed_client.ledger_freshness import HEAD_FILE, contradiction, head_of, read_head, seen_in, write_head
from oncofed_client.ledger_verify import verify
from oncofed_shared.errors import DataError, LocalProtocolError, PolicyRefusal, RemoteProtocolError
from oncofed_shared.witness import Head, Witness

__all__ = ["HEAD_FILE", "LEDGER_FILE", "Ledger", "verify"]

LEDGER_FILE = "ledger.sqlite3"
CLAIM_TOLERANCE = 1e-3
"""By how much accountants with different grids may differ; a plan that costs more than it promises by more than this is refused."""


class Ledger:
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

    def __init__(self, path: Path, *, site: str, key: Ed25519PrivateKey, synced: bool = True) -> None:
        """Open a ledger for `open` and `begin_epoch`; nothing is said here about its freshness."""
        self.path, self.site = path, site
        self._key = key
        self._lock = threading.RLock()
        self._account = Account(site=site)
        self._mine: set[int] = set()
        self._newest_epoch_seen, self._witness_row, self._kept_head = 1, 0, b""
        self._chain = Chain(path, synced=synced)
        try:
            self._catch_up()
        except BaseException:
            self._chain.close()
            raise

    @classmethod
    def create(cls, path: Path, *, site: str, key: Ed25519PrivateKey, now: float, synced: bool = True) -> Self:
        """Make a site's ledger.

        Args:
            now: seconds since 1970.

        Raises:
            StorageError: there is one, or it cannot be written.
            PolicyRefusal: there was one; its head is still here.
        """
        if _head_path(path).exists() and not path.exists():
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

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
            lines = [i for i, c in enumerate(plan.charges) if c.covers(charge)]
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

    def head(self) -> bytes:
        """The newest entry's head, signed, for others to sign back: what every upload carries."""
        with self._lock:
            self._catch_up()
            return head_of(self._account, self._key).to_bytes()

    @property
    def epoch(self) -> int:
        """From 1 on; every restore begins a new one. Stored replies of an earlier one are never handed over."""
        return self._account.epoch

    @property
    def silent(self) -> bool:
        """Whether nothing may be answered yet, because nobody has signed a head of the new epoch."""
        with self._lock:
            self._check_fresh()
            return self._newest_epoch_seen < self._account.epoch

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

    def total(self) -> Cost:
        """What one patient has paid at most, all studies together."""
        with self._lock:
            self._catch_up()
            return self._account.total()

    @property
    def debt(self) -> Cost:
        """What entries charged that a restore has lost."""
        return self._account.debt

    # How it is done.

    @contextmanager
    def _writing(self) -> Iterator[Account]:
        """One decision: all entries so far are known, nobody else writes, and the ledger may speak."""
        with self._lock:
            with self._chain.transaction():
                self._catch_up()
                self._check_fresh()
                if self.silent:
                    raise PolicyRefusal(
                        f"{self.path}: epoch {self.epoch} began after a restore, and nobody has signed its head yet; "
                        "the site stays silent until then",
                        code="silent",
                    )
                before = self._account.number
                yield self._account
                wrote = self._chain.rows(before)
            if wrote:
                self._catch_up()
                self._keep_head()

    def _append(self, kind: str, body: Mapping[str, Any], now: float, *, epoch: int | None = None) -> int:
        """Write an entry inside a transaction; the account learns of it when that has ended."""
        account = self._account
        if not account.at <= now < math.inf:
            raise PolicyRefusal(
                f"{self.path}: the clock says {now:.3f} and the last entry was written at {account.at:.3f}; time never "
                "runs backwards: set the clock right",
                code="clock",
            )
        row = sign_row(
            self._key,
            number=account.number + 1,
            site=self.site,
            epoch=epoch or account.epoch,
            at=now,
            kind=kind,
            body=dict(body),
            previous=account.hashes[-1],
        )
        why = account.problem(parse_row(row))
        if why is not None:
            raise LocalProtocolError(f"{self.path}: an entry of kind {kind} {why}", code="ledger-rule")
        self._chain.append(row)
        return row[0]

    def _catch_up(self) -> None:
        """Read entries that were written since the last time, by whomever."""
        account, public = self._account, self._key.public_key()
        for row in self._chain.rows(account.number):
            previous = account.hashes[-1] if account.hashes else FIRST_LINK
            problems = check_row(row, number=account.number + 1, previous=previous, key=public)
            entry = None
            try:
                entry = parse_row(row) if not problems else None
            except DataError as error:
                problems += error.problems
            why = None if entry is None else account.problem(entry)
            problems += [] if why is None else [f"entry {row[0]}: {why}"]
            if problems or entry is None:
                raise DataError(
                    *(f"{self.path}: {p}" for p in problems),
                    f"{self.path}: nothing is answered; run `oncofed-site verify {self.path.parent}`",
                    code="ledger-damaged",
                )
            account.apply(entry)
        if account.number == 0:
            raise DataError(f"{self.path}: has no entry; it was emptied", code="ledger-damaged")

    def _head_file(self) -> Head | None:
        return read_head(_head_path(self.path), self._key.public_key(), known=self._kept_head)

    def _check_fresh(self) -> None:
        """Compare with what others have seen. What was once compatible stays so, because an account only grows."""
        beside = self._head_file()
        heads = [(self._witness_row, beside)] if beside is not None else []
        heads += [(row, Head.from_bytes(h)) for row, _, _, h, _ in self._chain.witnesses(self._witness_row)]
        for row, head in heads:
            why = contradiction(self._account, head, self._key)
            if why is not None:
                raise self._rolled_back(why)
            if head is not beside:
                self._newest_epoch_seen, self._witness_row = max(self._newest_epoch_seen, head.epoch), row

    def _rolled_back(self, why: str) -> PolicyRefusal:
        return PolicyRefusal(
            f"{self.path}: {why}",
            f"{self.path}: nothing is answered; if it was restored from a backup, begin a new epoch with the newest heads that "
            "the aggregator and the peers have",
            code="rolled-back",
        )

    def _witnessed(self, witness: Witness) -> Head:
        head = Head.from_bytes(witness.head)
        if not witness.is_signed or not head.is_signed_by(self._key.public_key()):
            raise RemoteProtocolError("this is not a signed head of this site's ledger", code="witness")
        return head

    def _begin_epoch(self, now: float, witnesses: Collection[Witness]) -> None:
        heads = [self._witnessed(w) for w in witnesses]
        with self._lock:
            with self._chain.transaction():
                self._catch_up()
                heads += [Head.from_bytes(h) for _, _, _, h, _ in self._chain.witnesses()]
                beside = self._head_file()
                heads += [] if beside is None else [beside]
                newest = max((h.epoch for h in heads), default=0)
                unknown = [h for h in heads if contradiction(self._account, h, self._key) is not None]
                totals = sorted(seen_in(unknown, self._key).items())
                body = {"lost": [{"epoch": e, "total": cost_body(t)} for e, t in totals]}
                self._append("epoch", body, now, epoch=max(newest, self._account.epoch) + 1)
                for w in witnesses:
                    self._chain.add_witness(w.name, w.public_key, w.head, w.signature)
            self._catch_up()
            self._keep_head()

    def _keep_head(self) -> None:
        content = head_of(self._account, self._key).to_bytes()
        write_head(_head_path(self.path), content)
        self._kept_head = content


def _head_path(path: Path) -> Path:
    return path.with_name(HEAD_FILE)


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
