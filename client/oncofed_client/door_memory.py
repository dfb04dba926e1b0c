"""What a site's door must not forget: the highest request number of each study, the last reply, and the models that it was sent.

A request with a lower number is an old one. One with the same number is the same request, or refused; it is answered with the same
bytes, as long as its reply is the study's last.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from oncofed_client.sqlite_files import BUSY_SECONDS, SqliteFile, sqlite_errors
from oncofed_shared.errors import RemoteProtocolError

__all__ = ["DOOR_FILE", "DoorMemory", "Model", "Stored", "waiting_replies"]

DOOR_FILE = "door.sqlite3"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    study TEXT PRIMARY KEY, number INTEGER NOT NULL, digest BLOB NOT NULL, reply BLOB, receipt INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS models (
    position INTEGER PRIMARY KEY, study TEXT NOT NULL, moment TEXT NOT NULL, model BLOB NOT NULL, UNIQUE (study, moment)
) STRICT;
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model that this site was sent and has answered under."""

    moment: str
    model: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A reply that was stored; `receipt` is False if the process ended before its receipt was written."""

    reply: bytes
    receipt: bool


class DoorMemory(SqliteFile):
    """The file of a door, open; made when there is none.

    Guarantees:
        - When a call ends, what it wrote is on the disk; when it fails, nothing of it is.
        - No number is taken after a higher one of its study, nor with another request.
        - One model for one moment of a study, for ever.

    Raises:
        StorageError: the file cannot be made or written.
        DataError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, _SCHEMA)

    def stored(self, study: str, number: int, digest: bytes) -> Stored | None:
        """The reply to a request that was answered before; None for one that was not.

        Raises:
            RemoteProtocolError: code `replayed`: a higher number was taken before, or another request had this number.
        """
        with self._lock, sqlite_errors(self.path):
            return _stored(self._connection, study, number, digest)

    def take(self, study: str, number: int, digest: bytes) -> None:
        """Remember a request before anything is computed for it.

        Raises:
            RemoteProtocolError: code `replayed`, as `stored`.
        """
        with self._transaction():
            _stored(self._connection, study, number, digest)
            self._connection.execute(
                "INSERT INTO requests VALUES (?, ?, ?, NULL, 0) ON CONFLICT (study) DO UPDATE SET number = excluded.number, "
                "digest = excluded.digest, reply = NULL, receipt = 0 WHERE excluded.number > number",
                (study, number, digest),
            )

    def keep(self, study: str, digest: bytes, reply: bytes, *, model: Model | None) -> None:
        """Store a reply, synced, before it is handed over, and the model that it was given under.

        Raises:
            RemoteProtocolError: code `replayed`: a newer request was taken in the meantime.
            StorageError: it cannot be stored and must not be handed over.
        """
        with self._transaction():
            changed = self._connection.execute(
                "UPDATE requests SET reply = ? WHERE study = ? AND digest = ? AND reply IS NULL", (reply, study, digest)
            ).rowcount
            if changed != 1:
                raise RemoteProtocolError("another request came in the meantime", code="replayed")
            if model is not None:
                self._connection.execute(
                    "INSERT INTO models (study, moment, model) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                    (study, model.moment, model.model),
                )

    def receipted(self, study: str, digest: bytes) -> None:
        """The stored reply's receipt is written."""
        with self._transaction():
            self._connection.execute("UPDATE requests SET receipt = 1 WHERE study = ? AND digest = ?", (study, digest))

    def model_at(self, study: str, moment: str) -> bytes | None:
        """The model that this site answered under at a moment of a study; None where it has not."""
        return self._model("AND moment = ?", study, moment)[1]

    def last_model(self, study: str) -> Model | None:
        """The newest moment of a study at which this site answered under a model, and that model."""
        moment, model = self._model("ORDER BY position DESC LIMIT 1", study)
        return None if model is None else Model(moment=moment, model=model)

    def _model(self, rest: str, *values: str) -> tuple[str, bytes | None]:
        query = f"SELECT moment, model FROM models WHERE study = ? {rest}"  # noqa: S608 - `rest` is one of two texts above
        with self._lock, sqlite_errors(self.path):
            found: tuple[str, bytes] | None = self._connection.execute(query, values).fetchone()
        return ("", None) if found is None else found


def _stored(connection: sqlite3.Connection, study: str, number: int, digest: bytes) -> Stored | None:
    row = connection.execute("SELECT number, digest, reply, receipt FROM requests WHERE study = ?", (study,)).fetchone()
    if row is None or number > row[0]:
        return None
    if number < row[0]:
        raise RemoteProtocolError(f"request {number} came after request {row[0]}: it is an old one", code="replayed")
    if digest != row[1]:
        raise RemoteProtocolError(f"request {number} came before with another content", code="replayed")
    return None if row[2] is None else Stored(reply=row[2], receipt=bool(row[3]))


def waiting_replies(path: Path) -> tuple[bytes, ...]:
    """The sealed replies that a site would hand over again, for somebody who only reads; none where there is no file."""
    if not path.exists():
        return ()
    with sqlite_errors(path):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
        try:
            rows = connection.execute("SELECT reply FROM requests WHERE reply IS NOT NULL AND receipt = 1").fetchall()
        finally:
            connection.close()
    return tuple(r[0] for r in rows)
