"""What a running aggregator notes of itself for those who look: who keeps it, what was started again, which gates are there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from oncofed_server.service.folder import Folder
from oncofed_shared.storage import dump_json, write_whole

__all__ = ["NODES_FILE", "SERVICE_FILE", "Seen", "Service", "keep_nodes", "read_nodes", "read_service"]

SERVICE_FILE, NODES_FILE = "service.json", "nodes.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One `oncofed-aggregator start`.

    Attributes:
        pid, born: the process, and when it was born in seconds since 1970: a process id may have become somebody else's.
        started: how often each of its programs was started.
    """

    pid: int
    born: float
    started: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def own(cls) -> Service:
        """This process."""
        return cls(pid=os.getpid(), born=psutil.Process().create_time())

    @property
    def runs(self) -> bool:
        """Whether the process is still there."""
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.born) < 1.0)
        except psutil.Error:
            return False

    def keep(self, folder: Folder) -> None:
        """Write it down; a power cut may cost it."""
        write_whole(folder.run / SERVICE_FILE, dump_json(asdict(self)), synced=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A site's gate, as the SuperLink last said.

    Attributes:
        online: whether it was connected.
        at: when it was last seen connected, in seconds since 1970; 0 for never.
    """

    online: bool
    at: float


def read_service(folder: Folder) -> Service | None:
    """The newest `start` of this folder; None where there was none, or its note is damaged: it is written anew by the next."""
    content = _read(folder.run / SERVICE_FILE)
    try:
        return Service(pid=int(content["pid"]), born=float(content["born"]), started=dict(content["started"]))
    except (KeyError, TypeError, ValueError):
        return None


def keep_nodes(folder: Folder, sites: Mapping[str, Seen]) -> None:
    """Write down who was seen."""
    write_whole(folder.run / NODES_FILE, dump_json({s: asdict(seen) for s, seen in sites.items()}), synced=False)


def read_nodes(folder: Folder) -> dict[str, Seen]:
    """Who was seen, by site; nobody where nothing was written."""
    found = {}
    for site, content in _read(folder.run / NODES_FILE).items():
        try:
            found[site] = Seen(online=bool(content["online"]), at=float(content["at"]))
        except (KeyError, TypeError, ValueError):
            continue
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
