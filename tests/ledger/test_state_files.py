"""Identity and outbox, and a disk that is full: whole files, closed to others, one clear message."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oncofed_client.budget import Charge
from oncofed_client.identity import KEY_FILE, PUBLIC_FILE, fingerprint_of, identity_of, public_half, raw_public
from oncofed_client.ledger import LEDGER_FILE, Ledger, verify
from oncofed_client.outbox import OUTBOX_FILE, Outbox
from oncofed_shared.errors import DataError, OncofedError, RemoteProtocolError, StorageError

Approve = Callable[..., int]


def test_an_identity_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    made = identity_of(folder)
    assert identity_of(folder).private_bytes_raw() == made.private_bytes_raw()
    assert raw_public(public_half(folder)) == raw_public(made.public_key())
    assert (folder / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert identity_of(tmp_path / "other").private_bytes_raw() != made.private_bytes_raw()
    assert len(fingerprint_of(made.public_key()).split()) == 8
    # The public half comes back if it is lost; it is no secret.
    (folder / PUBLIC_FILE).unlink()
    identity_of(folder)
    assert raw_public(public_half(folder)) == raw_public(made.public_key())


def test_an_identity_that_is_none_or_that_others_may_read_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    identity_of(folder)
    key, public = folder / KEY_FILE, folder / PUBLIC_FILE
    key.chmod(0o640)
    with pytest.raises(DataError, match="others than its owner may read it"):
        identity_of(folder)
    key.chmod(0o600)
    other = identity_of(tmp_path / "other")
    shutil.copy(tmp_path / "other" / PUBLIC_FILE, public)
    with pytest.raises(DataError, match="one of them was replaced"):
        identity_of(folder)
    elliptic = generate_private_key(SECP256R1())
    key.write_bytes(elliptic.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(elliptic.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for read in (identity_of, public_half):
        with pytest.raises(DataError, match="expected Ed25519"):
            read(folder)
    key.write_bytes(b"nonsense")
    public.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="is not a site's identity key"):
        identity_of(folder)
    with pytest.raises(DataError, match="is not a public key"):
        public_half(folder)
    public.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        public_half(folder)
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(StorageError, match="cannot be written"):
        identity_of(blocked / "state")
    assert other is not None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.binary(max_size=3000)), max_size=12))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_outbox_gives_what_was_kept_first_and_nothing_else(
    tmp_path: Path, calls: list[tuple[str, str, bytes]]
) -> None:
    path = tmp_path / OUTBOX_FILE
    path.unlink(missing_ok=True)
    kept: dict[str, tuple[str, bytes]] = {}
    for reply, request, content in calls:
        # Opened anew each time, as after a crash.
        with Outbox(path, epoch=1) as box:
            if kept.setdefault(reply, (request, content)) == (request, content):
                box.keep(reply, request, content, session="s")
            else:
                with pytest.raises(OncofedError) as refused:
                    box.keep(reply, request, content, session="s")
                assert refused.value.code == ("other-request" if request != kept[reply][0] else "other-reply")
            for name in "abc":
                if name not in kept:
                    assert box.get(name, "x") is None
                    continue
                first, bytes_kept = kept[name]
                assert box.get(name, first) == bytes_kept
                with pytest.raises(RemoteProtocolError):
                    box.get(name, "another")
            assert {n for n, _, _ in box.waiting()} == set(kept)
    if path.exists():
        assert path.stat().st_mode & 0o777 == 0o600


def test_an_outbox_forgets_one_session_and_not_the_other(tmp_path: Path) -> None:
    with Outbox(tmp_path / OUTBOX_FILE, epoch=1) as box:
        box.keep("r1", "q", b"1", session="first")
        box.keep("r2", "q", b"22", session="second")
        box.forget("first")
        assert box.waiting() == (("r2", "second", 2),)
        assert box.get("r1", "q") is None


def test_a_file_that_is_no_outbox_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / OUTBOX_FILE
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(DataError, match=OUTBOX_FILE):
        Outbox(path, epoch=1)
    with pytest.raises(StorageError, match="cannot be written"):
        Outbox(path / "below" / OUTBOX_FILE, epoch=1)


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """No file of this process may become larger, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_entries_that_do_not_fit_leave_the_ledger_sound(
    ledger: Ledger, approve: Approve, step: Charge, key: Ed25519PrivateKey
) -> None:
    approve(ledger, "plan-1")
    wal = ledger.path.with_name(f"{LEDGER_FILE}-wal")
    for room in (0, 1, 100, 4096, 9000):
        before = ledger.plans()[0].used[0]
        with no_file_above(wal.stat().st_size + room):
            errors = []
            for i in range(8):
                try:
                    ledger.reserve("plan-1", f"r{room}.{i}", "q", step, now=3.0)
                except StorageError as error:
                    errors.append(error.problems)
        assert errors
        assert all(len(lines) == 1 and "cannot be" in lines[0] for lines in errors)
        # Whatever was said to be reserved is, and it goes on where there is room.
        assert ledger.plans()[0].used[0] >= before + 8 - len(errors)
        assert verify(ledger.path, key.public_key()) == []
    ledger.reserve("plan-1", "last", "q", step, now=4.0)
    with Outbox(ledger.path.with_name(OUTBOX_FILE), epoch=1) as box:
        with no_file_above(100_000), pytest.raises(StorageError, match="cannot be read or written"):
            box.keep("r", "q", bytes(1_000_000))
        assert box.get("r", "q") is None
        box.keep("r", "q", bytes(1_000_000))
    ledger.close()
    with Ledger.open(ledger.path, site="north", key=key) as reopened:
        assert reopened.reservation("last") is not None


FULL_DISK = """
set -eu
mount -t tmpfs -o size=1m tmpfs "$1"
exec "$2" "$3" "$1"
"""
FILL = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from oncofed_client.budget import BudgetPolicy, Charge
from oncofed_client.ledger import Ledger, verify
from oncofed_shared.errors import StorageError
folder, key = Path(sys.argv[1]), Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
path = folder / "ledger.sqlite3"
step = Charge(sampling_rate=0.3, noise_multiplier=8.0, own_noise_multiplier=8.0, steps=9000)
ledger = Ledger.create(path, site="north", key=key, now=1.0, synced=False)
ledger.approve("p", study="s", charges=(step,), epsilon=90.0, delta=1e-5, policy=BudgetPolicy(), now=1.0)
one = Charge(sampling_rate=0.3, noise_multiplier=8.0, own_noise_multiplier=8.0)
done = 0
ballast = folder / "ballast"
ballast.write_bytes(bytes(300_000))
try:
    while True:
        ledger.reserve("p", f"r{done}", "q", one, now=2.0)
        done += 1
except StorageError as error:
    print(error)
charged = ledger.plans()[0].used[0]
assert charged >= done > 10, (charged, done)
assert verify(path, key.public_key()) == [], verify(path, key.public_key())
ballast.unlink()
ledger.reserve("p", f"r{done}", "q", one, now=2.0)
ledger.close()
assert verify(path, key.public_key()) == []
again = Ledger.open(path, site="north", key=key)
assert again.plans()[0].used[0] >= done + 1 - (charged > done)
again.close()
print("sound")
"""


def test_a_disk_that_is_full_leaves_the_ledger_sound(tmp_path: Path) -> None:
    """A real file system of one megabyte."""
    command = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed, so no small disk can be made")
    disk, script = tmp_path / "disk", tmp_path / "fill.py"
    disk.mkdir()
    script.write_text(FILL, encoding="utf-8")
    if subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    paths = os.pathsep.join(p for p in sys.path if p)
    ended = subprocess.run(
        [*command, "sh", "-c", FULL_DISK, "sh", str(disk), sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = ended.stdout.splitlines()
    assert "cannot be" in said[0]
    assert said[-1] == "sound"


def test_a_ledger_in_the_hands_of_another_waits_and_does_not_fail(
    ledger: Ledger, approve: Approve, key: Ed25519PrivateKey
) -> None:
    """Somebody reads with SQLite's own tools while the site works."""
    with closing(sqlite3.connect(ledger.path)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT COUNT(*) FROM entries").fetchone() == (1,)
        approve(ledger, "plan-1")
        assert verify(ledger.path, key.public_key()) == []
        assert reader.execute("SELECT COUNT(*) FROM entries").fetchone() == (1,)
