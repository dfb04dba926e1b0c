"""Files of a site's keys in secure sums: one for each session that is not over, and a lock against a second process."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgpack

from oncofed_shared.errors import DataError, StorageError
from oncofed_shared.messages import Formation
from oncofed_shared.storage import write_whole

__all__ = ["SumKeys"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SumKeys:
    """Where a site keeps its part of secure sums.

    Args:
        folder: of these files, made when it is not there.
        synced: False only in a simulation, where nothing is handed to anybody.

    Guarantees:
        - What is written takes the place of what was there before: what is erased in it is erased on the disk.
    """

    folder: Path
    synced: bool = True

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other process and thread of this site from the keys: of two, each would sign a list of its own.

        Raises:
            StorageError: the lock cannot be made.
        """
        path = self.folder / "lock"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StorageError(
                f"{path}: cannot be written ({error.strerror}); free some space or check rights"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _place(self, session: str) -> Path:
        return self.folder / f"{hashlib.sha256(session.encode()).hexdigest()[:16]}.keys"

    def version(self, session: str) -> tuple[int, int] | None:
        """What changes whenever the file is written anew, for another process may have gone on; None without a file."""
        try:
            status = self._place(session).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def write(self, session: str, formation: Formation, *, epoch: int, state: bytes) -> tuple[int, int]:
        """Write the state of a formation, and the epoch of the ledger that it belongs to; the file's version.

        Raises:
            StorageError: it cannot be written.
        """
        content = msgpack.packb((formation.name, formation.members, epoch, state))
        write_whole(self._place(session), content, private=True, synced=self.synced)
        return self.version(session) or (0, 0)

    def read(self, session: str) -> tuple[Formation, int, bytes]:
        """Formation, epoch and state as they were written.

        Raises:
            DataError: the file is damaged.
        """
        path = self._place(session)
        try:
            name, members, epoch, state = msgpack.unpackb(path.read_bytes())
            return Formation(name=name, members=tuple(members)), epoch, state
        except (OSError, ValueError, TypeError):
            raise DataError(
                f"{path}: cannot be read; the site leaves this run, for its keys must not be used again"
            ) from None

    def delete(self, session: str) -> None:
        """Forget a session that is over.

        Raises:
            StorageError: the file cannot be deleted.
        """
        path = self._place(session)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{path}: cannot be deleted ({error.strerror})") from None
