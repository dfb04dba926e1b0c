"""Whether a ledger is what its site wrote: every row, link and signature, every rule, and what others have seen of it."""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from oncofed_client.identity import raw_public
from oncofed_client.ledger_account import Account
from oncofed_client.ledger_chain import FIRST_LINK, Chain, Row, check_row, parse_row
from oncofed_client.ledger_freshness import HEAD_FILE, contradiction, read_head
from oncofed_client.site_keys import renewed_publics
from oncofed_shared.errors import DataError, RemoteProtocolError
from oncofed_shared.witness import Head, Witness

__all__ = ["read_account", "verify"]

MOST_LINES = 20


def verify(path: Path, public_key: Ed25519PublicKey, *, witnesses: Collection[Witness] = ()) -> list[str]:
    """What is wrong with a ledger, one line per problem; nothing where it is sound. Nothing is written.

    Args:
        public_key: the site's, as it was enrolled.
        witnesses: heads that the aggregator or peers have signed, beside those that the ledger keeps.

    Guarantees:
        - Any entry that was edited, removed, reordered, or signed by another key is found.
        - A ledger that ends before a head that stands beside it, or that a witness has signed, is found. If there is none, nobody
          can tell a copy from last month.

    Raises:
        DataError: there is no ledger, or its file cannot be read at all.
        StorageError: it cannot be opened.
    """
    chain = Chain(path, read_only=True)
    try:
        problems = [f"{path.name}: {p}" for p in chain.structure()]
        rows = chain.rows()
        kept = [Witness(name=n, public_key=k, head=h, signature=s) for _, n, k, h, s in chain.witnesses()]
    finally:
        chain.close()
    problems += _chain_problems(rows, public_key)
    account = _replayed(rows, public_key, problems) if not problems else None
    if account is not None:
        problems += _freshness(path, account, public_key, [*kept, *witnesses])
    return _shortened(problems)


def read_account(path: Path, public_key: Ed25519PublicKey) -> Account:
    """What a ledger's entries add up to, for somebody who only reads; it may be in use meanwhile.

    Raises:
        DataError: it is absent or not sound.
        StorageError: it cannot be opened.
    """
    chain = Chain(path, read_only=True)
    try:
        rows = chain.rows()
    finally:
        chain.close()
    problems = _chain_problems(rows, public_key)
    account = None if problems else _replayed(rows, public_key, problems)
    if account is None:
        lines = _shortened([f"{path}: {p}" for p in problems])
        raise DataError(
            *lines, f"{path}: is not sound, so it says nothing; bring it back from a backup", code="ledger-damaged"
        )
    return account


def _chain_problems(rows: list[Row], key: Ed25519PublicKey) -> list[str]:
    """Row by row; after a gap it goes on behind the gap, so that one missing row is one line."""
    problems, number, previous = [], 1, FIRST_LINK
    for row in rows:
        found = check_row(row, number=number, previous=previous, key=key)
        if row[0] != number:
            found += check_row(row, number=row[0], previous=row[2], key=key)
        problems += found
        number, previous = row[0] + 1, row[3]
    return problems


def _replayed(rows: list[Row], key: Ed25519PublicKey, problems: list[str]) -> Account | None:
    """What a sound chain adds up to; None, and a line, where an entry breaks a rule."""
    if not rows:
        problems.append("entry 1: is missing; the ledger is empty")
        return None
    account = None
    for row in rows:
        try:
            entry = parse_row(row)
        except DataError as error:
            problems += error.problems
            return None
        account = account or Account(site=entry.site)
        why = account.problem(entry)
        if why is None and entry.number == 1 and entry.body["public_key"] != raw_public(key).hex():
            why = "names another key than the site's"
        if why is not None:
            problems.append(f"entry {entry.number}: {why}")
            return None
        account.apply(entry)
    return account


def _freshness(path: Path, account: Account, key: Ed25519PublicKey, witnesses: Collection[Witness]) -> list[str]:
    problems = []
    beside = read_head(path.with_name(HEAD_FILE), key)
    if beside is None:
        problems.append(
            f"{HEAD_FILE}: is missing, or not signed by this site; whether the ledger is the newest cannot be seen"
        )
    else:
        why = contradiction(account, beside, None)
        problems += [] if why is None else [f"{HEAD_FILE}: {why}"]
    for witness in witnesses:
        where = f"witness {witness.name}"
        try:
            head = Head.from_bytes(witness.head)
        except RemoteProtocolError:
            problems.append(f"{where}: what was signed is not the head of a ledger")
            continue
        if not witness.is_signed:
            problems.append(f"{where}: its signature is not its own; it was edited")
        elif not any(head.is_signed_by(own) for own in (key, *renewed_publics(path.parent))):
            problems.append(f"{where}: has seen a head that this site did not sign")
        else:
            why = contradiction(account, head, None)
            problems += [] if why is None else [f"{where}: {why}"]
    return problems


def _shortened(problems: list[str]) -> list[str]:
    unique = [line for line, _ in groupby(problems)]
    if len(unique) <= MOST_LINES:
        return unique
    return [*unique[:MOST_LINES], f"and {len(unique) - MOST_LINES} more problems"]
