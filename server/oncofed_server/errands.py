"""What is asked of the sites before a run and after it: about how many patients they have, and to take the final model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from oncofed_server.aggregator import Cost
from oncofed_server.journal import Journal
from oncofed_server.journaled import Numbered
from oncofed_shared.messages import Count, Counted, Deliver, Delivered, ErrandReply, Head, Refusal, Reply, to_bytes
from oncofed_shared.signed_study import SignedStudy

__all__ = ["Errand", "count_errand", "deliver_errand"]


@dataclass(kw_only=True)
class Errand:
    """One question to each of several sites.

    Attributes:
        requests: what to send.
        answers: by site, as they come; a refusal is one.
        until: on the clock; with what has come until then it is over.
        head: of all requests.
        expected: kind of answer.
        came: told after each answer.
    """

    requests: list[Numbered]
    until: float
    head: Head
    expected: type[Any]
    came: Callable[[str, Any], None]
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.answers: dict[str, Reply | ErrandReply] = {}

    @property
    def pending(self) -> frozenset[str]:
        """Sites that have not answered."""
        return frozenset(r.site for r in self.requests) - frozenset(self.answers)

    @property
    def asked(self) -> frozenset[str]:
        """Sites that are asked."""
        return frozenset(r.site for r in self.requests)

    @property
    def seconds_left(self) -> float:
        """Until the errand ends, answered or not."""
        return self.until - self.clock()

    @property
    def finished(self) -> bool:
        """Whether all have answered, or the time is over."""
        return not self.pending or self.clock() >= self.until

    def receive(self, reply: Reply, cost: Cost, *, sight: bytes = b"") -> list[Numbered] | None:
        """Take an answer; None if it is none to this question."""
        del cost, sight
        answer: Any = reply
        if not isinstance(answer, (self.expected, Refusal)) or answer.head != self.head:
            return None
        self.answers[answer.site] = answer
        self.came(answer.site, answer)
        return []

    def tick(self) -> list[Numbered]:
        """Nothing follows from time alone."""
        return []


def _head(study: SignedStudy, step: int) -> Head:
    return Head(session=study.session, step=step, attempt=0, plan_hash=study.plan.hash, trial=study.trial)


def count_errand(
    study: SignedStudy, journal: Journal, *, sites: tuple[str, ...], seconds: float, came: Callable[[str, Any], None]
) -> Errand:
    """Ask sites about how many patients they have."""
    head = _head(study, 0)
    body = to_bytes(Count(head=head))
    requests = [Numbered(number=journal.number_for(site, body), site=site, body=body) for site in sites]
    return Errand(requests=requests, until=time.monotonic() + seconds, head=head, expected=Counted, came=came)


def deliver_errand(
    study: SignedStudy,
    journal: Journal,
    *,
    sites: tuple[str, ...],
    step: int,
    content: Mapping[str, bytes],
    seconds: float,
    came: Callable[[str, Any], None],
) -> Errand:
    """Give sites the final model.

    Args:
        step: after the run's last.
        content: fields of `Deliver` beside the head.
    """
    head = _head(study, step)
    body = to_bytes(Deliver(head=head, **content))
    requests = [Numbered(number=journal.number_for(site, body), site=site, body=body) for site in sites]
    return Errand(requests=requests, until=time.monotonic() + seconds, head=head, expected=Delivered, came=came)
