"""Being asked to end, by a signal, at any moment."""

from __future__ import annotations

import math
import signal
import time
from typing import Protocol

__all__ = ["Stop", "Told", "told_by_signals"]

LOOK = 0.1


class Stop(Protocol):
    """What a service looks at between two pieces of work: a `Told`, or a `threading.Event` where no signal sets it."""

    def is_set(self) -> bool:
        """Whether it is to end."""

    def wait(self, timeout: float | None = None, /) -> bool:
        """Wait until it is to end, or for so many seconds; whether it is."""


class Told:
    """Whether a process has been asked to end.

    A signal's handler runs in the middle of whatever its thread does. `threading.Event.set` takes a lock there that `Event.wait`
    may hold in the same thread, which then waits for itself for ever; and one that comes just before a thread goes to sleep wakes
    nobody. So this has no lock, and looks again ten times a second.

    Guarantees:
        - `set` never waits, also where it interrupts `set` or `wait`; who waits returns a tenth of a second later at most.
    """

    def __init__(self) -> None:
        self._asked = False

    def set(self) -> None:
        """Ask it to end."""
        self._asked = True

    def is_set(self) -> bool:
        """See `Stop`."""
        return self._asked

    def wait(self, timeout: float | None = None, /) -> bool:
        """See `Stop`."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not self._asked and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, LOOK))
        return self._asked


def told_by_signals() -> Told:
    """One that SIGTERM and SIGINT set from now on."""
    told = Told()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    return told
