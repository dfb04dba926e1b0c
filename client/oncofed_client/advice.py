"""What a person at a site should look at before a study runs, although nothing forbids it."""

from __future__ import annotations

from collections.abc import Mapping

from oncofed_client.cohort import Assembly
from oncofed_client.labels import TaskLabels
from oncofed_client.leaks import giveaways
from oncofed_client.prepare.recipes import prepared_modalities
from oncofed_client.reports import TaskReport
from oncofed_client.settings import SETTINGS_FILE, SiteSettings
from oncofed_client.tables import Table
from oncofed_shared.plan import Plan

__all__ = ["study_warnings", "table_warnings"]

_NAMED = 8
"""Names that one warning lists."""


def table_warnings(tables: Mapping[str, Table]) -> list[str]:
    """Name settings that do nothing, and tables that share no patient with the others."""
    warnings = []
    for name, table in tables.items():
        where = f"{SETTINGS_FILE}, tables.{name}"
        warnings += [
            f"{where}.rename: the file has no column that becomes '{new}'"
            for new in table.settings.rename.values()
            if new not in table.columns
        ]
        warnings += [
            f"{where}.units: the file has no column '{column}'"
            for column in table.settings.units
            if column not in table.columns
        ]
        others = {p for other, t in tables.items() if other != name for p in t.ids}
        if table.ids and others and not others & set(table.ids):
            warnings.append(
                f"{table.file}: none of its patients is in another table; is '{table.settings.id}' the right id column?"
            )
    return warnings


def _listed(names: tuple[str, ...]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest


def _task_warnings(report: TaskReport, labels: TaskLabels, rare: int) -> list[str]:
    where = f"task {report.name}"
    if report.absent:
        return [f"{where}: the site has no {_listed(report.absent)}; nobody has this label here"]
    warnings = []
    if labels.incomplete:
        warnings.append(f"{where}: {labels.incomplete} patients have only one of time and event, so no label")
    present = {c: n for c, n in report.counts.items() if n}
    if report.labelled == 0:
        warnings.append(f"{where}: nobody has this label here")
    elif report.kind == "classification":
        if len(present) == 1:
            warnings.append(f"{where}: all patients with a label are of one class, {next(iter(present))}")
        few = {c: n for c, n in present.items() if n < rare}
        if few and len(present) > 1:
            shown = ", ".join(f"{c} ({n})" for c, n in few.items())
            warnings.append(f"{where}: rare classes, fewer than {rare} patients: {shown}")
    elif not report.counts["event"]:
        warnings.append(f"{where}: nobody has an event, so nothing says who does worse")
    elif not report.counts["censored"]:
        warnings.append(f"{where}: everybody has an event; is follow-up without an event left out?")
    return warnings


def study_warnings(assembly: Assembly, tasks: tuple[TaskReport, ...], plan: Plan, settings: SiteSettings) -> list[str]:
    """Name what a person should have seen before a run: gaps, giveaways, one class only."""
    warnings = []
    for name, block in assembly.blocks.items():
        table = plan.modalities[name].table
        if not block.found and name in prepared_modalities(plan, settings):
            continue  # `check` says what to do about it
        if plan.modalities[name].encoder == "cnn":
            if not block.found:
                warnings.append(
                    f"modality {name}: no patch is prepared; run `oncofed-site preprocess`, if there are images"
                )
            continue
        if not block.found:
            why = (
                ""
                if table is None or table in settings.tables
                else (f"; the study reads table '{table}', which {SETTINGS_FILE} does not name")
            )
            warnings.append(f"modality {name}: the site has none of its columns{why}")
        elif block.absent:
            warnings.append(f"modality {name}: the site lacks {_listed(block.absent)}")
        for task_name, task in plan.tasks.items():
            rows = assembly.usable
            labels = assembly.tasks[task_name].values[rows]
            leaks = giveaways(task, labels, block.columns, block.values[rows])
            if leaks:
                gives = "alone nearly gives" if len(leaks) == 1 else "each alone nearly give"
                warnings.append(
                    f"modality {name}: {_listed(leaks)} {gives} the label of task {task_name} "
                    "away; is it the label, or known only after it?"
                )
    for report in tasks:
        warnings += _task_warnings(report, assembly.tasks[report.name], plan.evaluation.minimum_shown)
    return warnings
