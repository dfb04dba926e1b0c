"""Processes that a command starts and that must all be gone when it ends, also those that their parents have left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import psutil

__all__ = ["Descendants", "dies_with_us", "runs", "subreaper"]

_SET_CHILD_SUBREAPER = 36
_GET_CHILD_SUBREAPER = 37
# A process image in between, because code between fork and exec is not safe in a process with threads.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); "
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
)


def dies_with_us(command: list[str]) -> list[str]:
    """A command that gets SIGTERM when this process dies, however it dies. Elsewhere than on Linux, the command itself."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]


@contextlib.contextmanager
def subreaper() -> Iterator[None]:
    """Adopt descendants whose parent has died, so that none escapes to init. Elsewhere than on Linux this does nothing."""
    if sys.platform != "linux":
        yield
        return
    prctl = ctypes.CDLL(None).prctl
    before = ctypes.c_int()
    prctl(_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


class Descendants:
    """Everything that descends from this process and was not there when this object was made."""

    def __init__(self) -> None:
        self._before = {child.pid for child in psutil.Process().children()}

    def left(self) -> list[psutil.Process]:
        """All that there are, the dead that their parents have not buried among them; our own dead are buried."""
        while True:
            found: list[psutil.Process] = []
            buried = False
            for child in psutil.Process().children():
                if child.pid in self._before:
                    continue
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.status() == psutil.STATUS_ZOMBIE:
                        with contextlib.suppress(psutil.TimeoutExpired):
                            child.wait(0)
                        buried = True
                        continue
                    found += [child, *child.children(recursive=True)]
            # Whom the dead have left behind became our child after we had looked.
            if not buried:
                return found

    def alive(self) -> list[psutil.Process]:
        """Those that run now."""
        return [p for p in self.left() if runs(p.pid)]

    def named(self, name: str) -> list[psutil.Process]:
        """Those that run a program of this name."""
        return [p for p in self.alive() if name in _program(p)]

    def wait(self, processes: Callable[[], list[psutil.Process]], patience: float) -> bool:
        """Wait until a selection of ours is empty; False if it is not in time."""
        end = time.monotonic() + patience
        while processes():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def end(self, processes: Callable[[], list[psutil.Process]], *, patience: float) -> bool:
        """Ask a selection to end; False if it is not in time."""
        _send(processes(), signal.SIGTERM)
        return self.wait(processes, patience)

    def kill(self, *, patience: float = 10.0) -> bool:
        """End and bury all, also what is started in the meantime; False if something withstands."""
        end = time.monotonic() + patience
        while left := self.left():
            if time.monotonic() > end:
                return False
            _send(left, signal.SIGKILL)
            time.sleep(0.02)
        return True


def _send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.send_signal(number)


def runs(pid: int) -> bool:
    """Whether there is such a process, and it is not dead and waiting to be buried."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _program(process: psutil.Process) -> list[str]:
    """Names of the first words of a command line: an interpreter and its script."""
    try:
        return [word.rsplit("/", 1)[-1] for word in process.cmdline()[:2]]
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return []
