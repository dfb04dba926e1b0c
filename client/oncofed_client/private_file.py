"""Secrets of a site: made once, their owner's alone."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from oncofed_shared.errors import DataError, StorageError

__all__ = ["make_once", "read_secret"]


def make_once(path: Path, content: bytes) -> None:
    """Write a secret, synced; where there is one already it stays as it is.

    Guarantees:
        - A file that exists is never replaced: of two processes at the same time, the second leaves the first one's.
        - The file is its owner's alone (0600), and so is a folder that is made for it (0700).

    Raises:
        StorageError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another folder"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_secret(path: Path) -> bytes:
    """Read a secret.

    Raises:
        DataError: others than its owner may read it.
        StorageError: it cannot be read.
    """
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from None
    if mode & 0o077:
        raise DataError(
            f"{path}: others than its owner may read it; make it 0600, and ask for a new enrolment if they did"
        )
    return content
