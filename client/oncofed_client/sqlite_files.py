"""Files of a site that SQLite keeps: synced, of one user, all or nothing."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from oncofed_shared.errors import DataError, StorageError

__all__ = ["BUSY_SECONDS", "SqliteFile", "sqlite_errors", "sync_folder", "transaction"]

BUSY_SECONDS = 30.0


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Say what SQLite complains about in plain words.

    Raises:
        StorageError: full disk, no rights, locked for too long.
        DataError: not such a file, or damaged.
    """
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except UnicodeDecodeError:
        # What SQLite complains about holds the bytes that it found damaged.
        raise DataError(f"{path}: is not a ledger, or it is damaged", code="ledger-damaged") from None
    except sqlite3.IntegrityError as error:
        raise StorageError(f"{path}: refused an entry ({error}); nothing was written") from None
    except sqlite3.Error as error:
        # SQLITE_ERROR is about the file's tables; disks, locks and rights have codes of their own.
        if (
            isinstance(error, sqlite3.OperationalError)
            and getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR
        ):
            raise StorageError(
                f"{path}: cannot be read or written ({error}); nothing was half-written: free some space, check rights, go on"
            ) from None
        raise DataError(f"{path}: is not a ledger, or it is damaged ({error})", code="ledger-damaged") from None


def sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Exclusive reading and writing, all or nothing."""
    with sqlite_errors(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


class SqliteFile:
    """A file with tables, open; made when there is none, for its user alone.

    Args:
        path: the file.
        schema: statements that make its tables where they are missing.
        synced: False only in a simulation: a power cut may then lose what was written.

    Guarantees:
        - When `_transaction` ends, what was written in it is on the disk; when it fails, nothing of it is.

    Raises:
        StorageError: the file cannot be made or written.
        DataError: it is damaged.
    """

    def __init__(self, path: Path, schema: str, *, synced: bool = True) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            sync_folder(path.parent)
        except OSError as error:
            raise StorageError(
                f"{path}: cannot be written ({error.strerror}); free some space or check rights"
            ) from None
        with sqlite_errors(path):
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if synced else 'OFF'}")
                self._connection.executescript(schema)
            except sqlite3.Error:
                self._connection.close()
                raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, transaction(self._connection, self.path):
            yield
