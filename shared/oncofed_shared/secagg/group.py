"""Who adds up together, and which addition is meant: the two values that every key, mask and signature is bound to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import msgpack

from oncofed_shared.errors import ConfigError, LocalProtocolError

__all__ = [
    "BLOCK_MAX",
    "HASH_BYTES",
    "KINDS",
    "MEMBERS_MAX",
    "SIZE_MAX",
    "SUITE",
    "Group",
    "Step",
    "smallest_threshold",
]

SUITE = "oncofed-secagg-1/X25519/HKDF-SHA256/AES-256-CTR/ChaCha20-Poly1305/Ed25519/Shamir-2^31-1"
"""Version and ciphers; part of every hash, so that two versions never add up together."""
MEMBERS_MAX = 64
"""Most sites of a group; `shamir` relies on it for exactness."""
BLOCK_MAX = 1024
SIZE_MAX = 1 << 28
NUMBER_MAX = 1 << 32
HASH_BYTES = 32
KINDS = ("train", "scores")


def smallest_threshold(sites: int, collude: int) -> int:
    """Smallest t with 2t > sites + collude: no two lists can both have t signatures while at most `collude` sites sign both."""
    return (sites + collude) // 2 + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The sites of one session and what the plan says about them. Each party builds its own from the plan that it approved.

    Attributes:
        plan_hash: of the plan.
        session: id of the training run.
        members: (name, raw Ed25519 public key) of every site, sorted by name.
        threshold: t: shares that open a mask, and signatures that certify a list of survivors.
        drop: d: most sites that may be missing from a sum.
        collude: c: most sites that may work with the aggregator.
        ring_bits: sums are modulo 2**ring_bits.
        block: steps whose keys are dealt in one set-up; block b covers the numbers b * block to (b + 1) * block - 1.
        reference: allows `collude = 0`, for a comparison that protects nobody from a site that colludes.
        digest: SHA-256 of all of the above and the suite.
        names: of the sites, sorted.

    Guarantees:
        - Exists only with at least 3 sites, different names and keys, 2t > n + c and n - d >= t (protocol 4).
        - Every field, and the suite, changes `digest`.

    Raises:
        ConfigError: it cannot exist; names every number that is wrong.
    """

    plan_hash: str
    session: str
    members: tuple[tuple[str, bytes], ...]
    threshold: int
    drop: int = 0
    collude: int = 1
    ring_bits: Literal[32, 64] = 32
    block: int = 64
    reference: bool = False
    digest: bytes = field(init=False, repr=False, compare=False)
    names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _places: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems = [*self._member_problems(), *self._number_problems()]
        if problems:
            raise ConfigError(*problems, code="group")
        content = (
            SUITE,
            "group",
            self.plan_hash,
            self.session,
            self.members,
            (self.threshold, self.drop, self.collude, self.ring_bits, self.block, self.reference),
        )
        object.__setattr__(self, "digest", hashlib.sha256(msgpack.packb(content)).digest())
        names = tuple(name for name, _ in self.members)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "_places", {name: place for place, name in enumerate(names, start=1)})

    def _member_problems(self) -> list[str]:
        problems = []
        names, keys = [name for name, _ in self.members], [key for _, key in self.members]
        if not 3 <= len(names) <= MEMBERS_MAX:
            problems.append(
                f"privacy.patients names {len(names)} sites; secure sums need 3 to {MEMBERS_MAX}: "
                "of two, each could subtract itself"
            )
        if names != sorted(set(names)):
            problems.append("the roster's names must be sorted and different")
        if len(set(keys)) != len(keys) or any(len(key) != HASH_BYTES for key in keys):
            problems.append("the roster's keys must be different Ed25519 public keys of 32 bytes")
        return problems

    def _number_problems(self) -> list[str]:
        problems = []
        n, t, d, c = len(self.members), self.threshold, self.drop, self.collude
        if c < (0 if self.reference else 1):
            problems.append(f"privacy.collude is {c}; at least 1, or 0 with privacy.reference = true")
        if d < 0:
            problems.append(f"privacy.drop is {d}; at least 0")
        if 2 * t <= n + c:
            problems.append(
                f"privacy.threshold is {t}; with {n} sites and collude = {c} it must be at least "
                f"{smallest_threshold(n, c)}, or two lists of survivors could both be certified"
            )
        if n - d < t:
            problems.append(
                f"privacy.drop is {d}: {n - d} of {n} sites would be left and privacy.threshold is {t}; lower drop"
            )
        if self.ring_bits not in {32, 64}:
            problems.append(f"privacy.ring_bits is {self.ring_bits}; 32 or 64")
        if not 1 <= self.block <= BLOCK_MAX:
            problems.append(f"a block of {self.block} steps; 1 to {BLOCK_MAX}")
        return problems

    def key(self, name: str) -> bytes:
        """Raw Ed25519 public key of a site."""
        return self.members[self._places[name] - 1][1]

    def place(self, name: str) -> int:
        """Where a site's shares lie on the polynomials: 1 to n."""
        return self._places[name]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One addition.

    Attributes:
        number: never used twice in a session; a repetition is a new number.
        attempt: counts the repetitions of what the step is for.
        parameters: SHA-256 of the parameters that this site was sent.
        size: length of the vector.
        kind: what is added, one of KINDS.

    Raises:
        LocalProtocolError: a value out of range.
    """

    number: int
    attempt: int
    parameters: bytes
    size: int
    kind: str

    def __post_init__(self) -> None:
        ok = 0 <= self.number < NUMBER_MAX and 0 <= self.attempt < NUMBER_MAX and 1 <= self.size <= SIZE_MAX
        if not ok or len(self.parameters) != HASH_BYTES or self.kind not in KINDS:
            raise LocalProtocolError(
                f"step {self.number}, attempt {self.attempt}: size {self.size} must be 1 to {SIZE_MAX}, "
                f"parameters a SHA-256, kind one of {', '.join(KINDS)}"
            )

    @property
    def parts(self) -> tuple[int, int, bytes, int, str]:
        """What signatures and keys are bound to."""
        return self.number, self.attempt, self.parameters, self.size, self.kind
