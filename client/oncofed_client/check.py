"""What a site has, whether a study can run on it, and what a person should look at first.

Everything here is for the site's own people: counts, names of columns and places in files; no
patient's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from oncofed_client.advice import study_warnings, table_warnings
from oncofed_client.cohort import assemble, cannot_run, nobody_consented
from oncofed_client.consent import allowed_patients
from oncofed_client.gene_files import with_gene_files
from oncofed_client.images import Patches, read_patches
from oncofed_client.policy import policy_objections
from oncofed_client.prepare.cache import existing_cache
from oncofed_client.prepare.inventory import RawReport, raw_report
from oncofed_client.prepare.patches import count_patches
from oncofed_client.prepare.recipes import prepared_modalities, undefined_names
from oncofed_client.prepare.stale import changed_since
from oncofed_client.prepare.tables import prepared_tables
from oncofed_client.reports import (
    CheckReport,
    Inventory,
    modality_reports,
    subgroup_counts,
    table_reports,
    task_report,
)
from oncofed_client.settings import SETTINGS_FILE, SiteSettings
from oncofed_client.tables import Problems, Table, load_tables
from oncofed_shared.errors import ConfigError, DataError, ExitCode, PolicyRefusal
from oncofed_shared.gene_graph import check_gene_files
from oncofed_shared.plan import Plan

__all__ = ["CheckReport", "Inventory", "check_study", "inventory"]


def _everybody(tables: Mapping[str, Table]) -> frozenset[str]:
    return frozenset(p for table in tables.values() for p in table.ids)


def _who_may_enter(
    tables: Mapping[str, Table], settings: SiteSettings, folder: Path, problems: Problems
) -> tuple[frozenset[str], PolicyRefusal | None]:
    """Consented patients, and the refusal if there are none.

    With problems in the tables, consent may stand in one of those, and nobody may enter until they
    are mended.
    """
    if problems and settings.consent.given:
        return frozenset(), None
    try:
        allowed = allowed_patients(tables, settings)
    except PolicyRefusal as refusal:
        return frozenset(), refusal
    except DataError as error:
        problems.take(error)
        return frozenset(), None
    return allowed, None if allowed else nobody_consented(folder)


def inventory(folder: Path, settings: SiteSettings) -> Inventory:
    """Say what a folder holds, without a study.

    Raises:
        DataError: the folder cannot be read. Problems inside its files are part of the inventory.
    """
    problems = Problems()
    tables = load_tables(folder, settings, problems)
    allowed, refusal = _who_may_enter(tables, settings, folder, problems)
    raw = raw_report(folder, settings)
    return Inventory(
        site=settings.site.name,
        folder=str(folder),
        tables=table_reports(tables, settings),
        patients=len(_everybody(tables) | (raw.patients if raw else frozenset())),
        may_enter=len(allowed),
        consent=str(refusal or f"{len(allowed)} patients may enter"),
        problems=problems.lines(),
        warnings=(*table_warnings(tables), *_strangers(tables, raw)),
        raw=raw,
    )


def _strangers(tables: Mapping[str, Table], raw: RawReport | None) -> list[str]:
    """Warn where the ids of images are not those of the tables."""
    people = _everybody(tables)
    if raw is None or not raw.patients or not people:
        return []
    outside = len(raw.patients - people)
    if outside == len(raw.patients):
        why = "if the archive has numbers of its own, give their table as imaging.patient.link"
        return [f"none of the patients with images is in a table; {why}"]
    return [f"{outside} patients with images are in no table, and are left out"] if outside else []


def _unprepared(tables: Mapping[str, Table], settings: SiteSettings, plan: Plan) -> list[str]:
    """Warn of modalities that this site makes from raw files and has not made, or cannot."""
    warnings = []
    for name, modality in prepared_modalities(plan, settings).items():
        absent = undefined_names(modality, settings)
        if absent:
            warnings.append(f"modality {name}: {SETTINGS_FILE} does not say what {' and '.join(absent)} is")
        if (modality.table or name) not in tables:
            warnings.append(
                f"modality {name}: is made from raw files and nothing of it is there yet; run `oncofed-site preprocess`"
            )
    for name, modality in plan.modalities.items():
        if modality.encoder == "cnn" and settings.imaging is not None:
            absent = undefined_names(modality, settings)
            if absent:
                warnings.append(f"modality {name}: {SETTINGS_FILE} does not say what {' and '.join(absent)} is")
    return warnings


def _verdict(
    problems: Problems, refusal: PolicyRefusal | None, usable: int, minimum: int, objections: tuple[str, ...]
) -> tuple[tuple[str, ...], ExitCode]:
    """Why it cannot run, and the exit code: wrong files come before a refusal."""
    reasons = []
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        reasons.append(f"the files have {count}, listed under Problems")
    if refusal is not None:
        reasons.append(str(refusal))
    elif usable < minimum and not problems:
        reasons.append(f"{usable} patients can take part; the site's policy asks for at least {minimum}")
    reasons += objections
    if problems:
        return tuple(reasons), ExitCode.INPUT
    return tuple(reasons), ExitCode.REFUSED if reasons else ExitCode.DONE


def check_study(folder: Path, settings: SiteSettings, plan: Plan, state: Path | None = None) -> CheckReport:
    """Read a folder as a study would and report on it.

    Args:
        state: the site's own state, with what was prepared of its raw files.

    Raises:
        DataError: the folder cannot be read. Problems inside its files are part of the report.
    """
    problems = Problems()
    tables = load_tables(folder, settings, problems)
    broken = len(problems) > 0
    allowed, refusal = _who_may_enter(tables, settings, folder, problems)
    everybody = _everybody(tables)
    raw = raw_report(folder, settings)
    warnings = table_warnings(tables) + _strangers(tables, raw)
    # A table that cannot be used would only make everything in it look absent.
    counted = frozenset() if broken else allowed or everybody
    try:
        tables |= prepared_tables(settings, plan, existing_cache(state), allowed)
    except DataError as error:
        problems.take(error)
    warnings += _unprepared(tables, settings, plan)
    if prepared_modalities(plan, settings) and changed_since(folder, existing_cache(state)):
        warnings.append(
            "files changed since the last `oncofed-site preprocess`, and a study reads what that made; run it again"
        )
    warnings += [
        f"{name}: {count} patches are prepared; no encoder reads them, so they change no result"
        for name, count in count_patches(settings, plan, existing_cache(state), allowed).items()
        if plan.modalities[name.split(".")[0]].encoder != "cnn"
    ]
    patches: Patches = {}
    try:
        patches = read_patches(settings, plan, existing_cache(state), counted)
    except DataError as error:
        problems.take(error)
    try:
        check_gene_files(with_gene_files(plan, settings, folder))
    except ConfigError as error:
        problems.take(error)
    assembly = assemble({} if broken else tables, settings, plan, counted, problems, patches=patches)
    reason = None if broken else cannot_run(assembly, plan, tables, folder)
    if reason is not None:
        problems.take(reason)
    tasks = tuple(task_report(t, assembly.tasks[t], plan) for t in plan.task_names)
    if not broken:
        warnings += study_warnings(assembly, tasks, plan, settings)
    usable = int(np.count_nonzero(assembly.usable))
    objections = policy_objections(plan, settings.policy)
    why_not, code = _verdict(problems, refusal, usable, settings.policy.minimum_cohort, objections)
    return CheckReport(
        site=settings.site.name,
        study=plan.study.name,
        patients=len(everybody | (raw.patients if raw else frozenset())),
        may_enter=len(allowed),
        counted=len(counted),
        usable=usable,
        minimum=settings.policy.minimum_cohort,
        modalities=() if broken else modality_reports(assembly, plan),
        tasks=() if broken else tasks,
        subgroups={} if broken else subgroup_counts(assembly, plan),
        problems=problems.lines(),
        warnings=tuple(warnings),
        why_not=why_not,
        exit_code=code,
        raw=raw,
    )
