"""Replies that were computed, kept until they are handed over: asked again, a site gives the same bytes.

A reply is stored, synced, before it is handed over (protocol, rule 12). What is in here is masked or noised already: it is what the
aggregator gets.
"""

from __future__ import annotations

from pathlib import Path

from oncofed_client.sqlite_files import SqliteFile, sqlite_errors
from oncofed_shared.errors import LocalProtocolError, RemoteProtocolError
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


class Outbox(SqliteFile):
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
        super().__init__(path, _SCHEMA, synced=synced)
        self.epoch = epoch

    def keep(self, reply_id: str, request_hash: str, content: bytes, *, session: str = "") -> None:
        """Store a reply, synced, before it is handed over. The same one again is nothing new.

        Args:
            session: under which `forget` finds it.

        Raises:
            RemoteProtocolError: the id belongs to another request (code `other-request`).
            LocalProtocolError: it has another content, or is of an earlier epoch: nothing may be answered under this id.
            StorageError: it cannot be written; it must not be handed over.
        """
        with self._transaction():
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
        with self._transaction():
            self._connection.execute("DELETE FROM replies WHERE session = ?", (session,))

    def waiting(self) -> tuple[tuple[str, str, int], ...]:
        """Id, session and bytes of every stored reply, for a person who asks what left or is about to."""
        with self._lock, sqlite_errors(self.path):
            return tuple(self._connection.execute("SELECT reply, session, length(content) FROM replies ORDER BY rowid"))

    def _row(self, reply_id: str) -> tuple[str, int, bytes] | None:
        query = "SELECT request, epoch, content FROM replies WHERE reply = ?"
        found: tuple[str, int, bytes] | None = self._connection.execute(query, (reply_id,)).fetchone()
        return found
