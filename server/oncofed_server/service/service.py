"""`start`: one process that keeps the aggregator's programs running, and none of them outlives it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from oncofed_server.service.folder import Folder
from oncofed_server.service.programs import free_port, programs
from oncofed_server.service.running import Service
from oncofed_server.service.studies import check_writable
from oncofed_shared.errors import ConfigError, StorageError
from oncofed_shared.keeping import Note, keep
from oncofed_shared.told import Stop

__all__ = ["serve"]

PATIENCE = 8.0


def serve(folder: Folder, *, given: Mapping[str, str], stop: Stop, say: Note) -> None:
    """Run SuperLink, proxy and dispatcher until `stop`.

    Args:
        given: environment of this process.
        say: told what happens, as events with facts.

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

        def note(event: str, **facts: Any) -> None:
            if event == "program.started":
                starts[facts["program"]] += 1
                # Figures for those who look: a full disk is no reason to end a service.
                with contextlib.suppress(StorageError):
                    replace(Service.own(), started=dict(starts)).keep(folder)
            say(event, **facts)

        Service.own().keep(folder)
        own = folder.settings
        say("service.started", aggregator=own.name, address=own.address, folder=str(folder.run), pid=os.getpid())
        keep(made, stop=stop, say=lambda text: None, patience=PATIENCE, note=note)
        say("service.ended")
    finally:
        os.close(lock)


def _log(folder: Folder, name: str) -> Path:
    return folder.run / f"{name}.log"
