"""Keys, a roster and a signed study of the small hospitals, for the tests of the airlock."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan
from oncofed_shared.public_keys import public_of
from oncofed_shared.roster import write_roster
from oncofed_shared.signed_study import SignedStudy, read_study, write_study

NOW = 1_800_000_000.0
DAY = 86400.0


def key_of(name: str) -> Ed25519PrivateKey:
    """A key that is the same in every run of the tests."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


@dataclass(kw_only=True)
class Papers:
    """What an aggregator and its plan key have signed.

    Attributes:
        changes: arguments of `write_study` in place of the usual ones.
    """

    plan: Plan
    identities: dict[str, Ed25519PrivateKey]
    changes: dict[str, Any] = field(default_factory=dict)
    plan_key: Ed25519PrivateKey = field(default_factory=lambda: key_of("plan key"))
    step_key: Ed25519PrivateKey = field(default_factory=lambda: key_of("step key"))

    @property
    def publics(self) -> dict[str, bytes]:
        return {s: public_of(k) for s, k in self.identities.items()}

    @cached_property
    def content(self) -> bytes:
        usual = {
            "plan": self.plan,
            "trial": Trial(seed=0),
            "step_key": public_of(self.step_key),
            "roster": self.publics,
            "epoch": 1,
            "epoch_days": 30.0,
            "created": NOW - DAY,
            "expires": NOW + 90 * DAY,
            "quorum": len(self.identities),
            "key": self.plan_key,
            "session": "session-of-the-test",
        }
        return write_study(**(usual | self.changes))

    @cached_property
    def study(self) -> SignedStudy:
        return read_study(self.content, plan_key=public_of(self.plan_key))

    def roster(self, number: int = 1, **changes: Any) -> bytes:
        usual = {"issued": NOW - DAY, "sites": self.publics, "revoked": {}, "key": self.plan_key}
        return write_roster(number=number, **(usual | changes))
