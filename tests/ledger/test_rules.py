"""The rules of docs/ledger.md and of the protocol, each by its number, as far as they are the ledger's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_client.budget import BudgetPolicy, Charge, cost_of
from oncofed_client.charged_reply import charged_reply
from oncofed_client.ledger import LEDGER_FILE, Ledger, verify
from oncofed_client.outbox import OUTBOX_FILE, Outbox
from oncofed_shared.errors import ExitCode, LocalProtocolError, PolicyRefusal, RemoteProtocolError, StorageError
from oncofed_shared.witness import sign_witness

Approve = Callable[..., int]
AGGREGATOR = Ed25519PrivateKey.from_private_bytes(bytes(32))


def contents(ledger: Ledger) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(ledger.path)) as connection:
        return [json.loads(c) for (c,) in connection.execute("SELECT content FROM entries ORDER BY number")]


def reply(ledger: Ledger, outbox: Outbox, name: str, step: Charge, **changes: Any) -> bytes:
    usual: dict[str, Any] = {
        "plan_hash": "plan-1",
        "session": "s",
        "reply_id": name,
        "request_hash": f"request of {name}",
        "charge": step,
        "compute": name.encode,
        "now": 3.0,
    }
    return charged_reply(ledger, outbox, **(usual | changes))


@pytest.fixture
def outbox(ledger: Ledger) -> Any:
    with Outbox(ledger.path.with_name(OUTBOX_FILE), epoch=ledger.epoch) as made:
        yield made


def test_rule_12_a_reply_is_reserved_before_it_is_computed_and_stored_before_it_is_committed(
    ledger: Ledger, outbox: Outbox, approve: Approve, step: Charge
) -> None:
    approve(ledger, "plan-1")
    seen: list[Any] = []

    def compute() -> bytes:
        seen.append([e["kind"] for e in contents(ledger)])
        seen.append(outbox.get("r", "request of r"))
        return b"masked"

    assert reply(ledger, outbox, "r", step, compute=compute) == b"masked"
    assert seen == [["open", "approve", "reserve"], None]
    assert outbox.get("r", "request of r") == b"masked"
    assert contents(ledger)[-1]["body"] == {"entry": 3, "reply_hash": hashlib.sha256(b"masked").hexdigest()}


def test_rule_12_asked_again_a_stored_reply_is_the_same_bytes_and_nothing_is_drawn_twice(
    ledger: Ledger, outbox: Outbox, approve: Approve, step: Charge
) -> None:
    approve(ledger, "plan-1")
    first = reply(ledger, outbox, "r", step)
    charged = len(contents(ledger))

    def again() -> bytes:
        raise AssertionError("computed a second time")

    assert reply(ledger, outbox, "r", step, compute=again) == first
    assert len(contents(ledger)) == charged


def test_rule_12_nothing_stored_is_computed_again_under_the_same_reservation(
    ledger: Ledger, outbox: Outbox, approve: Approve, step: Charge
) -> None:
    approve(ledger, "plan-1")

    def killed() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reply(ledger, outbox, "r", step, compute=killed)
    assert reply(ledger, outbox, "r", step) == b"r"
    assert [e["kind"] for e in contents(ledger)] == ["open", "approve", "reserve", "commit"]


def test_rule_12_the_same_id_with_another_request_is_refused(
    ledger: Ledger, outbox: Outbox, approve: Approve, step: Charge, key: Ed25519PrivateKey
) -> None:
    approve(ledger, "plan-1")
    approve(ledger, "plan-2")
    reply(ledger, outbox, "r", step)
    before = contents(ledger)
    for change in (
        {"request_hash": "another"},
        {"plan_hash": "plan-2"},
        {"charge": dataclasses.replace(step, steps=2)},
    ):
        with pytest.raises(RemoteProtocolError) as refused:
            reply(ledger, outbox, "r", step, **change)
        assert refused.value.code == "other-request"
    with pytest.raises(RemoteProtocolError, match="another request"):
        outbox.get("r", "another")
    with pytest.raises(RemoteProtocolError, match="another request"):
        outbox.keep("r", "another", b"x")
    # Also by a process that has just begun, and by the ledger alone.
    with Ledger.open(ledger.path, site="north", key=key) as reopened, pytest.raises(RemoteProtocolError):
        reopened.reserve("plan-1", "r", "another", step, now=4.0)
    assert contents(ledger) == before


def test_rule_12_a_reply_that_is_stored_otherwise_or_forgotten_is_never_answered_anew(
    ledger: Ledger, outbox: Outbox, approve: Approve, step: Charge
) -> None:
    approve(ledger, "plan-1")
    reply(ledger, outbox, "r", step)
    with pytest.raises(LocalProtocolError, match="another reply is stored"):
        outbox.keep("r", "request of r", b"other bytes")
    with pytest.raises(LocalProtocolError, match="is committed"):
        ledger.commit(3, "hash of other bytes", now=5.0)
    outbox.forget("s")
    assert outbox.waiting() == ()
    with pytest.raises(RemoteProtocolError, match="over") as refused:
        reply(ledger, outbox, "r", step)
    assert refused.value.code == "reply-is-over"


def test_rule_12_a_reply_of_an_earlier_epoch_is_as_if_it_had_never_been(
    ledger: Ledger, outbox: Outbox, approve: Approve, step: Charge
) -> None:
    approve(ledger, "plan-1")
    reply(ledger, outbox, "r", step)
    with Outbox(outbox.path, epoch=2) as later:
        assert later.get("r", "request of r") is None
        with pytest.raises(LocalProtocolError):
            later.keep("r", "request of r", b"r")


def test_rule_13_an_aborted_attempt_stays_charged_and_its_retry_is_a_step_more(
    ledger: Ledger, outbox: Outbox, approve: Approve, charge: Charge, step: Charge
) -> None:
    rounds, spare = 28, 2
    approve(ledger, "plan-1")
    assert charge.steps == rounds + spare
    for attempt in range(1 + spare):
        ledger.reserve("plan-1", f"step 1, attempt {attempt}", "q", step, now=3.0)
    for number in range(2, rounds + 1):
        reply(ledger, outbox, f"step {number}", step)
    with pytest.raises(PolicyRefusal, match="0 left of the 30") as refused:
        ledger.reserve("plan-1", "one more", "q", step, now=4.0)
    assert (refused.value.code, refused.value.exit_code) == ("budget", ExitCode.REFUSED)


def test_rule_13_only_what_was_never_handed_over_is_void(
    ledger: Ledger, approve: Approve, step: Charge, key: Ed25519PrivateKey
) -> None:
    approve(ledger, "plan-1")
    first, second, third = (ledger.reserve("plan-1", f"r{i}", "q", step, now=3.0) for i in range(3))
    ledger.commit(first, "h", now=3.0)
    with pytest.raises(LocalProtocolError, match="is committed"):
        ledger.void(first, now=3.0)
    ledger.void(second, now=3.0)
    ledger.void(second, now=3.0)
    assert ledger.plans()[0].used == [2]
    with pytest.raises(LocalProtocolError, match="is void"):
        ledger.commit(second, "h", now=3.0)
    with pytest.raises(RemoteProtocolError, match="over"):
        ledger.reserve("plan-1", "r1", "q", step, now=3.0)
    # Another process cannot know whether a byte was handed over.
    with (
        Ledger.open(ledger.path, site="north", key=key) as other,
        pytest.raises(LocalProtocolError, match="stays charged"),
    ):
        other.void(third, now=3.0)
    with pytest.raises(LocalProtocolError, match="is not a reservation"):
        ledger.void(2, now=3.0)


def test_rule_15_a_charge_is_a_pair_and_the_policy_may_cap_both(
    ledger: Ledger, approve: Approve, charge: Charge
) -> None:
    pooled = dataclasses.replace(charge, own_noise_multiplier=1.0)
    approve(ledger, "plan-1", charges=(pooled,))
    total = ledger.total()
    assert (total.own > total.pooled).all()
    np.testing.assert_array_equal(total.pooled, cost_of([charge]).pooled)
    alone = BudgetPolicy(epsilon_total=100.0, epsilon_alone=12.0)
    with pytest.raises(PolicyRefusal, match=r"policy\.epsilon_alone: is 12 ") as refused:
        approve(ledger, "plan-2", charges=(pooled,), policy=alone)
    assert refused.value.code == "budget"
    with pytest.raises(PolicyRefusal, match=r"policy\.epsilon_alone: .*would make it inf"):
        approve(ledger, "plan-2", charges=(dataclasses.replace(charge, own_noise_multiplier=0.0),), policy=alone)
    assert len(ledger.plans()) == 1
    # A step that would cost more than what was reserved is none of the plan's.
    for dearer in ({"noise_multiplier": 7.0}, {"own_noise_multiplier": 0.9}, {"sampling_rate": 0.4}, {"slack": 1e-20}):
        with pytest.raises(LocalProtocolError, match="not among the plan's"):
            ledger.reserve("plan-1", "r", "q", dataclasses.replace(pooled, steps=1, **dearer), now=3.0)
    ledger.reserve("plan-1", "r", "q", dataclasses.replace(pooled, steps=1, noise_multiplier=9.0), now=3.0)


def test_rule_16_a_whole_plan_is_reserved_at_its_approval(ledger: Ledger, approve: Approve, charge: Charge) -> None:
    approve(ledger, "plan-1")
    np.testing.assert_array_equal(ledger.total().pooled, cost_of([charge]).pooled)
    assert ledger.plans()[0].used == [0]


def test_rule_16_studies_are_approved_until_no_order_is_left_and_not_further(
    ledger: Ledger, approve: Approve, charge: Charge, policy: BudgetPolicy
) -> None:
    approved, refused = 0, None
    while refused is None:
        try:
            approve(ledger, f"plan-{approved}")
            approved += 1
        except PolicyRefusal as refusal:
            refused = refusal
    assert "policy.epsilon_total: is 6 at delta 1e-05" in str(refused)
    assert (refused.code, refused.exit_code) == ("budget", ExitCode.REFUSED)
    total, one = ledger.total(), cost_of([charge])
    bound = policy.filter(6.0)
    assert approved > 3
    assert bound.allows(total.pooled)
    assert not bound.allows((total + one).pooled)


def test_rule_16_one_plan_alone_may_pass_a_limit(ledger: Ledger, approve: Approve, charge: Charge) -> None:
    near = (dataclasses.replace(charge, noise_multiplier=2.8),)
    total = BudgetPolicy(epsilon_total=3.0)
    for word, changes in (
        ("epsilon_study", {"epsilon": 3.5}),
        ("delta_total", {"delta": 1e-4}),
        # The account over studies costs more than the accounting of one.
        ("epsilon_total", {"charges": near, "epsilon": 3.0, "policy": total}),
    ):
        with pytest.raises(PolicyRefusal, match=rf"policy\.{word}"):
            approve(ledger, "plan-1", **changes)
    assert len(contents(ledger)) == 1


def test_rule_16_a_plan_that_costs_more_than_it_promises_is_refused(ledger: Ledger, approve: Approve) -> None:
    with pytest.raises(LocalProtocolError, match=r"promises epsilon 0\.7 .* cost 0\.77") as wrong:
        approve(ledger, "plan-1", epsilon=0.7)
    assert wrong.value.code == "claim"
    assert len(contents(ledger)) == 1


def test_rule_16_a_plan_that_is_over_gives_back_what_it_never_asked_for(
    ledger: Ledger, approve: Approve, charge: Charge, step: Charge
) -> None:
    approve(ledger, "plan-1")
    number = ledger.reserve("plan-1", "r0", "q", step, now=3.0)
    ledger.commit(number, "h", now=3.0)
    in_doubt = ledger.reserve("plan-1", "r1", "q", step, now=3.0)
    ledger.end_plan("plan-1", now=4.0)
    np.testing.assert_allclose(ledger.total().pooled, cost_of([dataclasses.replace(charge, steps=2)]).pooled)
    for late in (
        lambda: ledger.reserve("plan-1", "r2", "q", step, now=5.0),
        lambda: ledger.end_plan("plan-1", now=5.0),
        lambda: ledger.commit(in_doubt, "h", now=5.0),
        lambda: ledger.void(in_doubt, now=5.0),
    ):
        with pytest.raises((PolicyRefusal, LocalProtocolError)):
            late()
    # Approved anew it is charged anew.
    approve(ledger, "plan-1", now=6.0)
    np.testing.assert_allclose(ledger.total().pooled, cost_of([dataclasses.replace(charge, steps=32)]).pooled)
    assert [p.state for p in ledger.plans()] == ["closed", "open"]


def test_rule_17_all_cohorts_of_a_site_share_one_account(
    ledger: Ledger, approve: Approve, charge: Charge, key: Ed25519PrivateKey
) -> None:
    """Nothing in an approval names a cohort, so two studies over different tables add up; and a site has one ledger."""
    approve(ledger, "plan of breast tables")
    approve(ledger, "plan of brain images")
    np.testing.assert_array_equal(ledger.total().pooled, 2 * cost_of([charge]).pooled)
    with pytest.raises(StorageError, match="is there already"):
        Ledger.create(ledger.path, site="north", key=key, now=1.0)


def test_rule_20_a_withdrawal_changes_nothing_that_is_charged(
    tmp_path: Path, approve: Approve, step: Charge, key: Ed25519PrivateKey
) -> None:
    """Two hospitals that differ in one patient's consent: their ledgers differ in the hashes of noised replies alone."""
    kept = []
    for patients in (200, 199):
        path = tmp_path / str(patients) / LEDGER_FILE
        with (
            Ledger.create(path, site="north", key=key, now=1.0) as made,
            Outbox(path.parent / OUTBOX_FILE, epoch=1) as box,
        ):
            approve(made, "plan-1")
            for i in range(3):
                reply(made, box, f"r{i}", step, compute=lambda patients=patients: b"noised sum over %d" % patients)
            entries = contents(made)
        assert len({e["body"].pop("reply_hash") for e in entries if e["kind"] == "commit"}) == 1
        kept.append(entries)
    assert kept[0] == kept[1]


def test_time_never_runs_backwards_past_the_last_entry(
    ledger: Ledger, approve: Approve, step: Charge, key: Ed25519PrivateKey
) -> None:
    approve(ledger, "plan-1", now=100.0)
    number = ledger.reserve("plan-1", "r", "q", step, now=100.0)
    calls: list[Callable[[float], Any]] = [
        lambda now: ledger.reserve("plan-1", "r2", "q", step, now=now),
        lambda now: ledger.commit(number, "h", now=now),
        lambda now: ledger.void(number, now=now),
        lambda now: ledger.end_plan("plan-1", now=now),
        lambda now: approve(ledger, "plan-2", now=now),
    ]
    for call in calls:
        for now in (99.999, -1.0, float("nan"), float("inf")):
            with pytest.raises(PolicyRefusal) as refused:
                call(now)
            assert refused.value.code == "clock"
    ledger.close()
    with pytest.raises(PolicyRefusal, match="set the clock right"):
        Ledger.begin_epoch(ledger.path, site="north", key=key, now=99.0)
    assert verify(ledger.path, key.public_key()) == []


def test_an_approval_that_is_repeated_is_one_and_with_other_charges_none(
    ledger: Ledger, approve: Approve, charge: Charge
) -> None:
    assert approve(ledger, "plan-1") == approve(ledger, "plan-1", now=9.0) == 2
    with pytest.raises(LocalProtocolError, match="approved with other charges"):
        approve(ledger, "plan-1", charges=(dataclasses.replace(charge, steps=31),))
    with pytest.raises(PolicyRefusal) as refused:
        ledger.reserve("plan-9", "r", "q", charge, now=3.0)
    assert refused.value.code == "unapproved-plan"
    assert len(contents(ledger)) == 2


def test_no_entry_is_changed_or_removed_by_way_of_sql(ledger: Ledger, approve: Approve) -> None:
    approve(ledger, "plan-1")
    ledger.witness(
        sign_witness(AGGREGATOR, name="aggregator", head=ledger.head()),
        trusted=[AGGREGATOR.public_key().public_bytes_raw()],
    )
    before = contents(ledger)
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as connection:
        for statement in (
            "UPDATE entries SET content = 'x' WHERE number = 2",
            "DELETE FROM entries WHERE number = 2",
            "DELETE FROM entries",
            "INSERT OR REPLACE INTO entries SELECT number, 'x', previous, hash, signature FROM entries WHERE number = 2",
            "INSERT INTO entries SELECT 9, content, previous, x'00', signature FROM entries WHERE number = 2",
            "INSERT OR REPLACE INTO entries SELECT 1, content, previous, hash, signature FROM entries WHERE number = 2",
            "UPDATE witnesses SET name = 'x'",
            "DELETE FROM witnesses",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(statement)
        # Neither does a new row push an old one out.
        for table, columns in (
            ("entries", "3, content, previous, hash, signature"),
            ("witnesses", "name, x'00', head, signature"),
        ):
            first = connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()  # noqa: S608
            connection.execute("BEGIN")
            connection.execute(f"INSERT OR REPLACE INTO {table} SELECT {columns} FROM {table} LIMIT 1")  # noqa: S608
            assert connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone() == first  # noqa: S608
            connection.execute("ROLLBACK")
    assert contents(ledger) == before


def test_the_same_entries_are_the_same_bytes(
    tmp_path: Path, approve: Approve, step: Charge, key: Ed25519PrivateKey
) -> None:
    heads = []
    for name in ("a", "b"):
        with Ledger.create(tmp_path / name / LEDGER_FILE, site="north", key=key, now=1.0) as made:
            approve(made, "plan-1")
            made.reserve("plan-1", "r", "q", step, now=3.0)
            heads.append(made.head())
    assert heads[0] == heads[1]
