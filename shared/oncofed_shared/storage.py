"""Files that are there whole or not at all, and models without pickle."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from oncofed_shared.errors import DataError, StorageError

__all__ = ["alone", "dump_json", "read_arrays", "write_arrays", "write_whole"]


@contextmanager
def alone(folder: Path, command: str, *, lock: Path | None = None, choose: str = "--out") -> Iterator[None]:
    """One process at a time for a folder; a process that has ended holds nothing.

    Args:
        command: what is at work here, as a user types it.
        lock: a file that is there meanwhile; without it one beside the folder, of whose content nothing changes.
        choose: the option with which a user names another folder.

    Raises:
        StorageError: another one is at work, or something cannot be written, then or later.
    """
    whole = folder.absolute()
    path = lock or whole.parent / f".{whole.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o777 if lock is None else 0o700)
        with ExitStack() as stack:
            if not _locked(path, stack):
                raise StorageError(f"{folder}: another `{command}` is at work here; wait for it")
            stack.callback(path.unlink, missing_ok=True)
            yield
    except OSError as error:
        raise StorageError(f"{folder}: cannot be used ({error.strerror}); choose another {choose}") from None


def _locked(path: Path, stack: ExitStack) -> bool:
    """Lock a file until the stack ends; False if somebody else has."""
    while True:
        file = stack.enter_context(path.open("w", encoding="ascii"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # Who had it before may have removed it in between.
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return True


def write_whole(path: Path, content: bytes, *, private: bool = False, synced: bool = True) -> None:
    """Write a file so that a reader, a crash or a full disk sees the old one or the new one, never a part.

    Args:
        private: readable by its owner alone, for a site's state; otherwise by everybody, for reports.
        synced: False where a power cut may cost the newest file.

    Raises:
        StorageError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        Path(temporary).chmod(0o600 if private else 0o644)
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another folder"
        ) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def dump_json(content: Any) -> bytes:
    """Readable JSON; a number that is not finite is an error, not an invalid file."""
    return (json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write_arrays(path: Path, arrays: dict[str, NDArray[Any]], facts: dict[str, Any], *, private: bool = False) -> None:
    """Write named arrays and JSON facts as one safetensors file; equal content gives equal bytes."""
    whole = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    write_whole(path, save_tensors(whole, metadata={"oncofed": text}), private=private)


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `write_arrays` wrote.

    Raises:
        DataError: the file is missing, damaged or of another kind.
    """
    try:
        content = path.read_bytes()
        arrays = load_tensors(content)
        size = int.from_bytes(content[:8], "little")
        facts = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["oncofed"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        raise DataError(f"{path}: is not a file that oncofed wrote, or it is damaged") from None
    return arrays, facts
