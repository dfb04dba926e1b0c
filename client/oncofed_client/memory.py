"""What a site keeps between rounds, by session: local layers and SCAFFOLD's control. It never leaves the site.

A round may be asked again, because a reply was lost or the aggregator was started anew from its state before the round. So a
memory holds what was true before its newest round and what was true after it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.messages import Arrays, Head
from oncofed_shared.storage import read_arrays, write_arrays

__all__ = ["Memories", "Memory"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Named arrays before and after the newest round; nothing before the first."""

    round: int = 0
    before: Arrays = field(default_factory=dict)
    after: Arrays = field(default_factory=dict)

    def at(self, number: int) -> Arrays:
        """What the site held when round `number` began.

        Guarantees:
            - The first round begins with nothing, whatever was before.
            - The newest round, asked again, begins with what it began with.

        Raises:
            RemoteProtocolError: the round lies further back than that.
        """
        if number == 1:
            return {}
        if number < self.round:
            raise RemoteProtocolError(
                f"round {number} is asked, and this site has trained round {self.round} and keeps one round; start the run anew",
                code="state-ahead",
            )
        return self.before if number == self.round else self.after


class Memories:
    """A site's memories.

    Args:
        folder: where they are kept, so that they outlive the process; then only the newest session is in memory. Without it
            all are kept as long as this object.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._known: dict[str, tuple[dict[str, Any], Memory]] = {}
        self._seen: tuple[str, int, int] | None = None

    def of(self, head: Head) -> Memory:
        """The memory of a session; an empty one if this site never trained in it.

        Raises:
            RemoteProtocolError: the session belongs to another plan or trial.
            DataError: the file is damaged.
        """
        self._read(head.session)
        owner, memory = self._known.get(head.session, (_owner(head), Memory()))
        if owner != _owner(head):
            raise RemoteProtocolError("this session belongs to another plan or trial", code="unknown-session")
        return memory

    def keep(self, head: Head, memory: Memory) -> None:
        """Write a memory down; when this returns it is on disk."""
        if self.folder is not None:
            arrays = {f"before.{n}": a for n, a in memory.before.items()}
            arrays |= {f"after.{n}": a for n, a in memory.after.items()}
            facts = {"owner": _owner(head), "round": memory.round}
            path = self._path(self.folder, head.session)
            write_arrays(path, arrays, facts, private=True)
            self._known.clear()
            self._seen = _version(path)
        self._known[head.session] = (_owner(head), memory)

    def _read(self, session: str) -> None:
        """Take what is on disk, unless it is what is known: another process of this site may have gone on with the session."""
        if self.folder is None:
            return
        path = self._path(self.folder, session)
        version = _version(path)
        if version is None:
            self._known.pop(session, None)
            return
        if version == self._seen and session in self._known:
            return
        arrays, facts = read_arrays(path)
        parts: dict[str, Arrays] = {
            part: {n.removeprefix(f"{part}."): a for n, a in arrays.items() if n.startswith(f"{part}.")}
            for part in ("before", "after")
        }
        self._known, self._seen = {session: (facts["owner"], Memory(round=facts["round"], **parts))}, version

    @staticmethod
    def _path(folder: Path, session: str) -> Path:
        return folder / f"{hashlib.sha256(session.encode()).hexdigest()[:16]}.memory.safetensors"


def _version(path: Path) -> tuple[str, int, int] | None:
    """What changes whenever a file is written anew."""
    try:
        status = path.stat()
    except OSError:
        return None
    return path.name, status.st_ino, status.st_mtime_ns


def _owner(head: Head) -> dict[str, Any]:
    return {"plan_hash": head.plan_hash, "trial": asdict(head.trial)}
