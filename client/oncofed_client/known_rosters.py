"""The highest roster epoch that a site has seen, one per plan key: it never goes back to a lower one."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from oncofed_shared.errors import DataError, RemoteProtocolError
from oncofed_shared.roster import RosterEpoch, read_roster
from oncofed_shared.storage import write_whole

__all__ = ["ROSTERS", "SECONDS_PER_DAY", "keep_roster", "newest_roster"]

ROSTERS = "rosters"
SECONDS_PER_DAY = 86400.0
AHEAD_SECONDS = SECONDS_PER_DAY
"""How far in the future an epoch may have been issued: the plan key's machine is offline, and so is its clock."""


@lru_cache(maxsize=16)
def _read(content: bytes, plan_key: bytes, where: str) -> RosterEpoch:
    """The same epoch comes with every request."""
    return read_roster(content, plan_key=plan_key, where=where)


def _path(state: Path, plan_key: bytes) -> Path:
    return state / ROSTERS / f"{plan_key.hex()[:32]}.roster"


def newest_roster(state: Path, plan_key: bytes) -> RosterEpoch | None:
    """The highest epoch that was seen of a plan key; None without one.

    Raises:
        DataError: the file is damaged.
    """
    path = _path(state, plan_key)
    if not path.exists():
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return _read(content, plan_key, str(path))


def keep_roster(state: Path, content: bytes, *, plan_key: bytes, now: float) -> RosterEpoch:
    """Take an epoch that arrived, and return it.

    Guarantees:
        - A lower epoch than the highest seen is refused, also after a restart; so is another one of the same number.
        - What is refused is not kept.

    Raises:
        RemoteProtocolError: code `roster-epoch`: not signed by the plan key, lower, of a number that another epoch has, or
        from the future.
        DataError, StorageError: what is kept here is damaged, or cannot be written.
    """
    known = newest_roster(state, plan_key)
    if known is not None and content == known.content:
        return known
    try:
        epoch = read_roster(content, plan_key=plan_key)
    except DataError as error:
        raise RemoteProtocolError(*error.problems, code="roster-epoch") from None
    if known is not None and epoch.number < known.number:
        raise RemoteProtocolError(
            f"roster epoch {epoch.number} came, and this site has seen epoch {known.number}", code="roster-epoch"
        )
    if known is not None and epoch.number == known.number:
        if replace(epoch, content=b"") != replace(known, content=b""):
            raise RemoteProtocolError(f"there are two different roster epochs {epoch.number}", code="roster-epoch")
        return known
    if epoch.issued > now + AHEAD_SECONDS:
        raise RemoteProtocolError(
            f"roster epoch {epoch.number} was issued more than a day in the future; check both clocks",
            code="roster-epoch",
        )
    write_whole(_path(state, plan_key), content, private=True)
    return epoch
