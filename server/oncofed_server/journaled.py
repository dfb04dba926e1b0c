"""An aggregator that survives being killed: every event is in the journal before a request that follows from it is seen.

    event -> journal (event, numbers of the requests that follow) -> disk -> requests
    a new process: journal -> the same events -> the same requests with the same numbers; those without an answer are sent again

Time is the study's own: seconds in which somebody drove it. What was no time for the sites, because the aggregator was down, counts
towards no deadline.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from oncofed_server.aggregator import Aggregator
from oncofed_server.journal import Entry, Journal, digest_of
from oncofed_server.rounds import Cost
from oncofed_server.run_state import Event, Outgoing, Phase, Received, Start, State, Tick
from oncofed_server.secure_aggregator import SecureAggregator
from oncofed_server.snapshot import load_state, save_state
from oncofed_shared.errors import DataError, RemoteProtocolError
from oncofed_shared.messages import Reply, Request, from_bytes, to_bytes

if TYPE_CHECKING:
    from oncofed_shared.plan import Plan

__all__ = ["JournaledRun", "MakeAggregator", "Numbered"]

MOST_EVENTS, MOST_BYTES = 512, 64 << 20
"""With more than this since the last snapshot, the next round begins with a new one."""


class MakeAggregator(Protocol):
    """Makes a study's aggregator: from the start, or from a state; with names for formations."""

    def __call__(self, *, state: State | None, names: Callable[[], str]) -> Aggregator:
        """A fresh aggregator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbered:
    """A request as it goes out: `body` is `messages.to_bytes` of it."""

    number: int
    site: str
    body: bytes


class JournaledRun:
    """One study's aggregator with its journal.

    Args:
        clock: seconds that only grow; only differences count.

    Guarantees:
        - A request is returned only when its event and its number are on the disk.
        - After a kill at any moment `recover` gives the same aggregator, and its unanswered requests with the same numbers and
          bytes; if this code gives other bytes, nothing is sent.
    """

    def __init__(
        self,
        plan: Plan,
        make: MakeAggregator,
        journal: Journal,
        *,
        clock: Callable[[], float] = time.monotonic,
        most_events: int = MOST_EVENTS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.journal = journal
        self._clock, self._opened = clock, clock()
        self._most = most_events, most_bytes
        self._before = 0.0
        self._sent: dict[str, Numbered] = {}
        self._packed: tuple[Request | None, bytes] = (None, b"")
        self.asked: frozenset[str] = frozenset()
        self._asked_in = -1
        names = count(1)
        base = journal.snapshot
        state = load_state(self._snapshot_file(base), plan) if base else None
        self.aggregator = make(state=state, names=lambda: journal.name(next(names)))

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return self.aggregator.finished

    @property
    def pending(self) -> frozenset[str]:
        """Sites whose answer is awaited."""
        return frozenset() if self.finished else self.aggregator.state.pending

    @property
    def now(self) -> float:
        """Seconds in which somebody drove this study, those of former processes up to their last event."""
        return self._before + self._clock() - self._opened

    def recover(self) -> list[Numbered]:
        """Begin, or go on where the journal ends.

        Returns:
            The requests that wait for an answer.

        Raises:
            DataError: the journal is damaged, or does not belong to this version of the code.
        """
        base = self.journal.snapshot
        if base:
            self._before = self.aggregator.state.deadline - 60 * self.aggregator.plan.training.deadline_minutes
            self._match(base, self.aggregator.outstanding())
        last = base
        for entry in self.journal.entries():
            self._before = max(self._before, entry.now)
            self._match(entry.number, self.aggregator.step(_event(entry)))
            last = entry.number
        self._opened = self._clock()
        if last == 0:
            self._take("start", Start(now=self.now))
        return self.outstanding()

    def outstanding(self) -> list[Numbered]:
        """The newest request to each site that has not answered it."""
        return sorted((n for n in self._sent.values() if n.site in self.pending), key=lambda n: n.number)

    def receive(self, reply: Reply, cost: Cost, *, sight: bytes = b"") -> list[Numbered] | None:
        """Take a reply, and what the site signed of its model; what follows from it.

        Returns:
            None for a reply that nobody waits for any more: it changes nothing.
        """
        if not self.aggregator.awaits(reply):
            return None
        return self._take("received", Received(now=self.now, reply=reply, cost=cost), sight)

    def tick(self) -> list[Numbered]:
        """Let time pass; what follows from it."""
        if self.finished or self.now < self.aggregator.state.deadline:
            return []
        return self._take("tick", Tick(now=self.now))

    @property
    def seconds_left(self) -> float:
        """Until the deadline of the step under way."""
        return self.aggregator.state.deadline - self.now

    # -- inside ---------------------------------------------------------------------------------------------------------------

    def _take(self, kind: str, event: Start | Received | Tick, sight: bytes = b"") -> list[Numbered]:
        reply, cost = (to_bytes(event.reply), event.cost) if isinstance(event, Received) else (b"", Cost())
        made: list[Numbered] = []
        with self.journal.transaction():
            number = self.journal.append(kind, event.now, reply=reply, cost=cost)
            if sight and isinstance(event, Received):
                self.journal.keep_sight(event.reply.site, sight)
            follows = self.aggregator.step(event)
            self._note_asked(follows)
            for outgoing in follows:
                body = self._body(outgoing.request)
                given = self.journal.assign(outgoing.site, body, number)
                made.append(Numbered(number=given, site=outgoing.site, body=body))
        self._sent |= {n.site: n for n in made}
        self._compact(number)
        return made

    def _body(self, request: Request) -> bytes:
        # Most requests of a step are one object for all sites, so it is serialised once.
        if self._packed[0] is not request:
            self._packed = (request, to_bytes(request))
        return self._packed[1]

    def _match(self, event: int, outgoing: list[Outgoing]) -> None:
        """See that an event has given the requests that it gave before."""
        self._note_asked(outgoing)
        rows = self.journal.assigned(event)
        if len(outgoing) > len(rows):
            raise self._other(event)
        by_site = {site: (number, digest) for number, site, digest in rows}
        for each in outgoing:
            body = self._body(each.request)
            number, digest = by_site.get(each.site, (0, b""))
            if digest != digest_of(body):
                raise self._other(event)
            self._sent[each.site] = Numbered(number=number, site=each.site, body=body)

    def _note_asked(self, outgoing: list[Outgoing]) -> None:
        """Who is asked in the step under way: those who were asked first, and whoever is asked in it later."""
        for each in outgoing:
            step = each.request.head.step
            before = self.asked if step == self._asked_in else frozenset()
            self._asked_in, self.asked = step, before | {each.site}

    def _other(self, event: int) -> DataError:
        return DataError(
            f"{self.journal.path}: event {event} gives other requests than when it was written, so nothing is sent; go on with the "
            "version of oncofed that began the study",
            code="journal",
        )

    # -- snapshots ------------------------------------------------------------------------------------------------------------

    def _snapshot_file(self, event: int) -> Path:
        return self.journal.path.with_name(f"snapshot-{event}.safetensors")

    def _compact(self, event: int) -> None:
        """Now and then, where a round begins, let the state stand for the events that led to it.

        Not under secure sums: keys and numbers of a formation are no part of the state, and their events are the only way to them.
        """
        aggregator = self.aggregator
        state = aggregator.state
        begins = state.phase is Phase.TRAIN and not state.tally.sites and state.attempt == 0
        if isinstance(aggregator, SecureAggregator) or not begins or state.pending != frozenset(self._of(event)):
            return
        events, size = self.journal.size
        if events < self._most[0] and size < self._most[1]:
            return
        before = self.journal.snapshot
        save_state(self._snapshot_file(event), state)
        with self.journal.transaction():
            self.journal.forget(event)
        if before:
            with contextlib.suppress(OSError):
                self._snapshot_file(before).unlink()

    def _of(self, event: int) -> set[str]:
        return {site for _, site, _ in self.journal.assigned(event)}


def _event(entry: Entry) -> Event:
    match entry.kind:
        case "start":
            return Start(now=entry.now)
        case "tick":
            return Tick(now=entry.now)
        case "received":
            reply: Reply = from_bytes(entry.reply)  # type: ignore[assignment] # only replies are written
            return Received(now=entry.now, reply=reply, cost=entry.cost)
    raise RemoteProtocolError(f"an event of kind {entry.kind}")
