"""A site's part of secure sums: which event is allowed in which state, and what the site gives away then.

A site in one step, as `MOVES` says it; everything that is not in the table is refused and changes nothing:

    state      event          next       what leaves
    waiting    Upload         uploaded   the masked vector
    uploaded   Complete       revealed   shares of all self-masks, against the upload signatures of all n sites
    uploaded   Survivors      endorsed   a signature under the list
    uploaded   Certificate    revealed   shares for this list, against threshold signatures
    endorsed   Certificate    revealed   the same; the list must be the one that was endorsed

A later upload ends a step in whatever state it is. An ask that was answered in this step is answered again by the same message.
"""

from __future__ import annotations

import enum
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_shared.errors import LocalProtocolError, RemoteProtocolError
from oncofed_shared.secagg.adverts import KEY, SEED
from oncofed_shared.secagg.block import BlockKeys
from oncofed_shared.secagg.group import Group, Step
from oncofed_shared.secagg.keys import agreement, pair_key, self_key, sign, verify
from oncofed_shared.secagg.masks import Words, add_masks, array_hash, word
from oncofed_shared.secagg.messages import (
    Advert,
    Advertise,
    Adverts,
    Answer,
    Ask,
    Certificate,
    Complete,
    Deals,
    Dealt,
    Endorsement,
    Received,
    Reveal,
    Survivors,
    Upload,
)
from oncofed_shared.secagg.wire import from_bytes, to_bytes

__all__ = ["MOVES", "SiteParty", "SitePhase", "check_list"]

STATE_VERSION = 1


class SitePhase(enum.Enum):
    """Where a site stands in the current step."""

    WAITING = "waiting"
    UPLOADED = "uploaded"
    ENDORSED = "endorsed"
    REVEALED = "revealed"


MOVES: Mapping[tuple[SitePhase, type[Any]], SitePhase] = {
    (SitePhase.WAITING, Upload): SitePhase.UPLOADED,
    (SitePhase.UPLOADED, Complete): SitePhase.REVEALED,
    (SitePhase.UPLOADED, Survivors): SitePhase.ENDORSED,
    (SitePhase.UPLOADED, Certificate): SitePhase.REVEALED,
    (SitePhase.ENDORSED, Certificate): SitePhase.REVEALED,
}


def check_list(group: Group, names: tuple[str, ...]) -> None:
    """Raise RemoteProtocolError unless this can be a list of survivors: some members are missing, at most `drop`."""
    if names != tuple(n for n in group.names if n in set(names)):
        raise RemoteProtocolError("the list of survivors is not of members, sorted and different", code="list")
    least = len(group.members) - group.drop
    if not least <= len(names) < len(group.members):
        raise RemoteProtocolError(
            f"a list of {len(names)} survivors; at least {least} and fewer than all {len(group.members)}", code="list"
        )


@dataclass(kw_only=True)
class _Current:
    """The step that a site is in."""

    step: Step
    digest: bytes
    phase: SitePhase
    names: tuple[str, ...] = ()
    answered: dict[bytes, bytes] = field(default_factory=dict)


class SiteParty:
    """One site's part in the sums of one session.

    Keep `state()` on disk, synced, before any answer is handed over; after a crash go on with `restore`. Where an answer was kept
    and the state was not, `adopt` the upload. Never restore a state that may be older than an answer that left.

    Guarantees:
        - `upload`: one vector per number, ever, under keys that are used for this number only; the secrets behind the masks are
          erased before the method returns.
        - The masked vector says nothing about the vector to whoever holds fewer than threshold shares of the site's secrets of this
          step, or only those of one kind.
        - Shares leave for one list per step: as of a survivor or of a missing site, never both of the same peer, and never
          after the site signed another list.
        - A list shorter than n - drop is neither signed nor opened; nothing is opened on the aggregator's word alone.
        - Whatever is refused raises RemoteProtocolError and changes no state.
        - A step is over when a later one was uploaded: its shares are erased.
    """

    def __init__(
        self,
        group: Group,
        name: str,
        identity_key: Ed25519PrivateKey,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if name not in group.names or group.key(name) != identity_key.public_key().public_bytes_raw():
            raise LocalProtocolError(f"{name} with this identity key is not in the group's roster", code="roster")
        self.group = group
        self.name = name
        self._identity = identity_key
        self._entropy = entropy
        self._blocks: dict[int, BlockKeys] = {}
        self._current: _Current | None = None
        self._next = 0

    def answer(self, ask: Ask) -> Answer:
        """Answer whatever the aggregator asks, by its kind."""
        if isinstance(ask, Advertise):
            return self.advertise(ask.block)
        if isinstance(ask, Adverts):
            return self.deal(ask)
        if isinstance(ask, Deals):
            return self.receive(ask)
        if isinstance(ask, Survivors):
            return self.endorse(ask)
        if isinstance(ask, (Complete, Certificate)):
            return self.reveal(ask)
        raise RemoteProtocolError(f"{type(ask).__name__} is nothing that a site is asked", code="state")

    def advertise(self, block: int) -> Advert:
        """Draw the secrets of a block; asked again, the same advert."""
        first = self._next // self.group.block
        if block not in self._blocks:
            if not first <= block <= first + 1:
                raise RemoteProtocolError(f"block {block} is neither the current one nor the next", code="block")
            self._blocks[block] = BlockKeys.create(self.group, self.name, block, self._identity, self._entropy)
        return self._blocks[block].advert

    def _block(self, block: int) -> BlockKeys:
        if block not in self._blocks:
            raise RemoteProtocolError(f"block {block} is not being set up", code="block")
        return self._blocks[block]

    def deal(self, adverts: Adverts) -> Dealt:
        """Share the own secrets of a block, against the signed adverts of all members."""
        return self._block(adverts.block).deal(adverts.adverts, self._identity)

    def receive(self, deals: Deals) -> Received:
        """Take the shares of all peers."""
        keys = self._block(deals.block)
        keys.receive(deals)
        signature = sign(self._identity, "received", self.group.digest, keys.agreed.digest, self.name, deals.block)
        return Received(site=self.name, block=deals.block, setup=keys.agreed.digest, signature=signature)

    def upload(self, step: Step, vector: Words) -> Upload:
        """Mask a vector.

        Args:
            step: which addition; a number above every earlier one, of a block whose set-up is complete.
            vector: (step.size,) ring words, uint32 or uint64 as the group says; left as it is.
        """
        wanted = word(self.group.ring_bits)
        if vector.dtype != wanted or vector.shape != (step.size,):
            raise LocalProtocolError(
                f"step {step.number}: a vector of {vector.dtype} {vector.shape}; {wanted} ({step.size},) was declared"
            )
        keys = self._ready(step)
        secrets = keys.secrets[keys.index(step.number)]
        masked = vector.copy()
        add_masks(masked, self._masks(keys, step, secrets[KEY].tobytes(), secrets[SEED].tobytes()))
        digest = array_hash(masked)
        signature = sign(self._identity, "upload", self.group.digest, keys.agreed.digest, self.name, step.parts, digest)
        self._enter(keys, step, digest)
        return Upload(site=self.name, setup=keys.agreed.digest, step=step, masked=masked, signature=signature)

    def adopt(self, upload: Upload) -> None:
        """After a crash: count the own upload, which was kept, as done by this state, which is from before it."""
        keys = self._ready(upload.step)
        digest = array_hash(upload.masked)
        parts = keys.agreed.digest, self.name, upload.step.parts, digest
        verify(self.group, self.name, upload.signature, "upload", self.group.digest, *parts)
        self._enter(keys, upload.step, digest)

    def _ready(self, step: Step) -> BlockKeys:
        if step.number < self._next:
            raise RemoteProtocolError(f"step {step.number} is over or was uploaded; a number is used once", code="step")
        keys = self._block(step.number // self.group.block)
        if not keys.ready:
            raise RemoteProtocolError(f"block {keys.block} is not set up", code="set-up")
        return keys

    def _masks(self, keys: BlockKeys, step: Step, secret: bytes, seed: bytes) -> list[tuple[bytes, bool]]:
        """Keys of all masks; of a pair, the first by name adds and the other subtracts."""
        setup, private = keys.agreed, agreement(secret)
        terms = [(self_key(self.group, setup.digest, step, self.name, seed), False)]
        for peer in self.group.names:
            if peer != self.name:
                pair, public = (self.name, peer), setup.key(peer, step.number)
                key = pair_key(self.group, setup.digest, step, names=pair, secret=private, public=public)
                terms.append((key, self.name > peer))
        return terms

    def _enter(self, keys: BlockKeys, step: Step, digest: bytes) -> None:
        """Go to a new step: all before it are over, and its own secrets have done their work."""
        self._blocks = {n: b for n, b in self._blocks.items() if n >= keys.block}
        for number in range(max(self._next, keys.block * self.group.block), step.number + 1):
            keys.erase_secrets(number)
            if number < step.number:
                keys.erase_shares(number)
        if self._current is not None and self._current.step.number // self.group.block == keys.block:
            keys.erase_shares(self._current.step.number)
        self._current = _Current(step=step, digest=digest, phase=MOVES[SitePhase.WAITING, Upload])
        self._next = step.number + 1

    def endorse(self, ask: Survivors) -> Endorsement:
        """Sign a list of survivors: one per step, with the own name in it."""
        current, keys, known = self._asked(ask)
        if isinstance(known, Endorsement):
            return known
        check_list(self.group, ask.names)
        if self.name not in ask.names:
            raise RemoteProtocolError("a list of survivors without this site, which uploaded", code="list")
        parts = self.group.digest, keys.agreed.digest, ask.step.parts, ask.names
        signature = sign(self._identity, "survivors", *parts)
        answer = Endorsement(
            site=self.name, setup=keys.agreed.digest, step=ask.step, names=ask.names, signature=signature
        )
        self._move(current, ask, answer, ask.names)
        return answer

    def reveal(self, ask: Complete | Certificate) -> Reveal:
        """Give the shares that open a sum: against all uploads' signatures, or threshold signatures under one list."""
        current, keys, known = self._asked(ask)
        if isinstance(known, Reveal):
            return known
        if isinstance(ask, Complete):
            self._check_complete(ask, current, keys)
            names = self.group.names
        else:
            self._check_certificate(ask, current, keys)
            names = ask.names
        number = ask.step.number
        seeds = tuple((n, keys.share(n, number, SEED)) for n in names)
        others = tuple((n, keys.share(n, number, KEY)) for n in self.group.names if n not in names)
        parts = self.group.digest, keys.agreed.digest, self.name, ask.step.parts, seeds, others
        signature = sign(self._identity, "reveal", *parts)
        answer = Reveal(
            site=self.name, setup=keys.agreed.digest, step=ask.step, seeds=seeds, keys=others, signature=signature
        )
        self._move(current, ask, answer, names)
        keys.erase_shares(number)
        return answer

    def _asked(self, ask: Complete | Survivors | Certificate) -> tuple[_Current, BlockKeys, Answer | None]:
        """The current step, if the ask is about it and allowed in its state; and the answer that was given before."""
        current = self._current
        if current is None or ask.step != current.step:
            raise RemoteProtocolError(
                f"step {ask.step.number} as asked is not the one that this site uploaded last", code="step"
            )
        keys = self._blocks[ask.step.number // self.group.block]
        if ask.setup != keys.agreed.digest:
            raise RemoteProtocolError(f"step {ask.step.number} is of another set-up", code="set-up")
        known = current.answered.get(_fingerprint(ask))
        if known is not None:
            message = from_bytes(known)
            assert isinstance(message, (Endorsement, Reveal))  # noqa: S101 - only these are kept
            return current, keys, message
        if (current.phase, type(ask)) not in MOVES:
            raise RemoteProtocolError(
                f"step {ask.step.number} is {current.phase.value}; {type(ask).__name__} comes too late", code="state"
            )
        return current, keys, None

    def _check_complete(self, ask: Complete, current: _Current, keys: BlockKeys) -> None:
        if tuple(n for n, _ in ask.uploads) != self.group.names:
            raise RemoteProtocolError("not the uploads of all sites, sorted by name", code="list")
        for name, signed in ask.uploads:
            digest, signature = signed[: len(current.digest)], signed[len(current.digest) :]
            if name == self.name and digest != current.digest:
                raise RemoteProtocolError("the own upload is not the one that left", code="list")
            parts = self.group.digest, keys.agreed.digest, name, ask.step.parts, digest
            verify(self.group, name, signature, "upload", *parts)

    def _check_certificate(self, ask: Certificate, current: _Current, keys: BlockKeys) -> None:
        check_list(self.group, ask.names)
        if self.name not in ask.names or (current.names and ask.names != current.names):
            raise RemoteProtocolError("this site is not in the list, or signed another", code="list")
        signers = [n for n, _ in ask.signatures]
        if signers != sorted(set(signers)) or not set(signers) <= set(ask.names):
            raise RemoteProtocolError("the list is not signed by survivors, sorted and different", code="list")
        if len(signers) < self.group.threshold:
            raise RemoteProtocolError(
                f"a list with {len(signers)} signatures; {self.group.threshold} are needed", code="threshold"
            )
        for name, signature in ask.signatures:
            parts = self.group.digest, keys.agreed.digest, ask.step.parts, ask.names
            verify(self.group, name, signature, "survivors", *parts)

    @staticmethod
    def _move(
        current: _Current, ask: Complete | Survivors | Certificate, answer: Answer, names: tuple[str, ...]
    ) -> None:
        current.phase = MOVES[current.phase, type(ask)]
        current.names = names
        current.answered[_fingerprint(ask)] = to_bytes(answer)

    def state(self) -> bytes:
        """Everything that a restart needs. Secret: it opens this site's masks."""
        current = self._current
        plain = {
            "version": STATE_VERSION,
            "group": self.group.digest,
            "name": self.name,
            "next": self._next,
            "blocks": [b.plain() for b in self._blocks.values()],
            "current": None
            if current is None
            else {
                "step": list(current.step.parts),
                "digest": current.digest,
                "phase": current.phase.value,
                "names": list(current.names),
                "answered": [[k, v] for k, v in current.answered.items()],
            },
        }
        content: bytes = msgpack.packb(plain)
        return content

    @classmethod
    def restore(
        cls,
        group: Group,
        name: str,
        identity_key: Ed25519PrivateKey,
        content: bytes,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> SiteParty:
        """Inverse of `state`.

        Raises:
            LocalProtocolError: the bytes are damaged, or of another group, site or version.
        """
        party = cls(group, name, identity_key, entropy)
        try:
            party._load(msgpack.unpackb(content))
        except (LookupError, TypeError, ValueError, RemoteProtocolError) as error:
            raise LocalProtocolError(
                f"the kept state of {name} in this session cannot be read ({type(error).__name__}); "
                "leave the session: its keys must not be used again",
                code="state",
            ) from None
        return party

    def _load(self, plain: dict[str, Any]) -> None:
        kept = plain["version"], plain["group"], plain["name"]
        if kept != (STATE_VERSION, self.group.digest, self.name):
            message = "of another group, site or version"
            raise ValueError(message)
        self._next = plain["next"]
        blocks = [BlockKeys.from_plain(self.group, self.name, b, self._entropy) for b in plain["blocks"]]
        self._blocks = {b.block: b for b in blocks}
        current = plain["current"]
        if current is not None:
            number, attempt, parameters, size, kind = current["step"]
            self._current = _Current(
                step=Step(number=number, attempt=attempt, parameters=parameters, size=size, kind=kind),
                digest=current["digest"],
                phase=SitePhase(current["phase"]),
                names=tuple(current["names"]),
                answered={k: v for k, v in current["answered"]},  # noqa: C416 - lists of two become items
            )


def _fingerprint(ask: Complete | Survivors | Certificate) -> bytes:
    return hashlib.sha256(to_bytes(ask)).digest()
