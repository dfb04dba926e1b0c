"""The aggregator's side of the secure sums of one formation: which sum comes next, what to say to whom, and what came out."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from oncofed_shared import secagg
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.formation import from_ring, group_of, step_of
from oncofed_shared.messages import Arrays, Contribution, Exchanged, Formation
from oncofed_shared.plan import Plan
from oncofed_shared.secagg import AggregatorParty, AggregatorPhase
from oncofed_shared.witness import sign_witness

__all__ = ["AGGREGATOR", "SecureSums"]

PEERS_SIGN_EVERY = 16
"""Sums from one round of the peers' signatures under all ledgers to the next: n x n of them each time."""
AGGREGATOR = "aggregator"
"""Under which name the aggregator signs heads of ledgers."""


class SecureSums:
    """All sums of one formation.

    Args:
        identities: raw public identity keys by site.
        key: the aggregator's own, to sign the sites' ledgers back.

    Attributes:
        formation: its name is drawn at random, so that none is ever used twice.
    """

    def __init__(
        self,
        plan: Plan,
        session: str,
        members: tuple[str, ...],
        identities: Mapping[str, bytes],
        key: Ed25519PrivateKey | None = None,
    ) -> None:
        self.formation = Formation(name=secrets.token_hex(16), members=tuple(sorted(members)))
        self.party = AggregatorParty(group_of(plan, session, self.formation, identities))
        self.number = 0
        self._key = key
        self._heads: dict[str, bytes] = {}
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
        self, kind: str, *, size: int, round_number: int, parameters: Arrays, histogram: NDArray[np.float64]
    ) -> None:
        """Begin the next sum."""
        step = step_of(
            number=self.number,
            size=size,
            kind=kind,
            round_number=round_number,
            parameters=parameters,
            histogram=histogram,
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
        return {name: head for name, head in self._heads.items() if name != site}

    def witnesses_for(self, site: str) -> dict[str, bytes]:
        """What others have signed of a site's ledger since it was last told."""
        return self._witnesses.pop(site, {})

    def take(self, reply: Exchanged | Contribution) -> None:
        """Take a site's answer.

        Raises:
            RemoteProtocolError: it is another site's, or not what was asked.
        """
        answer = secagg.from_bytes(reply.content)
        if getattr(answer, "site", None) != reply.site:
            raise RemoteProtocolError("it answered for another site", code="member")
        self.party.take(answer)  # type: ignore[arg-type] # what is no answer is refused there
        self._heads[reply.site] = reply.ledger
        if self._key is not None and isinstance(reply, Contribution):
            signed = sign_witness(self._key, name=AGGREGATOR, head=reply.ledger)
            self._witnesses.setdefault(reply.site, {})[AGGREGATOR] = signed.to_bytes()
        if isinstance(reply, Exchanged):
            for about, witness in reply.witnesses.items():
                if about in self.formation.members:
                    self._witnesses.setdefault(about, {})[reply.site] = witness

    def result(self) -> NDArray[np.int64]:
        """The sum, (size,) integers."""
        return from_ring(self.party.result())
