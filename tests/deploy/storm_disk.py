"""What stands between the cores and their files in a storm: whoever writes may be killed at any step, or find the disk full.

One process has several cores in it, so a step belongs to the one that acts. A dead core does nothing more, until it is buried: then
its files are closed as the system closes those of a dead process, with nothing committed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

WRITES = ("INSERT", "UPDATE", "DELETE", "COMMIT", "CREATE")


class Killed(BaseException):
    """The process is no more: nothing catches this."""


@dataclass(kw_only=True)
class Disk:
    """The disks of all cores.

    Attributes:
        acting: whose steps these are.
        kills: the step at which a core dies, counted down, and whether before that step is done.
        full: how many writes a core can still make, and how many it cannot make then.
        steps: how many each has made.
    """

    acting: str = ""
    kills: dict[str, tuple[int, bool]] = field(default_factory=dict)
    full: dict[str, tuple[int, int]] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    steps: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _connections: dict[str, list[sqlite3.Connection]] = field(default_factory=lambda: defaultdict(list))

    @contextlib.contextmanager
    def of(self, who: str) -> Iterator[None]:
        """What happens in here, this core does."""
        before, self.acting = self.acting, who
        try:
            yield
        finally:
            self.acting = before

    def refuses(self) -> bool:
        """Whether this write finds the disk full."""
        room, refused = self.full.get(self.acting, (0, 0))
        if room > 0:
            self.full[self.acting] = (room - 1, refused)
            return False
        if refused > 0:
            self.full[self.acting] = (0, refused - 1)
        return refused > 0

    def step(self, action: Callable[[], Any]) -> Any:
        """One step of the core that acts."""
        who = self.acting
        if who in self.dead:
            raise Killed
        self.steps[who] += 1
        left, before = self.kills.get(who, (0, True))
        if left == 0:
            return action()
        if left > 1:
            self.kills[who] = (left - 1, before)
            return action()
        self.dead.add(who)
        if not before:
            action()
        raise Killed

    def bury(self, who: str) -> None:
        """Close the files of a dead core."""
        self.dead.discard(who)
        self.kills.pop(who, None)
        for connection in self._connections.pop(who, []):
            sqlite3.Connection.close(connection)

    def forget(self) -> None:
        """Nobody is dead, and no disk is full."""
        for who in list(self._connections):
            self.bury(who)
        self.kills.clear()
        self.full.clear()
        self.dead.clear()

    def known(self, connection: sqlite3.Connection) -> None:
        """Remember whose connection it is."""
        self._connections[self.acting].append(connection)


def _sqlite_full() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL  # type: ignore[misc]
    return error


@contextlib.contextmanager
def stormy(disk: Disk) -> Iterator[None]:
    """Every statement and every write of this process goes through the disk."""

    class Connection(sqlite3.Connection):
        def __init__(self, *a: Any, **k: Any) -> None:
            super().__init__(*a, **k)
            disk.known(self)

        def execute(self, sql: str, *a: Any) -> Any:
            if sql.startswith(WRITES) and disk.refuses():
                raise _sqlite_full()
            return disk.step(lambda: sqlite3.Connection.execute(self, sql, *a))

        def close(self) -> None:
            if disk.acting not in disk.dead:
                super().close()

    def through(action: Callable[..., Any]) -> Callable[..., Any]:
        def call(*a: Any, **k: Any) -> Any:
            if disk.refuses():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return disk.step(lambda: action(*a, **k))

        return call

    replace, fsync = Path.replace, os.fsync
    with (
        mock.patch.object(sqlite3, "connect", partial(sqlite3.connect, factory=Connection)),
        mock.patch.object(os, "pwrite", through(os.pwrite)),
        mock.patch.object(tempfile, "mkstemp", through(tempfile.mkstemp)),
        # The bytes are there already: these two fail for other reasons than a full disk.
        mock.patch.object(os, "fsync", lambda d: disk.step(lambda: fsync(d))),
        mock.patch.object(Path, "replace", lambda p, target: disk.step(lambda: replace(p, target))),
    ):
        yield
