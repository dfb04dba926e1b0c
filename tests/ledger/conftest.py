"""A site's ledger with one study in it, and ways to look at it from outside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_client.budget import BudgetPolicy, Charge
from oncofed_client.ledger import LEDGER_FILE, Ledger

SITE = "north"
POLICY = BudgetPolicy(epsilon_total=6.0, epsilon_study=3.0, delta_total=1e-5)
CHARGE = Charge(sampling_rate=0.3, noise_multiplier=8.0, own_noise_multiplier=4.0, steps=30)


@pytest.fixture(scope="session")
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture(scope="session")
def policy() -> BudgetPolicy:
    return POLICY


@pytest.fixture(scope="session")
def charge() -> Charge:
    """All steps of the plan."""
    return CHARGE


@pytest.fixture(scope="session")
def step() -> Charge:
    """One of them."""
    return dataclasses.replace(CHARGE, steps=1)


@pytest.fixture(scope="session")
def approve() -> Callable[..., int]:
    """Approve a plan: `approve(ledger, "plan-1", now=2.0, policy=..., charges=...)`."""

    def call(ledger: Ledger, plan: str, **changes: Any) -> int:
        usual: dict[str, Any] = {
            "study": f"study of {plan}",
            "charges": (CHARGE,),
            "epsilon": 3.0,
            "delta": 1e-5,
            "policy": POLICY,
            "now": 2.0,
        }
        return ledger.approve(plan, **(usual | changes))

    return call


@pytest.fixture
def ledger(tmp_path: Path, key: Ed25519PrivateKey) -> Iterator[Ledger]:
    """An empty ledger, made at second 1."""
    with Ledger.create(tmp_path / "state" / LEDGER_FILE, site=SITE, key=key, now=1.0) as made:
        yield made
