"""Cells, rows and tables of the report: what the template lays out.

A missing number is a dash with a letter, and the letter's reason stands once below the table.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from markupsafe import Markup

from oncofed_server.report_scores import Score, Study, mapping, number
from oncofed_server.report_verdict import DASH, show

__all__ = ["Cell", "Notes", "Row", "Table", "arm_names", "cell_of", "count_cell"]


@dataclass(slots=True)
class Notes:
    """Reasons behind the dashes of one table, each with a letter."""

    reasons: dict[str, str] = field(default_factory=dict)

    def letter(self, why: str | None) -> str:
        """The letter of a reason; a new one where the reason is new."""
        k = len(self.reasons)
        fresh = chr(ord("a") + k) if k < 26 else str(k)
        return self.reasons.setdefault(why or "no reason was recorded", fresh)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A shown number (`value` is the result's own, `text` its rounding), or a dash with a note."""

    text: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row: who, in which arm if in one, its numbers, and perhaps a picture."""

    name: str
    arm: str = ""
    cells: tuple[Cell, ...]
    picture: Markup | None = None
    tags: tuple[str, ...] = ()
    marks: tuple[tuple[Markup, Cell], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with its axis, its notes, and the names that it cannot show, by reason."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: Notes
    axis: Markup | None = None
    hidden: dict[str, list[str]] = field(default_factory=dict)
    title: str = ""
    total: Row | None = None


def arm_names(study: Study) -> dict[str, str]:
    """What the arms are called on the page; those with other noise, or none, where there is noise to compare."""
    noise = mapping(study.plan.get("privacy")).get("noise", "none")
    free = {} if noise == "none" else {"without_privacy": "Without privacy (not released)"}
    if noise == "consortium":
        free = {"site_noise": "Noise at each site (not released)"} | free
    return {
        "federated": "Federated",
        "pooled": "Pooled",
        "alone": "Site alone",
        **free,
        "reference": f"Reference ({study.reference_label})",
    }


def cell_of(score: Score, notes: Notes) -> Cell:
    """A score, or a dash with its reason."""
    if score.value is None:
        return Cell(text=DASH, note=notes.letter(score.why))
    return Cell(text=show(score.value), value=score.value, low=score.low, high=score.high)


def count_cell(raw: object, notes: Notes, why: str = "not reported") -> Cell:
    """A whole number, or a dash with its reason."""
    value = number(raw)
    if value is None:
        return Cell(text=DASH, note=notes.letter(why))
    return Cell(text=f"{value:,.0f}", value=value)
