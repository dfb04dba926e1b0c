"""Sealed requests over a grid: sent until answered, opened with the roster's keys; what cannot be believed is silence."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_server.app import Arrived, Courier, reply_of
from oncofed_server.journaled import Numbered
from oncofed_server.rounds import Cost
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.flower_records import pack
from oncofed_shared.messages import ErrandReply, Head, Refusal, Reply, from_bytes
from oncofed_shared.sealed import open_reply, open_request, seal_request
from oncofed_shared.sights import SightBook
from oncofed_shared.signed_study import SignedStudy

__all__ = ["NOT_YET", "Asking", "SealedExchange", "head_of"]

NOT_YET = frozenset({"unapproved-plan", "stale-roster", "roster-epoch", "clock", "storage", "replayed", "busy"})
"""Refusals of a site's door that a person there, or a newer roster, can mend: the site is asked again until the deadline."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
SILENCE, SLOWEST = 120.0, 50_000.0
"""Seconds without an answer after which a request is sent once more, and bytes a second that a large one may take longer."""


class Asking(Protocol):
    """What is asked: a run (`JournaledRun`), or an errand before or after it."""

    @property
    def asked(self) -> frozenset[str]:
        """Sites that are asked in the step under way, answered or not."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to ask."""

    @property
    def pending(self) -> frozenset[str]:
        """Sites whose answer is awaited."""

    @property
    def seconds_left(self) -> float:
        """Until the time for the answers that are awaited is over."""

    def receive(self, reply: Reply, cost: Cost, *, sight: bytes = b"") -> list[Numbered] | None:
        """Take a reply; what follows from it, or None if nobody waits for it."""

    def tick(self) -> list[Numbered]:
        """Let time pass."""


@dataclass(kw_only=True)
class _Waiting:
    """The newest request to a site, until it is answered.

    Attributes:
        due: when it is sent, for the first time or again.
        pause: seconds until the next attempt after one that failed.
        silence: seconds without an answer until the next.
    """

    request: Numbered
    due: float = 0.0
    pause: float = field(default_factory=lambda: FIRST_PAUSE)
    silence: float = field(default_factory=lambda: SILENCE)
    under_way: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sealed:
    """A request as it was sent; the next time it may have another roster, and another digest."""

    waiting: _Waiting
    digest: bytes
    size: int


class SealedExchange:
    """Requests of one study to its roster, and their answers.

    Args:
        asking: what the replies are for.
        first: requests to begin with.
        roster: the newest roster epoch's bytes, asked before every request.
        key: the study's step key.
        book: what sites have signed of their models.
        say: told per site what did not work, in words without anything of a patient.
        clock: seconds, for pauses between attempts.

    Guarantees:
        - One request at a time is asked of a site: the newest. An answer to an earlier one is dropped.
        - A message that was lost on its way is sent again before a long deadline: by its source Flower's SuperNode forgets one
          that it could not fetch, and one that was in it when it ended. A site that was only slow gives the answer that it has.
        - A reply that its site did not sign for this very request changes nothing but a line in the log.
    """

    def __init__(
        self,
        asking: Asking,
        first: list[Numbered],
        courier: Courier,
        study: SignedStudy,
        *,
        roster: Callable[[], bytes],
        key: Ed25519PrivateKey,
        book: SightBook,
        say: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.asking, self.courier = asking, courier
        self._study, self._roster, self._key, self._book = study, roster, key, book
        self._say, self._clock = say, clock
        self._waiting: dict[str, _Waiting] = {}
        self._take(first)

    @property
    def waiting(self) -> Mapping[str, bool]:
        """Sites whose answer has not come, and whether the request is under way to them."""
        return {site: w.under_way for site, w in self._waiting.items()}

    def advance(self) -> bool:
        """Take what has arrived, send what is due; whether anything happened."""
        moved = self._receive()
        self._take(self.asking.tick())
        # Who has left the run is not asked any more.
        pending = self.asking.pending
        self._waiting = {site: w for site, w in self._waiting.items() if site in pending}
        return self._send() or moved

    def _take(self, requests: list[Numbered]) -> None:
        for request in requests:
            self._waiting[request.site] = _Waiting(request=request)

    def _send(self) -> bool:
        moved = False
        for site, waiting in self._waiting.items():
            now = self._clock()
            if now < waiting.due or site not in self.courier.nodes:
                continue
            if waiting.under_way:
                self._say(site, "has not answered for a while: it is asked once more")
            content = seal_request(
                waiting.request.body,
                study_id=self._study.id,
                site=site,
                number=waiting.request.number,
                roster=self._roster(),
                sights=self._book.for_site(site),
                key=self._key,
            )
            sealed = _Sealed(waiting=waiting, digest=open_request(content).digest, size=len(content))
            waiting.under_way = self.courier.send(site, pack(content), sealed)
            if waiting.under_way:
                waiting.due = now + waiting.silence + sealed.size / SLOWEST
                waiting.silence *= 2
            else:
                self._again(waiting, "its node does not take a message")
            moved = True
        return moved

    def _again(self, waiting: _Waiting, why: str) -> None:
        waiting.under_way = False
        waiting.due = self._clock() + waiting.pause
        waiting.pause = min(LONGEST_PAUSE, waiting.pause * 2)
        self._say(waiting.request.site, why)

    def _receive(self) -> bool:
        moved = False
        for arrived in self.courier.fetch():
            moved = True
            sealed: _Sealed = arrived.ticket
            if self._waiting.get(arrived.site) is not sealed.waiting:
                continue
            try:
                self._open(arrived, sealed)
            except RemoteProtocolError as error:
                self._again(sealed.waiting, f"{error.code}: {error}")
        return moved

    def _open(self, arrived: Arrived, sealed: _Sealed) -> None:
        """Take an answer.

        Raises:
            RemoteProtocolError: there is none, it cannot be believed, or it says that it is too early.
        """
        site = arrived.site
        if arrived.content is None:
            raise RemoteProtocolError(arrived.error, code="no-answer")
        opened = open_reply(
            arrived.content,
            request_digest=sealed.digest,
            study_id=self._study.id,
            site=site,
            identity=self._study.roster[site],
        )
        reply: Reply | ErrandReply = reply_of(opened.body, site)
        if isinstance(reply, Refusal) and reply.code in NOT_YET:
            raise RemoteProtocolError(f"not yet: {reply.text}", code=reply.code)
        if isinstance(reply, Refusal):
            # The door may refuse before it has read what is asked; the seal says which request is meant.
            reply = replace(reply, head=head_of(sealed.waiting.request.body))
        cost = Cost(bytes_up=len(arrived.content), bytes_down=sealed.size, seconds=arrived.seconds)
        self._book.take(opened.sight, site=site)
        follows = self.asking.receive(reply, cost, sight=opened.sight)  # type: ignore[arg-type] # errands take theirs
        if follows is None:
            raise RemoteProtocolError("answered another question", code="step")
        # What follows may be for the same site.
        del self._waiting[site]
        self._take(follows)


def head_of(body: bytes) -> Head:
    """The head of a message."""
    return from_bytes(body).head
