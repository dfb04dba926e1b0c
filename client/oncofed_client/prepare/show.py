"""Printing of what preprocessing does and did, in plain words and without a patient's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from oncofed_client.prepare.report import Failure, Report

__all__ = ["progress_bar", "show_report"]


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """One bar with the time that is left; gives what is called with the cases done and all cases."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cases,"),
        TimeElapsedColumn(),
        TextColumn("so far,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("looking at the files", total=None)

        def watch(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total, description="preprocessing")

        yield watch


def _lines(failure: Failure, *, with_files: bool) -> list[str]:
    who = f"case {failure.pseudonym[:8]}, " if failure.pseudonym else ""
    reasons = failure.problems if with_files else failure.safe
    return [f"{who}{failure.modality}: {reason}" for reason in reasons]


def show_report(console: Console, report: Report, *, with_files: bool) -> None:
    """Print what a run did.

    Args:
        with_files: name files in what went wrong; their names may say whose they are.
    """
    console.print(f"{report.made} cases done now, {report.found} found in the cache, {len(report.failures)} failed.")
    for name, count in report.patients.items():
        console.print(Text(f"{name}: {count} patients"))
    if report.withdrawn:
        console.print(f"{report.withdrawn} patients may no longer enter; what was prepared of them is removed.")
    if report.outside:
        console.print(f"{report.outside} patients with images are in no table or did not consent; they were left out.")
    for note in report.notes:
        console.print(Text(f"  - {note}"), soft_wrap=True)
    if report.failures:
        console.print(Text("\nFailed and skipped", style="bold red"))
        for failure in report.failures:
            for line in _lines(failure, with_files=with_files):
                console.print(Text(f"  - {line}"), soft_wrap=True)
        if not with_files:
            console.print("Files are not named here, since a name may say who it is; --show-files names them.")
