"""The report's words and table on how sure a prediction is: prediction sets, and what predicted risks have meant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oncofed_server.report_cells import Notes, Row, Table, cell_of, count_cell
from oncofed_server.report_scores import Score, Study, TaskView, listing, mapping, number

__all__ = ["CertaintyView", "certainty_view"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CertaintyView:
    """What the section of a task shows.

    Attributes:
        sentences: what the prediction sets promise, and how they did.
        bands: predicted against observed risk in groups of validation patients; None where there are none.
    """

    sentences: tuple[str, ...]
    bands: Table | None


def _percent(raw: object) -> str:
    value = number(raw)
    return "?" if value is None else f"{100 * value:.0f} %"


def _sets(raw: Mapping[str, Any], patients: object) -> tuple[str, ...]:
    level, at = number(raw.get("level")), number(raw.get("threshold"))
    if level is None or at is None:
        return ()
    found = [
        (
            f"A patient's set holds every class with a probability of {at:.3f} or more. For new patients like these the true class "
            f"is in the set {_percent(level)} of the time or more; this comes from {number(patients) or 0:,.0f} validation "
            "patients."
        )
    ]
    covered, size, tested = (number(raw.get(key)) for key in ("covered", "size", "test_patients"))
    if covered is not None and size is not None and tested is not None:
        found.append(
            f"Of {tested:,.0f} test patients it was in {_percent(covered)}; a set had {size:.2f} classes on average."
        )
    return tuple(found)


def _bands(raw: Mapping[str, Any]) -> Table | None:
    notes, rows = Notes(), []
    for band in map(mapping, listing(raw.get("bands"))):
        ends = [number(end) for end in listing(band.get("interval"))]
        low, high = ends if len(ends) == 2 else (None, None)
        name = " to ".join(
            "?" if end is None else f"{end:.2f}" for end in map(number, (band.get("low"), band.get("high")))
        )
        observed = Score(value=number(band.get("observed")), low=low, high=high)
        cells = (
            cell_of(Score(value=number(band.get("predicted"))), notes),
            cell_of(observed, notes),
            count_cell(band.get("patients"), notes),
        )
        rows.append(Row(name=name, cells=cells))
    columns = ("predicted, mean", f"observed, {_percent(raw.get('band_level'))} interval", "patients")
    return Table(columns=columns, rows=tuple(rows), notes=notes) if rows else None


def certainty_view(study: Study, task: TaskView) -> CertaintyView | None:
    """A task's section from `result["certainty"]`, or None where the result has nothing on it."""
    raw = mapping(mapping(study.raw.get("certainty")).get(task.name))
    sentences, table = _sets(mapping(raw.get("sets")), raw.get("patients")), _bands(raw)
    return CertaintyView(sentences=sentences, bands=table) if sentences or table else None
