"""One thing that `oncofed-site doctor` looks at, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from oncofed_shared.errors import OncofedError

__all__ = ["Check", "Verdict", "guarded", "ok", "skipped", "wrong"]


class Verdict(StrEnum):
    """What came out."""

    OK = "ok"
    WRONG = "wrong"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        verdict: what came out.
        found: what is there, in words; no patient's value.
        remedy: what to do; empty where nothing is to be done.
    """

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Check:
    """Nothing to do."""
    return Check(name=name, verdict=Verdict.OK, found=found)


def wrong(name: str, found: str, remedy: str) -> Check:
    """Somebody has to do something."""
    return Check(name=name, verdict=Verdict.WRONG, found=found, remedy=remedy)


def skipped(name: str, why: str, remedy: str = "") -> Check:
    """Could not be looked at yet."""
    return Check(name=name, verdict=Verdict.NOT_CHECKED, found=why, remedy=remedy)


def guarded(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """What a look found; where it ended with an error of ours, that stands in its place."""
    try:
        yield from look()
    except OncofedError as error:
        for line in error.problems:
            yield wrong(name, line, "mend what the line says, and run doctor again")
