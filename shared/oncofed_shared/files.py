"""Reading files that somebody else made: bounded, and with one clear error."""

from __future__ import annotations

from pathlib import Path

from oncofed_shared.errors import DataError

__all__ = ["read_bounded"]

MOST = 64 * 2**20
"""Bytes of the largest document, which is a study with its roster."""


def read_bounded(path: Path, *, most: int = MOST) -> bytes:
    """A file's content.

    Raises:
        DataError: it cannot be read, or is larger than `most` bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > most:
        raise DataError(f"{path}: is larger than {most} bytes; it is not what this command reads")
    return content
