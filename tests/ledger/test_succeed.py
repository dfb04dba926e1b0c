"""A site with a new identity takes over what its old ledger counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_client.budget import Charge
from oncofed_client.identity import raw_public
from oncofed_client.ledger import LEDGER_FILE, Ledger, verify
from oncofed_shared.errors import PolicyRefusal, StorageError
from oncofed_shared.witness import sign_witness

NEW, AGGREGATOR = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (77, 78))
Approve = Callable[..., int]


def fill(ledger: Ledger, approve: Approve, prefix: str) -> int:
    """Approve plans until the policy says no; how many it took."""
    for i in range(50):
        try:
            approve(ledger, f"{prefix}-{i}", now=20.0)
        except PolicyRefusal as refused:
            assert refused.code == "budget"  # noqa: PT017 - one of many calls
            return i
    raise AssertionError


def test_a_new_identity_gets_no_new_budget(ledger: Ledger, approve: Approve, step: Charge, tmp_path: Path) -> None:
    approve(ledger, "plan-1")
    ledger.reserve("plan-1", "r1", "q", step, now=3.0)
    path = tmp_path / "new" / LEDGER_FILE
    with Ledger.succeed(path, site="north", key=NEW, now=10.0, spent=ledger.total()) as new:
        # Before anybody is asked anything: all of it, the open plan with all its steps.
        np.testing.assert_array_equal(new.total().pooled, ledger.total().pooled)
        np.testing.assert_array_equal(new.total().own, ledger.total().own)
        assert new.total().slack == ledger.total().slack
        with pytest.raises(PolicyRefusal) as refused:
            approve(new, "plan-2", now=11.0)
        assert refused.value.code == "silent"
        seen = sign_witness(AGGREGATOR, name="aggregator", head=new.head())
        new.witness(seen, trusted=[raw_public(AGGREGATOR.public_key())])
        assert fill(new, approve, "more") == fill(ledger, approve, "more") > 0
    assert verify(path, NEW.public_key(), witnesses=[seen]) == []
    with pytest.raises(StorageError, match="is there already"):
        Ledger.succeed(path, site="north", key=NEW, now=12.0, spent=ledger.total())
    with Ledger.open(path, site="north", key=NEW) as new:
        assert not new.silent
