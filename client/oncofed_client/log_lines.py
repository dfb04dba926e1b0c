"""What a service says while it runs: one JSON object a line, of names from a list among which no patient's value can be."""

from __future__ import annotations

import json
import sys
import time
from typing import TextIO

__all__ = ["NAMES", "say"]

NAMES = frozenset(
    (
        "attempt", "bytes_in", "bytes_out", "code", "error", "kind", "network", "number", "pid", "place", "round", "seconds",
        "session", "site", "socket", "step", "study", "text",
    )
)  # fmt: skip
"""All that may be said beside the event: sizes, times, codes, constants of the program, and paths and names of our own."""


def say(event: str, *, to: TextIO | None = None, **facts: str | float) -> None:
    """Write one line.

    Args:
        event: what happened, a constant of the program.
        to: standard error without it.
        facts: by names in `NAMES`.

    Guarantees:
        - A line has the time, the event, and facts with names from `NAMES`; of any other only the name is said.
        - A line is one line, whatever a fact holds.
    """
    said = {name: fact for name, fact in facts.items() if name in NAMES}
    kept_back = {"kept_back": sorted(set(facts) - NAMES)} if len(said) < len(facts) else {}
    stream = to or sys.stderr
    stream.write(json.dumps({"time": round(time.time(), 3), "event": event, **said, **kept_back}) + "\n")
    stream.flush()
