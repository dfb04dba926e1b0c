"""`start`: one process that keeps the aggregator's programs running, and none of them outlives it."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

from oncofed_server.service.folder import Folder
from oncofed_server.service.programs import free_port, programs
from oncofed_server.service.running import Service
from oncofed_server.service.studies import check_writable
from oncofed_shared.errors import ConfigError
from oncofed_shared.keeping import keep

__all__ = ["serve"]

PATIENCE = 8.0


def serve(folder: Folder, *, given: Mapping[str, str], stop: Event, say: Callable[[str], None]) -> None:
    """Run SuperLink, proxy and dispatcher until `stop`.

    Args:
        given: environment of this process.

    Raises:
        ConfigError: nginx is missing, or another process serves this folder.
    """
    check_writable(folder)
    folder.run.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(folder.run / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder.path}: another `oncofed-aggregator start` is running") from None
        made = programs(folder, given=given, port=free_port(), logs=partial(_log, folder))
        starts: Counter[str] = Counter()

        def started(name: str) -> None:
            starts[name] += 1
            replace(Service.own(), started=dict(starts)).keep(folder)

        Service.own().keep(folder)
        say(f"{folder.settings.name}: sites connect to {folder.settings.address}; logs are in {folder.run}")
        keep(made, stop=stop, say=say, patience=PATIENCE, started=started)
    finally:
        os.close(lock)


def _log(folder: Folder, name: str) -> Path:
    return folder.run / f"{name}.log"
