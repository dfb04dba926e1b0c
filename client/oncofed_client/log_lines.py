"""What a service says while it runs: one JSON object a line, of names from a list among which no patient's value can be."""

from __future__ import annotations

import json
import sys
import time
from typing import TextIO

__all__ = ["NAMES", "say"]

NAMES = frozenset(
    (
        "bytes_in", "bytes_out", "code", "error", "kind", "network", "number", "pid", "place", "program", "seconds", "site",
        "socket", "step", "studies", "study", "text",
    )
)  # fmt: skip
"""All that may be said beside the event: sizes, times, codes, constants of the program, and paths and names of our own."""


def say(event: str, *, to: TextIO | None = None, **facts: str | float) -> None:
    """Write one line.

    Args:
        event: what happened, a constant of the program.
        to: standard error without it.
        facts: by names in `NAMES`; another name is a defect of the caller's.

    Guarantees:
        - A line has the time, the event, and names from `NAMES`; a name that is not in it raises before anything is written.
        - A line is one line, whatever a fact holds.
    """
    if unknown := sorted(set(facts) - NAMES):
        raise ValueError(f"not to be said in a log: {', '.join(unknown)}")
    stream = to or sys.stderr
    stream.write(json.dumps({"time": round(time.time(), 3), "event": event, **facts}) + "\n")
    stream.flush()
