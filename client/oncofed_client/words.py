"""Numbers in plain words, as a data officer reads them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from oncofed_shared.plan import ClassificationTask, SurvivalTask

__all__ = ["day", "epsilon_text", "hours_text", "size_text", "task_text"]


def day(at: float) -> str:
    """A day and time in UTC, from seconds since 1970."""
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{at:g} s"


def epsilon_text(epsilon: float) -> str:
    """An epsilon to three digits; no bound where it is infinite."""
    return "no bound" if math.isinf(epsilon) else f"{epsilon:.3g}"


def size_text(size: int | None) -> str:
    """Bytes in decimal units.

    >>> size_text(12_345_678)
    '12.3 MB'
    """
    if size is None:
        return "a few kB"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


def hours_text(hours: float) -> str:
    """A length of time.

    >>> hours_text(0.5)
    '30 minutes'
    >>> hours_text(0.001)
    '1 minute'
    """
    if hours < 2:
        minutes = max(1, round(hours * 60))
        return f"{minutes} minutes" if minutes > 1 else "1 minute"
    return f"{hours:.0f} hours" if hours < 72 else f"{hours / 24:.0f} days"


def task_text(task: ClassificationTask | SurvivalTask) -> str:
    """What a task predicts."""
    if isinstance(task, SurvivalTask):
        return (
            f"the time to an event ({task.event}), up to day {task.edges[-1]:g}; risk is read at day {task.horizon:g}"
        )
    return f"{' or '.join(task.classes)} ({task.label})"
