"""What sites sign of the models that they were sent, so that nobody can be shown another model than the rest.

Without secure sums nothing binds sites to one model: an aggregator could send one of them another. So each site signs, with
every answer
that used a model, which one it was: a *sight*. The next request carries the sights of the others, and a site that finds fewer
than `needed` of them for the very model that it was sent answers nothing more (code `other-model`). So at most one answer is
ever given
under a model that fewer than a quorum have seen. With n sites of which c work together with the aggregator, two models can be
kept up side by
side only if 2 x quorum <= n + c. Under noise of the consortium the masks bind the model instead (protocol, rule 8).

Its own newest sight comes back to a site too. One that does not remember having answered then, under that model, has been brought
back from an older copy, and answers nothing more (code `rolled-back`).

A *moment* is where a model has its place in a run: `open`, `train 3`, `evaluate 17` (a step's number). One model belongs to
it, however
often it is asked again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgpack
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.messages import Arrays, Evaluate, Message, Open, Train
from oncofed_shared.plan import ConsortiumPrivacy
from oncofed_shared.public_keys import is_signed
from oncofed_shared.signed_study import SignedStudy

__all__ = ["Sight", "SightBook", "agreeing", "model_of", "moment_of", "needed", "open_sight", "sign_sight"]

_LABEL = b"oncofed sight 1|"
_LONGEST = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """That a site was sent a model at a moment of a study.

    Attributes:
        model: 32 bytes, `model_of`.
        signature: 64 bytes, by the site's identity.
    """

    study_id: str
    site: str
    moment: str
    model: bytes
    signature: bytes

    def is_signed_by(self, identity: bytes) -> bool:
        """Whether the site that has this key signed it."""
        return is_signed(identity, self.signature, _to_sign(self.study_id, self.site, self.moment, self.model))


def _to_sign(study_id: str, site: str, moment: str, model: bytes) -> bytes:
    packed: bytes = msgpack.packb((study_id, site, moment, model))
    return _LABEL + packed


def moment_of(study: SignedStudy, message: Message) -> str:
    """Where in its run a request brings a model; empty where it brings none, or where masks bind it."""
    if isinstance(study.plan.privacy, ConsortiumPrivacy):
        return ""
    match message:
        case Open():
            return "open"
        case Train(round=number):
            return f"train {number}"
        case Evaluate(head=head):
            return f"evaluate {head.step}"
        case _:
            return ""


def model_of(message: Message) -> bytes:
    """SHA-256 of the model that a request brings: of the preparation for `Open`, of parameters and control for the others.

    Raises:
        TypeError: it brings none.
    """
    match message:
        case Open(columns=columns, arrays=arrays):
            return _hashed(arrays, repr([(m, tuple(columns[m])) for m in sorted(columns)]).encode())
        case Train(parameters=parameters, control=control):
            return _hashed(parameters, b"control" + control.tobytes() if control.size else b"")
        case Evaluate(parameters=parameters):
            return _hashed(parameters, b"")
    raise TypeError(type(message).__name__)


def _hashed(arrays: Arrays, more: bytes) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = arrays[name]
        digest.update(repr((name, value.dtype.name, value.shape)).encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    digest.update(more)
    return digest.digest()


def sign_sight(key: Ed25519PrivateKey, *, study_id: str, site: str, moment: str, model: bytes) -> bytes:
    """A site's signature under a model that it was sent; equal content gives equal bytes."""
    signature = key.sign(_to_sign(study_id, site, moment, model))
    content: bytes = msgpack.packb((study_id, site, moment, model, signature))
    return content


def open_sight(content: bytes) -> Sight:
    """A sight's fields; the signature is not looked at.

    Raises:
        RemoteProtocolError: these bytes are no sight (code `malformed`).
    """
    try:
        values = msgpack.unpackb(content[: _LONGEST + 1], use_list=False, max_array_len=5, max_map_len=0, max_ext_len=0)
    except Exception:  # noqa: BLE001 - whatever hostile bytes provoke is the peer's fault
        values = None
    ok = type(values) is tuple and [type(v) for v in values] == [str, str, str, bytes, bytes]
    if not ok or len(content) > _LONGEST or (len(values[3]), len(values[4])) != (32, 64):
        raise RemoteProtocolError("these bytes are not a sight of a model", code="malformed")
    study_id, site, moment, model, signature = values
    return Sight(study_id=study_id, site=site, moment=moment, model=model, signature=signature)


def needed(study: SignedStudy, moment: str) -> int:
    """How many other sites must have been sent the same model at a moment: the quorum but the site itself.

    Where a rule asks a part of the sites in a round (`strategy.participation`), the quorum of that part.
    """
    quorum = study.quorum
    rule = study.plan.strategy
    if moment.startswith("train") and rule.participation < 1:
        asked = max(rule.minimum_sites, math.ceil(rule.participation * quorum - 1e-9))
        quorum = min(quorum, asked)
    return quorum - 1


def agreeing(
    sights: Iterable[bytes], *, study: SignedStudy, site: str, moment: str, model: bytes, holds: Callable[[str], bool]
) -> frozenset[str]:
    """The other sites that signed this very model at this moment.

    Args:
        holds: whether a site's key is not revoked.

    Raises:
        RemoteProtocolError: code `other-model`: a site has signed another model for the moment.
    """
    found = set()
    for content in sights:
        sight = open_sight(content)
        if sight.site == site or sight.site not in study.roster or not holds(sight.site):
            continue
        if (sight.study_id, sight.moment) != (study.id, moment) or not sight.is_signed_by(study.roster[sight.site]):
            continue
        if sight.model != model:
            raise RemoteProtocolError(
                f"{sight.site} was sent another model than this site ({moment})", code="other-model"
            )
        found.add(sight.site)
    return frozenset(found)


class SightBook:
    """The aggregator's collection of sights: what it has to send to whom.

    Guarantees:
        - Its state is a function of what `take` was given, in order: a journal that is replayed gives the same book.
    """

    def __init__(self, study: SignedStudy) -> None:
        self._study = study
        self._by_moment: dict[str, dict[str, bytes]] = {}
        self._last: dict[str, str] = {}

    def take(self, content: bytes, *, site: str) -> None:
        """Keep what came with a site's reply; nothing where it is empty.

        Raises:
            RemoteProtocolError: not the site's own sight of this study.
        """
        if not content:
            return
        sight = open_sight(content)
        identity = self._study.roster.get(site, b"")
        if (sight.study_id, sight.site) != (self._study.id, site) or not sight.is_signed_by(identity):
            raise RemoteProtocolError(f"{site}: the sight of its model is not signed by it", code="signature")
        self._by_moment.setdefault(sight.moment, {})[site] = content
        self._last[site] = sight.moment
        alive = set(self._last.values())
        self._by_moment = {m: s for m, s in self._by_moment.items() if m in alive}

    def for_site(self, site: str) -> tuple[bytes, ...]:
        """All sights of the moment that the site answered last, in order of names; by its own it sees whether it has forgotten."""
        known: Mapping[str, bytes] = self._by_moment.get(self._last.get(site, ""), {})
        return tuple(known[s] for s in sorted(known))
