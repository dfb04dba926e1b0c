"""The aggregator's journal of one study: what happened, in order, on disk before anything follows from it.

An SQLite file per study. `events` are the inputs of `Aggregator.step`; `requests` say which number each request to a site
got. From the events a fresh aggregator gives the same requests again, byte for byte (`journaled`), so that neither models nor
requests have to be stored. Numbers only grow: sites refuse one below the highest that they have seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from oncofed_server.rounds import Cost
from oncofed_shared.errors import DataError, StorageError

__all__ = ["Entry", "Journal", "digest_of", "replies_of"]

FORMAT = "1"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, now REAL NOT NULL, reply BLOB NOT NULL, cost TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT, site TEXT NOT NULL, digest BLOB NOT NULL, event INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS sights (id INTEGER PRIMARY KEY AUTOINCREMENT, site TEXT NOT NULL, sight BLOB NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS requests_by_event ON requests (event);
"""


def digest_of(body: bytes) -> bytes:
    """SHA-256 of a request's body, by which a number is bound to it."""
    return hashlib.sha256(body).digest()


def replies_of(path: Path) -> Iterator[bytes]:
    """Sites' replies in a journal, in order, without writing to it: also while somebody drives the study.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as base:
            for (reply,) in base.execute("SELECT reply FROM events WHERE length(reply) > 0 ORDER BY id"):
                yield reply
    except sqlite3.DatabaseError as error:
        raise DataError(f"{path}: cannot be read ({error}); bring the study's folder back from a backup") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One event.

    Attributes:
        number: from 1 on, without gaps.
        kind: "start", "received" or "tick".
        now: seconds on the study's own clock.
        reply: the site's reply as bytes; empty for the others.
    """

    number: int
    kind: str
    now: float
    reply: bytes = b""
    cost: Cost = field(default_factory=Cost)


class Journal:
    """A study's journal, open. Only one process may write to it at a time; who drives a study sees to that.

    Args:
        path: the file; made when there is none.
        study: id of the study.

    Raises:
        DataError: the file is another study's, of another format, or damaged.

    Guarantees:
        - What `transaction` has left is on the disk, whole or not at all, also after a power cut.
        - A number is given once; a later one is always larger.
    """

    def __init__(self, path: Path, *, study: str) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._base.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;" + _SCHEMA)
            with self.transaction():
                known = self._fact("study")
                if known is None:
                    self._keep("format", FORMAT.encode())
                    self._keep("study", study.encode())
                    self._keep("secret", secrets.token_bytes(32))
                elif (known.decode(), self._fact("format")) != (study, FORMAT.encode()):
                    self._base.close()
                    raise DataError(f"{path}: is the journal of another study, or of another version of oncofed")
            path.chmod(0o600)
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path}: cannot be read ({error}); bring the study's folder back from a backup") from None
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror})") from None

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written in it, or nothing.

        Raises:
            StorageError: the disk is full or gone; nothing was written.
        """
        try:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")
        except sqlite3.OperationalError as error:
            with contextlib.suppress(sqlite3.Error):
                self._base.execute("ROLLBACK")
            raise StorageError(f"{self.path}: cannot be written ({error}); free some space and start again") from None

    # -- events ---------------------------------------------------------------------------------------------------------------

    def append(self, kind: str, now: float, *, reply: bytes = b"", cost: Cost | None = None) -> int:
        """Write an event down; its number."""
        text = json.dumps(asdict(cost or Cost()))
        row = self._base.execute(
            "INSERT INTO events (kind, now, reply, cost) VALUES (?, ?, ?, ?)", (kind, now, reply, text)
        )
        return int(row.lastrowid or 0)

    def entries(self) -> Iterator[Entry]:
        """All events since the snapshot, in order.

        Raises:
            DataError: one is missing.
        """
        expected = self.snapshot + 1
        rows = self._base.execute(
            "SELECT id, kind, now, reply, cost FROM events WHERE id >= ? ORDER BY id", (expected,)
        )
        for number, kind, now, reply, cost in rows:
            if number != expected:
                raise DataError(
                    f"{self.path}: event {expected} is missing; bring the study's folder back from a backup"
                )
            expected += 1
            yield Entry(number=number, kind=kind, now=now, reply=reply, cost=Cost(**json.loads(cost)))

    @property
    def size(self) -> tuple[int, int]:
        """Events since the snapshot, and the bytes of their replies."""
        row = self._base.execute("SELECT count(*), coalesce(sum(length(reply)), 0) FROM events").fetchone()
        return int(row[0]), int(row[1])

    def keep_sight(self, site: str, sight: bytes) -> None:
        """Write down what a site has signed of the model that it was sent. Inside a transaction."""
        self._base.execute("INSERT INTO sights (site, sight) VALUES (?, ?)", (site, sight))

    def sights(self) -> list[tuple[str, bytes]]:
        """(site, sight) of all, in order."""
        return [(site, sight) for site, sight in self._base.execute("SELECT site, sight FROM sights ORDER BY id")]

    # -- requests -------------------------------------------------------------------------------------------------------------

    def assign(self, site: str, body: bytes, event: int) -> int:
        """The next number, for this request."""
        row = self._base.execute(
            "INSERT INTO requests (site, digest, event) VALUES (?, ?, ?)", (site, digest_of(body), event)
        )
        return int(row.lastrowid or 0)

    def assigned(self, event: int) -> list[tuple[int, str, bytes]]:
        """(number, site, digest) of the requests that followed from an event, in order."""
        rows = self._base.execute("SELECT number, site, digest FROM requests WHERE event = ? ORDER BY number", (event,))
        return [(int(number), site, digest) for number, site, digest in rows]

    def number_for(self, site: str, body: bytes) -> int:
        """The number of a request that follows from no event: the same one again for the site's newest request, else a new one."""
        with self.transaction():
            newest = self._base.execute(
                "SELECT number, digest FROM requests WHERE site = ? ORDER BY number DESC LIMIT 1", (site,)
            ).fetchone()
            if newest is not None and newest[1] == digest_of(body):
                return int(newest[0])
            return self.assign(site, body, 0)

    # -- snapshot -------------------------------------------------------------------------------------------------------------

    @property
    def snapshot(self) -> int:
        """Number of the last event that the snapshot has in it; 0 without one."""
        return int(self._fact("snapshot") or 0)

    def forget(self, event: int) -> None:
        """Let a snapshot stand for the events up to this one. Inside a transaction."""
        self._keep("snapshot", str(event).encode())
        self._base.execute("DELETE FROM events WHERE id <= ?", (event,))
        self._base.execute("DELETE FROM requests WHERE event < ? AND event > 0", (event,))

    # -- facts ----------------------------------------------------------------------------------------------------------------

    def name(self, count: int) -> str:
        """The study's name number `count` for something that must never have the same name twice: nobody else can guess it."""
        secret = self._fact("secret") or b""
        return hmac.new(secret, str(count).encode(), hashlib.sha256).hexdigest()[:32]

    def _fact(self, name: str) -> bytes | None:
        row = self._base.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def _keep(self, name: str, value: bytes) -> None:
        self._base.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))
