"""A study's folder at the aggregator, and what is wanted of it.

DIR/studies/<id>/study.json     the signed study
/wanted.json    what a person wants: run, pause, cancel, count
/status.json    what the ServerApp says
/journal.sqlite
/counts.json    what sites have answered to `count`
/spending.json  epsilon by site, under privacy
/final.safetensors, out/    after the run
"""

from __future__ import annotations

import enum
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oncofed_server.service.folder import Folder
from oncofed_server.service.registry import enrolled, newest_roster
from oncofed_shared.errors import ConfigError, DataError, StorageError
from oncofed_shared.gene_graph import check_gene_files, with_files
from oncofed_shared.signed_study import SignedStudy, read_study
from oncofed_shared.storage import dump_json, write_whole

__all__ = [
    "ENDED",
    "StudyFolder",
    "Wanted",
    "add_study",
    "all_studies",
    "check_writable",
    "find_study",
    "read_any_study",
]

ENDED = frozenset({"done", "failed", "cancelled", "stuck"})
"""Values of `phase` in a status with which nobody goes on with a study by himself."""
MOST_BYTES = 1 << 25
LOOKED_AT = 1.0
"""Seconds after which a lock is held by somebody who drives, and not by somebody who looks."""


class Wanted(enum.StrEnum):
    """What a person wants of a study."""

    COUNT = "count"
    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """A study that this aggregator knows."""

    path: Path
    study: SignedStudy

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.path / "journal.sqlite"

    @property
    def final(self) -> Path:
        """The finished run's state."""
        return self.path / "final.safetensors"

    @property
    def model(self) -> Path:
        """The finished run's model."""
        return self.path / "model.safetensors"

    @property
    def manifest(self) -> Path:
        """What goes to the sites with the model."""
        return self.path / "manifest.json"

    @property
    def wanted(self) -> Wanted | None:
        """What is wanted; None before anybody wanted anything."""
        content = _json(self.path / "wanted.json")
        try:
            return Wanted(content["wanted"])
        except (KeyError, ValueError):
            return None

    def want(self, wanted: Wanted) -> None:
        """Write down what is wanted; the ServerApp looks twice a second."""
        write_whole(self.path / "wanted.json", dump_json({"wanted": wanted.value}))

    @property
    def status(self) -> dict[str, Any]:
        """What the ServerApp said last; empty before it said anything."""
        return _json(self.path / "status.json")

    def tell(self, status: dict[str, Any]) -> None:
        """Say how it stands."""
        write_whole(self.path / "status.json", dump_json(status), synced=False)

    @property
    def spending(self) -> dict[str, float]:
        """What the whole study costs a patient of each site, as `submit` has worked it out; empty without privacy."""
        return {str(site): float(epsilon) for site, epsilon in _json(self.path / "spending.json").items()}

    def keep_spending(self, epsilons: dict[str, float]) -> None:
        """Write down what the study costs."""
        write_whole(self.path / "spending.json", dump_json(epsilons))

    @property
    def counts(self) -> dict[str, Any]:
        """Answers to `count`, by site."""
        return _json(self.path / "counts.json")

    def keep_counts(self, counts: dict[str, Any]) -> None:
        """Write answers to `count` down."""
        write_whole(self.path / "counts.json", dump_json(counts))

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Be the only process that drives the study; False if another one does. Freed by the kernel, however a process ends."""
        with self._lock() as lock:
            end = time.monotonic() + LOOKED_AT
            # Whoever looks whether somebody drives it holds the lock too, for a moment.
            while not (mine := _locked(lock, fcntl.LOCK_EX)) and time.monotonic() < end:
                time.sleep(LOOKED_AT / 20)
            yield mine

    @property
    def driven(self) -> bool:
        """Whether a process drives the study now. Any number may look at once; none takes another for a driver."""
        with self._lock() as lock:
            return not _locked(lock, fcntl.LOCK_SH)

    @contextmanager
    def _lock(self) -> Iterator[int]:
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise DataError(f"{path}: cannot be read; bring it back from a backup, or take it away") from None
    return content if isinstance(content, dict) else {}


def read_any_study(path: Path, folder: Folder) -> SignedStudy:
    """A signed study's file. Gene graphs and gene sets that its plan names lie in the aggregator's folder.

    Raises:
        DataError: it is none, or the plan key of this aggregator did not sign it.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path}: is larger than any study")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    study = read_study(content, plan_key=folder.plan_key, where=str(path))
    return replace(study, plan=with_files(study.plan, folder.path))


def add_study(folder: Folder, path: Path, *, now: float) -> StudyFolder:
    """Take a signed study in; one that is there already is left as it is.

    Raises:
        DataError: its signature does not hold, or this aggregator has not its step key.
        ConfigError: it has expired, a site is not enrolled with the study's key, or was revoked; or a file about genes that
            its plan names is not in the aggregator's folder.
    """
    study = read_any_study(path, folder)
    found = StudyFolder(path=folder.studies / study.id, study=study)
    if (found.path / "study.json").exists():
        return found
    folder.step_key_of(study.step_key)
    check_gene_files(study.plan)
    problems = [] if now < study.expires else ["has expired; prepare it anew"]
    known, epoch = enrolled(folder), newest_roster(folder)
    for site, key in study.roster.items():
        if site not in known:
            problems.append(f"'{site}' is not enrolled")
        elif epoch is None or epoch.standing(site, key) != "member":
            problems.append(f"'{site}' is not in the newest roster, or was revoked")
    if epoch is not None and study.step_key in epoch.step_keys:
        problems.append("its step key was revoked; prepare it anew")
    if problems:
        raise ConfigError(*(f"{path}: {p}" for p in problems))
    write_whole(found.path / "study.json", study.content)
    return found


def all_studies(folder: Folder) -> list[StudyFolder]:
    """All studies that were taken in, oldest first."""
    found = []
    for path in sorted(folder.studies.glob("*/study.json")):
        study = read_any_study(path, folder)
        if study.id != path.parent.name:
            raise DataError(f"{path}: is another study than its folder says; bring it back from a backup")
        found.append(StudyFolder(path=path.parent, study=study))
    return sorted(found, key=lambda s: s.study.created)


def find_study(folder: Folder, text: str) -> StudyFolder:
    """A study by its file, its id, the beginning of its id, or its name.

    Raises:
        ConfigError: there is none, or more than one.
    """
    known = all_studies(folder)
    path = Path(text)
    if path.is_file():
        wanted = read_any_study(path, folder).id
        matching = [s for s in known if s.study.id == wanted]
    else:
        matching = [s for s in known if re.fullmatch(r"[0-9a-f]{6,64}", text) and s.study.id.startswith(text)]
        matching = matching or [s for s in known if s.study.name == text]
    if len(matching) != 1:
        there = ", ".join(f"{s.study.name} ({s.study.id[:12]})" for s in known) or "none"
        what = "several studies are called so" if matching else "is no study that was submitted here"
        raise ConfigError(f"{text}: {what}; there are: {there}")
    return matching[0]


def check_writable(folder: Folder) -> None:
    """See early that the disk can be written.

    Raises:
        StorageError: it cannot.
    """
    if not os.access(folder.path, os.W_OK):
        raise StorageError(f"{folder.path}: cannot be written by this user")
