"""The in-process driver: real sites, the real aggregator, real bytes, a fake clock.

Every message is serialised and parsed on its way, as on a wire; a tap sees each byte that crosses a site's boundary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from oncofed_client.site import Site
from oncofed_server.aggregator import Aggregator
from oncofed_server.rounds import Cost
from oncofed_server.run_state import Outgoing, Received, Start, Tick
from oncofed_shared.errors import LocalProtocolError
from oncofed_shared.messages import Request, from_bytes, to_bytes

__all__ = ["FakeClock", "Tap", "drive"]

UNDER_WAY = 1 << 18
"""Bytes of replies that may be under way: sites answer one after another until there are so many, then the aggregator reads them.
With small models that is many sites; a processor that stays with one kind of work does it in two thirds of the time."""

Tap = Callable[[str, str, bytes], None]


@dataclass
class FakeClock:
    """Seconds that pass only when told to."""

    now: float = 0.0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


def drive(
    aggregator: Aggregator,
    sites: Mapping[str, Site],
    *,
    tap: Tap = lambda direction, site, content: None,
    clock: FakeClock,
    after_step: Callable[[Aggregator], None] | None = None,
) -> None:
    """Run until the aggregator has finished.

    Args:
        tap: sees every message: ("up" or "down", site, bytes).
        after_step: called after every event, for progress, snapshots and interruption.
    """
    queue = deque(aggregator.step(Start(now=clock.now)))
    wire = _Wire(sites=sites, tap=tap)
    while not aggregator.finished:
        if not queue:
            # Nothing is under way: only time can bring the run forward.
            clock.advance(aggregator.state.deadline - clock.now)
            queue.extend(aggregator.step(Tick(now=clock.now)))
            if not queue and not aggregator.finished:
                raise LocalProtocolError("the run waits for nobody and does not end")
            continue
        for content, cost in wire.replies(queue):
            queue.extend(aggregator.step(Received(now=clock.now, reply=from_bytes(content), cost=cost)))  # type: ignore[arg-type]
            if after_step is not None:
                after_step(aggregator)
            if aggregator.finished:
                break


@dataclass(kw_only=True)
class _Wire:
    """Carries requests to sites and their replies back.

    Attributes:
        request, sent, read: the last request, as it was serialised, and as it was parsed.
    """

    sites: Mapping[str, Site]
    tap: Tap
    request: Request | None = None
    sent: bytes = b""
    read: Any = None

    def replies(self, queue: deque[Outgoing]) -> list[tuple[bytes, Cost]]:
        """Let the first sites of the queue answer, as many as may be under way at once."""
        found: list[tuple[bytes, Cost]] = []
        size = 0
        while queue and size < UNDER_WAY:
            outgoing = queue.popleft()
            if outgoing.request is not self.request:
                # All sites get the same object in a step, so it is serialised and parsed once; its arrays are read-only.
                self.request, self.sent = outgoing.request, to_bytes(outgoing.request)
                self.read = from_bytes(self.sent)
            self.tap("down", outgoing.site, self.sent)
            started = time.perf_counter()
            reply = to_bytes(self.sites[outgoing.site].handle(self.read))
            self.tap("up", outgoing.site, reply)
            size += len(reply)
            cost = Cost(bytes_up=len(reply), bytes_down=len(self.sent), seconds=time.perf_counter() - started)
            found.append((reply, cost))
        return found
