"""What a service says while it runs: one JSON object a line, of names from a list, each with values of one form.

A line cannot have in it what nobody thought of: an unknown name is kept back with its value, and so is a value of another form than
its name allows. Each side has a list of its own (`oncofed_client.log_lines`, `oncofed_server.service.log_lines`).
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TextIO

__all__ = ["LONGEST", "Form", "LogLines"]

LONGEST = 300
"""Characters of a text in a line."""
_EVENT = re.compile(r"[a-z][a-z-]{0,30}(\.[a-z][a-z-]{0,30}){0,3}")
_NAME = re.compile(r"[a-z][a-z_]{0,30}")
_WORD = re.compile(r"[A-Za-z0-9_.,:;+=@/#() -]{0,128}")


class Form(Enum):
    """What the value of a name may be."""

    NUMBER = "a finite number"
    WORD = "a code, a name, an id or an address: up to 128 letters, digits and signs in one line"
    TEXT = "words for a person, cut at `LONGEST`; control characters become blanks"


def _shown(value: Any, form: Form) -> Any:
    """The value as it may stand in a line; None where it may not."""
    if form is Form.NUMBER:
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18
        return value if number and math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    if form is Form.WORD:
        return value if _WORD.fullmatch(value) else None
    return "".join(c if c.isprintable() else " " for c in value[:LONGEST])


@dataclass(frozen=True, kw_only=True, slots=True)
class LogLines:
    """One side's lines.

    Attributes:
        names: all that may be said beside time and event, and in which form.
    """

    names: Mapping[str, Form]

    def line(self, event: str, facts: Mapping[str, Any], *, now: float) -> str:
        """A line without its end.

        Args:
            event: what happened, a constant of the program: small words with dots between.
            facts: by names in `names`.
            now: seconds since 1970.

        Guarantees:
            - A line has the time, the event, and facts with names and forms from the list; of any other only the name is said.
            - A line is one line of ASCII and never longer than its names allow, whatever a fact holds.
        """
        known = {name: _shown(value, self.names[name]) for name, value in facts.items() if name in self.names}
        said = {name: value for name, value in known.items() if value is not None}
        back = sorted({name if _NAME.fullmatch(name) else "?" for name in facts if name not in said})[:20]
        shown = event if _EVENT.fullmatch(event) else "unnamed"
        whole = {"time": round(now, 3), "event": shown, **said, **({"kept_back": back} if back else {})}
        return json.dumps(whole, ensure_ascii=True, allow_nan=False)

    def say(self, event: str, *, to: TextIO | None = None, **facts: Any) -> None:
        """Write one line, to standard error without `to`."""
        stream = to or sys.stderr
        stream.write(self.line(event, facts, now=time.time()) + "\n")
        stream.flush()
