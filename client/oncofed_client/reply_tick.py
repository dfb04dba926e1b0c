"""When a reply leaves: never as soon as it is ready, because how long a site computed tells how many patients it computed for.

With a tick of T seconds a reply leaves T, 2T, 3T ... seconds after its request arrived, whatever it says (protocol, rule 11).
So the
time of a step is seen only in whole ticks. Set `policy.reply_tick` above the longest step to let it tell nothing at all.
"""

from __future__ import annotations

import math

__all__ = ["seconds_to_tick"]


def seconds_to_tick(elapsed: float, tick: float) -> float:
    """How long a reply has to wait yet.

    Args:
        elapsed: seconds since its request arrived, by a clock that nobody sets.
        tick: seconds; 0 for none.

    Guarantees:
        - `elapsed` and the result add up to a multiple of the tick, of at least one.
        - The result is less than a tick, or one where nothing has elapsed; never negative.
    """
    if tick <= 0:
        return 0.0
    ticks = max(1, math.ceil(elapsed / tick - 1e-9))
    return max(0.0, ticks * tick - elapsed)
