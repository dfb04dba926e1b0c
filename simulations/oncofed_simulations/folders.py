"""Folders of sites: finding them, and making new ones whole or not at all."""

from __future__ import annotations

import csv
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from oncofed_shared.errors import ConfigError, StorageError

__all__ = ["TABLE_SUFFIXES", "new_folder", "site_folders", "write_table"]

TABLE_SUFFIXES = (".csv", ".tsv")


def site_folders(root: Path) -> list[Path]:
    """List the sites' folders below `root`: every subfolder that holds at least one table.

    Plain files beside the folders, such as a list of hospitals, and hidden folders are ignored.

    Returns:
        The folders, sorted by name; a folder's name is the site's name unless its `site.toml` says
        otherwise.

    Raises:
        ConfigError: `root` is not a folder, or no subfolder holds a table.
        StorageError: `root` or a subfolder cannot be read.
    """
    try:
        if not root.is_dir():
            raise ConfigError(f"{root}: is not a folder; expected one with a subfolder per site that holds its tables")
        found = [
            folder
            for folder in root.iterdir()
            if folder.is_dir()
            and not folder.name.startswith(".")
            and any(p.suffix.lower() in TABLE_SUFFIXES and p.is_file() for p in folder.iterdir())
        ]
    except OSError as error:
        raise StorageError(
            f"{error.filename or root}: cannot be read ({error.strerror}); check its permissions"
        ) from None
    if not found:
        raise ConfigError(
            f"{root}: no subfolder holds a table ({' or '.join(TABLE_SUFFIXES)}); "
            "expected one subfolder per site; point to the folder that contains them"
        )
    return sorted(found, key=lambda folder: folder.name)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Make the folder `out` whole or not at all.

    The body writes into a hidden folder beside `out`, which is renamed at the end. Whatever goes
    wrong, also Ctrl-C, nothing half-written stays.

    Raises:
        ConfigError: `out` is a file, or a folder that is not empty. Nothing is ever overwritten.
        StorageError: the disk is full, or a folder cannot be read or written.
    """
    partial = out.parent / f".{out.name}-{uuid.uuid4().hex}.partial"
    try:
        _refuse_occupied(out)
        partial.mkdir(parents=True)
        yield partial
        _refuse_occupied(out)
        partial.replace(out)
    except OSError as error:
        raise StorageError(
            f"{out}: cannot be written ({error.strerror}); free some space or choose another folder"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_occupied(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ConfigError(f"{out}: exists and is not a folder; name a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out}: exists and is not empty; nothing was written; name a new folder or empty this one")


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table as CSV, with the same bytes on every machine: UTF-8, commas, line feeds."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
