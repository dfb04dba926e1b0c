"""Programs that must run: started, started again when they end, asked to end when we do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from oncofed_shared.errors import OncofedError
from oncofed_shared.processes import Descendants, dies_with_us, subreaper
from oncofed_shared.told import Stop

__all__ = ["Note", "Program", "keep", "pause_after"]

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0
STEADY = 60.0
LOOK = 0.2
NOT_STARTED = 127
"""In place of an exit code, as a shell says it."""
Note = Callable[..., None]
"""Takes an event and facts by name, as `log_lines` does."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What runs.

    Attributes:
        name: what a person calls it.
        command: makes the words to start it with; asked before every start, since a port may have been taken meanwhile.
        environment: all that it sees.
        user: whom it runs as; without it, as this process.
        group: likewise.
        passes: open files that it has from us, beside its output.
        why: says in plain words what an exit code means, where it can be said.
    """

    name: str
    command: Callable[[], Sequence[str]]
    environment: Mapping[str, str]
    user: int | None = None
    group: int | None = None
    passes: tuple[int, ...] = ()
    why: Callable[[int], str] = lambda code: f"ended with code {code}" if code >= 0 else f"was ended by signal {-code}"


def pause_after(quick_ends: int) -> float:
    """Seconds before a program is started again that has ended so many times in a row without having run for a while."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(quick_ends, 10)))


class _Kept:
    def __init__(self, program: Program, say: Callable[[str], None], note: Note) -> None:
        self.program, self._say, self._note = program, say, note
        self.process: subprocess.Popen[bytes] | None = None
        self._since = self._due = time.monotonic()
        self._quick = 0
        self._ran = False

    def look(self) -> None:
        """Start it if it is due."""
        now = time.monotonic()
        if self.process is not None and (code := self.process.poll()) is not None:
            # What it started must not go on beside its successor.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process = None
            self._quick = -1 if now - self._since > STEADY else self._quick
            self._again(now, code, self.program.why(code))
        if self.process is None and now >= self._due:
            try:
                self.process = self._started()
            except (OncofedError, OSError) as error:
                if not self._ran:
                    raise
                # It could be before. A full disk, say, on which it wants to write its settings, may have room later.
                self._again(now, NOT_STARTED, f"could not be started: {error}")
                return
            self._since, self._ran = now, True
            self._say(f"{self.program.name}: started (process {self.process.pid})")
            self._note("program.started", program=self.program.name, pid=self.process.pid)

    def _again(self, now: float, code: int, why: str) -> None:
        self._quick += 1
        pause = pause_after(self._quick)
        self._due = now + pause
        self._say(f"{self.program.name}: {why}; started again in {pause:g} s")
        self._note("program.ended", program=self.program.name, exit=code, seconds=pause, text=why)

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own words
            dies_with_us(list(self.program.command())),
            env=dict(self.program.environment),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=self.program.passes,
            user=self.program.user,
            group=self.program.group,
            extra_groups=None if self.program.user is None else [],
        )


def _bury(living: set[int]) -> None:
    """Take leave of the orphans that became our children; the programs' own codes are read elsewhere.

    The kernel is asked, and not /proc: there a unit with `ProtectProc=invisible` sees none of its dead. Elsewhere than on Linux
    orphans become nobody's children but init's.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(ChildProcessError):
        while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and dead.si_pid not in living:
            os.waitpid(dead.si_pid, 0)


def keep(
    programs: Sequence[Program],
    *,
    stop: Stop,
    say: Callable[[str], None],
    patience: float,
    note: Note = lambda event, **facts: None,
) -> None:
    """Run programs until asked to stop; then end them and whatever they have started.

    Args:
        stop: set by a signal.
        say: told in plain words what happens.
        patience: seconds that they have to end after SIGTERM.
        note: told the same as events with facts: `program.started` (program, pid) and `program.ended` (program, exit, seconds
            until it is started again, text).

    Guarantees:
        - A program that ends, however it ends, is started again, at first at once and then at growing intervals; also one that
          cannot be started for a while. What cannot be started the first time ends this with its error.
        - None of them outlives this function, and none outlives this process: the kernel ends it with us.
    """
    with subreaper():
        ours = Descendants()
        kept = [_Kept(p, say, note) for p in programs]
        try:
            while not stop.is_set():
                for one in kept:
                    one.look()
                _bury({k.process.pid for k in kept if k.process is not None})
                stop.wait(LOOK)
        finally:
            for one in kept:
                if one.process is not None and one.process.poll() is None:
                    one.process.send_signal(signal.SIGTERM)
            end = time.monotonic() + patience
            while time.monotonic() < end and any(k.process is not None and k.process.poll() is None for k in kept):
                time.sleep(LOOK)
            ours.kill()
            for one in kept:
                if one.process is not None:
                    one.process.poll()
