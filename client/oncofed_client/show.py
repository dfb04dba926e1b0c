"""Printing of inventories and check reports, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from oncofed_client.check import CheckReport, Inventory
from oncofed_client.prepare.inventory import RawReport
from oncofed_client.reports import ModalityReport, TaskReport

__all__ = ["show_check", "show_inventory"]


def _grid(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False, box=None)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    # Text, not str: a name such as [Not Available] is not markup.
    table.add_row(*(Text(c) for c in cells))


def _list(console: Console, title: str, lines: Sequence[str], style: str) -> None:
    if not lines:
        return
    console.print(Text(f"\n{title}", style=f"bold {style}"))
    for line in lines:
        console.print(Text(f"  - {line}"), soft_wrap=True)


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if whole else "-"


def _counts(console: Console, title: str, counts: Mapping[str, int]) -> None:
    if counts:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        console.print(Text(f"{title}: {listed}"), soft_wrap=True)


def _show_raw(console: Console, raw: RawReport) -> None:
    """Print what lies there as raw files."""
    if raw.series:
        table = _grid("\nImages", "kind", "role", "patients", "series", "files", "with a problem")
        for one in raw.series:
            _row(table, one.kind, one.role or "-", *map(str, (one.patients, one.series, one.files, one.broken)))
        console.print(table)
    _counts(console, "\nRegions, by patients", raw.regions)
    _counts(console, "\nSequencing files", raw.sequencing)
    _counts(console, "\nIdentifying header fields, by files; none is kept", raw.identifying)
    if raw.others:
        console.print(Text(f"\n{raw.others} other files are not looked at."))
    _list(console, "Problems in raw files; what has one is left out", raw.problems, "red")
    _list(console, "Raw files", raw.notes, "yellow")


def show_inventory(console: Console, found: Inventory) -> None:
    """Print what a folder holds."""
    console.print(Text(f"Site {found.site}, {found.folder}", style="bold"), soft_wrap=True)
    table = _grid("\nTables", "table", "file", "patients", "columns", "missing values")
    for t in found.tables:
        if t.patients is None:
            _row(table, t.name, t.file, "not here, or not usable", "-", "-")
        else:
            missing = _share(t.missing, t.cells)
            _row(table, t.name, t.file, str(t.patients), str(t.columns), missing)
    if found.tables:
        console.print(table)
    if found.raw is not None:
        _show_raw(console, found.raw)
    where = "tables" if found.raw is None else "files"
    console.print(Text(f"\n{found.patients} patients in all {where} together."))
    console.print(Text(f"Consent: {found.consent}."), soft_wrap=True)
    _list(console, "Problems", found.problems, "red")
    _list(console, "Warnings", found.warnings, "yellow")


def _columns(m: ModalityReport) -> str:
    return f"{m.found}" if m.expected is None else f"{m.found} of {m.expected}"


def _labels(t: TaskReport) -> str:
    if t.absent:
        return f"no column {' or '.join(t.absent)}"
    return ", ".join(f"{name} {n}" for name, n in t.counts.items())


def show_check(console: Console, report: CheckReport) -> None:
    """Print whether a study can run at a site."""
    console.print(Text(f"Study {report.study} at site {report.site}", style="bold"), soft_wrap=True)
    console.print(
        Text(
            f"{report.patients} patients in the files, {report.may_enter} may enter, "
            f"{report.usable} {'can' if report.may_enter else 'could'} take part "
            f"(the policy asks for {report.minimum})."
        ),
        soft_wrap=True,
    )
    if report.counted > report.may_enter:
        console.print(
            Text("Nobody may enter, so the numbers below count everybody in the files."),
            soft_wrap=True,
        )
    if report.raw is not None:
        _show_raw(console, report.raw)
    if report.modalities:
        table = _grid("\nModalities", "modality", "patients", "columns", "missing values")
        for m in report.modalities:
            name = f"{m.name} (required)" if m.required else m.name
            _row(table, name, str(m.patients), _columns(m), _share(m.missing, m.values))
        console.print(table)
    if report.tasks:
        table = _grid("\nTasks", "task", "kind", "patients with label", "of these")
        for t in report.tasks:
            name = f"{t.name} (main)" if t.main else t.name
            _row(table, name, t.kind, str(t.labelled), _labels(t))
        console.print(table)
    if report.subgroups:
        table = _grid("\nSubgroups", "subgroup", "patients")
        for name, groups in report.subgroups.items():
            _row(table, name, ", ".join(f"{g} {n}" for g, n in groups.items()))
        console.print(table)
    _list(console, "Problems", report.problems, "red")
    _list(console, "Warnings", report.warnings, "yellow")
    if report.can_run:
        console.print(Text("\nThe study can run here.", style="bold green"))
    else:
        _list(console, "The study cannot run here", report.why_not, "red")
