"""A site's folder as a source of patients: consent read anew at every call, splits that never move."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort, consented, read_cohort, split_patients
from oncofed_client.prepare.cache import existing_cache
from oncofed_client.settings import SiteSettings
from oncofed_shared.errors import DataError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan
from oncofed_shared.storage import dump_json, write_whole

__all__ = ["FolderSource", "Source", "keep_rows", "parts_of"]

UNUSED = -1
PARTS = {part: part for part in (0, 1, 2, UNUSED)}


class Source(Protocol):
    """Where a site's cohort comes from."""

    @property
    def name(self) -> str:
        """The site's name."""

    def cohort(self, plan: Plan) -> Cohort:
        """The patients who may enter now: consent is read again at every call."""

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
        """Part of each patient, (n,): 0 train, 1 validation, 2 test, -1 none. A patient's part never changes in a trial."""


def keep_rows(cohort: Cohort, rows: NDArray[np.bool_]) -> Cohort:
    """The chosen patients of a cohort."""
    return replace(
        cohort,
        patients=tuple(p for p, keep in zip(cohort.patients, rows, strict=True) if keep),
        values={m: v[rows] for m, v in cohort.values.items()},
        labels={t: v[rows] for t, v in cohort.labels.items()},
        subgroups={s: v[rows] for s, v in cohort.subgroups.items()},
        split_labels=None if cohort.split_labels is None else cohort.split_labels[rows],
        images={m: v[rows] for m, v in cohort.images.items()},
        hospital=None if cohort.hospital is None else cohort.hospital[rows],
    )


def parts_of(plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
    """Part of each patient under a trial, computed from the cohort as it is."""
    fold = trial.fold if trial.fold >= 0 else None
    return split_patients(cohort, plan, trial.seed, fold=fold, resplit=trial.resplit)


class FolderSource:
    """A hospital's folder.

    Args:
        state: folder that keeps each patient's part, under a hash of his id, and what was prepared of raw files. Without it
            parts live as long as this object, and raw files are not used.
    """

    def __init__(self, folder: Path, settings: SiteSettings, *, state: Path | None = None) -> None:
        self.folder = folder
        self.settings = settings
        self.state = state
        self._whole: dict[str, Cohort] = {}
        self._current: dict[str, tuple[frozenset[str], Cohort]] = {}
        self._parts: dict[tuple[str, Trial], dict[str, int]] = {}

    @property
    def name(self) -> str:
        """The site's name."""
        return self.settings.site.name

    def cohort(self, plan: Plan) -> Cohort:
        """The patients who may enter now. Files are read once; consent is read at every call.

        Whoever withdrew loses what was prepared of his raw files.
        """
        allowed = consented(self.folder, self.settings)
        current = self._current.get(plan.hash)
        if current is not None and current[0] == allowed:
            return current[1]
        cache = existing_cache(self.state)
        if cache is not None:
            cache.keep_only(allowed)
        whole = self._whole.get(plan.hash)
        if whole is None or current is None or allowed - current[0]:
            whole = self._whole[plan.hash] = read_cohort(self.folder, self.settings, plan, cache)
        rows = np.fromiter((p in allowed for p in whole.patients), bool, len(whole.patients))
        cohort = whole if bool(rows.all()) else keep_rows(whole, rows)
        self._current[plan.hash] = (allowed, cohort)
        return cohort

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
        """Part of each patient. Fixed when the trial is first seen, so that a withdrawal moves nobody into the test part."""
        key = (plan.hash, trial)
        if key not in self._parts:
            self._parts[key] = self._kept_parts(plan, cohort, trial)
        known = self._parts[key]
        return np.array([known.get(p, UNUSED) for p in cohort.patients], dtype=np.int64)

    def _kept_parts(self, plan: Plan, cohort: Cohort, trial: Trial) -> dict[str, int]:
        parts = dict(zip(cohort.patients, parts_of(plan, cohort, trial).tolist(), strict=True))
        if self.state is None:
            return parts
        name = hashlib.sha256(f"{plan.hash}|{asdict(trial)}".encode()).hexdigest()[:16]
        path = self.state / "parts" / f"{name}.json"
        hashed = {hashlib.sha256(p.encode()).hexdigest(): p for p in cohort.patients}
        if path.exists():
            try:
                kept = {str(h): PARTS[part] for h, part in json.loads(path.read_bytes()).items()}
            except (OSError, ValueError, AttributeError, KeyError, TypeError):
                raise DataError(
                    f"{path}: cannot be read; delete it and start the study anew, because who trains and who "
                    "tests must not change on the way"
                ) from None
            return {p: kept.get(h, UNUSED) for h, p in hashed.items()}
        write_whole(path, dump_json({h: parts[p] for h, p in hashed.items()}), private=True)
        return parts
