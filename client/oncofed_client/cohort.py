"""A site's cohort for a study: consented patients, joined over tables on their id.

`read_cohort` reads the folder and checks everything in it; `split_patients` says who trains and who
tests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_client.columns import Block, read_modality, reserved_columns
from oncofed_client.consent import allowed_patients, consented
from oncofed_client.images import Patches, patch_block, read_patches
from oncofed_client.labels import TaskLabels, read_labels, read_split, read_subgroup
from oncofed_client.prepare.cache import Cache
from oncofed_client.prepare.tables import prepared_tables
from oncofed_client.settings import SETTINGS_FILE, SiteSettings
from oncofed_client.tables import Problems, Table, load_tables
from oncofed_shared.errors import ConfigError, DataError, PolicyRefusal
from oncofed_shared.plan import ClassificationTask, Plan, SplitColumn

__all__ = [
    "Assembly",
    "Cohort",
    "assemble",
    "cannot_run",
    "consented",
    "nobody_consented",
    "read_cohort",
    "split_patients",
]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class Cohort:
    """The patients of one site with whom a study can work. Nothing of it leaves the site.

    Attributes:
        patients: (n,) local ids, sorted.
        values: per modality (n, columns), in plan units, before transform and scaling; NaN =
            missing; encoded. (n, 0) where the site lacks the modality.
        columns: per modality the encoded column names, `sex=FEMALE` style for categories.
        labels: per task (n,) class index or -1; or (n, 2) days and event in {0, 1}, NaN NaN where
            missing.
        subgroups: per subgroup (n,) index of the group or -1.
        split_labels: (n,) published part, 0 train, 1 validation, 2 test, -1 none; None when the
            plan has fractions.
        site: the site's name.
        images: per modality whose patches the network reads (n, columns, z, y, x), 0 where missing.
        hospital: (n,) whose patient each is, where a simulation has put those of several together.
    """

    patients: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    columns: dict[str, tuple[str, ...]]
    labels: dict[str, NDArray[Any]]
    subgroups: dict[str, NDArray[np.int64]]
    split_labels: NDArray[np.int64] | None
    site: str = ""
    images: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    hospital: NDArray[np.int64] | None = None

    def __repr__(self) -> str:
        return f"Cohort({self.site!r}, {len(self.patients)} patients)"


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class Assembly:
    """What was read for all patients who may enter, before leaving out those who cannot take part.

    Attributes:
        patients: (m,) ids, sorted.
        blocks: per modality, (m, columns).
        tasks: per task.
        subgroups: per subgroup (m,).
        split: (m,) published part, or None when the plan has fractions or the site lacks the
            column.
        images: per modality of patches (m, columns, z, y, x).
        usable: (m,) has every required modality, at least one modality, and at least one label.
    """

    patients: tuple[str, ...]
    blocks: dict[str, Block]
    tasks: dict[str, TaskLabels]
    subgroups: dict[str, NDArray[np.int64]]
    split: NDArray[np.int64] | None
    usable: NDArray[np.bool_]
    images: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def cohort(self, site: str) -> Cohort:
        """Keep the patients who can take part."""
        rows = self.usable
        names = np.array(self.patients, dtype=object)[rows].tolist()
        return Cohort(
            site=site,
            patients=tuple(names),
            values={m: b.values[rows] for m, b in self.blocks.items()},
            columns={m: b.columns for m, b in self.blocks.items()},
            labels={t: label.values[rows] for t, label in self.tasks.items()},
            subgroups={s: v[rows] for s, v in self.subgroups.items()},
            split_labels=None if self.split is None else self.split[rows],
            images={m: v[rows] for m, v in self.images.items()},
        )


def assemble(
    tables: Mapping[str, Table],
    settings: SiteSettings,
    plan: Plan,
    patients: Collection[str],
    problems: Problems,
    *,
    patches: Patches | None = None,
) -> Assembly:
    """Read everything that a plan asks about the given patients.

    Args:
        tables: the site's tables.
        settings: the site's settings.
        plan: the study.
        patients: ids of those who may enter; only their rows are read.
        problems: notes what is not as the plan declares.
        patches: what was prepared of images for encoders that read them.
    """
    order = tuple(sorted(patients))
    reserved = reserved_columns(plan, settings)
    blocks, images = {}, {}
    for name, modality in plan.modalities.items():
        if modality.encoder == "cnn":
            blocks[name], images[name] = patch_block(modality, order, (patches or {}).get(name, {}))
        else:
            blocks[name] = read_modality(tables, modality, order, reserved, problems)
    tasks = {t: read_labels(tables, task, order, problems) for t, task in plan.tasks.items()}
    subgroups = {
        name: read_subgroup(tables, subgroup, plan, order, problems)
        for name, subgroup in plan.evaluation.subgroups.items()
    }
    split = plan.evaluation.split
    published = read_split(tables, split, order, problems) if isinstance(split, SplitColumn) else None
    usable = np.logical_or.reduce([label.labelled for label in tasks.values()])
    usable &= np.logical_or.reduce([block.present for block in blocks.values()])
    for name, modality in plan.modalities.items():
        if modality.required:
            usable &= blocks[name].present
    return Assembly(
        patients=order,
        blocks=blocks,
        tasks=tasks,
        subgroups=subgroups,
        split=published,
        usable=usable,
        images=images,
    )


def cannot_run(assembly: Assembly, plan: Plan, tables: Mapping[str, Table], folder: Path) -> DataError | None:
    """Say why a study cannot run on these files: no main label, or no published split."""
    task, split = plan.tasks[plan.main_task], plan.evaluation.split
    absent = assembly.tasks[plan.main_task].absent
    if absent:
        what = f"the label of the study's main task '{plan.main_task}'"
        return DataError(f"{folder}: {_lacks(tables, absent, task.table)}, {what}{_REMEDY}", code="no-label")
    if isinstance(split, SplitColumn) and assembly.split is None:
        lacks = _lacks(tables, (split.column,), split.table)
        return DataError(f"{folder}: {lacks}, the study's published split{_REMEDY}", code="no-split")
    return None


_REMEDY = f"; add it, or map the site's own names to the study's in {SETTINGS_FILE}"


def _lacks(tables: Mapping[str, Table], columns: tuple[str, ...], table: str | None) -> str:
    """Say which columns are absent, and where else they are."""
    names = " and ".join(f"'{c}'" for c in columns)
    if table is None:
        return f"no table has the column {names}"
    elsewhere = [f"'{n}'" for n, t in tables.items() if set(columns) <= set(t.columns)]
    hint = f" (but {' and '.join(elsewhere)} has it)" if elsewhere else ""
    if table in tables:
        return f"the table '{table}' has no column {names}{hint}"
    return f"there is no table '{table}' with the column {names}{hint}"


def read_cohort(folder: Path, settings: SiteSettings, plan: Plan, cache: Cache | None = None) -> Cohort:
    """Read a site's folder for a study, and what was prepared of its raw files. Consent is read anew.

    A patient takes part who consented, has every required modality, at least one modality, and at
    least one label.

    Raises:
        DataError: files are malformed, all problems at once; or the main task's label (code
            `no-label`) or the published split (code `no-split`) is absent.
        PolicyRefusal: no consent is stated, or nobody gave it (code `consent`).
    """
    problems = Problems()
    tables = load_tables(folder, settings, problems)
    problems.raise_if_any()
    allowed = allowed_patients(tables, settings)
    if not allowed:
        raise nobody_consented(folder)
    tables |= prepared_tables(settings, plan, cache, allowed)
    assembly = assemble(tables, settings, plan, allowed, problems, patches=read_patches(settings, plan, cache, allowed))
    problems.raise_if_any()
    reason = cannot_run(assembly, plan, tables, folder)
    if reason is not None:
        raise reason
    return assembly.cohort(settings.site.name)


def nobody_consented(folder: Path) -> PolicyRefusal:
    """Refuse for a site where consent is asked and nobody gave it."""
    return PolicyRefusal(
        f"{folder}: nobody may enter, because no patient has the value that stands for consent "
        f"under [consent] in {SETTINGS_FILE}",
        code="consent",
    )


def _hashed(text: str, seed: int) -> int:
    """64 bits from a keyed hash."""
    key = hashlib.blake2b(str(seed).encode(), digest_size=32).digest()
    return int.from_bytes(hashlib.blake2b(text.encode(), key=key, digest_size=8).digest(), "big")


def _strata(cohort: Cohort, plan: Plan) -> NDArray[np.int64]:
    """Class, or event, of the main task; -1 for a patient without that label."""
    labels = cohort.labels[plan.main_task]
    if isinstance(plan.tasks[plan.main_task], ClassificationTask):
        return np.asarray(labels, dtype=np.int64)
    event = labels[:, 1]
    return np.where(np.isnan(event), -1, np.nan_to_num(event)).astype(np.int64)


def _points(cohort: Cohort, plan: Plan, seed: int, member: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give each member a point in [0, 1), evenly spread in each stratum (systematic sampling).

    Patients of a stratum are sorted by a keyed hash of their id; the j-th of n gets (j + u) / n
    with one u in [0, 1) per site and stratum, so that the expected share of every part is exact
    even in a stratum of one.

    In a private study the hash itself is the point: where it were the rank, one patient more or
    less would move others between the parts, and the noise hides one patient's change, not theirs.
    """
    if plan.privacy.noise != "none":
        hashes = (_hashed(f"patient|{p}", seed) for p in cohort.patients)
        return np.fromiter(((h >> 11) * 2.0**-53 for h in hashes), np.float64, len(cohort.patients))
    points = np.zeros(len(cohort.patients))
    strata = _strata(cohort, plan)
    for stratum in np.unique(strata[member]).tolist():
        rows = np.flatnonzero(member & (strata == stratum)).tolist()
        rows.sort(key=lambda i: _hashed(f"patient|{cohort.patients[i]}", seed))
        offset = _hashed(f"stratum|{cohort.site}|{stratum}", seed) / 2.0**64
        points[rows] = np.minimum((np.arange(len(rows)) + offset) / len(rows), 1 - 2.0**-53)
    return points


def split_patients(
    cohort: Cohort, plan: Plan, seed: int, fold: int | None = None, *, resplit: bool = False
) -> NDArray[np.int64]:
    """Say who trains and who tests, patient by patient (D-02, D-19).

    Args:
        cohort: the site's cohort.
        plan: the study.
        seed: drives fractions and folds; a published split ignores it.
        fold: of `plan.evaluation.folds`, the one that is held out; the others train. The number after the last holds out
            nobody: everybody trains.
        resplit: a random split in place of a published one, with its proportions at this site.

    Returns:
        (n,) 0 train, 1 validation, 2 test, -1 unused (a patient outside the published split, in
        every mode).

    Guarantees:
        - A patient's part does not depend on the order of rows, nor on anything but the ids in his
          stratum; in a private study on nothing but his own id.
        - The folds of one seed partition the patients.

    Raises:
        ConfigError: the plan has no such fold.
    """
    published = cohort.split_labels
    member = np.ones(len(cohort.patients), bool) if published is None else published >= 0
    if fold is None and published is not None and not resplit:
        return published.copy()
    points = _points(cohort, plan, seed, member)
    if fold is not None:
        folds = plan.evaluation.folds or 0
        if not folds or not 0 <= fold <= folds:
            raise ConfigError(f"evaluation.folds: fold {fold} of {folds} does not exist")
        parts = np.where(np.floor(points * folds).astype(np.int64) == fold, 2, 0)
        return np.where(member, parts, -1).astype(np.int64)
    split = plan.evaluation.split
    if isinstance(split, SplitColumn):
        known = member[:0] if published is None else published[member]
        counts = np.bincount(known, minlength=3)
        train, validation = (counts[:2] / max(counts.sum(), 1)).tolist()
    else:
        train, validation = split.train, split.validation
    parts = np.digitize(points, [train, train + validation])
    return np.where(member, parts, -1).astype(np.int64)
