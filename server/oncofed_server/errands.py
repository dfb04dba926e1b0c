"""What is said to the sites before a run and after it: how many patients have you, take the final model, there will be none."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from oncofed_server.journal import Journal
from oncofed_server.journaled import Numbered
from oncofed_server.rounds import Cost
from oncofed_shared.messages import (
    Count,
    Counted,
    Deliver,
    Delivered,
    End,
    Ended,
    ErrandReply,
    Head,
    Refusal,
    Reply,
    to_bytes,
)
from oncofed_shared.signed_study import SignedStudy

__all__ = ["Errand", "count_errand", "deliver_errand", "end_errand"]


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


def _errand(
    journal: Journal,
    message: Count | Deliver | End,
    expected: type[Any],
    *,
    sites: tuple[str, ...],
    seconds: float,
    came: Callable[[str, Any], None],
) -> Errand:
    body = to_bytes(message)
    requests = [Numbered(number=journal.number_for(site, body), site=site, body=body) for site in sites]
    return Errand(requests=requests, until=time.monotonic() + seconds, head=message.head, expected=expected, came=came)


def _head(study: SignedStudy, step: int) -> Head:
    return Head(session=study.session, step=step, attempt=0, plan_hash=study.plan.hash, trial=study.trial)


def count_errand(
    study: SignedStudy, journal: Journal, *, sites: tuple[str, ...], seconds: float, came: Callable[[str, Any], None]
) -> Errand:
    """Ask sites about how many patients they have."""
    return _errand(journal, Count(head=_head(study, 0)), Counted, sites=sites, seconds=seconds, came=came)


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
    message = Deliver(head=_head(study, step), **content)
    return _errand(journal, message, Delivered, sites=sites, seconds=seconds, came=came)


def end_errand(
    study: SignedStudy, journal: Journal, *, sites: tuple[str, ...], seconds: float, came: Callable[[str, Any], None]
) -> Errand:
    """Tell sites that the study is over without a model, so that they free what they hold for it."""
    return _errand(journal, End(head=_head(study, 0)), Ended, sites=sites, seconds=seconds, came=came)
