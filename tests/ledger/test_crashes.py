"""Killed between any two writes: what is charged is never less than what was handed over, and no entry is lost.

Three ways to be killed, a thousand points in all: the write-ahead log is cut at any byte, as a power cut does; the process dies
between any two statements or writes; a real process gets SIGKILL.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_client.budget import Charge, cost_of
from oncofed_client.charged_reply import charged_reply
from oncofed_client.ledger import HEAD_FILE, LEDGER_FILE, Ledger, verify
from oncofed_client.outbox import OUTBOX_FILE, Outbox

Approve = Callable[..., int]
CUTS, FAULTS, KILLS = 600, 370, 30
STEPS = 12
FILES = (LEDGER_FILE, f"{LEDGER_FILE}-wal", OUTBOX_FILE, f"{OUTBOX_FILE}-wal", HEAD_FILE)
Snapshot = dict[str, bytes]
Released = dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """A state folder, and what its process does."""

    folder: Path
    key: Ed25519PrivateKey
    step: Charge
    # Where these tests cut logs themselves, waiting for the disk adds nothing.
    synced: bool = False

    def open(self) -> tuple[Ledger, Outbox]:
        ledger = Ledger.open(self.folder / LEDGER_FILE, site="north", key=self.key, synced=self.synced)
        return ledger, Outbox(self.folder / OUTBOX_FILE, epoch=ledger.epoch, synced=self.synced)

    def answer(self, ledger: Ledger, outbox: Outbox, number: int, compute: Callable[[], bytes] | None = None) -> bytes:
        """One reply; noise is drawn anew whenever it is computed."""
        return charged_reply(
            ledger,
            outbox,
            plan_hash="plan-1",
            session="s",
            reply_id=f"step {number}",
            request_hash=f"request {number}",
            charge=self.step,
            compute=compute or partial(os.urandom, 700),
            now=10.0 + number,
        )


@pytest.fixture
def site(tmp_path: Path, key: Ed25519PrivateKey, step: Charge, approve: Approve) -> Site:
    """A site that has approved a plan of STEPS steps and is down."""
    made = Site(folder=tmp_path / "state", key=key, step=step)
    with Ledger.create(made.folder / LEDGER_FILE, site="north", key=key, now=1.0) as ledger:
        approve(ledger, "plan-1", charges=(dataclasses.replace(step, steps=STEPS),))
    return made


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_right(site: Site, released: Released, reserved: set[str]) -> None:
    """After a restart: nothing released is uncharged, nothing reserved is gone, and the site can go on.

    Args:
        released: id -> hash of every reply that was handed over.
        reserved: ids of which the reservation had returned.
    """
    assert verify(site.folder / LEDGER_FILE, site.key.public_key()) == []
    ledger, outbox = site.open()
    with ledger, outbox:
        kept = {name: ledger.reservation(name) for name in released.keys() | reserved}
        assert {n for n, r in kept.items() if r is None or r.state == "void"} == set()
        assert {n: kept[n].reply_hash for n in released} == released  # type: ignore[union-attr]
        one = cost_of([site.step])
        total = ledger.total()
        assert (total.pooled >= len(released) * one.pooled).all()
        (plan,) = ledger.plans()
        assert len(released) <= plan.used[0] <= plan.charges[0].steps
        # Asked again, what was handed over is given again, byte for byte.
        for name, digest in released.items():
            stored = outbox.get(name, name.replace("step", "request"))
            assert stored is not None
            assert sha(stored) == digest
        # And what was in the air can be finished, under the charge that it has.
        for name in sorted(reserved - released.keys()):
            content = site.answer(ledger, outbox, int(name.split()[1]))
            assert outbox.get(name, name.replace("step", "request")) == content
        assert ledger.plans()[0].used[0] == plan.used[0]


def read(folder: Path) -> Snapshot:
    return {n: (folder / n).read_bytes() for n in FILES if (folder / n).exists()}


def write(folder: Path, files: Snapshot) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """Files before and after one write to one log, and what was known to the world until then."""

    before: Snapshot
    after: Snapshot
    released: Released
    reserved: set[str]


def moments(site: Site) -> list[Moment]:
    """Every write of a site that answers STEPS requests."""
    found: list[Moment] = []
    released: Released = {}
    reserved: set[str] = set()
    ledger, outbox = site.open()
    with ledger, outbox:
        last = read(site.folder)

        def look() -> None:
            nonlocal last
            now = read(site.folder)
            found.append(Moment(before=last, after=now, released=dict(released), reserved=set(reserved)))
            last = now

        for i in range(STEPS):
            name, request, content = f"step {i}", f"request {i}", os.urandom(700)
            entry = ledger.reserve("plan-1", name, request, site.step, now=10.0 + i)
            look()
            reserved.add(name)
            outbox.keep(name, request, content, session="s")
            look()
            ledger.commit(entry, sha(content), now=10.0 + i)
            look()
            released[name] = sha(content)
    return found


def test_rule_14_the_log_is_cut_at_any_byte(site: Site) -> None:
    """A power cut keeps what was synced and any part of what was being written, the last sector perhaps as garbage."""
    chance = random.Random(20261121)
    known = moments(site)
    assert len(known) == 3 * STEPS
    cuts = 0
    for k in range(CUTS):
        moment = chance.choice(known)
        state = dict(moment.before)
        (name,) = [n for n in moment.after if n.endswith("-wal") and moment.after[n] != moment.before.get(n)]
        old, new = moment.before.get(name, b""), moment.after[name]
        assert new.startswith(old), "nothing that was synced is written over"
        cut = chance.randint(len(old), len(new))
        torn = b"" if k % 3 else chance.randbytes(chance.randint(0, min(512, cut - len(old))))
        state[name] = new[: cut - len(torn)] + torn
        if k % 5 == 0 and cut == len(new):
            state[HEAD_FILE] = moment.after[HEAD_FILE]
        if k % 7 == 0:
            state[HEAD_FILE] = chance.randbytes(100)
            # A head that a power cut spoiled is mended when the site starts.
        write(site.folder, state)
        site.open()[0].close()
        is_right(site, moment.released, moment.reserved)
        cuts += cut < len(new)
    assert cuts > CUTS / 2


class Killed(BaseException):
    """The process is no more: nothing catches this."""


class Mortal:
    """Counts writes, and dies at one of them, before or after it is done. The dead do nothing more."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.before = True
        self.dead = False
        self.seen = 0

    def step(self, action: Callable[[], Any]) -> Any:
        if self.dead:
            raise Killed
        self.seen += 1
        if self.left is None:
            return action()
        self.left -= 1
        if self.left:
            return action()
        self.dead = True
        if not self.before:
            action()
        raise Killed


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mortal]:
    """Every statement and every write of this process goes through it."""
    made = Mortal()
    connections: list[sqlite3.Connection] = []

    class Connection(sqlite3.Connection):
        def __init__(self, *a: Any, **k: Any) -> None:
            super().__init__(*a, **k)
            connections.append(self)

        def execute(self, *a: Any) -> Any:
            return made.step(lambda: sqlite3.Connection.execute(self, *a))

        def close(self) -> None:
            if not made.dead:
                super().close()

    connect, pwrite, ftruncate = sqlite3.connect, os.pwrite, os.ftruncate
    monkeypatch.setattr(sqlite3, "connect", partial(connect, factory=Connection))
    monkeypatch.setattr(os, "pwrite", lambda *a: made.step(lambda: pwrite(*a)))
    monkeypatch.setattr(os, "ftruncate", lambda *a: made.step(lambda: ftruncate(*a)))

    def bury() -> None:
        """What the system does with a dead process: its files are closed and its locks fall, and nothing is committed."""
        made.dead, made.left = False, None
        for connection in connections:
            sqlite3.Connection.close(connection)
        connections.clear()

    made.bury = bury  # type: ignore[attr-defined]
    yield made
    bury()


def live(site: Site, released: Released, reserved: set[str], numbers: range) -> None:
    """Open, answer, hand over."""
    ledger, outbox = site.open()
    for i in numbers:

        def compute(i: int = i) -> bytes:
            reserved.add(f"step {i}")
            return os.urandom(300)

        released[f"step {i}"] = sha(site.answer(ledger, outbox, i, compute))


def test_rule_14_the_process_dies_between_any_two_writes(site: Site, mortal: Any) -> None:
    chance = random.Random(6)
    whole = read(site.folder)
    live(site, {}, set(), range(2))
    total = mortal.seen
    mortal.bury()
    assert total > 30
    died = 0
    for k in range(FAULTS):
        write(site.folder, whole)
        released: Released = {}
        reserved: set[str] = set()
        # Killed, started, and killed again, up to three times.
        for _ in range(1 + k % 3):
            mortal.left, mortal.before = chance.randint(1, total), chance.random() < 0.5
            try:
                live(site, released, reserved, range(2))
            except Killed:
                died += 1
            mortal.bury()
        is_right(site, released, reserved)
        mortal.bury()
    assert died > FAULTS


def child(site: Site, log: int) -> None:
    """A process that answers and tells what it hands over."""
    ledger, outbox = site.open()
    for i in range(STEPS):
        content = site.answer(ledger, outbox, i)
        os.write(log, f"step {i}|{sha(content)}\n".encode())


def test_rule_14_a_real_process_is_killed(site: Site, tmp_path: Path) -> None:
    chance = random.Random(9)
    whole, site = read(site.folder), dataclasses.replace(site, synced=True)
    finished = 0
    for k in range(KILLS):
        write(site.folder, whole)
        log = tmp_path / f"released-{k}"
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        process = os.fork()
        if process == 0:
            try:
                child(site, descriptor)
            finally:
                os._exit(0)
        os.close(descriptor)
        time.sleep(chance.uniform(0.005, 0.15))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        finished += not os.WIFSIGNALED(status)
        lines = [line.split("|") for line in log.read_text().splitlines()]
        released = dict(line for line in lines if len(line) == 2 and len(line[1]) == 64)
        is_right(site, released, set())
    assert finished < KILLS


def test_a_ledger_whose_making_was_killed_is_made_by_the_next_start(
    mortal: Any, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    path = tmp_path / "new" / LEDGER_FILE
    for left in range(1, 12):
        mortal.left, mortal.before = left, True
        try:
            Ledger.create(path, site="north", key=key, now=1.0).close()
        except Killed:
            mortal.bury()
            if path.exists():
                Ledger.open(path, site="north", key=key).close()
                assert verify(path, key.public_key()) == []
                path.unlink()
                path.with_name(HEAD_FILE).unlink()
        else:
            mortal.bury()
            break
    assert verify(path, key.public_key()) == []
