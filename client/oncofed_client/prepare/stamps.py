"""Whether files changed: by their content, and without reading them where their time stamps settle it."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from oncofed_client.prepare.keys import SiteKey
from oncofed_shared.errors import DataError

__all__ = ["Contents", "folder_stamp"]

_SETTLED = 2_000_000_000
"""Nanoseconds after which a further change of a file surely changes its time stamp."""
_CHUNK = 1 << 20


def _stamp(key: SiteKey, path: str, status: os.stat_result) -> str:
    facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return key.digest(os.fsencode(path), *(str(f).encode() for f in facts))


def _settled(status: os.stat_result, now: int) -> bool:
    return now - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED


def folder_stamp(folder: Path, key: SiteKey, *facts: str) -> str | None:
    """A keyed hash over names, sizes and time stamps of everything below a folder, and over some facts.

    None where a file changed so lately that a later change might not show in its time stamp, or where a folder cannot be
    read: then everything has to be looked at.
    """
    now = time.time_ns()
    stamps: list[bytes] = []
    try:
        for root, folders, files in os.walk(folder, onerror=_raise):
            folders.sort()
            for name in (*folders, *files):
                path = os.path.join(root, name)  # noqa: PTH118 - a hundred thousand of them
                status = os.lstat(path)
                if stat.S_ISLNK(status.st_mode):
                    status = os.stat(path)  # noqa: PTH116
                if stat.S_ISREG(status.st_mode):
                    if not _settled(status, now):
                        return None
                    stamps.append(_stamp(key, os.path.relpath(path, folder), status).encode())
    except OSError:
        return None
    return key.digest(*sorted(stamps), *(f.encode() for f in facts))


def _raise(error: OSError) -> None:
    raise error


class Contents:
    """Keyed hashes of files' contents. A file whose time stamps did not change since it was read is not read again.

    Args:
        folder: of the site; nothing of its place in the machine goes into a hash.
        key: the site's.
        known: what `kept` gave after the last run.
    """

    def __init__(self, folder: Path, key: SiteKey, known: dict[str, str]) -> None:
        self._folder = folder
        self._key = key
        self._known = known
        self.kept: dict[str, str] = {}

    def of(self, path: Path) -> str:
        """A keyed hash of a file's content.

        Raises:
            DataError: it cannot be read.
        """
        try:
            status = path.stat()
            stamp = _stamp(self._key, os.path.relpath(path, self._folder), status)
            settled = _settled(status, time.time_ns())
            found = self._known.get(stamp) if settled else None
            if found is None:
                with path.open("rb") as file:
                    found = self._key.digest_chunks(iter(lambda: file.read(_CHUNK), b""))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); let this user read the file") from None
        if settled:
            self.kept[stamp] = found
        return found

    def of_all(self, paths: Iterable[Path]) -> list[bytes]:
        """Hashes of several files, sorted, so that names and order of files mean nothing."""
        return sorted(self.of(path).encode() for path in paths)
