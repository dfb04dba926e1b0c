"""Work that the tests of the pool give to its processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from oncofed_shared.errors import DataError


def work(case: tuple[str, float]) -> float:
    kind, number = case
    if kind == "wrong":
        raise DataError("a.dcm: one problem", "b.dcm: another")
    if kind == "surprise":
        raise KeyError("Doe^John")
    if kind == "memory":
        raise MemoryError
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "slow":
        time.sleep(number)
    return number * 2


def note_and_wait(folder: str) -> None:
    Path(folder, f"{os.getpid()}.pid").write_text("", encoding="ascii")
    time.sleep(600)


def die_once(folder: str) -> str:
    mark = Path(folder, "died")
    if not mark.exists():
        mark.write_text("", encoding="ascii")
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"
