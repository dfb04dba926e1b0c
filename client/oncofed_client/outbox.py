"""Replies that were computed, kept until they are handed over: asked again, a site gives the same bytes.

A reply is stored, synced, before it is handed over (protocol, rule 12). What is in here is masked or noised already: it is what the
aggregator gets.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from oncofed_client.ledger_chain import BUSY_SECONDS, sqlite_errors, sync_folder
from oncofed_shared.errors import LocalProtocolError, RemoteProtocolError, StorageError
from oncofed_shared.messages import Contribute, Train

__all__ = ["OUTBOX_FILE", "Outbox", "reply_id_of"]

OUTBOX_FILE = "outbox.sqlite3"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    reply TEXT PRIMARY KEY, request TEXT NOT NULL, session TEXT NOT NULL, epoch INTEGER NOT NULL, content BLOB NOT NULL
) STRICT
"""


def reply_id_of(request: Contribute | Train) -> str:
    """Under which id ledger and outbox keep a charged reply."""
    session = request.head.session
    if isinstance(request, Train):
        return f"{session}|round {request.round}"
    return f"{session}|{request.formation.name}|{request.number}"


class Outbox:
    """A site's stored replies.

    Args:
        path: its file, made when it is not there.
        epoch: the ledger's. Replies of another epoch are as if they had never been: after a restore nobody knows whether they
            were handed over.
        synced: False only in a simulation, where nothing is handed to anybody: a power cut may then lose replies.

    Guarantees:
        - When `keep` returns, the reply is on the disk; when it fails, nothing of it is.
        - A reply's id gives the same bytes for ever, or nothing.

    Raises:
        StorageError: the file cannot be made.
        DataError: it is damaged.
    """

    def __init__(self, path: Path, *, epoch: int, synced: bool = True) -> None:
        self.path, self.epoch = path, epoch
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
                self._connection.execute(_SCHEMA)
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

    def keep(self, reply_id: str, request_hash: str, content: bytes, *, session: str = "") -> None:
        """Store a reply, synced, before it is handed over. The same one again is nothing new.

        Args:
            session: under which `forget` finds it.

        Raises:
            RemoteProtocolError: the id belongs to another request (code `other-request`).
            LocalProtocolError: it has another content, or is of an earlier epoch: nothing may be answered under this id.
            StorageError: it cannot be written; it must not be handed over.
        """
        with self._lock, self._transaction():
            row = self._row(reply_id)
            if row is None:
                self._connection.execute(
                    "INSERT INTO replies VALUES (?, ?, ?, ?, ?)", (reply_id, request_hash, session, self.epoch, content)
                )
                return
            if row[0] != request_hash:
                raise RemoteProtocolError("this reply was asked for by another request", code="other-request")
            if row[1] != self.epoch or row[2] != content:
                raise LocalProtocolError(
                    "another reply is stored under this id; it must not be answered", code="other-reply"
                )

    def get(self, reply_id: str, request_hash: str) -> bytes | None:
        """The stored reply to a request; None where there is none of this epoch.

        Raises:
            RemoteProtocolError: the id belongs to another request (code `other-request`).
        """
        with self._lock, sqlite_errors(self.path):
            row = self._row(reply_id)
        if row is None:
            return None
        if row[0] != request_hash:
            raise RemoteProtocolError("this reply was asked for by another request", code="other-request")
        return row[2] if row[1] == self.epoch else None

    def forget(self, session: str) -> None:
        """Delete the replies of a session that is over; the ledger keeps their ids, so that none is computed anew."""
        with self._lock, self._transaction():
            self._connection.execute("DELETE FROM replies WHERE session = ?", (session,))

    def waiting(self) -> tuple[tuple[str, str, int], ...]:
        """Id, session and bytes of every stored reply, for a person who asks what left or is about to."""
        with self._lock, sqlite_errors(self.path):
            return tuple(self._connection.execute("SELECT reply, session, length(content) FROM replies ORDER BY rowid"))

    def _row(self, reply_id: str) -> tuple[str, int, bytes] | None:
        query = "SELECT request, epoch, content FROM replies WHERE reply = ?"
        found: tuple[str, int, bytes] | None = self._connection.execute(query, (reply_id,)).fetchone()
        return found

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with sqlite_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
