"""The in-process driver: real sites, the real aggregator, real bytes, a fake clock.

Every message is serialised and parsed on its way, as on a wire; a tap sees each byte that crosses a site's boundary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from oncofed_client.site import Site
from oncofed_server.aggregator import Aggregator, Cost, Received, Start, Tick
from oncofed_shared.errors import LocalProtocolError
from oncofed_shared.messages import from_bytes, to_bytes

__all__ = ["FakeClock", "Tap", "drive"]

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
    request, sent, read = None, b"", None
    while not aggregator.finished:
        if not queue:
            # Nothing is under way: only time can bring the run forward.
            clock.advance(aggregator.state.deadline - clock.now)
            queue.extend(aggregator.step(Tick(now=clock.now)))
            if not queue and not aggregator.finished:
                raise LocalProtocolError("the run waits for nobody and does not end")
            continue
        outgoing = queue.popleft()
        if outgoing.request is not request:
            # All sites get the same object in a step, so it is serialised and parsed once; its arrays are read-only.
            request, sent = outgoing.request, to_bytes(outgoing.request)
            read = from_bytes(sent)
        tap("down", outgoing.site, sent)
        started = time.perf_counter()
        reply = to_bytes(sites[outgoing.site].handle(read))  # type: ignore[arg-type]
        tap("up", outgoing.site, reply)
        cost = Cost(bytes_up=len(reply), bytes_down=len(sent), seconds=time.perf_counter() - started)
        queue.extend(aggregator.step(Received(now=clock.now, reply=from_bytes(reply), cost=cost)))  # type: ignore[arg-type]
        if after_step is not None:
            after_step(aggregator)
