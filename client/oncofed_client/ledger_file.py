"""A ledger's file while it is open: read before every decision, written once in it, compared with what others have seen."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_client.ledger_account import Account, cost_body
from oncofed_client.ledger_chain import FIRST_LINK, Chain, check_row, parse_row, sign_row
from oncofed_client.ledger_freshness import HEAD_FILE, contradiction, head_of, read_head, seen_in, write_head
from oncofed_client.site_keys import renewed_publics
from oncofed_shared.errors import DataError, LocalProtocolError, PolicyRefusal, RemoteProtocolError
from oncofed_shared.witness import Head, Witness

__all__ = ["LedgerFile"]


class LedgerFile:
    """What `Ledger` decides with: the account as it is now, and the one way to write an entry.

    Guarantees:
        - `_writing`: between its beginning and its end nobody else writes, and all entries so far are known.
        - `_append`: an entry that breaks a rule of the account is not written.
    """

    def __init__(self, path: Path, *, site: str, key: Ed25519PrivateKey, synced: bool = True) -> None:
        """Open a ledger for `open` and `begin_epoch`; nothing is said here about its freshness."""
        self.path, self.site = path, site
        self._key = key
        self._lock = threading.RLock()
        self._account = Account(site=site)
        self._mine: set[int] = set()
        self._newest_epoch_seen, self._witness_row, self._kept_head = 1, 0, b""
        self._chain = Chain(path, synced=synced)
        try:
            self._catch_up()
        except BaseException:
            self._chain.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def epoch(self) -> int:
        """From 1 on; every restore begins a new one. Stored replies of an earlier one are never handed over."""
        return self._account.epoch

    @property
    def silent(self) -> bool:
        """Whether nothing may be answered yet, because nobody has signed a head of the new epoch."""
        with self._lock:
            self._check_fresh()
            return self._newest_epoch_seen < self._account.epoch

    @contextmanager
    def _writing(self) -> Iterator[Account]:
        """One decision: all entries so far are known, nobody else writes, and the ledger may speak."""
        with self._lock:
            with self._chain.transaction():
                self._catch_up()
                self._check_fresh()
                if self.silent:
                    raise PolicyRefusal(
                        f"{self.path}: epoch {self.epoch} began after a restore, and nobody has signed its head yet; "
                        "the site stays silent until then",
                        code="silent",
                    )
                before = self._account.number
                yield self._account
                wrote = self._chain.rows(before)
            if wrote:
                self._catch_up()
                self._keep_head()

    def _append(self, kind: str, body: Mapping[str, Any], now: float, *, epoch: int | None = None) -> int:
        """Write an entry inside a transaction; the account learns of it when that has ended."""
        account = self._account
        if not account.at <= now < math.inf:
            raise PolicyRefusal(
                f"{self.path}: the clock says {now:.3f} and the last entry was written at {account.at:.3f}; time never "
                "runs backwards: set the clock right",
                code="clock",
            )
        row = sign_row(
            self._key,
            number=account.number + 1,
            site=self.site,
            epoch=epoch or account.epoch,
            at=now,
            kind=kind,
            body=dict(body),
            previous=account.hashes[-1],
        )
        why = account.problem(parse_row(row))
        if why is not None:
            raise LocalProtocolError(f"{self.path}: an entry of kind {kind} {why}", code="ledger-rule")
        self._chain.append(row)
        return row[0]

    def _catch_up(self) -> None:
        """Read entries that were written since the last time, by whomever."""
        account, public = self._account, self._key.public_key()
        for row in self._chain.rows(account.number):
            previous = account.hashes[-1] if account.hashes else FIRST_LINK
            problems = check_row(row, number=account.number + 1, previous=previous, key=public)
            entry = None
            try:
                entry = parse_row(row) if not problems else None
            except DataError as error:
                problems += error.problems
            why = None if entry is None else account.problem(entry)
            problems += [] if why is None else [f"entry {row[0]}: {why}"]
            if problems or entry is None:
                raise DataError(
                    *(f"{self.path}: {p}" for p in problems),
                    f"{self.path}: nothing is answered; run `oncofed-site verify {self.path.parent}`",
                    code="ledger-damaged",
                )
            account.apply(entry)
        if account.number == 0:
            raise DataError(f"{self.path}: has no entry; it was emptied", code="ledger-damaged")

    def _head_file(self) -> Head | None:
        return read_head(self.path.with_name(HEAD_FILE), self._key.public_key(), known=self._kept_head)

    def _check_fresh(self) -> None:
        """Compare with what others have seen. What was once compatible stays so, because an account only grows."""
        beside = self._head_file()
        heads = [(self._witness_row, beside)] if beside is not None else []
        heads += [(row, Head.from_bytes(h)) for row, _, _, h, _ in self._chain.witnesses(self._witness_row)]
        # Heads first, entries after: another process may have written since, and its head must not look like a lost one.
        self._catch_up()
        for row, head in heads:
            why = contradiction(self._account, head, self._key)
            if why is not None:
                raise self._rolled_back(why)
            if head is not beside:
                self._newest_epoch_seen, self._witness_row = max(self._newest_epoch_seen, head.epoch), row

    def _rolled_back(self, why: str) -> PolicyRefusal:
        return PolicyRefusal(
            f"{self.path}: {why}",
            f"{self.path}: nothing is answered; if it was restored from a backup, begin a new epoch with the newest heads that "
            "the aggregator and the peers have",
            code="rolled-back",
        )

    def _witnessed(self, witness: Witness) -> Head:
        head = Head.from_bytes(witness.head)
        own = (self._key.public_key(), *renewed_publics(self.path.parent))
        if not witness.is_signed or not any(head.is_signed_by(key) for key in own):
            raise RemoteProtocolError("this is not a signed head of this site's ledger", code="witness")
        return head

    def _begin_epoch(self, now: float, witnesses: Collection[Witness]) -> None:
        heads = [self._witnessed(w) for w in witnesses]
        with self._lock:
            with self._chain.transaction():
                self._catch_up()
                heads += [Head.from_bytes(h) for _, _, _, h, _ in self._chain.witnesses()]
                beside = self._head_file()
                heads += [] if beside is None else [beside]
                newest = max((h.epoch for h in heads), default=0)
                unknown = [h for h in heads if contradiction(self._account, h, self._key) is not None]
                totals = sorted(seen_in(unknown, self._key).items())
                body = {"lost": [{"epoch": e, "total": cost_body(t)} for e, t in totals]}
                self._append("epoch", body, now, epoch=max(newest, self._account.epoch) + 1)
                for w in witnesses:
                    self._chain.add_witness(w.name, w.public_key, w.head, w.signature)
            self._catch_up()
            self._keep_head()

    def _keep_head(self) -> None:
        content = head_of(self._account, self._key).to_bytes()
        write_head(self.path.with_name(HEAD_FILE), content)
        self._kept_head = content
