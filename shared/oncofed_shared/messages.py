"""Every message that crosses a site's boundary, as a frozen dataclass with a version and bounds.

`to_bytes` and `from_bytes` are the only door: what comes out of `from_bytes` has the declared types, lengths and dtypes, and
nobody checks it again. A request carries a `Head`; its reply repeats session, step and attempt.

    aggregator -> site      site -> aggregator
    Describe                Description      which columns and how many patients a site has
    Summarise               Summary          sums per column, for scaling
    Reduce                  Reduced          sums by which many columns become few inputs
    Open                    Ready            the preparation that training and evaluation use from now on
    Train                   Update           sum over patients of the update, as ring elements
    Evaluate                Tables           tables of counts
    Exchange                Exchanged        set-up and opening of a secure sum (`secagg`)
    Contribute              Contribution     a masked, noised share of a step, or of the scores
    Count                   Counted          before a study: about how many patients a site has
    Deliver                 Delivered        after a study: its final model
    End                     Ended            after a study without one: it was cancelled, or has failed
                            Refusal          no, with a code
"""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.wire import check_values, pack_array, unpack_array

__all__ = [
    "KINDS",
    "MAX_BYTES",
    "PARTS",
    "VERSION",
    "Contribute",
    "Contribution",
    "Count",
    "Counted",
    "Deliver",
    "Delivered",
    "Describe",
    "Description",
    "End",
    "Ended",
    "Errand",
    "ErrandReply",
    "Evaluate",
    "Exchange",
    "Exchanged",
    "Formation",
    "Head",
    "Message",
    "Open",
    "Ready",
    "Reduce",
    "Reduced",
    "Refusal",
    "Request",
    "Summarise",
    "Summary",
    "Tables",
    "Train",
    "Trial",
    "Update",
    "from_bytes",
    "to_bytes",
]

VERSION = 1
MAX_BYTES = 1 << 30
MAX_TEXT = 512
MAX_ITEMS = 200_000
SHORT = 1024
"""Bytes up to which a message is parsed without its values being counted first."""
PARTS = ("train", "validation", "test", "all")
KINDS = ("train", "histogram", "scores")

Arrays = dict[str, NDArray[Any]]
Columns = dict[str, tuple[str, ...]]
Counts = dict[str, int]
Blobs = dict[str, bytes]
Names = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Which split of the patients a session uses.

    Attributes:
        seed: drives the split and the network's first values; public.
        fold: number of the held-out fold, or -1.
        resplit: a random split in place of a published one.
    """

    seed: int
    fold: int = -1
    resplit: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What every request carries.

    Attributes:
        session: id of one training run of a plan.
        step: counts the requests of a session.
        attempt: counts the repetitions of a step.
        plan_hash: the plan that the request belongs to; a site refuses any that it has not approved.
    """

    session: str
    step: int
    attempt: int
    plan_hash: str
    trial: Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Describe:
    """Ask what a site has."""

    head: Head


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What a site has: column names by modality; patients by part, by modality, and by task with labels and events."""

    head: Head
    site: str
    columns: Columns
    parts: Counts
    modalities: Counts
    events: Counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Summarise:
    """Ask for the sums that scaling needs, over these columns."""

    head: Head
    columns: Columns


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Sums over the training patients: see `features.Sums` for the order."""

    head: Head
    site: str
    sums: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduce:
    """Ask for the sums of the plan's reductions.

    Attributes:
        number: of exchanges about them that are over.
        columns, arrays: the preparation so far, and under `reduction.` what is agreed of the reductions.
    """

    head: Head
    number: int
    columns: Columns
    arrays: Arrays


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduced:
    """Sums over the training patients: see `reduction` for the order."""

    head: Head
    site: str
    sums: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Open:
    """The preparation of a session: columns, centre and spread of each, class weights."""

    head: Head
    columns: Columns
    arrays: Arrays


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """The site holds the preparation."""

    head: Head
    site: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Train for one round from these parameters; `control` is SCAFFOLD's, in the order of the parameters, or empty."""

    head: Head
    round: int
    parameters: Arrays
    control: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """Ring elements: patients x change of every shared parameter, what the rule appends, patients and the sum of losses.

    The last two are times `ring.COUNT_SCALE`.
    """

    head: Head
    site: str
    vector: NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """Tabulate the predictions of these parameters for one part of the patients."""

    head: Head
    part: str
    subgroups: bool
    parameters: Arrays


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """Counts, as the cells that are not zero: see `scoring` for the order of the cells."""

    head: Head
    site: str
    size: int
    cells: NDArray[np.int64]
    counts: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Formation:
    """Who adds up together.

    Attributes:
        name: never used for another formation; drawn at random by the aggregator.
        members: of the plan's roster, sorted; those that left the run are missing.
    """

    name: str
    members: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """What the aggregator's part in a secure sum says to a site's: bytes of `secagg`.

    Attributes:
        heads: newest heads of the other sites' ledgers by site, to be signed back.
        witnesses: what others have signed of this site's ledger.
    """

    head: Head
    formation: Formation
    content: bytes
    heads: Blobs
    witnesses: Blobs


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchanged:
    """The site's answer in a secure sum; `ledger` is the head of its ledger, `witnesses` are its signatures under others'."""

    head: Head
    site: str
    content: bytes
    ledger: bytes
    witnesses: Blobs


@dataclass(frozen=True, kw_only=True, slots=True)
class Contribute:
    """Add a share to a sum.

    Attributes:
        number: of the sum in its formation, never used again.
        kind: what is added, one of KINDS.
        round: of training; 0 for the others.
        histogram: noised counts of validation patients' scores, from which the bins of `scores` follow; empty for the others, and
            where there are no such patients.
        witnesses: what others have signed of this site's ledger: an old copy is noticed before anything is computed.
    """

    head: Head
    formation: Formation
    number: int
    kind: str
    round: int
    parameters: Arrays
    histogram: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    witnesses: Blobs = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contribution:
    """A masked share: bytes of `secagg`. `ledger` is the head of the site's ledger, with this step in it."""

    head: Head
    site: str
    content: bytes
    ledger: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """The site says no. `code` is from a fixed list; `text` never contains anything about a patient."""

    head: Head
    site: str
    code: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """Ask about how many patients a site has, before a study begins."""

    head: Head


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """Numbers of patients, rounded: `patients`, `modality MODALITY`, `task TASK`, `event TASK`, `class TASK.NUMBER`.

    One that the site withholds, because fewer than its minimum are behind it, is not there.
    """

    head: Head
    site: str
    counts: Counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Deliver:
    """The final model of a study: bytes of its files, and their digests signed by the step key (`model_seal`)."""

    head: Head
    model: bytes
    manifest: bytes
    seal: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivered:
    """The site has stored the model; `digest` is its SHA-256 in hex."""

    head: Head
    site: str
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """The study is over and has no model: it was cancelled, or has failed."""

    head: Head


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """The site has freed what it held for the study's run."""

    head: Head
    site: str


Request = Describe | Summarise | Reduce | Open | Train | Evaluate | Exchange | Contribute
Reply = Description | Summary | Reduced | Ready | Update | Tables | Exchanged | Contribution | Refusal
Errand = Count | Deliver | End
"""What is asked before and after a run; no part of `Aggregator.step` and `Site.handle`."""
ErrandReply = Counted | Delivered | Ended
Message = Request | Reply | Errand | ErrandReply
_KINDS: dict[str, type[Any]] = {k.__name__: k for k in typing.get_args(Message)}
_DECLARED = {k: tuple(typing.get_type_hints(k).items()) for k in (*_KINDS.values(), Head, Trial, Formation)}
_FIELDS = {k: tuple(f.name for f in dataclasses.fields(k)) for k in _DECLARED}
_SCALARS = frozenset({int, str, bool, bytes})
_CODE = re.compile(r"[a-z0-9-]{1,64}")


def to_bytes(message: Message) -> bytes:
    """Serialise a message."""
    content: bytes = msgpack.packb((VERSION, type(message).__name__, _plain(message)), default=pack_array)
    return content


@lru_cache(maxsize=64)
def _plain_head(head: Head) -> list[Any]:
    """All sites answer to the same head; in a round of many small sites its parts cost more than the rest of an update."""
    trial = [getattr(head.trial, n) for n in _FIELDS[Trial]]
    return [*(getattr(head, n) for n in _FIELDS[Head][:-1]), trial]


def _plain(value: Any) -> Any:
    if type(value) is Head:
        return _plain_head(value)
    names = _FIELDS.get(type(value))
    if names is not None:
        return [_plain(getattr(value, n)) for n in names]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def from_bytes(content: bytes) -> Message:
    """Parse a message.

    Raises:
        RemoteProtocolError: too long, another version, an unknown kind, or a field of the wrong type or size. Whatever the
            bytes are: nothing else is raised, and memory stays within a few times their length plus `wire.MAX_VALUES` values.
    """
    if len(content) > MAX_BYTES:
        raise RemoteProtocolError(f"message of {len(content)} bytes; at most {MAX_BYTES}")
    if len(content) > SHORT:
        check_values(content)
    # Nothing has more items than bytes, so that what a short message claims costs little even where it nests its claims.
    most = min(MAX_ITEMS, len(content))
    try:
        version, kind, fields = msgpack.unpackb(
            content,
            ext_hook=unpack_array,
            max_str_len=MAX_TEXT,
            max_bin_len=MAX_BYTES,
            max_array_len=most,
            max_map_len=most,
        )
        message: Message = _parsed(version, kind, fields)
    except RemoteProtocolError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever hostile bytes provoke is the peer's fault
        raise RemoteProtocolError(f"message cannot be read ({type(error).__name__})") from None
    return message


def _parsed(version: Any, kind: Any, fields: Any) -> Message:
    if version != VERSION:
        raise RemoteProtocolError(f"message of version {version}; this is version {VERSION}")
    message: Message = _build(_KINDS[kind], fields)
    return message


@lru_cache(maxsize=64, typed=True)
def _known_head(*parts: Any) -> Any:
    return _build_parts(Head, [*parts[: -len(_FIELDS[Trial])], list(parts[-len(_FIELDS[Trial]) :])])


def _build(kind: type[Any], fields: Any) -> Any:
    if kind is Head and isinstance(fields, list) and len(fields) == len(_FIELDS[Head]) and isinstance(fields[-1], list):
        try:
            return _known_head(*fields[:-1], *fields[-1])
        except TypeError:
            raise RemoteProtocolError("Head holds a value of the wrong type") from None
    return _build_parts(kind, fields)


def _build_parts(kind: type[Any], fields: Any) -> Any:
    declared = _DECLARED[kind]
    if not isinstance(fields, list) or len(fields) != len(declared):
        raise RemoteProtocolError(f"{kind.__name__} has {len(declared)} fields")
    values = {n: _check(hint, v, n) for (n, hint), v in zip(declared, fields, strict=True)}
    if kind is Contribute and values["kind"] not in KINDS:
        raise RemoteProtocolError("Contribute.kind is not one of " + ", ".join(KINDS))
    if kind is Evaluate and values["part"] not in PARTS:
        raise RemoteProtocolError("Evaluate.part is not one of " + ", ".join(PARTS))
    if kind is Refusal and not _CODE.fullmatch(values["code"]):
        raise RemoteProtocolError("Refusal.code is not a code")
    return kind(**values)


@lru_cache(maxsize=64)
def _dtype(hint: Any) -> np.dtype[Any]:
    """Of the elements of an array, from its annotation."""
    element: np.dtype[Any] = np.dtype(typing.get_args(typing.get_args(hint)[1])[0])
    return element


def _check(hint: Any, value: Any, name: str) -> Any:
    if type(value) is hint and hint in _SCALARS:
        return value
    if hint in _DECLARED:
        return _build(hint, value)
    if hint in _SCALARS:
        ok = False
    elif hint == Columns:
        ok = isinstance(value, dict) and all(
            isinstance(k, str) and isinstance(v, list) and all(isinstance(c, str) for c in v) for k, v in value.items()
        )
        value = {k: tuple(v) for k, v in value.items()} if ok else value
    elif hint == Counts:
        ok = isinstance(value, dict) and all(isinstance(k, str) and type(v) is int for k, v in value.items())
    elif hint == Blobs:
        ok = isinstance(value, dict) and all(isinstance(k, str) and type(v) is bytes for k, v in value.items())
    elif hint == Names:
        ok = isinstance(value, list) and all(isinstance(n, str) for n in value)
        value = tuple(value) if ok else value
    elif hint == Arrays:
        ok = isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in value.items())
    else:
        ok = isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == _dtype(hint)
    if not ok:
        raise RemoteProtocolError(f"field {name} has the wrong type")
    return value
