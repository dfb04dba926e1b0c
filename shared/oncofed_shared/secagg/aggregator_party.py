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
from collections.abc import Iterable, Mapping
from typing import Any

import msgpack
import numpy as np

from oncofed_shared.errors import LocalProtocolError, RemoteProtocolError
from oncofed_shared.secagg.adverts import Setup, check_advert, check_adverts
from oncofed_shared.secagg.group import Group, Step
from oncofed_shared.secagg.keys import verify
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
from oncofed_shared.secagg.opening import check_reveal, masks_left, recover
from oncofed_shared.secagg.wire import from_bytes, to_bytes

__all__ = ["AggregatorParty", "AggregatorPhase"]

STATE_VERSION = 1


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
        self._setups: dict[int, Setup] = {}
        self._ready: set[int] = set()
        self._block = -1
        self._answers: dict[str, Answer] = {}
        # The signature of each answer that was taken: it is over everything in it.
        self._seen: dict[tuple[str, str], bytes] = {}
        self._asks: dict[str, Ask] = {}
        self._last = -1
        self._total: Words | None = None
        self._uploads: dict[str, bytes] = {}
        self._digest = b""
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
    def _setup(self) -> Setup:
        return self._setups[self._current.number // self.group.block]

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
        if answer.step != self._current or answer.setup != self._setup.digest:
            raise RemoteProtocolError(f"{answer.site} answered for another step or set-up", code="step")
        parts = group.digest, answer.setup
        if isinstance(answer, Upload):
            self._check_shape(answer)
            self._digest = array_hash(answer.masked)
            content: tuple[Any, ...] = (answer.site, answer.step.parts, self._digest)
            verify(group, answer.site, answer.signature, "upload", *parts, *content)
        elif isinstance(answer, Endorsement):
            if answer.names != self._names:
                raise RemoteProtocolError(f"{answer.site} signed another list", code="list")
            verify(group, answer.site, answer.signature, "survivors", *parts, answer.step.parts, answer.names)
        else:
            content = answer.site, answer.step.parts, answer.seeds, answer.keys
            verify(group, answer.site, answer.signature, "reveal", *parts, *content)
            check_reveal(self._setup, answer, self._names)

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

    def _advance(self, answer: Answer) -> None:
        """Go on if this answer was the last that the phase needed."""
        if isinstance(answer, Upload):
            assert self._total is not None  # noqa: S101 - a step has begun
            np.add(self._total, answer.masked, out=self._total)
            self._uploads[answer.site] = self._digest + answer.signature
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
            self._setups[block] = Setup.of(group, adverts, block)
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
        group, step, setup = self.group, self._current, self._setup.digest
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
            setup=self._setup.digest, step=self._current, names=self._names, signatures=tuple(sorted(signed.items()))
        )
        self._wait(_P.CERTIFIED, dict.fromkeys(self._names, certificate))

    def abandon(self) -> None:
        """Give the step up: its sum will never be opened. The next attempt is a new number."""
        self._total, self._secrets = None, {}
        self._wait(_P.LOST, {})

    def _open_secrets(self, newest: str) -> None:
        """Recover the secrets if there are enough reveals that agree; give up when all came and none do."""
        reveals = {n: a for n, a in self._answers.items() if isinstance(a, Reveal)}
        secrets = recover(self._setup, self._current.number, self._names, reveals, newest)
        if secrets is not None:
            self._secrets = secrets
            self._wait(_P.DONE, {})
        elif not self.missing:
            self.abandon()

    def state(self) -> bytes:
        """What a restart needs: the set-ups and the last number. Nothing secret; the step in progress is given up."""
        ready = [self._setups[b] for b in sorted(self._ready & set(self._setups))]
        kept = [to_bytes(Adverts(block=s.block, adverts=s.adverts)) for s in ready]
        content: bytes = msgpack.packb((STATE_VERSION, self.group.digest, self._last, kept))
        return content

    @classmethod
    def restore(cls, group: Group, content: bytes) -> AggregatorParty:
        """Inverse of `state`.

        Raises:
            LocalProtocolError: the bytes are damaged, or of another group or version.
        """
        party = cls(group)
        try:
            version, digest, party._last, kept = msgpack.unpackb(content)
            party._load([from_bytes(k) for k in kept] if (version, digest) == (STATE_VERSION, group.digest) else [None])
        except (LookupError, TypeError, ValueError, RemoteProtocolError) as error:
            raise LocalProtocolError(
                f"the aggregator's kept state cannot be read or is of another group ({type(error).__name__}); "
                "set the blocks up again",
                code="state",
            ) from None
        return party

    def _load(self, kept: Iterable[object]) -> None:
        for adverts in kept:
            if not isinstance(adverts, Adverts):
                raise TypeError(type(adverts).__name__)
            check_adverts(self.group, adverts.adverts, adverts.block)
            self._setups[adverts.block] = Setup.of(self.group, adverts.adverts, adverts.block)
            self._ready.add(adverts.block)

    def result(self) -> Words:
        """The sum of the vectors of `included`, (size,) ring words."""
        if self.phase is not _P.DONE or self._total is None:
            raise LocalProtocolError(f"there is no sum; the step is {self.phase.value}")
        if self._secrets:
            add_masks(self._total, masks_left(self._setup, self._current, self._names, self._secrets))
            self._secrets = {}
        return self._total
