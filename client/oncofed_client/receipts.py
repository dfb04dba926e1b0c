"""Receipts: one for every reply that leaves a site, numbered, linked by hashes and signed, in rows like the ledger's.

The ledger says what patients' privacy was spent on; receipts say what bytes left, also where nothing was charged. A receipt is
on the disk before its reply is handed over.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from oncofed_client.identity import raw_public
from oncofed_client.ledger_account import Account
from oncofed_client.ledger_chain import (
    FIRST_LINK,
    Chain,
    Entry,
    Form,
    Row,
    check_row,
    make_chain,
    parse_row,
    sign_row,
)
from oncofed_shared.errors import DataError, StorageError

__all__ = ["RECEIPTS_FILE", "Receipt", "Receipts", "read_receipts", "verify_receipts"]

RECEIPTS_FILE = "receipts.sqlite3"
FORM = Form(hashed=b"oncofed receipt", signed=b"oncofed receipt signature", kinds=("open", "receipt"))
_EPOCH = 1
MOST_LINES = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """One reply that left.

    Attributes:
        entry: number of the receipt.
        at: seconds since 1970.
        study_id: of the signed study.
        number: of the request that it answers.
        step: of the request within its run.
        kind: of the message, such as `Update` or `Refusal`.
        code: of a refusal; otherwise empty.
        sha256: of the sealed bytes, in hex, and `size` how many they were.
        charge: number of the ledger's entry that reserved it; 0 where nothing was charged.
        steps: how many of the plan's charged steps it is.
        epsilon: what the ledger charges for the whole study that these steps are part of; 0 where nothing was charged.
    """

    entry: int
    at: float
    study_id: str
    number: int
    step: int
    kind: str
    code: str
    sha256: str
    size: int
    charge: int
    steps: int
    epsilon: float


class Receipts:
    """The file of receipts, open; made when there is none.

    Args:
        path: its file.
        site, key: whose receipts these are.
        now: seconds since 1970, when it is made.

    Guarantees:
        - When `append` returns, the receipt is on the disk, signed and linked to all before.
        - Time never runs backwards from one to the next.

    Raises:
        DataError: the file is damaged, or its newest receipt is not this site's.
        StorageError: it cannot be made or read.
    """

    def __init__(self, path: Path, *, site: str, key: Ed25519PrivateKey, now: float) -> None:
        self._site, self._key = site, key
        if not path.exists():
            body = {"public_key": raw_public(key.public_key()).hex()}
            first = sign_row(
                key, number=1, site=site, epoch=_EPOCH, at=now, kind="open", body=body, previous=FIRST_LINK, form=FORM
            )
            try:
                make_chain(path, first)
            except StorageError:
                # Two processes of one site may make it at the same time; one of them did.
                if not path.exists():
                    raise
        self._chain = Chain(path)
        try:
            self._last = self._newest()
        except BaseException:
            self._chain.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def last_at(self) -> float:
        """When the newest receipt was written, in seconds since 1970."""
        return self._last.at

    def _newest(self) -> Entry:
        row = self._chain.newest()
        if row is None:
            raise DataError(f"{self._chain.path}: has no entry; it was emptied", code="receipts-damaged")
        problems = check_row(row, number=row[0], previous=row[2], key=self._key.public_key(), form=FORM)
        if problems:
            raise DataError(*(f"{self._chain.path}: {p}" for p in problems), code="receipts-damaged")
        entry = parse_row(row, FORM)
        if entry.site != self._site:
            raise DataError(f"{self._chain.path}: is of site '{entry.site}'", code="receipts-damaged")
        return entry

    def append(
        self,
        *,
        at: float,
        study_id: str,
        number: int,
        step: int,
        kind: str,
        sha256: str,
        size: int,
        code: str = "",
        charge: int = 0,
        steps: int = 0,
        epsilon: float = 0.0,
    ) -> int:
        """Write a receipt, synced; its number.

        Raises:
            StorageError: it cannot be written, and the reply must not be handed over.
        """
        body = {
            "study": study_id,
            "number": number,
            "step": step,
            "kind": kind,
            "code": code,
            "sha256": sha256,
            "size": size,
            "charge": charge,
            "steps": steps,
            "epsilon": float(epsilon),
        }
        with self._chain.transaction():
            last = self._newest()
            row = sign_row(
                self._key,
                number=last.number + 1,
                site=self._site,
                epoch=_EPOCH,
                at=max(at, last.at),
                kind="receipt",
                body=body,
                previous=last.hash,
                form=FORM,
            )
            self._chain.append(row)
        self._last = parse_row(row, FORM)
        return self._last.number


def _receipt(entry: Entry) -> Receipt:
    body = entry.body
    return Receipt(
        entry=entry.number,
        at=entry.at,
        study_id=str(body["study"]),
        number=int(body["number"]),
        step=int(body["step"]),
        kind=str(body["kind"]),
        code=str(body["code"]),
        sha256=str(body["sha256"]),
        size=int(body["size"]),
        charge=int(body["charge"]),
        steps=int(body["steps"]),
        epsilon=float(body["epsilon"]),
    )


def read_receipts(path: Path, public_key: Ed25519PublicKey) -> tuple[Receipt, ...]:
    """All receipts in order, for somebody who only reads; the file may be in use meanwhile. None where there is no file.

    Raises:
        DataError: a receipt is not sound.
        StorageError: the file cannot be read.
    """
    if not path.exists():
        return ()
    rows, problems = _rows(path), []
    found: list[Receipt] = []
    for entry, wrong in _checked(rows, public_key):
        problems += wrong
        if entry is not None and entry.kind == "receipt":
            found.append(_receipt(entry))
    if problems:
        raise DataError(*(f"{path.name}: {p}" for p in problems[:MOST_LINES]), code="receipts-damaged")
    return tuple(found)


def verify_receipts(
    path: Path, public_key: Ed25519PublicKey, *, ledger: Account | None, waiting: tuple[bytes, ...] = ()
) -> list[str]:
    """What is wrong with receipts, one line per problem; nothing where they are sound, or where there are none.

    Args:
        public_key: the site's.
        ledger: what the site's ledger adds up to; None where it has none.
        waiting: the sealed replies that the site would still hand over if it were asked again.

    Guarantees:
        - Any receipt that was edited, removed but at the end, reordered or signed by another key is found.
        - A charge that the ledger does not have, or has not committed, is found; so is a stored reply without a receipt.

    Raises:
        StorageError: the file cannot be read.
    """
    if not path.exists():
        return [f"{path.name}: is gone, and stored replies are here"] if waiting else []
    chain = Chain(path, read_only=True)
    try:
        problems = [f"{path.name}: {p}" for p in chain.structure()]
    finally:
        chain.close()
    hashes = set()
    for entry, wrong in _checked(_rows(path), public_key):
        problems += [f"{path.name}: {p}" for p in wrong]
        if entry is None or entry.kind != "receipt":
            continue
        receipt = _receipt(entry)
        hashes.add(receipt.sha256)
        reserved = None if ledger is None else ledger.reservations.get(receipt.charge)
        if receipt.charge and (reserved is None or reserved.state != "committed"):
            problems.append(
                f"{path.name}: receipt {receipt.entry}: the ledger has not committed the entry {receipt.charge} that it names"
            )
    if any(hashlib.sha256(content).hexdigest() not in hashes for content in waiting):
        problems.append(f"{path.name}: a stored reply has no receipt: some at the end were removed")
    more = len(problems) - MOST_LINES
    return [*problems[:MOST_LINES], f"{path.name}: {more} more problems"] if more > 0 else problems


def _rows(path: Path) -> list[Row]:
    chain = Chain(path, read_only=True)
    try:
        return chain.rows()
    finally:
        chain.close()


def _checked(rows: list[Row], key: Ed25519PublicKey) -> list[tuple[Entry | None, list[str]]]:
    """Each row as an entry, or what is wrong with it."""
    made: list[tuple[Entry | None, list[str]]] = []
    previous = FIRST_LINK
    for number, row in enumerate(rows, 1):
        wrong = check_row(row, number=number, previous=previous, key=key, form=FORM)
        entry = None
        try:
            entry = parse_row(row, FORM) if not wrong else None
        except DataError as error:
            wrong += error.problems
        made.append((entry, wrong))
        previous = row[3]
    return made
