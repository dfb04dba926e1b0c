"""Groups of sites in one process, whose messages cross the wire as bytes."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_shared.secagg import AggregatorParty, Group, SiteParty, Step, from_bytes, smallest_threshold, to_bytes
from oncofed_shared.secagg.adverts import KEY, SEED, numbers, slot
from oncofed_shared.secagg.keys import agreement, commit, pair_key, public_key, self_key
from oncofed_shared.secagg.masks import add_masks
from oncofed_shared.secagg.messages import Advert, Reveal, Upload

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


class Transcript:
    """What an aggregator can hold together with the sites that it corrupts, and what it can compute from that.

    Shamir's interpolation is done here by integers, one share after the other; nothing of `shamir` is used.
    """

    def __init__(self, world: Federation, corrupted: Iterable[str] = ()) -> None:
        self.world = world
        self.corrupted = tuple(corrupted)
        self.setups: dict[int, tuple[bytes, dict[str, Advert]]] = {}
        self.shares: dict[tuple[int, str, int], dict[int, tuple[int, ...]]] = {}
        self.known: dict[tuple[int, str, int], bytes] = {}
        self.uploads: list[Upload] = []

    def hold_block(self, block: int) -> None:
        """Read everything of a block that the corrupted sites hold; call it when the set-up is complete."""
        group = self.world.group
        keys = next(iter(self.world.sites.values()))._blocks[block]
        self.setups[block] = keys.agreed.digest, {a.site: a for a in keys.agreed.adverts}
        for name in self.corrupted:
            keys = self.world.sites[name]._blocks[block]
            for number, kind in itertools.product(numbers(group, block), (KEY, SEED)):
                self.known[number, name, kind] = keys.secrets[keys.index(number), kind].tobytes()
                for owner in group.names:
                    self.hold_share(number, owner, kind, name, keys.share(owner, number, kind))

    def hold_share(self, number: int, owner: str, kind: int, holder: str, share: bytes) -> None:
        digits = struct.unpack(f"<{len(share) // 4}I", share)
        if any(digits):
            self.shares.setdefault((number, owner, kind), {})[self.world.group.place(holder)] = digits

    def hold_reveal(self, reveal: Reveal) -> None:
        for kind, shares in ((SEED, reveal.seeds), (KEY, reveal.keys)):
            for owner, share in shares:
                self.hold_share(reveal.step.number, owner, kind, reveal.site, share)

    def secret(self, number: int, owner: str, kind: int) -> bytes | None:
        """A secret, if it is a corrupted site's or enough shares are held; what was advertised must fit."""
        if (number, owner, kind) in self.known:
            return self.known[number, owner, kind]
        shares = list(self.shares.get((number, owner, kind), {}).items())[: self.world.group.threshold]
        if len(shares) < self.world.group.threshold:
            return None
        total = 0
        for digit in range(len(shares[0][1])):
            value = 0
            for place, digits in shares:
                weight = 1
                for other, _ in shares:
                    if other != place:
                        weight = weight * other * pow(other - place, -1, 2**31 - 1) % (2**31 - 1)
                value = (value + weight * digits[digit]) % (2**31 - 1)
            total += value << 30 * digit
        recovered = total.to_bytes(34, "little")[:32]
        return recovered if self.fits(number, owner, kind, recovered) else None

    def fits(self, number: int, owner: str, kind: int, secret: bytes) -> bool:
        group = self.world.group
        advert = self.setups[number // group.block][1][owner]
        index = number % group.block
        if kind == SEED:
            return slot(advert.commitments, index) == commit(group, owner, number, secret)
        return slot(advert.keys, index) == public_key(secret)

    def pair_is_open(self, number: int, one: str, other: str) -> bool:
        return any(self.secret(number, name, KEY) is not None for name in (one, other))

    def opened(self, uploads: Iterable[Upload]) -> np.ndarray | None:
        """The sum of these uploads' vectors, if what is held determines it; of one upload, a site's secret itself."""
        uploads = list(uploads)
        step, setup, group = uploads[0].step, uploads[0].setup, self.world.group
        names = [u.site for u in uploads]
        adverts = self.setups[step.number // group.block][1]
        total = np.sum([u.masked for u in uploads], axis=0, dtype=uploads[0].masked.dtype)
        terms = []
        for name in names:
            seed = self.secret(step.number, name, SEED)
            if seed is None:
                return None
            terms.append((self_key(group, setup, step, name, seed), True))
            for peer in set(group.names) - set(names):
                holder, other = (name, peer) if self.secret(step.number, name, KEY) else (peer, name)
                secret = self.secret(step.number, holder, KEY)
                if secret is None:
                    return None
                public = slot(adverts[other].keys, step.number % group.block)
                key = pair_key(group, setup, step, names=(name, peer), secret=agreement(secret), public=public)
                terms.append((key, name < peer))
        add_masks(total, terms)
        return total

    def learnt(self, number: int) -> list[tuple[str, ...]]:
        """Smallest sets of honest sites whose sum is determined: joined by closed pair masks, with all self-masks open."""
        by_context: dict[object, dict[str, Upload]] = {}
        for upload in self.uploads:
            if upload.step.number == number and upload.site not in self.corrupted:
                by_context.setdefault((upload.step, upload.setup), {})[upload.site] = upload
        found = []
        honest = [n for n in self.world.names if n not in self.corrupted]
        for uploads in by_context.values():
            left = set(uploads)
            while left:
                group, frontier = set(), {left.pop()}
                while frontier:
                    name = frontier.pop()
                    group.add(name)
                    frontier |= {p for p in honest if p not in group and not self.pair_is_open(number, name, p)}
                left -= group
                if group <= set(uploads) and all(self.secret(number, n, SEED) is not None for n in group):
                    found.append(tuple(sorted(group)))
        return found


@pytest.fixture(scope="session")
def transcript() -> Callable[..., Transcript]:
    return Transcript


@pytest.fixture(scope="session")
def federation() -> Callable[..., Federation]:
    return Federation
