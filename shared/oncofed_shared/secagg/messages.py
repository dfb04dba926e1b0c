"""What the parties of a secure sum say to each other, as frozen dataclasses.

aggregator -> site      site -> aggregator
Advertise               Advert        keys of a block of steps, signed
Adverts                 Dealt         shares of the own secrets, one sealed packet per peer
Deals                   Received      the peers' packets arrived and can be opened
(the project's own)     Upload        the masked vector, signed
Complete                Reveal        all answered: shares of all own masks
Survivors               Endorsement   not all: a signature under the list
Certificate             Reveal        threshold signatures under one list: shares for exactly this list
"""

from __future__ import annotations

from dataclasses import dataclass

from oncofed_shared.secagg.group import Step
from oncofed_shared.secagg.masks import Words

__all__ = [
    "Advert",
    "Advertise",
    "Adverts",
    "Answer",
    "Ask",
    "Certificate",
    "Complete",
    "Deals",
    "Dealt",
    "Endorsement",
    "Message",
    "Received",
    "Reveal",
    "Survivors",
    "Upload",
]

Named = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Advertise:
    """Ask for the keys of a block."""

    block: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Advert:
    """Public keys of a site for a block of steps.

    Attributes:
        transport: X25519 public key that peers seal their shares to.
        keys: X25519 public keys, 32 bytes per step.
        commitments: to the self-mask seeds, 32 bytes per step.
        signature: by the site's identity, over group, name, block and all of these.
    """

    site: str
    block: int
    transport: bytes
    keys: bytes
    commitments: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Adverts:
    """The adverts of all sites, sorted by name."""

    block: int
    adverts: tuple[Advert, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dealt:
    """A site's shares, sealed for each peer; `setup` is the hash of all adverts that it saw."""

    site: str
    block: int
    setup: bytes
    sealed: Named
    signature: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Deals:
    """What the peers sealed for one site, sorted by their names."""

    block: int
    setup: bytes
    sealed: Named


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """The site holds its shares of every peer's secrets."""

    site: str
    block: int
    setup: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A masked vector; the signature is over group, set-up, step and the vector's SHA-256."""

    site: str
    setup: bytes
    step: Step
    masked: Words
    signature: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Complete:
    """Every site uploaded: (name, hash of the masked vector followed by the signature), sorted by name."""

    setup: bytes
    step: Step
    uploads: Named


@dataclass(frozen=True, kw_only=True, slots=True)
class Survivors:
    """These sites uploaded, and not all did."""

    setup: bytes
    step: Step
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Endorsement:
    """A survivor's signature over group, set-up, step and the list."""

    site: str
    setup: bytes
    step: Step
    names: tuple[str, ...]
    signature: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """A list of survivors with the signatures of threshold of them."""

    setup: bytes
    step: Step
    names: tuple[str, ...]
    signatures: Named


@dataclass(frozen=True, kw_only=True, slots=True)
class Reveal:
    """A site's shares: of the self-mask seeds of the survivors, and of the step keys of the others."""

    site: str
    setup: bytes
    step: Step
    seeds: Named
    keys: Named
    signature: bytes


Ask = Advertise | Adverts | Deals | Complete | Survivors | Certificate
Answer = Advert | Dealt | Received | Upload | Endorsement | Reveal
Message = Ask | Answer
