"""A site's part in the secure sums of a private run: its keys, its account, and the one way by which a share leaves.

For each share (protocol, rules 11 and 12): reserve in the ledger, sample, clip, check, add noise, mask, store, commit, hand over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from numpy.typing import NDArray

from oncofed_client.budget import Charge, budget_policy
from oncofed_client.charged_reply import charged_reply
from oncofed_client.egress import check_share
from oncofed_client.identity import identity_of, raw_public
from oncofed_client.ledger import LEDGER_FILE, Ledger
from oncofed_client.outbox import OUTBOX_FILE, Outbox, reply_id_of
from oncofed_client.plan_charges import promised
from oncofed_client.randomness import Randomness
from oncofed_client.settings import Policy
from oncofed_client.sum_keys import SumKeys
from oncofed_shared import secagg
from oncofed_shared.errors import PolicyRefusal, RemoteProtocolError
from oncofed_shared.formation import group_of, step_of, to_ring
from oncofed_shared.layout import fingerprint
from oncofed_shared.messages import (
    Columns,
    Contribute,
    Contribution,
    Exchange,
    Exchanged,
    Formation,
    Head,
    Train,
    Trial,
)
from oncofed_shared.plan import Plan
from oncofed_shared.secagg.messages import Upload
from oncofed_shared.witness import Head as LedgerHead
from oncofed_shared.witness import Witness, sign_witness

__all__ = ["Contributor", "Share", "account_of"]

Share = Callable[[Randomness], NDArray[np.int64]]
"""Samples, clips and adds noise; called once for one reservation."""
_ADVERTISE = "Advertise"


def account_of(plan: Plan, trial: Trial) -> str:
    """Under which name the ledger keeps a run of a plan; a simulation trains a plan several times, and pays for each."""
    run = hashlib.sha256(repr(trial).encode()).hexdigest()[:8]
    return f"{plan.hash}/{run}"


@dataclass(kw_only=True)
class _Sitting:
    """The newest formation of a session at this site."""

    formation: Formation
    party: secagg.SiteParty
    version: tuple[int, int]


@dataclass(kw_only=True)
class Contributor:
    """What a site needs for private studies, beside its patients.

    Args:
        site: its name.
        state: its state folder: identity, ledger, stored replies, keys of sums.
        identities: raw public identity keys of the roster by site, asked when a formation is joined.
        trusted: public keys of others whose signatures under this site's ledger count, such as the aggregator's.
        policy: the site's own.
        clock: seconds since 1970.
        noise_seed: makes noise repeatable and worthless; in a simulation only.
        synced: False only in a simulation: a power cut may lose entries.
    """

    site: str
    state: Path
    identities: Callable[[], Mapping[str, bytes]]
    policy: Policy
    clock: Callable[[], float]
    trusted: tuple[bytes, ...] = ()
    noise_seed: int | None = None
    synced: bool = True
    _signer: Ed25519PrivateKey | None = None
    _ledger: Ledger | None = None
    _outbox: Outbox | None = None
    _sittings: dict[str, _Sitting] = field(default_factory=dict)

    @cached_property
    def _keys(self) -> SumKeys:
        return SumKeys(folder=self.state / "sums", synced=self.synced)

    @cached_property
    def _key(self) -> Ed25519PrivateKey:
        """The site's first identity, which signs its records."""
        return identity_of(self.state)

    def signs_as(self, key: Ed25519PrivateKey) -> None:
        """Sign towards others with this key from now on: the one that the study at hand names. The first identity without it."""
        self._signer = key

    @property
    def _signing(self) -> Ed25519PrivateKey:
        return self._signer or self._key

    @property
    def ledger(self) -> Ledger:
        """The site's ledger; made when there is none.

        Raises:
            DataError, PolicyRefusal: it is damaged, or an old copy.
        """
        if self._ledger is None:
            key, path = self._key, self.state / LEDGER_FILE
            if path.exists():
                self._ledger = Ledger.open(path, site=self.site, key=key, synced=self.synced)
            else:
                self._ledger = Ledger.create(path, site=self.site, key=key, now=self.clock(), synced=self.synced)
        return self._ledger

    @property
    def outbox(self) -> Outbox:
        """The site's stored replies."""
        if self._outbox is None:
            self._outbox = Outbox(self.state / OUTBOX_FILE, epoch=self.ledger.epoch, synced=self.synced)
        return self._outbox

    def approve(self, plan: Plan, head: Head, charges: tuple[Charge, ...]) -> None:
        """Reserve a whole run, or refuse it.

        Guarantees:
            - A plan that the site's budget does not allow is refused before anything is computed.
            - A ledger that may be an old copy answers nothing.

        Raises:
            PolicyRefusal: with every reason.
        """
        if self.ledger.silent:
            raise PolicyRefusal("the ledger was restored, and nobody has signed its new epoch yet", code="silent")
        epsilon, delta = promised(plan)
        self.ledger.approve(
            account_of(plan, head.trial),
            study=f"{plan.study.name}, seed {head.trial.seed}",
            charges=charges,
            epsilon=epsilon,
            delta=delta,
            policy=budget_policy(self.policy),
            now=self.clock(),
        )

    def has_approved(self, plan: Plan, trial: Trial) -> bool:
        """Whether a run was reserved, by this process or one before it, and is not over."""
        account = account_of(plan, trial)
        return any(known.plan == account and known.state == "open" for known in self.ledger.plans())

    def end(self, plan: Plan, trial: Trial, session: str) -> None:
        """A run is over: what it reserved and never asked for is free again, its stored replies and keys are deleted.

        Guarantees:
            - No reply of the session is ever computed anew: the ledger keeps their ids.
            - Repeated, or for a run that never began, it changes nothing.

        Raises:
            StorageError: it cannot be written.
        """
        with self._keys.alone():
            if self.has_approved(plan, trial):
                self.ledger.end_plan(account_of(plan, trial), now=self.clock())
            self.outbox.forget(session)
            self._sittings.pop(session, None)
            self._keys.delete(session)

    def exchange(self, plan: Plan, request: Exchange) -> Exchanged:
        """Answer for a set-up or for the opening of a sum; what others see of ledgers goes with it.

        Guarantees:
            - The state of the keys is on disk before the answer leaves.
            - Two processes of one site answer one after the other, from one state.
            - A head of a ledger is signed only if its site signed it.

        Raises:
            RemoteProtocolError: it does not belong to the formation, or is not allowed in its state.
        """
        ask = secagg.from_bytes(request.content)
        begins = type(ask).__name__ == _ADVERTISE
        with self._keys.alone():
            party = self._party(plan, request.head, request.formation, begins=begins)
            with self._as_on_disk(request.head.session):
                answer = party.answer(ask)  # type: ignore[arg-type] # what is no ask is refused there
                self._keep(request.head.session, request.formation, party)
        self._take_witnesses(request)
        return Exchanged(
            head=request.head,
            site=self.site,
            content=secagg.to_bytes(answer),
            ledger=self.ledger.head(self._signing),
            witnesses=self._signed(request.heads),
        )

    def contribute(
        self,
        plan: Plan,
        request: Contribute,
        *,
        columns: Columns,
        statistics: NDArray[np.float64],
        size: int,
        charge: Charge,
        largest: int,
        share: Share,
    ) -> Contribution:
        """A share of a sum, charged, noised, masked and stored.

        Args:
            columns, statistics: of the session's preparation, `bound` of it; before there is one, the columns that are asked
                for, and none.
            size: length of the share, as the site works it out.
            largest: magnitude beyond which no coordinate of it may be, noise counted.
            share: computes it.

        Guarantees:
            - Nothing leaves that was not reserved before, and stored.
            - A ledger that somebody has seen further on than it is now answers nothing; keys of an earlier epoch mask nothing.
            - Asked again, the same bytes; asked otherwise under the same number, nothing.
            - The masks are bound to the parameters, columns, trial, histogram and statistics that this site was sent.

        Raises:
            PolicyRefusal, RemoteProtocolError: it may not leave.
        """
        with self._keys.alone():
            return self._contributed(
                plan,
                request,
                columns=columns,
                statistics=statistics,
                size=size,
                charge=charge,
                largest=largest,
                share=share,
            )

    def _contributed(
        self,
        plan: Plan,
        request: Contribute,
        *,
        columns: Columns,
        statistics: NDArray[np.float64],
        size: int,
        charge: Charge,
        largest: int,
        share: Share,
    ) -> Contribution:
        head, formation = request.head, request.formation
        party = self._party(plan, head, formation, begins=False)
        self._take_witnesses(request)
        step = step_of(
            number=request.number,
            size=size,
            kind=request.kind,
            round_number=request.round,
            trial=head.trial,
            columns=columns,
            parameters=request.parameters,
            histogram=request.histogram,
            statistics=statistics,
        )
        reply_id = reply_id_of(request)
        asked = (plan.hash, repr(head.trial), formation.members, step.parts)
        request_hash = hashlib.sha256(repr((reply_id, asked)).encode()).hexdigest()

        made: list[Upload] = []

        def compute() -> bytes:
            values = share(self._random(f"{head.trial}|{request.kind}|{request.round}|{request.number}"))
            check_share(values, size=size, largest=largest)
            made.append(party.upload(step, to_ring(values, party.group.ring_bits)))
            return secagg.to_bytes(made[0])

        with self._as_on_disk(head.session):
            content = charged_reply(
                self.ledger,
                self.outbox,
                plan_hash=account_of(plan, head.trial),
                session=head.session,
                reply_id=reply_id,
                request_hash=request_hash,
                charge=charge,
                compute=compute,
                now=self.clock(),
            )
            # The share is stored first. Killed in between, a site finds it and lets its keys count it as masked.
            if made or _adopted(party, content):
                self._keep(head.session, formation, party)
        return Contribution(head=head, site=self.site, content=content, ledger=self.ledger.head(self._signing))

    def noised(
        self, plan: Plan, request: Train, *, charge: Charge, compute: Callable[[Randomness], NDArray[np.uint64]]
    ) -> NDArray[np.uint64]:
        """The update of a round under noise = "site", charged and stored: ring elements.

        Guarantees:
            - Nothing leaves that was not reserved before, and stored.
            - A round is computed once: asked again, the same; asked otherwise, nothing.

        Raises:
            PolicyRefusal, RemoteProtocolError: it may not leave.
        """
        head = request.head
        reply_id = reply_id_of(request)
        asked = (reply_id, plan.hash, repr(head.trial), fingerprint(request.parameters))
        content = charged_reply(
            self.ledger,
            self.outbox,
            plan_hash=account_of(plan, head.trial),
            session=head.session,
            reply_id=reply_id,
            request_hash=hashlib.sha256(repr(asked).encode() + request.control.tobytes()).hexdigest(),
            charge=charge,
            compute=lambda: compute(self._random(f"{head.trial}|{request.round}")).astype("<u8").tobytes(),
            now=self.clock(),
        )
        return np.frombuffer(content, dtype="<u8").astype(np.uint64)

    def own_release(
        self, plan: Plan, head: Head, *, what: str, charge: Charge, compute: Callable[[Randomness], NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        """Noised integers of a run that this site keeps to itself: drawn once, whatever session asks, and charged before.

        Args:
            what: is released; another name, another release.
            compute: sums and adds noise; called once for one reservation.

        Guarantees:
            - Charged before it is computed, and stored before it is used; asked again, the same numbers.

        Raises:
            PolicyRefusal, RemoteProtocolError: it is not among what was reserved.
        """
        account = account_of(plan, head.trial)
        reply_id = f"{what} of {account}"
        with self._keys.alone():
            content = charged_reply(
                self.ledger,
                self.outbox,
                plan_hash=account,
                session=reply_id,
                reply_id=reply_id,
                request_hash=hashlib.sha256(reply_id.encode()).hexdigest(),
                charge=charge,
                compute=lambda: compute(self._random(f"{head.trial}|{what}")).astype("<i8").tobytes(),
                now=self.clock(),
            )
        return np.frombuffer(content, dtype="<i8").astype(np.int64)

    def _random(self, label: str) -> Randomness:
        if self.noise_seed is None:
            return Randomness.from_os()
        return Randomness.repeatable(f"{self.noise_seed}|{self.site}|{label}")

    # -- keys of sums -----------------------------------------------------------------------------------------------------------

    def _party(self, plan: Plan, head: Head, formation: Formation, *, begins: bool) -> secagg.SiteParty:
        """The party of a formation: the one at hand, the one on disk, or, where a set-up begins, a new one."""
        known, version = self._sittings.get(head.session), self._keys.version(head.session)
        if known is not None and known.formation == formation and known.version == version:
            return known.party
        group = group_of(plan, head.session, formation, self.identities())
        key = self._signing
        if version is not None:
            kept, epoch, content = self._keys.read(head.session)
            # Of another epoch it came out of a backup: its keys may have masked something already.
            if kept == formation and epoch == self.ledger.epoch:
                party = secagg.SiteParty.restore(group, self.site, key, content)
                self._sittings[head.session] = _Sitting(formation=formation, party=party, version=version)
                return party
        if not begins:
            raise RemoteProtocolError("this formation was never set up here, or is over", code="unknown-formation")
        if self.site not in formation.members or dict(group.members)[self.site] != raw_public(key.public_key()):
            raise RemoteProtocolError("this site with its key is not a member of the formation", code="formation")
        return secagg.SiteParty(group, self.site, key)

    @contextmanager
    def _as_on_disk(self, session: str) -> Iterator[None]:
        """Whatever fails in here, the keys go on from what the disk has of them, and not from what was tried."""
        try:
            yield
        except BaseException:
            self._sittings.pop(session, None)
            raise

    def _keep(self, session: str, formation: Formation, party: secagg.SiteParty) -> None:
        """Write the keys' state down, in place of the one before: what is erased there is erased here."""
        version = self._keys.write(session, formation, epoch=self.ledger.epoch, state=party.state())
        # One session at a time, as with the site's own.
        self._sittings = {session: _Sitting(formation=formation, party=party, version=version)}

    # -- freshness --------------------------------------------------------------------------------------------------------------

    def _signed(self, heads: Mapping[str, bytes]) -> dict[str, bytes]:
        """This site's signatures under the others' ledgers."""
        if not heads:
            return {}
        key, known = self._signing, self.identities()
        made: dict[str, bytes] = {}
        for site, content in heads.items():
            head = LedgerHead.from_bytes(content)
            if (
                site == self.site
                or site not in known
                or head.site != site
                or not head.is_signed_by(_public(known[site]))
            ):
                raise RemoteProtocolError("a ledger's head is not signed by its site", code="ledger-head")
            made[site] = sign_witness(key, name=self.site, head=content).to_bytes()
        return made

    def _take_witnesses(self, request: Exchange | Contribute) -> None:
        if not request.witnesses:
            return
        known = self.identities()
        peers = {known[m] for m in request.formation.members if m in known and m != self.site}
        for content in request.witnesses.values():
            self.ledger.witness(Witness.from_bytes(content), trusted=(*peers, *self.trusted))


def _adopted(party: secagg.SiteParty, content: bytes) -> bool:
    """Let keys count a stored share as masked by them; False if they do already, or are not those that masked it."""
    upload = secagg.from_bytes(content)
    try:
        party.adopt(upload)  # type: ignore[arg-type] # what this site stored as a share
    except RemoteProtocolError:
        return False
    return True


def _public(raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(raw)
