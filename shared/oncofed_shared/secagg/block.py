"""What a site keeps of one block of steps: its own secrets, the adverts of all, and its shares of everybody's secrets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.secagg.adverts import KEY, SEED, Setup, check_adverts, numbers
from oncofed_shared.secagg.group import Group
from oncofed_shared.secagg.keys import agreement, commit, deal_key, public_key, seal, sign, unseal
from oncofed_shared.secagg.messages import Advert, Adverts, Deals, Dealt
from oncofed_shared.secagg.shamir import DIGITS, PRIME, SECRET_BYTES, split
from oncofed_shared.secagg.wire import from_bytes, to_bytes

__all__ = ["BlockKeys"]

_Kind = TypeVar("_Kind")


@dataclass(kw_only=True)
class BlockKeys:
    """A site's secrets of one block. Secret as a whole: never log it, never send it.

    Attributes:
        secrets: (block, 2, 32) own step secrets, KEY and SEED; zero once they are used or given up.
        shares: (sites, block, 2, DIGITS) shares of everybody's, in the order of the group; zero once given up; None until the
            peers' packets came.
    """

    group: Group
    name: str
    block: int
    transport: bytes
    secrets: NDArray[np.uint8]
    advert: Advert
    setup: Setup | None = None
    dealt: Dealt | None = None
    own: NDArray[np.uint32] | None = None
    shares: NDArray[np.uint32] | None = None
    entropy: Callable[[int], bytes] = field(repr=False)

    @classmethod
    def create(
        cls, group: Group, name: str, block: int, identity: Ed25519PrivateKey, entropy: Callable[[int], bytes]
    ) -> BlockKeys:
        """Draw all secrets of a block and sign what belongs to them."""
        transport = entropy(SECRET_BYTES)
        drawn = np.frombuffer(entropy(group.block * 2 * SECRET_BYTES), dtype=np.uint8)
        secrets = drawn.reshape(group.block, 2, SECRET_BYTES).copy()
        keys = b"".join(public_key(s[KEY].tobytes()) for s in secrets)
        pairs = zip(numbers(group, block), secrets, strict=True)
        commitments = b"".join(commit(group, name, number, s[SEED].tobytes()) for number, s in pairs)
        parts = block, public_key(transport), keys, commitments
        signature = sign(identity, "advert", group.digest, name, *parts)
        advert = Advert(
            site=name, block=block, transport=parts[1], keys=keys, commitments=commitments, signature=signature
        )
        return cls(
            group=group, name=name, block=block, transport=transport, secrets=secrets, advert=advert, entropy=entropy
        )

    @property
    def ready(self) -> bool:
        """Whether this site holds shares of everybody's secrets."""
        return self.shares is not None

    @property
    def agreed(self) -> Setup:
        """The adverts that the shares were dealt for."""
        if self.setup is None:
            raise RemoteProtocolError(f"block {self.block}: no adverts came yet", code="set-up")
        return self.setup

    def index(self, number: int) -> int:
        """Where a step lies in this block."""
        return number - self.block * self.group.block

    def deal(self, adverts: tuple[Advert, ...], identity: Ed25519PrivateKey) -> Dealt:
        """Share the own secrets among all sites; done once, and repeated for the same adverts only."""
        if self.dealt is not None:
            if adverts != self.agreed.adverts:
                raise RemoteProtocolError(f"block {self.block} was dealt for other adverts", code="dealt")
            return self.dealt
        check_adverts(self.group, adverts, self.block)
        if adverts[self.group.place(self.name) - 1] != self.advert:
            raise RemoteProtocolError("the own advert is not the one that was given", code="advert")
        group, setup = self.group, Setup.of(self.group, adverts, self.block)
        made = split(
            self.secrets.reshape(-1, SECRET_BYTES),
            threshold=group.threshold,
            count=len(group.members),
            entropy=self.entropy,
        )
        sealed, transport = [], agreement(self.transport)
        for advert, shares in zip(adverts, made, strict=True):
            if advert.site != self.name:
                key = deal_key(
                    group,
                    setup.digest,
                    self.block,
                    sender=self.name,
                    receiver=advert.site,
                    secret=transport,
                    public=advert.transport,
                )
                sealed.append((advert.site, seal(key, shares.astype("<u4").tobytes())))
        signature = sign(identity, "dealt", group.digest, setup.digest, self.name, sealed)
        self.own = made[group.place(self.name) - 1].reshape(group.block, 2, DIGITS)
        self.setup = setup
        self.dealt = Dealt(
            site=self.name, block=self.block, setup=setup.digest, sealed=tuple(sealed), signature=signature
        )
        return self.dealt

    def receive(self, deals: Deals) -> None:
        """Open the shares of all peers; nothing is kept unless all can be opened."""
        if deals.setup != self.agreed.digest:
            raise RemoteProtocolError(f"block {self.block}: the shares are of another set-up", code="set-up")
        if self.ready:
            return
        group = self.group
        peers = tuple(n for n in group.names if n != self.name)
        if tuple(n for n, _ in deals.sealed) != peers:
            raise RemoteProtocolError("the shares are not one packet of every peer, sorted by name", code="deal")
        transport = agreement(self.transport)
        opened = {name: self._opened(name, sealed, transport) for name, sealed in deals.sealed}
        assert self.own is not None  # noqa: S101 - set with `dealt`
        opened[self.name] = self.own
        self.shares = np.stack([opened[name] for name in group.names])
        # With the transport key, who recorded the packets could open the shares of steps that are long erased.
        self.own, self.transport = None, b""

    def _opened(self, sender: str, sealed: bytes, transport: X25519PrivateKey) -> NDArray[np.uint32]:
        key = deal_key(
            self.group,
            self.agreed.digest,
            self.block,
            sender=sender,
            receiver=self.name,
            secret=transport,
            public=self.agreed.advert(sender).transport,
        )
        content = unseal(key, sealed, sender)
        shape = (self.group.block, 2, DIGITS)
        if len(content) != 4 * int(np.prod(shape)):
            raise RemoteProtocolError(f"shares of {sender} have the wrong length", code="deal")
        shares = np.frombuffer(content, dtype="<u4").astype(np.uint32).reshape(shape)
        if np.any(shares >= PRIME):
            raise RemoteProtocolError(f"shares of {sender} are out of range", code="deal")
        return shares

    def share(self, name: str, number: int, secret: int) -> bytes:
        """This site's share of one secret of a site."""
        assert self.shares is not None  # noqa: S101 - callers upload first, which needs a set-up
        content: bytes = self.shares[self.group.place(name) - 1, self.index(number), secret].astype("<u4").tobytes()
        return content

    def erase_secrets(self, number: int) -> None:
        """Forget the own secrets of a step."""
        self.secrets[self.index(number)] = 0

    def erase_shares(self, number: int) -> None:
        """Forget the shares of a step."""
        if self.shares is not None:
            self.shares[:, self.index(number)] = 0

    def plain(self) -> dict[str, Any]:
        """Everything as msgpack's types. Secret."""
        return {
            "block": self.block,
            "transport": self.transport,
            "secrets": self.secrets.tobytes(),
            "advert": to_bytes(self.advert),
            "adverts": None if self.setup is None else to_bytes(Adverts(block=self.block, adverts=self.setup.adverts)),
            "dealt": None if self.dealt is None else to_bytes(self.dealt),
            "own": None if self.own is None else self.own.astype("<u4").tobytes(),
            "shares": None if self.shares is None else self.shares.astype("<u4").tobytes(),
        }

    @classmethod
    def from_plain(cls, group: Group, name: str, plain: dict[str, Any], entropy: Callable[[int], bytes]) -> BlockKeys:
        """Inverse of `plain`."""
        shape = (group.block, 2, DIGITS)
        block, kept = plain["block"], plain["adverts"]
        return cls(
            group=group,
            name=name,
            block=block,
            transport=plain["transport"],
            secrets=np.frombuffer(plain["secrets"], dtype=np.uint8).reshape(group.block, 2, SECRET_BYTES).copy(),
            advert=_read(Advert, plain["advert"]),
            setup=None if kept is None else Setup.of(group, _read(Adverts, kept).adverts, block),
            dealt=None if plain["dealt"] is None else _read(Dealt, plain["dealt"]),
            own=None if plain["own"] is None else _array(plain["own"], shape),
            shares=None if plain["shares"] is None else _array(plain["shares"], (len(group.members), *shape)),
            entropy=entropy,
        )


def _array(content: bytes, shape: tuple[int, ...]) -> NDArray[np.uint32]:
    return np.frombuffer(content, dtype="<u4").astype(np.uint32).reshape(shape)


def _read(kind: type[_Kind], content: bytes) -> _Kind:
    message = from_bytes(content)
    if not isinstance(message, kind):
        raise TypeError(kind.__name__)
    return message
