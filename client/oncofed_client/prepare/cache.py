"""What was prepared, kept so that it is prepared once: encrypted, content-addressed, by pseudonym.

    STATE/site.key                           the key; without it everything below is noise
    STATE/cache/PSEUDONYM/RECIPE-INPUTS      one patient's features of one modality, or his patch of one role
    STATE/cache/index                        what the last whole run found, as keyed hashes

PSEUDONYM is a keyed hash of the patient's id, RECIPE of the settings and of the code that read the files, INPUTS of the
bytes of those files. A file that changed has another INPUTS, so that patient alone is done again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from oncofed_client.prepare.keys import KEY_FILE, SiteKey
from oncofed_shared.errors import DataError, StorageError
from oncofed_shared.storage import write_whole

__all__ = ["CACHE_FOLDER", "Cache", "Damaged", "Entry", "PatchEntry", "existing_cache", "open_cache", "state_folder"]

T = TypeVar("T")

CACHE_FOLDER = "cache"
_LEFTOVER = "."
_AXES = 3


class Damaged(DataError):
    """An entry of the cache that is not what was written there."""

    default_code = "cache"


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class Entry:
    """One patient's features of one modality.

    Attributes:
        columns: (c,) the study's names.
        values: (c,) float64, NaN where missing.
    """

    columns: tuple[str, ...]
    values: NDArray[np.float64]

    def to_bytes(self) -> bytes:
        """Equal entries give equal bytes."""
        whole = np.ascontiguousarray(self.values, dtype="<f8")
        return save_tensors({"values": whole}, metadata={"columns": json.dumps(self.columns)})

    @staticmethod
    def from_bytes(content: bytes) -> Entry:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            values = load_tensors(content)["values"]
            size = int.from_bytes(content[:8], "little")
            columns = tuple(json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["columns"]))
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError("not an entry") from error
        if values.shape != (len(columns),) or values.dtype != np.float64:
            raise ValueError("not an entry")
        return Entry(columns=columns, values=values)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class PatchEntry:
    """One patient's patch of one role.

    Attributes:
        voxels: (z, y, x) float32.
    """

    voxels: NDArray[np.float32]

    def to_bytes(self) -> bytes:
        """Equal patches give equal bytes."""
        return save_tensors({"voxels": np.ascontiguousarray(self.voxels, dtype="<f4")})

    @staticmethod
    def from_bytes(content: bytes) -> PatchEntry:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            voxels = load_tensors(content)["voxels"]
        except (SafetensorError, KeyError) as error:
            raise ValueError("not a patch") from error
        if voxels.ndim != _AXES or voxels.dtype != np.float32:
            raise ValueError("not a patch")
        return PatchEntry(voxels=voxels)


class Cache:
    """The prepared features of a site.

    Guarantees:
        - Nothing that is written holds an id, a name, a date, a text or a UID of the source, in clear or after decryption.
        - A patient whose consent was withdrawn has no entry after `keep_only`.
        - An entry is the one that was written there, or `Damaged` is raised.

    Args:
        folder: of the cache; made when something is written.
        key: the site's.
    """

    def __init__(self, folder: Path, key: SiteKey) -> None:
        self.folder = folder
        self.key = key

    def _path(self, pseudonym: str, recipe: str, inputs: str) -> Path:
        return self.folder / pseudonym / f"{recipe}-{inputs}"

    def put(self, patient: str, recipe: str, inputs: str, entry: Entry | PatchEntry) -> None:
        """Write an entry, all of it or nothing, in place of what the same recipe gave for other inputs.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        path = self._path(self.key.pseudonym(patient), recipe, inputs)
        write_whole(path, self.key.seal(f"{path.parent.name}/{path.name}", entry.to_bytes()), private=True)
        for old in self._entries(path.parent, recipe):
            if old.name != path.name:
                old.unlink(missing_ok=True)

    def _entries(self, folder: Path, recipe: str) -> list[Path]:
        try:
            return sorted(p for p in folder.iterdir() if p.name.startswith(f"{recipe}-"))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{folder}: cannot be read ({error.strerror}); check its rights") from None

    def has(self, patient: str, recipe: str, inputs: str) -> bool:
        """Whether the entry for these inputs is there and whole; a damaged one is removed."""
        try:
            return self._content(patient, recipe, inputs, lambda content: content) is not None
        except Damaged:
            self._path(self.key.pseudonym(patient), recipe, inputs).unlink(missing_ok=True)
            return False

    def get(self, patient: str, recipe: str, inputs: str | None = None) -> Entry | None:
        """An entry, for these inputs or for those of the last run; None when there is none.

        Raises:
            Damaged: it is there and was changed.
        """
        return self._content(patient, recipe, inputs, Entry.from_bytes)

    def get_patch(self, patient: str, recipe: str, inputs: str | None = None) -> PatchEntry | None:
        """A patch, as `get`.

        Raises:
            Damaged: it is there and was changed.
        """
        return self._content(patient, recipe, inputs, PatchEntry.from_bytes)

    def _content(self, patient: str, recipe: str, inputs: str | None, read: Callable[[bytes], T]) -> T | None:
        pseudonym = self.key.pseudonym(patient)
        found = self._entries(self.folder / pseudonym, recipe)
        if inputs is not None:
            found = [p for p in found if p.name == f"{recipe}-{inputs}"]
        if not found:
            return None
        path = max(found, key=lambda p: p.stat().st_mtime_ns)
        try:
            content = self.key.unseal(f"{pseudonym}/{path.name}", path.read_bytes())
            if content is not None:
                return read(content)
        except OSError as error:
            raise StorageError(f"{path}: cannot be read ({error.strerror}); check its rights") from None
        except ValueError:
            pass
        raise Damaged(
            f"{self.folder}: an entry was changed or was written with another key; run `oncofed-site preprocess` again, "
            "which makes it anew"
        )

    def exists(self, patient: str, recipe: str) -> bool:
        """Whether there is an entry, without reading it."""
        return bool(self._entries(self.folder / self.key.pseudonym(patient), recipe))

    def is_whole(self, pseudonym: str, recipe: str, inputs: str) -> bool:
        """Whether an entry is there as it was written."""
        path = self._path(pseudonym, recipe, inputs)
        try:
            return self.key.unseal(f"{pseudonym}/{path.name}", path.read_bytes()) is not None
        except OSError:
            return False

    def forget(self, patient: str, recipe: str) -> None:
        """Remove a patient's entries of one recipe: his files are gone, or can no longer be read."""
        for path in self._entries(self.folder / self.key.pseudonym(patient), recipe):
            path.unlink(missing_ok=True)

    def forget_recipes(self, recipes: Collection[str]) -> None:
        """Remove everybody's entries of some recipes: no study asks for them any more."""
        for folder in self.folder.iterdir() if recipes and self.folder.is_dir() else ():
            for path in folder.iterdir() if folder.is_dir() else ():
                if path.name.partition("-")[0] in recipes:
                    path.unlink(missing_ok=True)

    def keep_only(self, patients: Collection[str]) -> int:
        """Remove everything of everybody else: withdrawn consent. Returns how many patients were removed."""
        kept = {self.key.pseudonym(p) for p in patients}
        removed = 0
        try:
            for folder in self.folder.iterdir() if self.folder.is_dir() else ():
                if folder.is_dir() and folder.name not in kept:
                    shutil.rmtree(folder)
                    removed += 1
        except OSError as error:
            raise StorageError(
                f"{self.folder}: entries of patients who may not enter cannot be removed ({error.strerror}); check its rights"
            ) from None
        return removed

    def clear_leftovers(self) -> None:
        """Remove what a killed run had not finished writing."""
        for path in self.folder.glob(f"**/{_LEFTOVER}*") if self.folder.is_dir() else ():
            if path.is_file():
                path.unlink(missing_ok=True)

    def read_index(self) -> dict[str, Any]:
        """What the last run kept for the next; empty when there is none or it is damaged, which costs only time."""
        try:
            content = self.key.unseal("index", (self.folder / "index").read_bytes())
        except OSError:
            return {}
        made = json.loads(content) if content is not None else {}
        return made if isinstance(made, dict) else {}

    def write_index(self, content: dict[str, Any]) -> None:
        """Keep keyed hashes for the next run."""
        text = json.dumps(content, sort_keys=True, allow_nan=False).encode()
        write_whole(self.folder / "index", self.key.seal("index", text), private=True)


def state_folder(folder: Path) -> Path:
    """Where a site keeps its state if nobody says otherwise: beside its folder, into which only `init` writes."""
    whole = folder.resolve()
    return whole.with_name(f"{whole.name}.state")


def open_cache(state: Path) -> Cache:
    """The cache in a site's state folder, with a new key where there is none.

    Raises:
        StorageError: the site's key cannot be used.
    """
    return Cache(state / CACHE_FOLDER, SiteKey.open(state))


def existing_cache(state: Path | None) -> Cache | None:
    """The cache in a site's state folder, if something was ever prepared there.

    Raises:
        StorageError: the site's key cannot be used.
    """
    if state is None or not (state / KEY_FILE).exists() or not (state / CACHE_FOLDER).is_dir():
        return None
    return open_cache(state)
