"""The aggregator's side of the secure sums of one formation: which sum comes next, what to say to whom, and what came out."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from numpy.typing import NDArray

from oncofed_shared import secagg
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.formation import from_ring, group_of, step_of
from oncofed_shared.messages import Arrays, Columns, Contribution, Exchanged, Formation, Trial
from oncofed_shared.plan import Plan
from oncofed_shared.secagg import AggregatorParty, AggregatorPhase
from oncofed_shared.witness import Head, Witness, sign_witness

__all__ = ["AGGREGATOR", "SecureSums", "formation_name"]

PEERS_SIGN_EVERY = 16
"""Sums from one round of the peers' signatures under all ledgers to the next: n x n of them each time."""
AGGREGATOR = "aggregator"
"""Under which name the aggregator signs heads of ledgers."""


def formation_name() -> str:
    """A name that no formation ever had: 128 random bits."""
    return secrets.token_hex(16)


class SecureSums:
    """All sums of one formation.

    Args:
        identities: raw public identity keys by site.
        key: the aggregator's own, to sign the sites' ledgers back.
        before: the sums of the formation before this one, for what they have seen of ledgers.
        name: of the formation, never used before; drawn at random where none is given.

    Attributes:
        formation: who adds up together.
        heads: the newest head of each site's ledger that was seen, of former formations too.

    Guarantees:
        - A site whose ledger's head is not signed by it, or is older than one that was seen, has given no answer.
        - What a site says of another's ledger is passed on only if it is what the other can check.
    """

    def __init__(
        self,
        plan: Plan,
        session: str,
        members: tuple[str, ...],
        identities: Mapping[str, bytes],
        key: Ed25519PrivateKey | None = None,
        *,
        before: SecureSums | None = None,
        name: str | None = None,
    ) -> None:
        self.formation = Formation(name=name or formation_name(), members=tuple(sorted(members)))
        self.party = AggregatorParty(group_of(plan, session, self.formation, identities))
        self.number = 0
        self._key = key
        self.heads: dict[str, bytes] = {} if before is None else before.heads
        self._witnesses: dict[str, dict[str, bytes]] = {}

    @property
    def ready(self) -> bool:
        """Whether the next sum's keys are dealt."""
        return self.party.ready(self.number // self.party.group.block)

    @property
    def opened(self) -> bool:
        """Whether the sum can be read."""
        return self.party.phase is AggregatorPhase.DONE

    @property
    def lost(self) -> bool:
        """Whether the sum can never be opened."""
        return self.party.phase is AggregatorPhase.LOST

    @property
    def included(self) -> tuple[str, ...]:
        """Whose shares the sum has."""
        return self.party.included

    def set_up(self) -> None:
        """Begin to deal the next block's keys."""
        self.party.open(self.number // self.party.group.block)

    def begin(
        self,
        kind: str,
        *,
        size: int,
        round_number: int,
        trial: Trial,
        columns: Columns,
        parameters: Arrays,
        histogram: NDArray[np.float64],
        statistics: NDArray[np.float64],
    ) -> None:
        """Begin the next sum."""
        step = step_of(
            number=self.number,
            size=size,
            kind=kind,
            round_number=round_number,
            trial=trial,
            columns=columns,
            parameters=parameters,
            histogram=histogram,
            statistics=statistics,
        )
        self.party.begin(step)
        self.number += 1

    def close(self) -> None:
        """Nobody else will upload."""
        if self.party.phase is AggregatorPhase.UPLOADS:
            self.party.close()

    def give_up(self) -> None:
        """The sum cannot be opened any more: too few answered."""
        self.party.abandon()

    def asks(self) -> dict[str, bytes]:
        """What to send to whom now."""
        return {site: secagg.to_bytes(ask) for site, ask in self.party.asks().items()}

    def heads_for(self, site: str) -> dict[str, bytes]:
        """The other sites' newest ledger heads, now and then while a sum is opened; the aggregator itself signs every one."""
        if not self.included or (self.number - 1) % PEERS_SIGN_EVERY:
            return {}
        members = self.formation.members
        return {name: head for name, head in self.heads.items() if name != site and name in members}

    def witnesses_for(self, site: str) -> dict[str, bytes]:
        """What others have signed of a site's ledger since it was last told."""
        return self._witnesses.pop(site, {})

    def newest_witness(self, site: str) -> dict[str, bytes]:
        """The aggregator's own signature under the newest head of a site's ledger that it has seen."""
        head = self.heads.get(site)
        if self._key is None or head is None:
            return {}
        return {AGGREGATOR: sign_witness(self._key, name=AGGREGATOR, head=head).to_bytes()}

    def take(self, reply: Exchanged | Contribution) -> None:
        """Take a site's answer.

        Raises:
            RemoteProtocolError: it is another site's, or not what was asked, or its ledger is an old copy.
        """
        self._check_ledger(reply)
        answer = secagg.from_bytes(reply.content)
        if getattr(answer, "site", None) != reply.site:
            raise RemoteProtocolError("it answered for another site", code="member")
        self.party.take(answer)  # type: ignore[arg-type] # what is no answer is refused there
        self.heads[reply.site] = reply.ledger
        if self._key is not None and isinstance(reply, Contribution):
            signed = sign_witness(self._key, name=AGGREGATOR, head=reply.ledger)
            self._witnesses.setdefault(reply.site, {})[AGGREGATOR] = signed.to_bytes()
        if isinstance(reply, Exchanged):
            for about, witness in reply.witnesses.items():
                if about in self.formation.members:
                    self._witnesses.setdefault(about, {})[reply.site] = witness

    def _check_ledger(self, reply: Exchanged | Contribution) -> None:
        """See that a site's ledger has only grown, and that what it signs of others' can be believed by them."""
        keys = dict(self.party.group.members)
        head, known = Head.from_bytes(reply.ledger), self.heads.get(reply.site)
        if reply.site not in keys or not _is_head_of(reply.ledger, reply.site, keys[reply.site]):
            raise RemoteProtocolError("its ledger's head is not signed by it", code="ledger-head")
        # A share has an entry of its own, so that its head is never the one before.
        if known is not None and (known != reply.ledger or isinstance(reply, Contribution)):
            seen = Head.from_bytes(known)
            if head.epoch != seen.epoch or head.number <= seen.number:
                raise RemoteProtocolError(
                    f"its ledger ends with entry {head.number} of epoch {head.epoch}, and entry {seen.number} of epoch "
                    f"{seen.epoch} was seen: it was rolled back",
                    code="rolled-back",
                )
        for about, content in (reply.witnesses if isinstance(reply, Exchanged) else {}).items():
            witness = Witness.from_bytes(content)
            its_own = about in keys and witness.public_key == keys[reply.site] and witness.is_signed
            if not its_own or not _is_head_of(witness.head, about, keys[about]):
                raise RemoteProtocolError("what it says of another ledger is not signed by both", code="ledger-witness")

    def result(self) -> NDArray[np.int64]:
        """The sum, (size,) integers."""
        return from_ring(self.party.result())


def _is_head_of(content: bytes, site: str, key: bytes) -> bool:
    """Whether these bytes are a head of the site's ledger, signed with its key."""
    head = Head.from_bytes(content)
    return head.site == site and head.is_signed_by(Ed25519PublicKey.from_public_bytes(key))
