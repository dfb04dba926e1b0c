"""All regular files below a folder, without ever leaving it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from oncofed_client.imaging.headers import shown
from oncofed_client.imaging.settings import Limits
from oncofed_shared.errors import DataError

__all__ = ["Found", "files_below"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a walk saw.

    Attributes:
        files: regular files, sorted by path.
        problems: folders that could not be read, links that lead out, what is neither file nor folder.
    """

    files: tuple[Path, ...]
    problems: tuple[str, ...]


def _odd(entry: os.DirEntry[str], root: Path) -> str | None:
    """Say what is wrong with an entry that is neither a file nor a folder; nothing for a link that stays inside."""
    path = Path(entry.path)
    if not entry.is_symlink():
        return f"{shown(path)}: is neither a file nor a folder; it is passed over"
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # RuntimeError: a link to itself
        return f"{shown(path)}: is a link that leads nowhere; it is not followed"
    if target.is_relative_to(root):
        return None
    return f"{shown(path)}: is a link out of the folder and is not followed; copy what it points to into the folder"


def files_below(folder: Path, limits: Limits) -> Found:
    """Walk a folder. Links are never followed: one that stays inside leads to what is found anyway.

    Args:
        folder: may itself be a link.
        limits: depth and number.

    Raises:
        DataError: the folder cannot be read, or holds more files than allowed.
    """
    root = folder.resolve()
    files: list[Path] = []
    problems: list[str] = []
    waiting = [(root, 0)]
    while waiting:
        here, depth = waiting.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if depth < limits.depth:
                            waiting.append((Path(entry.path), depth + 1))
                        else:
                            problems.append(
                                f"{shown(Path(entry.path))}: lies deeper than {limits.depth} folders, the limit "
                                "imaging.limits.depth; it is passed over"
                            )
                    elif entry.is_file(follow_symlinks=False):
                        files.append(Path(entry.path))
                    elif odd := _odd(entry, root):
                        problems.append(odd)
                    if len(files) > limits.files:
                        raise DataError(
                            f"{shown(root)}: holds more than {limits.files} files, the limit imaging.limits.files"
                        )
        except OSError as error:
            message = f"{shown(here)}: cannot be read ({error.strerror}); let this user read the folder"
            if here == root:
                raise DataError(message) from None
            problems.append(message)
    return Found(files=tuple(sorted(files, key=os.fsencode)), problems=tuple(sorted(problems)))
