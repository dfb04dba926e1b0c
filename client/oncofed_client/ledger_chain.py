"""The rows of a ledger: appended, linked by hashes, signed by the site; in SQLite, synced before an append returns.

A row is a text, the hash of the row before, its own hash and a signature:

    hash      = SHA-256("oncofed ledger entry" | hash of the row before | text)
    signature = Ed25519("oncofed ledger signature" | hash) by the site's identity

The text is canonical JSON: number, site, epoch, time, kind and what belongs to the kind. What the kinds mean is
`ledger_account`'s business. Receipts (`receipts`) are rows of the same form under labels of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from oncofed_client.sqlite_files import BUSY_SECONDS, sqlite_errors, sync_folder, transaction
from oncofed_shared.errors import DataError, StorageError
from oncofed_shared.public_keys import is_signed

__all__ = [
    "FIRST_LINK",
    "KINDS",
    "LEDGER",
    "Chain",
    "Entry",
    "Form",
    "Row",
    "check_row",
    "make_chain",
    "parse_row",
    "sign_row",
]

FIRST_LINK = bytes(32)
KINDS = ("open", "approve", "reserve", "commit", "void", "close", "epoch")
# No column but the number is unique: INSERT OR REPLACE would remove the other row without asking a trigger.
_SCHEMA = """
CREATE TABLE entries (
    number INTEGER PRIMARY KEY, content TEXT NOT NULL,
    previous BLOB NOT NULL, hash BLOB NOT NULL, signature BLOB NOT NULL
) STRICT;
CREATE TABLE witnesses (
    name TEXT NOT NULL, public_key BLOB NOT NULL, head BLOB NOT NULL, signature BLOB NOT NULL
) STRICT;
CREATE INDEX witness_signatures ON witnesses (signature);
CREATE TRIGGER witnesses_once BEFORE INSERT ON witnesses
    WHEN EXISTS (SELECT 1 FROM witnesses WHERE signature = NEW.signature)
    BEGIN SELECT RAISE(IGNORE); END;
CREATE TRIGGER entries_in_order BEFORE INSERT ON entries
    WHEN NEW.number <> (SELECT COALESCE(MAX(number), 0) + 1 FROM entries)
    BEGIN SELECT RAISE(ABORT, 'entries are appended in order'); END;
CREATE TRIGGER entries_stay BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'entries are never removed'); END;
CREATE TRIGGER entries_as_written BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;
CREATE TRIGGER witnesses_stay BEFORE DELETE ON witnesses BEGIN SELECT RAISE(ABORT, 'witnesses are never removed'); END;
CREATE TRIGGER witnesses_as_written BEFORE UPDATE ON witnesses
    BEGIN SELECT RAISE(ABORT, 'witnesses are never changed'); END;
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """What tells chains of different meaning apart: a row of one is none of another.

    Attributes:
        hashed, signed: stand before what is hashed and what is signed.
    """

    hashed: bytes
    signed: bytes
    kinds: tuple[str, ...]


LEDGER = Form(hashed=b"oncofed ledger entry", signed=b"oncofed ledger signature", kinds=KINDS)

Row = tuple[int, str, bytes, bytes, bytes]
"""Number, content, previous, hash, signature: the columns of `entries`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A row, read.

    Attributes:
        number: from 1 on, without a gap.
        epoch: from 1 on; a new one begins after a restore from a backup.
        at: time in seconds since 1970, as the caller said.
        kind: one of KINDS.
        body: what belongs to the kind.
        hash: 32 bytes.
    """

    number: int
    site: str
    epoch: int
    at: float
    kind: str
    body: dict[str, Any]
    hash: bytes


def _digest(form: Form, previous: bytes, content: str) -> bytes:
    return hashlib.sha256(form.hashed + previous + content.encode()).digest()


def _canonical(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sign_row(
    key: Ed25519PrivateKey,
    *,
    number: int,
    site: str,
    epoch: int,
    at: float,
    kind: str,
    body: dict[str, Any],
    previous: bytes,
    form: Form = LEDGER,
) -> Row:
    """The row of an entry; equal content gives equal bytes."""
    fields = {"number": number, "site": site, "epoch": epoch, "at": float(at), "kind": kind, "body": body}
    content = _canonical(fields)
    digest = _digest(form, previous, content)
    return number, content, previous, digest, key.sign(form.signed + digest)


def parse_row(row: Row, form: Form = LEDGER) -> Entry:
    """Read a row's content.

    Raises:
        DataError: it is not the canonical form of an entry.
    """
    number, content, _, digest, _ = row
    try:
        fields = json.loads(content)
        entry = Entry(hash=bytes(digest), **fields)
        sound = (
            _canonical(fields) == content
            and [type(v) for v in (entry.number, entry.site, entry.epoch, entry.at)] == [int, str, int, float]
            and entry.kind in form.kinds
            and type(entry.body) is dict
        )
    except (ValueError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise DataError(f"entry {number}: is not written as an entry is; it was edited", code="ledger-damaged")
    return entry


def check_row(row: Row, *, number: int, previous: bytes, key: Ed25519PublicKey, form: Form = LEDGER) -> list[str]:
    """What is wrong with a row at its place in the chain; nothing where it is sound.

    Args:
        number: the one that it must have.
        previous: hash of the row before.
        key: the site's.
    """
    found, content, link, digest, signature = row
    where = f"entry {number}"
    if found != number:
        return [f"{where}: is missing; entry {found} follows entry {number - 1}: removed or reordered"]
    problems = []
    if link != previous:
        problems.append(f"{where}: does not follow from the entry before: one was removed, reordered or replaced")
    if _digest(form, link, content) != digest:
        problems.append(f"{where}: its content is not what was hashed: it was edited")
    if not is_signed(key.public_bytes_raw(), signature, form.signed + digest):
        problems.append(f"{where}: is not signed by this site's key: it was edited, or written by somebody else")
    return problems


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    wal = path.with_name(f"{path.name}-wal")
    mode = "ro" if read_only else "rw"
    if read_only and not (wal.exists() and wal.stat().st_size):
        # Nobody is at work here. Otherwise SQLite would leave files behind that belong to whoever looks.
        mode = "ro&immutable=1"
    where = f"{path.absolute().as_uri()}?mode={mode}"
    # isolation_level None: transactions begin and end where this module says so. One lock in `Ledger` orders the threads.
    return sqlite3.connect(where, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def make_chain(path: Path, *first: Row) -> None:
    """Make a ledger's file with its first entries: there whole or not at all, and never in the place of another.

    Raises:
        StorageError: there is one, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with sqlite_errors(path), closing(_connect(temporary)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(f"BEGIN;{_SCHEMA}")
            connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", first)
            connection.execute("COMMIT")
        os.link(temporary, path)
        sync_folder(path.parent)
    except FileExistsError:
        raise StorageError(
            f"{path}: is there already; a site has one ledger, which is opened and never made anew"
        ) from None
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another folder"
        ) from None
    finally:
        with suppress(OSError):
            for leftover in path.parent.glob(f"{temporary.name}*"):
                leftover.unlink()


class Chain:
    """The file of a ledger, open.

    Guarantees:
        - When `transaction` ends, what was appended in it is on the disk; when it fails, nothing of it is.
        - Rows are neither changed nor removed by way of SQL, whoever tries.
        - Of two processes one waits for the other's transaction.
    """

    def __init__(self, path: Path, *, read_only: bool = False, synced: bool = True) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: does not exist; a site's ledger is made when it first approves a private plan")
        with sqlite_errors(path):
            self._connection = _connect(path, read_only=read_only)
            # Bytes that are no text are an edited entry, and are shown as such.
            self._connection.text_factory = lambda content: content.decode(errors="replace")
            if not read_only:
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if synced else 'OFF'}")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Exclusive reading and writing, all or nothing."""
        with transaction(self._connection, self.path):
            yield

    def rows(self, after: int = 0) -> list[Row]:
        """Rows behind a number, in the order in which they stand."""
        with sqlite_errors(self.path):
            query = "SELECT number, content, previous, hash, signature FROM entries WHERE number > ? ORDER BY number"
            return self._connection.execute(query, (after,)).fetchall()

    def newest(self) -> Row | None:
        """The last row; None in a file without any."""
        with sqlite_errors(self.path):
            query = "SELECT number, content, previous, hash, signature FROM entries ORDER BY number DESC LIMIT 1"
            found: Row | None = self._connection.execute(query).fetchone()
            return found

    def append(self, row: Row) -> None:
        """Write a row, inside a transaction."""
        with sqlite_errors(self.path):
            self._connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)

    def witnesses(self, after: int = 0) -> list[tuple[int, str, bytes, bytes, bytes]]:
        """Row, name, public key, head and signature of everybody who signed a head, behind a row."""
        with sqlite_errors(self.path):
            query = "SELECT rowid, name, public_key, head, signature FROM witnesses WHERE rowid > ? ORDER BY rowid"
            return self._connection.execute(query, (after,)).fetchall()

    def add_witness(self, name: str, public_key: bytes, head: bytes, signature: bytes) -> None:
        """Keep a signed head; the same one once."""
        with sqlite_errors(self.path):
            self._connection.execute("INSERT INTO witnesses VALUES (?, ?, ?, ?)", (name, public_key, head, signature))

    def structure(self) -> list[str]:
        """What SQLite itself finds wrong, and which of the ledger's own safeguards are gone."""
        with sqlite_errors(self.path):
            found = [str(r[0]) for r in self._connection.execute("PRAGMA integrity_check") if r[0] != "ok"]
            found_tables = _tables(self._connection)
        changed = _sound_tables() ^ found_tables
        return found + [
            f"table or trigger {name}: is not as a ledger has it" for name in sorted({n for n, _ in changed})
        ]


@cache
def _sound_tables() -> frozenset[tuple[str, str]]:
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(_SCHEMA)
        return frozenset(_tables(fresh))


def _tables(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    return {
        (n, " ".join(s.split()))
        for n, s in connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    }
