"""Groups of sites in one process, whose messages cross the wire as bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_shared.secagg import AggregatorParty, Group, SiteParty, Step, from_bytes, smallest_threshold, to_bytes

PARAMETERS = hashlib.sha256(b"parameters").digest()


class Federation:
    """Real parties of one group; `vectors` remembers what each site put into the last step."""

    @staticmethod
    def make_step(number: int, **changes: Any) -> Step:
        """A step of a small vector."""
        usual = {"number": number, "attempt": 0, "parameters": PARAMETERS, "size": 5, "kind": "train"}
        return Step(**usual | changes)

    @staticmethod
    def crossed(message: Any) -> Any:
        """The message as the other side reads it."""
        return from_bytes(to_bytes(message))

    def __init__(self, sites: int, **numbers: Any) -> None:
        self.identities = {f"site-{i:02}": Ed25519PrivateKey.generate() for i in range(sites)}
        members = tuple((n, k.public_key().public_bytes_raw()) for n, k in self.identities.items())
        numbers = {"threshold": smallest_threshold(sites, numbers.get("collude", 1)), "block": 4} | numbers
        self.group = Group(plan_hash="plan", session="session", members=members, **numbers)
        self.names = self.group.names
        self.sites = {n: SiteParty(self.group, n, k) for n, k in self.identities.items()}
        self.aggregator = AggregatorParty(self.group)
        self.vectors: dict[str, np.ndarray] = {}

    def exchange(self, alive: Iterable[str] | None = None, after: Callable[[str], None] = lambda name: None) -> None:
        """Let the sites answer until nothing is asked of a living one."""
        alive = set(self.names if alive is None else alive)
        while asked := [(n, ask) for n, ask in self.aggregator.asks().items() if n in alive]:
            for name, ask in asked:
                answer = self.crossed(self.sites[name].answer(self.crossed(ask)))
                after(name)
                self.aggregator.take(answer)

    def set_up(self, block: int = 0) -> None:
        self.aggregator.open(block)
        self.exchange()

    def vector(self, size: int, *seed: object) -> np.ndarray:
        """Ring words all over the ring, of a seed."""
        kind = np.dtype(f"u{self.group.ring_bits // 8}")
        content = hashlib.shake_256(repr(seed).encode()).digest(size * kind.itemsize)
        return np.frombuffer(content, dtype=kind)

    def upload(self, step: Step, names: Iterable[str] | None = None) -> None:
        """Begin a step and let these sites upload."""
        self.aggregator.begin(step)
        self.vectors = {}
        for name in self.names if names is None else names:
            self.vectors[name] = self.vector(step.size, step.number, name)
            self.aggregator.take(self.crossed(self.sites[name].upload(step, self.vectors[name])))

    def step(self, step: Step, dropped: Iterable[str] = ()) -> np.ndarray:
        """A whole step in which these sites never answer."""
        alive = [n for n in self.names if n not in set(dropped)]
        self.upload(step, alive)
        if len(alive) < len(self.names):
            self.aggregator.close()
        self.exchange(alive)
        return self.aggregator.result()

    def plain_sum(self) -> np.ndarray:
        """What the last step's sum must be, by integers of any size, reduced at the end."""
        columns = zip(*(v.tolist() for v in self.vectors.values()), strict=True)
        kind = np.dtype(f"u{self.group.ring_bits // 8}")
        return np.array([sum(c) % 2**self.group.ring_bits for c in columns], dtype=kind)

    def restart(self, name: str) -> None:
        """Kill a site and start it again from what it kept."""
        self.sites[name] = SiteParty.restore(self.group, name, self.identities[name], self.sites[name].state())


@pytest.fixture(scope="session")
def federation() -> Callable[..., Federation]:
    return Federation
