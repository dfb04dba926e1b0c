"""The aggregator's part of secure sums: what it has, what it still needs, and the sum when it can be opened.

state         event                     next           asks
idle          open(block)               adverts        Advertise to every site
adverts       Advert of the last        deals          Adverts to every site
deals         Dealt of the last         receipts       Deals to every site
receipts      Received of the last      idle
idle, done,   begin(step)               uploads        (the project's own request)
 lost
uploads       Upload of the last        completing     Complete to every site
uploads       close(), some are missing endorsements   Survivors to those who uploaded
uploads       close(), too many are     lost
endorsements  Endorsement no. t         certified      Certificate to the survivors
completing,   Reveal that opens         done
 certified
any but set-up  abandon()               lost
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.errors import LocalProtocolError, RemoteProtocolError
from oncofed_shared.secagg.block import check_advert, setup_hash, slot
from oncofed_shared.secagg.group import Group, Step
from oncofed_shared.secagg.keys import agreement, commit, pair_key, public_key, self_key, verify
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
from oncofed_shared.secagg.shamir import DIGITS, PRIME, combine

__all__ = ["AggregatorParty", "AggregatorPhase"]

TRIES = 256
"""Most choices of threshold among more shares that are tried when some are wrong."""


class AggregatorPhase(enum.Enum):
    """What the aggregator waits for."""

    IDLE = "idle"
    ADVERTS = "adverts"
    DEALS = "deals"
    RECEIPTS = "receipts"
    UPLOADS = "uploads"
    COMPLETING = "completing"
    ENDORSEMENTS = "endorsements"
    CERTIFIED = "certified"
    DONE = "done"
    LOST = "lost"


_P = AggregatorPhase
_WAITS: Mapping[AggregatorPhase, type[Any]] = {
    _P.ADVERTS: Advert,
    _P.DEALS: Dealt,
    _P.RECEIPTS: Received,
    _P.UPLOADS: Upload,
    _P.ENDORSEMENTS: Endorsement,
    _P.COMPLETING: Reveal,
    _P.CERTIFIED: Reveal,
}
_STEP_IS_OVER = (_P.IDLE, _P.DONE, _P.LOST)
# Threshold answers are enough: what comes later is no mistake of its sender.
_ENOUGH = {"Endorsement": (_P.CERTIFIED, _P.DONE, _P.LOST), "Reveal": (_P.DONE, _P.LOST)}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Setup:
    adverts: tuple[Advert, ...]
    digest: bytes


class AggregatorParty:
    """The aggregator's part in the sums of one session.

    `asks` says what to send to whom now; every answer goes to `take`. Uploads are added as they come: one vector is kept.

    Guarantees:
        - `result` is the sum, in the ring, of the vectors of `included`, bit for bit; where masks cannot be opened there is none.
          (A site may have added anything to its own vector; nobody can say which did.)
        - Whatever is refused raises RemoteProtocolError and changes no state.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.phase = _P.IDLE
        self.step: Step | None = None
        self._setups: dict[int, _Setup] = {}
        self._ready: set[int] = set()
        self._block = -1
        self._answers: dict[str, Answer] = {}
        # The signature of each answer that was taken: it is over everything in it.
        self._seen: dict[tuple[str, str], bytes] = {}
        self._asks: dict[str, Ask] = {}
        self._last = -1
        self._total: Words | None = None
        self._uploads: dict[str, bytes] = {}
        self._names: tuple[str, ...] = ()
        self._secrets: dict[str, bytes] = {}

    def open(self, block: int) -> None:
        """Start the set-up of a block; a set-up in progress is forgotten."""
        if self.phase not in {*_STEP_IS_OVER, _P.ADVERTS, _P.DEALS, _P.RECEIPTS}:
            raise LocalProtocolError(f"block {block} opened while step {self._last} is {self.phase.value}")
        if self.ready(block):
            raise LocalProtocolError(f"block {block} is set up already")
        self._block, self._seen = block, {}
        self._wait(_P.ADVERTS, dict.fromkeys(self.group.names, Advertise(block=block)))

    def ready(self, block: int) -> bool:
        """Whether every site holds the shares of a block."""
        return block in self._ready

    def begin(self, step: Step) -> None:
        """Start a step, of a number above all earlier ones and of a block that is set up."""
        if self.phase not in _STEP_IS_OVER:
            raise LocalProtocolError(f"step {step.number} begun while step {self._last} is {self.phase.value}")
        block = step.number // self.group.block
        if not self.ready(block) or step.number <= self._last:
            raise LocalProtocolError(f"step {step.number} begun twice, or before its block {block} is set up")
        self._setups = {n: s for n, s in self._setups.items() if n >= block}
        self.step, self._last, self._seen = step, step.number, {}
        self._total = np.zeros(step.size, dtype=word(self.group.ring_bits))
        self._uploads, self._secrets, self._names = {}, {}, ()
        self._wait(_P.UPLOADS, {})

    def _wait(self, phase: AggregatorPhase, asks: Mapping[str, Ask]) -> None:
        self.phase, self._asks, self._answers = phase, dict(asks), {}

    @property
    def setup(self) -> bytes:
        """Hash of the adverts that the current step's keys came with."""
        return self._setups[self._current.number // self.group.block].digest

    @property
    def _current(self) -> Step:
        if self.step is None:
            raise LocalProtocolError("no step has begun")
        return self.step

    @property
    def included(self) -> tuple[str, ...]:
        """Sites whose vectors the sum has, known once the uploads are closed."""
        return self._names

    @property
    def missing(self) -> tuple[str, ...]:
        """Sites whose answer has not come."""
        if self.phase not in _WAITS:
            return ()
        expected = self.group.names if self.phase is _P.UPLOADS else tuple(self._asks)
        return tuple(n for n in expected if n not in self._answers and n not in self._new_uploads())

    def _new_uploads(self) -> Mapping[str, bytes]:
        return self._uploads if self.phase is _P.UPLOADS else {}

    def asks(self) -> dict[str, Ask]:
        """What to send to whom; who has answered is not asked again. Empty while uploads are awaited, and when it is over."""
        return {name: self._asks[name] for name in self.missing if name in self._asks}

    def take(self, answer: Answer) -> bool:
        """Take a site's answer; False if it was taken before, or others were enough.

        Raises:
            RemoteProtocolError: it does not belong here ("state"), contradicts an earlier one ("duplicate"), is not signed by the
                site ("signature"), or is about something else.
        """
        kind = type(answer).__name__
        known = self._seen.get((kind, answer.site))
        if known == answer.signature:
            return False
        if known is not None:
            raise RemoteProtocolError(f"{answer.site} sent a second, different {kind}", code="duplicate")
        if isinstance(answer, (Endorsement, Reveal)) and answer.step == self.step and self.phase in _ENOUGH[kind]:
            return False
        if _WAITS.get(self.phase) is not type(answer):
            raise RemoteProtocolError(f"{kind} of {answer.site} came while {self.phase.value}", code="state")
        if answer.site not in self.missing:
            raise RemoteProtocolError(f"{kind} of {answer.site} was not asked for", code="member")
        self._check(answer)
        self._seen[kind, answer.site] = answer.signature
        if not isinstance(answer, Upload):
            self._answers[answer.site] = answer
        self._advance(answer)
        return True

    def _check(self, answer: Answer) -> None:
        group = self.group
        if isinstance(answer, Advert):
            check_advert(group, answer, self._block)
            return
        if isinstance(answer, (Dealt, Received)):
            self._check_setup(answer)
            return
        if answer.step != self._current or answer.setup != self.setup:
            raise RemoteProtocolError(f"{answer.site} answered for another step or set-up", code="step")
        parts = group.digest, answer.setup
        if isinstance(answer, Upload):
            self._check_shape(answer)
            digest = array_hash(answer.masked)
            verify(group, answer.site, answer.signature, "upload", *parts, answer.site, answer.step.parts, digest)
        elif isinstance(answer, Endorsement):
            if answer.names != self._names:
                raise RemoteProtocolError(f"{answer.site} signed another list", code="list")
            verify(group, answer.site, answer.signature, "survivors", *parts, answer.step.parts, answer.names)
        else:
            content = answer.site, answer.step.parts, answer.seeds, answer.keys
            verify(group, answer.site, answer.signature, "reveal", *parts, *content)
            self._check_reveal(answer)

    def _check_setup(self, answer: Dealt | Received) -> None:
        group, setup = self.group, self._setups[self._block].digest
        if answer.block != self._block or answer.setup != setup:
            raise RemoteProtocolError(f"{answer.site} answered for another set-up", code="set-up")
        if isinstance(answer, Dealt):
            parts: tuple[Any, ...] = ("dealt", group.digest, setup, answer.site, answer.sealed)
            if tuple(n for n, _ in answer.sealed) != tuple(n for n in group.names if n != answer.site):
                raise RemoteProtocolError(f"{answer.site} did not deal to every peer", code="deal")
        else:
            parts = ("received", group.digest, setup, answer.site, answer.block)
        verify(group, answer.site, answer.signature, *parts)

    def _check_shape(self, answer: Upload) -> None:
        if answer.masked.dtype != word(self.group.ring_bits) or answer.masked.shape != (self._current.size,):
            raise RemoteProtocolError(f"{answer.site} uploaded a vector of another size or ring", code="upload")

    def _check_reveal(self, answer: Reveal) -> None:
        others = tuple(n for n in self.group.names if n not in self._names)
        if (tuple(n for n, _ in answer.seeds), tuple(n for n, _ in answer.keys)) != (self._names, others):
            raise RemoteProtocolError(f"{answer.site} revealed for another list", code="list")
        for name, share in (*answer.seeds, *answer.keys):
            if len(share) != 4 * DIGITS or np.any(np.frombuffer(share, dtype="<u4") >= PRIME):
                raise RemoteProtocolError(f"{answer.site}'s share of {name} is none", code="shares")

    def _advance(self, answer: Answer) -> None:
        """Go on if this answer was the last that the phase needed."""
        if isinstance(answer, Upload):
            assert self._total is not None  # noqa: S101 - a step has begun
            np.add(self._total, answer.masked, out=self._total)
            self._uploads[answer.site] = array_hash(answer.masked) + answer.signature
            if len(self._uploads) == len(self.group.members):
                self.close()
        elif isinstance(answer, Endorsement):
            if len(self._answers) >= self.group.threshold:
                self._certify()
        elif isinstance(answer, Reveal):
            self._open_secrets(answer.site)
        elif not self.missing:
            self._end_of_set_up_phase(answer)

    def _end_of_set_up_phase(self, answer: Answer) -> None:
        group, block = self.group, self._block
        if isinstance(answer, Advert):
            adverts = tuple(a for _, a in sorted(self._answers.items()) if isinstance(a, Advert))
            self._setups[block] = _Setup(adverts=adverts, digest=setup_hash(group, adverts, block))
            self._wait(_P.DEALS, dict.fromkeys(group.names, Adverts(block=block, adverts=adverts)))
        elif isinstance(answer, Dealt):
            sealed = {n: dict(a.sealed) for n, a in self._answers.items() if isinstance(a, Dealt)}
            deals: dict[str, Ask] = {
                name: Deals(
                    block=block,
                    setup=answer.setup,
                    sealed=tuple((n, sealed[n][name]) for n in group.names if n != name),
                )
                for name in group.names
            }
            self._wait(_P.RECEIPTS, deals)
        else:
            self._ready.add(block)
            self._wait(_P.IDLE, {})

    def close(self) -> None:
        """No more uploads: ask for what opens the sum, or give the step up when fewer than n - drop came."""
        if self.phase is not _P.UPLOADS:
            raise LocalProtocolError(f"uploads closed while {self.phase.value}")
        group, step, setup = self.group, self._current, self.setup
        self._names = tuple(n for n in group.names if n in self._uploads)
        if len(self._names) < len(group.members) - group.drop:
            self.abandon()
        elif self._names == group.names:
            uploads = tuple(sorted(self._uploads.items()))
            self._wait(_P.COMPLETING, dict.fromkeys(group.names, Complete(setup=setup, step=step, uploads=uploads)))
        else:
            survivors = Survivors(setup=setup, step=step, names=self._names)
            self._wait(_P.ENDORSEMENTS, dict.fromkeys(self._names, survivors))

    def _certify(self) -> None:
        signed = {n: a.signature for n, a in self._answers.items() if isinstance(a, Endorsement)}
        certificate = Certificate(
            setup=self.setup, step=self._current, names=self._names, signatures=tuple(sorted(signed.items()))
        )
        self._wait(_P.CERTIFIED, dict.fromkeys(self._names, certificate))

    def abandon(self) -> None:
        """Give the step up: its sum will never be opened. The next attempt is a new number."""
        self._total, self._secrets = None, {}
        self._wait(_P.LOST, {})

    def _open_secrets(self, newest: str) -> None:
        """Recover the secrets from threshold reveals that agree with what was advertised; wait for more where none do."""
        reveals = {n: a for n, a in self._answers.items() if isinstance(a, Reveal)}
        earlier = sorted(set(reveals) - {newest})
        for chosen in itertools.islice(itertools.combinations(earlier, self.group.threshold - 1), TRIES):
            secrets = self._combined({n: reveals[n] for n in (*chosen, newest)})
            if secrets is not None:
                self._secrets = secrets
                self._wait(_P.DONE, {})
                return
        if not self.missing:
            self.abandon()

    def _combined(self, reveals: Mapping[str, Reveal]) -> dict[str, bytes] | None:
        shares = np.stack([_shares(r) for r in reveals.values()])
        opened = combine(shares, [self.group.place(n) for n in reveals])
        others = [n for n in self.group.names if n not in self._names]
        secrets = {n: s.tobytes() for n, s in zip((*self._names, *others), opened, strict=True)}
        return secrets if all(self._fits(n, s) for n, s in secrets.items()) else None

    def _advert(self, name: str) -> tuple[Advert, int]:
        number = self._current.number
        block = number // self.group.block
        return self._setups[block].adverts[self.group.place(name) - 1], number - block * self.group.block

    def _fits(self, name: str, secret: bytes) -> bool:
        """Whether a recovered secret is the one that its site advertised."""
        advert, index = self._advert(name)
        if name in self._names:
            return commit(self.group, name, self._current.number, secret) == slot(advert.commitments, index)
        return public_key(secret) == slot(advert.keys, index)

    def result(self) -> Words:
        """The sum of the vectors of `included`, (size,) ring words."""
        if self.phase is not _P.DONE or self._total is None:
            raise LocalProtocolError(f"there is no sum; the step is {self.phase.value}")
        if self._secrets:
            add_masks(self._total, self._terms())
            self._secrets = {}
        return self._total

    def _terms(self) -> list[tuple[bytes, bool]]:
        """Keys of all masks that are left in the sum, each with whether to subtract it."""
        group, setup, step = self.group, self.setup, self._current
        terms = [(self_key(group, setup, step, n, self._secrets[n]), True) for n in self._names]
        for name in group.names:
            if name not in self._names:
                private = agreement(self._secrets[name])
                for survivor in self._names:
                    advert, index = self._advert(survivor)
                    public = slot(advert.keys, index)
                    key = pair_key(group, setup, step, names=(name, survivor), secret=private, public=public)
                    terms.append((key, survivor < name))
        return terms


def _shares(reveal: Reveal) -> NDArray[np.uint32]:
    content = b"".join(share for _, share in (*reveal.seeds, *reveal.keys))
    return np.frombuffer(content, dtype="<u4").astype(np.uint32).reshape(-1, DIGITS)
