"""What all sites publish for a block of steps, and the hash that everything of the block is bound to."""

from __future__ import annotations

from dataclasses import dataclass

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.secagg.group import HASH_BYTES, Group
from oncofed_shared.secagg.keys import hashed, verify
from oncofed_shared.secagg.messages import Advert

__all__ = ["KEY", "SEED", "Setup", "check_advert", "check_adverts", "numbers", "slot"]

KEY, SEED = 0, 1
"""Of a step's two secrets: its X25519 key, which opens the masks with all peers, and the seed of the site's own mask."""


def numbers(group: Group, block: int) -> range:
    """Numbers of the steps of a block."""
    return range(block * group.block, (block + 1) * group.block)


def slot(content: bytes, index: int) -> bytes:
    """One of the 32-byte values that were joined."""
    return content[index * HASH_BYTES : (index + 1) * HASH_BYTES]


def check_advert(group: Group, advert: Advert, block: int) -> None:
    """Raise RemoteProtocolError unless a member signed this advert for this block."""
    parts = advert.block, advert.transport, advert.keys, advert.commitments
    verify(group, advert.site, advert.signature, "advert", group.digest, advert.site, *parts)
    joined = group.block * HASH_BYTES
    if advert.block != block or (len(advert.keys), len(advert.commitments)) != (joined, joined):
        raise RemoteProtocolError(f"advert of {advert.site} is not for block {block}", code="advert")


def check_adverts(group: Group, adverts: tuple[Advert, ...], block: int) -> None:
    """Raise RemoteProtocolError unless there is one good advert of every member, and no two of them share a key."""
    if tuple(a.site for a in adverts) != group.names:
        raise RemoteProtocolError("the adverts are not one of every site, sorted by name", code="advert")
    for advert in adverts:
        check_advert(group, advert, block)
    keys = [a.transport for a in adverts] + [slot(a.keys, i) for a in adverts for i in range(group.block)]
    if len(set(keys)) != len(keys):
        raise RemoteProtocolError("two adverts, or two steps, have the same key", code="advert")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """The adverts of a block, in the order of the group.

    Attributes:
        digest: hash of what all sites advertised: signatures, keys and masks are bound to it.
    """

    group: Group
    block: int
    adverts: tuple[Advert, ...]
    digest: bytes

    @classmethod
    def of(cls, group: Group, adverts: tuple[Advert, ...], block: int) -> Setup:
        """A set-up of adverts that were checked."""
        content = [(a.site, a.transport, a.keys, a.commitments) for a in adverts]
        return cls(group=group, block=block, adverts=adverts, digest=hashed("set-up", group.digest, block, content))

    def advert(self, name: str) -> Advert:
        """What a site published."""
        return self.adverts[self.group.place(name) - 1]

    def key(self, name: str, number: int) -> bytes:
        """X25519 public key of a site for a step."""
        return slot(self.advert(name).keys, number - self.block * self.group.block)

    def commitment(self, name: str, number: int) -> bytes:
        """What a site published of its self-mask's seed for a step."""
        return slot(self.advert(name).commitments, number - self.block * self.group.block)
