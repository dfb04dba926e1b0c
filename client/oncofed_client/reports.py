"""What `check` found at a site, as values, and how they are counted.

Counts, names of columns and places in files; no patient's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from oncofed_client.cohort import Assembly
from oncofed_client.labels import TaskLabels
from oncofed_client.prepare.inventory import RawReport
from oncofed_client.settings import SiteSettings
from oncofed_client.tables import Table
from oncofed_shared.errors import ExitCode
from oncofed_shared.plan import ClassificationTask, Plan

__all__ = [
    "CheckReport",
    "Inventory",
    "ModalityReport",
    "TableReport",
    "TaskReport",
    "modality_reports",
    "subgroup_counts",
    "table_reports",
    "task_report",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableReport:
    """One table of a site; `patients` is None when its file is absent or cannot be used."""

    name: str
    file: str
    patients: int | None
    columns: int = 0
    missing: int = 0

    @property
    def cells(self) -> int:
        """Number of cells, ids not counted."""
        return (self.patients or 0) * self.columns


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """A folder without a study: its tables and raw files, its patients, its consent."""

    site: str
    folder: str
    tables: tuple[TableReport, ...]
    patients: int
    may_enter: int
    consent: str
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    raw: RawReport | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalityReport:
    """One modality of a study at a site.

    Attributes:
        patients: who have it.
        found: columns that the site has.
        expected: columns that the plan names; None where it has patterns.
        absent: named columns that the site lacks.
        missing: missing values among the found columns of the patients who have it.
        values: the same, missing or not.
    """

    name: str
    required: bool
    patients: int
    found: int
    expected: int | None
    absent: tuple[str, ...]
    missing: int
    values: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskReport:
    """One task of a study at a site: patients by class, or with and without an event."""

    name: str
    kind: str
    main: bool
    labelled: int
    counts: dict[str, int]
    absent: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """Whether a study can run at a site.

    Attributes:
        patients: in the site's files.
        may_enter: who consented.
        counted: whose data the other numbers count: `may_enter`, or everybody where nobody may
            enter.
        usable: of those, patients who can take part.
        subgroups: patients by group.
        problems: what is wrong in the files; warnings: what a person should look at.
        why_not: reasons why it cannot run; empty when it can.
        raw: images and sequencing files, if the site has any.
    """

    site: str
    study: str
    patients: int
    may_enter: int
    counted: int
    usable: int
    minimum: int
    modalities: tuple[ModalityReport, ...]
    tasks: tuple[TaskReport, ...]
    subgroups: dict[str, dict[str, int]]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    why_not: tuple[str, ...]
    exit_code: ExitCode
    raw: RawReport | None = None

    @property
    def can_run(self) -> bool:
        """Whether the study can run here."""
        return not self.why_not


def table_reports(tables: Mapping[str, Table], settings: SiteSettings) -> tuple[TableReport, ...]:
    """Patients, columns and missing values of each table of `site.toml`."""
    reports = []
    for name, wanted in settings.tables.items():
        table = tables.get(name)
        if table is None:
            reports.append(TableReport(name=name, file=wanted.file, patients=None))
            continue
        missing = int(np.count_nonzero(np.equal(table.cells, "")))
        reports.append(
            TableReport(
                name=name,
                file=wanted.file,
                patients=len(table.ids),
                columns=len(table.columns),
                missing=missing,
            )
        )
    return tuple(reports)


def modality_reports(assembly: Assembly, plan: Plan) -> tuple[ModalityReport, ...]:
    """Patients, columns and missing values of each modality."""
    reports = []
    for name, block in assembly.blocks.items():
        modality = plan.modalities[name]
        raw = block.values[block.present][:, list(block.first)]
        reports.append(
            ModalityReport(
                name=name,
                required=modality.required,
                patients=int(np.count_nonzero(block.present)),
                found=len(block.found),
                expected=None if modality.columns is None else len(modality.columns),
                absent=block.absent,
                missing=int(np.count_nonzero(np.isnan(raw))),
                values=int(raw.size),
            )
        )
    return tuple(reports)


def task_report(name: str, labels: TaskLabels, plan: Plan) -> TaskReport:
    """Patients by class, or with and without an event."""
    task = plan.tasks[name]
    if isinstance(task, ClassificationTask):
        counts = {c: int(np.count_nonzero(labels.values == k)) for k, c in enumerate(task.classes)}
    else:
        event = labels.values[:, 1]
        counts = {name: int(np.count_nonzero(event == k)) for k, name in enumerate(task.causes or ("event",), start=1)}
        counts["censored"] = int(np.count_nonzero(event == 0))
    return TaskReport(
        name=name,
        kind=task.kind,
        main=name == plan.main_task,
        labelled=int(np.count_nonzero(labels.labelled)),
        counts=counts,
        absent=labels.absent,
    )


def subgroup_counts(assembly: Assembly, plan: Plan) -> dict[str, dict[str, int]]:
    """Patients who can take part, by subgroup and group (A-37)."""
    return {
        name: {
            group: int(np.count_nonzero(assembly.subgroups[name][assembly.usable] == k))
            for k, group in enumerate(subgroup.groups)
        }
        for name, subgroup in plan.evaluation.subgroups.items()
    }
