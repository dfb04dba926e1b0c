"""What the aggregator's processes may say while they run (`oncofed_shared.log_lines`)."""

from __future__ import annotations

from oncofed_shared.log_lines import Form, LogLines

__all__ = ["NAMES", "say"]

NAMES = {
    **dict.fromkeys(("exit", "pid", "port", "seconds", "step"), Form.NUMBER),
    **dict.fromkeys(("address", "aggregator", "program", "site", "study", "study_id"), Form.WORD),
    # A folder may be called anything; what went wrong at a site is Flower's word, or that of our own code.
    **dict.fromkeys(("folder", "text"), Form.TEXT),
}
"""All that may be said beside the event: who, which study, which program, and words for a person."""
say = LogLines(names=NAMES).say
