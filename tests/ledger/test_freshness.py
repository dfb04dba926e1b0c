"""A ledger that comes back from a backup: noticed, silent, and charged with what it has forgotten."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_client.budget import Charge, Cost, cost_of
from oncofed_client.ledger import HEAD_FILE, LEDGER_FILE, Ledger, verify
from oncofed_client.ledger_freshness import unsealed
from oncofed_shared.errors import DataError, LocalProtocolError, PolicyRefusal, RemoteProtocolError
from oncofed_shared.renyi_filter import ORDERS
from oncofed_shared.witness import Head, Witness, sign_head, sign_witness

Approve = Callable[..., int]
AGGREGATOR = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
PEER = Ed25519PrivateKey.from_private_bytes(b"p" * 32)
TRUSTED = [k.public_key().public_bytes_raw() for k in (AGGREGATOR, PEER)]


def seen(ledger: Ledger, by: Ed25519PrivateKey = AGGREGATOR) -> Witness:
    return sign_witness(by, name="aggregator" if by is AGGREGATOR else "peer", head=ledger.head())


@pytest.fixture
def past(ledger: Ledger, approve: Approve, step: Charge, tmp_path: Path) -> Path:
    """A copy of the folder when one of two replies was reserved; the ledger went on, approved another plan, and closed."""
    approve(ledger, "plan-1")
    ledger.commit(ledger.reserve("plan-1", "r1", "q", step, now=3.0), "h", now=3.0)
    ledger.reserve("plan-1", "r2", "q", step, now=3.0)
    copy = tmp_path / "backup"
    ledger.witness(seen(ledger), trusted=TRUSTED)
    ledger.close()
    shutil.copytree(ledger.path.parent, copy)
    return copy


def lived_on(folder: Path, key: Ed25519PrivateKey, approve: Approve, step: Charge) -> tuple[list[Witness], Cost]:
    """What the aggregator and a peer see of a ledger that goes on, and what it has charged at last."""
    with Ledger.open(folder / LEDGER_FILE, site="north", key=key) as ledger:
        witnesses = [seen(ledger, PEER)]
        approve(ledger, "plan-2", now=4.0)
        ledger.commit(ledger.reserve("plan-2", "r3", "q", step, now=5.0), "h", now=5.0)
        witnesses.append(seen(ledger))
        return witnesses, ledger.total()


def test_rule_18_an_old_ledger_beside_a_newer_head_does_not_open(
    ledger: Ledger, past: Path, approve: Approve, step: Charge, key: Ed25519PrivateKey
) -> None:
    lived_on(ledger.path.parent, key, approve, step)
    for name in (LEDGER_FILE, f"{LEDGER_FILE}-wal"):
        ledger.path.with_name(name).unlink(missing_ok=True)
    shutil.copy(past / LEDGER_FILE, ledger.path)
    with pytest.raises(
        PolicyRefusal, match="somebody has seen entry 8 of epoch 1, and this ledger ends with entry 5"
    ) as old:
        Ledger.open(ledger.path, site="north", key=key)
    assert old.value.code == "rolled-back"
    ledger.path.unlink()
    with pytest.raises(PolicyRefusal, match="an empty ledger forgets what was spent"):
        Ledger.create(ledger.path, site="north", key=key, now=9.0)


def test_rule_18_a_whole_old_folder_is_noticed_by_a_witness_and_answers_nothing_more(
    ledger: Ledger, past: Path, approve: Approve, step: Charge, key: Ed25519PrivateKey
) -> None:
    witnesses, _ = lived_on(ledger.path.parent, key, approve, step)
    path = past / LEDGER_FILE
    with Ledger.open(path, site="north", key=key) as old:
        old.witness(witnesses[0], trusted=TRUSTED)
        old.reserve("plan-1", "r2", "q", step, now=6.0)
        with pytest.raises(PolicyRefusal) as refused:
            old.witness(witnesses[1], trusted=TRUSTED)
        assert refused.value.code == "rolled-back"
        for call in (
            lambda: old.reserve("plan-1", "r4", "q", step, now=6.0),
            lambda: old.commit(5, "h", now=6.0),
            lambda: old.void(5, now=6.0),
            lambda: approve(old, "plan-3", now=6.0),
        ):
            with pytest.raises(PolicyRefusal) as refused:
                call()
            assert refused.value.code == "rolled-back"
    # It remembers, and whoever verifies it is told.
    with pytest.raises(PolicyRefusal):
        Ledger.open(path, site="north", key=key)
    assert any("witness aggregator: somebody has seen entry 8" in line for line in verify(path, key.public_key()))


def test_rule_18_a_branch_that_went_on_from_a_backup_is_noticed(
    ledger: Ledger, past: Path, approve: Approve, step: Charge, key: Ed25519PrivateKey
) -> None:
    """The copy was used, and is now as long as the one that was seen."""
    witnesses, _ = lived_on(ledger.path.parent, key, approve, step)
    with Ledger.open(past / LEDGER_FILE, site="north", key=key) as old:
        for i in range(5):
            old.reserve("plan-1", f"x{i}", "q", step, now=6.0)
        with pytest.raises(PolicyRefusal, match="here stands another entry 8"):
            old.witness(witnesses[1], trusted=TRUSTED)


def test_rule_18_after_a_restore_what_was_open_is_spent_what_was_lost_is_charged_and_the_site_is_silent(
    ledger: Ledger, past: Path, approve: Approve, step: Charge, key: Ed25519PrivateKey
) -> None:
    witnesses, lost_total = lived_on(ledger.path.parent, key, approve, step)
    path = past / LEDGER_FILE
    with Ledger.begin_epoch(path, site="north", key=key, now=7.0, witnesses=witnesses) as new:
        assert new.epoch == 2
        # Plan 1 is here with all its steps, and plan 2, which this copy never knew, by what the aggregator has seen of it.
        np.testing.assert_allclose(new.total().pooled, lost_total.pooled, rtol=1e-12)
        np.testing.assert_allclose(new.total().own, lost_total.own, rtol=1e-12)
        (plan,) = new.plans()
        assert plan.state == "spent"
        np.testing.assert_allclose(new.debt.pooled, cost_of(plan.charges).pooled, rtol=1e-12)
        reservation = new.reservation("r2")
        assert reservation is not None
        assert reservation.state == "spent"
        assert new.silent
        for call in (lambda: approve(new, "plan-3", now=8.0), lambda: new.commit(5, "h", now=8.0)):
            with pytest.raises(PolicyRefusal) as refused:
                call()
            assert refused.value.code == "silent"
        # Heads of before do not make it speak; the new epoch's does.
        new.witness(witnesses[1], trusted=TRUSTED)
        assert new.silent
        new.witness(seen(new), trusted=TRUSTED)
        assert not new.silent
        with pytest.raises(LocalProtocolError, match="is spent"):
            new.commit(5, "h", now=8.0)
        with pytest.raises(PolicyRefusal) as refused:
            new.reserve("plan-1", "r9", "q", step, now=8.0)
        assert refused.value.code == "unapproved-plan"
        with pytest.raises(RemoteProtocolError, match="over"):
            new.reserve("plan-1", "r2", "q", step, now=8.0)
        approve(new, "plan-3", now=9.0)
    assert verify(path, key.public_key(), witnesses=witnesses) == []
    with Ledger.open(path, site="north", key=key) as reopened:
        assert not reopened.silent


def test_rule_18_a_later_head_of_the_lost_branch_asks_for_another_epoch(
    ledger: Ledger, past: Path, approve: Approve, step: Charge, key: Ed25519PrivateKey
) -> None:
    witnesses, lost_total = lived_on(ledger.path.parent, key, approve, step)
    path = past / LEDGER_FILE
    with Ledger.begin_epoch(path, site="north", key=key, now=7.0, witnesses=witnesses[:1]) as new:
        new.witness(seen(new), trusted=TRUSTED)
        assert (new.total().pooled < lost_total.pooled).all()
        with pytest.raises(PolicyRefusal, match="charges that this ledger does not count"):
            new.witness(witnesses[1], trusted=TRUSTED)
    with Ledger.begin_epoch(path, site="north", key=key, now=8.0) as newer:
        assert newer.epoch == 3
        np.testing.assert_allclose(newer.total().pooled, lost_total.pooled, rtol=1e-12)
        newer.witness(witnesses[1], trusted=TRUSTED)
        newer.witness(seen(newer), trusted=TRUSTED)
        approve(newer, "plan-4", now=9.0)
    # Restored again, from the oldest copy, with what was seen last: no epoch is used twice.
    with Ledger.open(path, site="north", key=key) as newer:
        last = seen(newer)
    shutil.rmtree(ledger.path.parent)
    with Ledger.create(ledger.path, site="north", key=key, now=10.0) as blank:
        with pytest.raises(PolicyRefusal):
            blank.witness(last, trusted=TRUSTED)
        blank.close()
        with Ledger.begin_epoch(ledger.path, site="north", key=key, now=11.0, witnesses=[last, *witnesses]) as newest:
            assert newest.epoch == 4
            assert (newest.total().pooled >= lost_total.pooled * (1 + 1e-9)).all()


def test_a_ledger_that_was_never_restored_is_not_silent_and_takes_every_head_of_its_own(
    ledger: Ledger, approve: Approve, step: Charge, key: Ed25519PrivateKey
) -> None:
    heads = [seen(ledger)]
    approve(ledger, "plan-1")
    for i in range(3):
        heads.append(seen(ledger, PEER))
        ledger.reserve("plan-1", f"r{i}", "q", step, now=3.0)
    for witness in (*heads, *reversed(heads), heads[0]):
        ledger.witness(witness, trusted=TRUSTED)
    assert not ledger.silent
    assert verify(ledger.path, key.public_key()) == []


def test_a_head_tells_nobody_but_the_site_what_was_spent(
    ledger: Ledger, approve: Approve, key: Ed25519PrivateKey
) -> None:
    approve(ledger, "plan-1")
    head = Head.from_bytes(ledger.head())
    total, read = ledger.total(), unsealed(head, key)
    assert read is not None
    np.testing.assert_array_equal(read.pooled, total.pooled)
    np.testing.assert_array_equal(read.own, total.own)
    assert unsealed(head, AGGREGATOR) is None
    assert b"plan-1" not in ledger.head()
    for value in total.pooled:
        assert np.float64(value).tobytes() not in ledger.head()
    # Its length says nothing either.
    before = len(ledger.head())
    approve(ledger, "plan-2")
    assert len(ledger.head()) == before


def test_a_head_that_cannot_be_read_counts_as_everything(ledger: Ledger, past: Path, key: Ed25519PrivateKey) -> None:
    head = sign_head(key, site="north", epoch=1, number=99, digest=bytes(32), sealed=b"nothing")
    witness = sign_witness(AGGREGATOR, name="aggregator", head=head.to_bytes())
    with Ledger.begin_epoch(past / LEDGER_FILE, site="north", key=key, now=7.0, witnesses=[witness]) as new:
        assert np.isinf(new.total().pooled).all()
        assert new.total().pooled.shape == (len(ORDERS),)
    assert verify(past / LEDGER_FILE, key.public_key()) == []
    assert ledger.site == "north"


def test_who_is_not_in_the_roster_or_signs_something_else_is_no_witness(
    ledger: Ledger, approve: Approve, key: Ed25519PrivateKey
) -> None:
    good = seen(ledger)
    with pytest.raises(RemoteProtocolError, match="not in the roster"):
        ledger.witness(good, trusted=TRUSTED[1:])
    edited = Witness(name="other", public_key=good.public_key, head=good.head, signature=good.signature)
    with pytest.raises(RemoteProtocolError, match="not a signed head"):
        ledger.witness(edited, trusted=TRUSTED)
    foreign = sign_head(PEER, site="north", epoch=1, number=99, digest=bytes(32), sealed=b"")
    with pytest.raises(RemoteProtocolError, match="not a signed head"):
        ledger.witness(sign_witness(AGGREGATOR, name="aggregator", head=foreign.to_bytes()), trusted=TRUSTED)
    with pytest.raises(RemoteProtocolError, match="not a signed head"):
        Ledger.begin_epoch(ledger.path, site="north", key=key, now=9.0, witnesses=[edited])
    assert approve(ledger, "plan-1") == 2


@given(st.binary(max_size=300) | st.just(b"x" * 5000))
@settings(max_examples=200)
def test_garbage_is_no_head_and_no_witness(content: bytes) -> None:
    for kind in (Head, Witness):
        with pytest.raises(RemoteProtocolError):
            kind.from_bytes(content)


@given(st.integers(0, 2000), st.integers(1, 255))
@settings(max_examples=200)
def test_no_byte_of_a_witness_can_be_changed(where: int, change: int) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    head = sign_head(key, site="north", epoch=1, number=7, digest=bytes(range(32)), sealed=b"sealed")
    witness = sign_witness(AGGREGATOR, name="aggregator", head=head.to_bytes())
    content = bytearray(witness.to_bytes())
    assert Witness.from_bytes(bytes(content)) == witness
    content[where % len(content)] ^= change
    try:
        read = Witness.from_bytes(bytes(content))
    except RemoteProtocolError:
        return
    assert not read.is_signed


def test_another_sites_ledger_and_key_are_not_ones_own(ledger: Ledger, key: Ed25519PrivateKey) -> None:
    ledger.close()
    with pytest.raises(DataError, match="belongs to another site"):
        Ledger.open(ledger.path, site="south", key=key)
    with pytest.raises(DataError, match="not signed by this site's key"):
        Ledger.open(ledger.path, site="north", key=PEER)
    assert ledger.path.with_name(HEAD_FILE).stat().st_mode & 0o777 == 0o600
    assert ledger.path.stat().st_mode & 0o777 == 0o600
