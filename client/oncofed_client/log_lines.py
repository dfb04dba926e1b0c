"""What a site's daemon and gate may say while they run (`oncofed_shared.log_lines`); among it no patient's value can be."""

from __future__ import annotations

from oncofed_shared.log_lines import Form, LogLines

__all__ = ["NAMES", "say"]

_NUMBERS = (
    "attempt", "bytes_in", "bytes_out", "exit", "number", "pid", "round", "seconds", "step",
)  # fmt: skip
_WORDS = ("code", "error", "kind", "network", "place", "program", "session", "site", "study")
NAMES = {
    **dict.fromkeys(_NUMBERS, Form.NUMBER),
    **dict.fromkeys(_WORDS, Form.WORD),
    # Texts of errors name files, rows and columns; a folder may be called anything.
    **dict.fromkeys(("socket", "text"), Form.TEXT),
}
"""All that may be said beside the event: sizes, times, codes, constants of the program, and paths and names of our own."""
say = LogLines(names=NAMES).say
