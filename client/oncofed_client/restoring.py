"""A ledger from a backup, or one that a new identity takes over: its new epoch, and who lets the site speak (docs/ledger.md)."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from oncofed_client.enrol import installed
from oncofed_client.identity import identity_of, public_half
from oncofed_client.known_rosters import newest_roster
from oncofed_client.ledger import LEDGER_FILE, Ledger
from oncofed_client.ledger_verify import read_account
from oncofed_shared.enrolment import Enrolment
from oncofed_shared.errors import ConfigError, DataError, RemoteProtocolError
from oncofed_shared.files import read_bounded
from oncofed_shared.storage import write_whole
from oncofed_shared.witness import MAX_WITNESS, Witness

__all__ = ["Begun", "begin_epoch", "take_over", "take_witness"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A ledger's epoch.

    Attributes:
        epoch: its number.
        silent: whether nobody has signed a head of it yet, so that the site answers nothing.
    """

    epoch: int
    silent: bool


def begin_epoch(state: Path, *, witnesses: tuple[Path, ...], out: Path, now: float) -> Begun:
    """Go on with a restored ledger, and write the new epoch's head for the aggregator to sign.

    Args:
        state: the site's.
        witnesses: files with heads of this ledger that others signed.
        out: where the head goes.
        now: seconds since 1970.

    Guarantees:
        - What the ledger knows as open is spent, and what the newest signed heads charge beyond is charged too.
        - With a witness that is not this site's nothing is written.

    Raises:
        ConfigError: the site is not enrolled.
        DataError: there is no ledger, it is damaged, or a witness cannot be read.
        RemoteProtocolError: a witness is not signed, or of another ledger.
        PolicyRefusal: this copy went on by itself after it was restored, so that the witness is of entries that stand in it
            otherwise: the copy has to be brought back once more, and to begin its epoch at once.
    """
    enrolment, path = _enrolled(state), _ledger_of(state)
    seen = [_read(w) for w in witnesses]
    made = Ledger.begin_epoch(path, site=enrolment.site, key=identity_of(state), now=now, witnesses=seen)
    with closing(made) as ledger:
        begun = Begun(epoch=ledger.epoch, silent=ledger.silent)
        write_whole(out, ledger.head())
    return begun


def take_over(state: Path, *, old: Path, out: Path, now: float) -> Begun:
    """Begin the ledger of a new identity with what was spent under the old one, and write its head for the aggregator to sign.

    Args:
        state: the site's, enrolled anew and without a ledger.
        old: its state under the old identity, which is only read.
        out: where the head goes.
        now: seconds since 1970.

    Guarantees:
        - The new ledger counts at least what the old one counted, what was open there with all its steps.

    Raises:
        ConfigError: the site is not enrolled, or the old state is another site's.
        DataError: the old ledger is absent, or not sound.
        StorageError: there is a new ledger already, or it cannot be written.
    """
    enrolment, account = _enrolled(state), read_account(_ledger_of(old), public_half(old))
    if account.site != enrolment.site:
        raise ConfigError(f"{old}: is the state of {account.site}; this site is enrolled as {enrolment.site}")
    path, key = state / LEDGER_FILE, identity_of(state)
    with closing(Ledger.succeed(path, site=enrolment.site, key=key, now=now, spent=account.total())) as ledger:
        begun = Begun(epoch=ledger.epoch, silent=ledger.silent)
        write_whole(out, ledger.head())
    return begun


def take_witness(state: Path, witness: Path) -> Begun:
    """Keep what somebody has signed of this site's ledger.

    Args:
        witness: by the aggregator as it was enrolled, or by a site of the newest roster.

    Raises:
        ConfigError: the site is not enrolled.
        DataError: there is no ledger, it is damaged, or the file cannot be read.
        RemoteProtocolError: signed by nobody who is known, or of another ledger.
        PolicyRefusal: code `rolled-back`: it is newer than this ledger, which is an old copy.
    """
    enrolment, path = _enrolled(state), _ledger_of(state)
    roster = newest_roster(state, enrolment.plan_key)
    peers = () if roster is None else tuple(k for s, k in roster.sites.items() if s != enrolment.site)
    with closing(Ledger.open(path, site=enrolment.site, key=identity_of(state))) as ledger:
        ledger.witness(_read(witness), trusted=(enrolment.signer, *peers))
        return Begun(epoch=ledger.epoch, silent=ledger.silent)


def _enrolled(state: Path) -> Enrolment:
    found = installed(state)
    if found is None:
        raise ConfigError(f"{state}: is not enrolled, so nobody can have seen its ledger; bring the whole folder back")
    return found


def _ledger_of(state: Path) -> Path:
    path = state / LEDGER_FILE
    if not path.is_file():
        raise DataError(f"{path}: does not exist; bring the newest backup back first, whatever its age")
    return path


def _read(path: Path) -> Witness:
    try:
        return Witness.from_bytes(read_bounded(path, most=MAX_WITNESS))
    except RemoteProtocolError:
        raise DataError(f"{path}: is not the witness of a ledger, or it is damaged") from None
