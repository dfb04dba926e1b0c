"""Printing of a ledger, in plain words for a data officer."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from oncofed_client.ledger_report import LedgerReport, Preview, Totals

__all__ = ["show_ledger", "show_preview"]

_STATES = {"open": "open", "closed": "over", "spent": "ended by a restore"}


def _number(epsilon: float) -> str:
    return "no bound" if math.isinf(epsilon) else f"{epsilon:.3g}"


def _day(at: float) -> str:
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{at:g} s"


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)


def _against(spent: float, limit: float | None, left: float | None) -> str:
    if limit is None or left is None:
        return f"epsilon {_number(spent)}; the policy has no limit"
    return f"epsilon {_number(spent)} of {limit:g}; {left:.3g} is left"


def _totals(console: Console, totals: Totals) -> None:
    pooled = _against(totals.pooled, totals.pooled_limit, totals.pooled_left)
    alone = _against(totals.alone, totals.alone_limit, totals.alone_left)
    _say(console, f"  as long as no more sites collude than the plans reckon with: {pooled}")
    _say(console, f"  if all other sites collude:                                  {alone}")


def show_ledger(console: Console, report: LedgerReport) -> None:
    """Print who spent what, and what is left."""
    _say(console, f"Ledger of site {report.site}: {report.entries} entries, the last of {_day(report.at)}", "bold")
    if report.epoch > 1:
        _say(console, f"Epoch {report.epoch}: it was restored from a backup.")
    if report.lost:
        _say(console, "Entries that the restore has lost are counted with what others had seen of them.", "yellow")
    if not report.studies:
        _say(console, "No private study was approved here, so nothing was spent.")
    else:
        table = Table(title="\nStudies", title_justify="left", title_style="bold", pad_edge=False, box=None)
        for i, column in enumerate(
            ("study", "approved", "is", "steps", "promises", "spent so far", "is charged", "if all collude")
        ):
            table.add_column(column, justify="left" if i < 3 else "right", overflow="fold")
        for s in report.studies:
            numbers = (f"{s.released} of {s.reserved}", *map(_number, (s.epsilon, s.so_far, s.counted, s.alone)))
            table.add_row(*(Text(c) for c in (s.study, _day(s.at), _STATES[s.state], *numbers)))
        console.print(table)
        _say(
            console,
            "Each epsilon holds at the delta of its study. A study is charged with all its steps until it is over.",
        )
    _say(console, f"\nOne patient, all studies together, at delta {report.totals.delta:g}", "bold")
    _totals(console, report.totals)
    _say(
        console,
        "Epsilon bounds what anybody can learn about one patient: nothing that a study gives out is more than e^epsilon times as "
        "likely with the patient as without, but for a probability of delta. A patient of several hospitals spends at each.",
    )


def show_preview(console: Console, preview: Preview) -> None:
    """Print what one more study would take, and whether the ledger would let it."""
    _say(console, f"\nStudy {preview.study}", "bold")
    if preview.approved:
        _say(console, "Is approved here and charged already; it takes nothing more.")
        return
    _say(
        console,
        f"  promises epsilon {_number(preview.epsilon)} at delta {preview.delta:g}; would take {_number(preview.pooled)}, "
        f"{_number(preview.alone)} if all other sites collude",
    )
    _say(console, "All studies together would then be at:")
    _totals(console, preview.after)
    if not preview.objections:
        _say(console, "The ledger would let it.", "bold green")
        return
    _say(console, "The ledger would refuse it:", "bold red")
    for line in preview.objections:
        _say(console, f"  - {line}")
