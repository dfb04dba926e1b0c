"""Several processes and threads at once: together they never pass what one alone could not."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_client.budget import BudgetPolicy, Charge
from oncofed_client.identity import identity_of
from oncofed_client.ledger import Ledger, verify
from oncofed_shared.errors import PolicyRefusal

Approve = Callable[..., int]
TIGHT = BudgetPolicy(epsilon_total=1.1, delta_total=1e-5)
"""Room for one of the plans, not for two."""


def in_processes(count: int, work: Callable[[int], int]) -> list[int]:
    """What `work(i)` returns in processes that begin at the same moment; 255 where one failed."""
    ready, go = os.pipe()
    children = []
    for i in range(count):
        child = os.fork()
        if child == 0:
            code = 255
            try:
                os.close(go)
                os.read(ready, 1)
                code = work(i)
            finally:
                os._exit(code)
        children.append(child)
    os.close(ready)
    # Nobody writes: the end of the pipe wakes all of them.
    os.close(go)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.mark.parametrize("attempt", range(4))
def test_rule_16_studies_that_are_approved_at_once_do_not_pass_the_policy_together(
    ledger: Ledger, approve: Approve, key: Ed25519PrivateKey, attempt: int
) -> None:
    # One of them fits, so that the limit is what refuses the others.
    path, now = ledger.path, 2.0 + attempt
    ledger.close()

    def work(i: int) -> int:
        with Ledger.open(path, site="north", key=key) as mine:
            try:
                approve(mine, f"plan-{i}", policy=TIGHT, now=now)
            except PolicyRefusal as refusal:
                return 1 if refusal.code == "budget" else 2
        return 0

    assert sorted(in_processes(4, work)) == [0, 1, 1, 1]
    assert verify(path, key.public_key()) == []
    with Ledger.open(path, site="north", key=key) as after:
        assert len(after.plans()) == 1
        assert TIGHT.objections(after.total()) == []


def test_rule_13_steps_that_are_reserved_at_once_are_those_of_the_plan_and_no_more(
    ledger: Ledger, approve: Approve, step: Charge, key: Ed25519PrivateKey
) -> None:
    approve(ledger, "plan-1")
    path = ledger.path
    ledger.close()

    def work(i: int) -> int:
        done = 0
        with Ledger.open(path, site="north", key=key) as mine:
            while True:
                try:
                    mine.reserve("plan-1", f"reply {i}.{done}", "q", step, now=3.0)
                except PolicyRefusal as refusal:
                    return done if refusal.code == "budget" else 255
                done += 1

    done = in_processes(3, work)
    assert sum(done) == 30
    assert verify(path, key.public_key()) == []


def test_a_reply_that_is_asked_twice_at_once_has_one_entry(
    ledger: Ledger, approve: Approve, step: Charge, key: Ed25519PrivateKey
) -> None:
    """Threads of one process, some over the same object and some over objects of their own."""
    approve(ledger, "plan-1")
    found: list[Any] = []
    gate = threading.Barrier(6)

    def work(mine: Ledger) -> None:
        gate.wait()
        found.extend(mine.reserve("plan-1", f"r{i}", f"q{i}", step, now=3.0) for i in range(5))

    others = [Ledger.open(ledger.path, site="north", key=key) for _ in range(3)]
    threads = [threading.Thread(target=work, args=(mine,)) for mine in (ledger, ledger, ledger, *others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.close()
    assert sorted(found) == sorted([3, 4, 5, 6, 7] * 6)
    assert ledger.plans()[0].used == [5]


def test_two_processes_make_one_identity(tmp_path: Path) -> None:
    folder = tmp_path / "state"

    def work(_: int) -> int:
        return identity_of(folder).public_key().public_bytes_raw()[0] % 200

    codes = in_processes(4, work)
    assert set(codes) == {work(0)}
    assert sorted(p.name for p in folder.iterdir()) == ["identity.key", "identity.pub"]


def test_a_tight_policy_lets_one_plan_and_not_two(ledger: Ledger, approve: Approve, charge: Charge) -> None:
    """The premise of the first test."""
    approve(ledger, "plan-1", policy=TIGHT)
    with pytest.raises(PolicyRefusal):
        approve(ledger, "plan-2", policy=TIGHT)
    with pytest.raises(PolicyRefusal):
        approve(ledger, "plan-2", policy=TIGHT, charges=(dataclasses.replace(charge, steps=10),))


def test_what_another_process_has_written_since_is_no_lost_entry(
    ledger: Ledger, approve: Approve, step: Charge, key: Ed25519PrivateKey
) -> None:
    """Its head lies beside the ledger before this one has read its entries."""
    approve(ledger, "plan-1")
    with Ledger.open(ledger.path, site="north", key=key) as other:
        other.reserve("plan-1", "reply", "q", step, now=3.0)
        assert not ledger.silent
        assert ledger.reservation("reply") is not None
