"""Dates become durations while a table is read, and are not kept (A-23..26, G-35).

A date of birth or of diagnosis tells who somebody is; a model needs the time between two of them. So the columns that hold dates
end here: what a table offers afterwards has no date in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING

from oncofed_client.units import conversion

if TYPE_CHECKING:
    from oncofed_client.settings import Duration, TableSettings
    from oncofed_client.tables import Problems

__all__ = ["parse_date", "with_durations"]

_YEARS = range(1850, 2151)


def parse_date(text: str, pattern: str) -> date | None:
    """Read a date; None for a text that is none.

    Args:
        text: a cell.
        pattern: of `%Y`, `%m` and `%d`; with `%Y-%m-%d` a time of day may follow, which does not matter.

    >>> parse_date("2019-05-03T00:00:00", "%Y-%m-%d"), parse_date("3.5.2019", "%d.%m.%Y"), parse_date("2019", "%Y-%m-%d")
    (datetime.date(2019, 5, 3), datetime.date(2019, 5, 3), None)
    """
    if pattern == "%Y-%m-%d" and len(text) > 10 and text[10] in "T ":
        text = text[:10]
    try:
        found = datetime.strptime(text, pattern).date()  # noqa: DTZ007 - a day in a hospital has no time zone
    except ValueError:
        return None
    return found if found.year in _YEARS else None


def _dates(
    cells: Sequence[str], lines: Sequence[int], *, file: str, column: str, pattern: str, problems: Problems
) -> list[date | None]:
    found: list[date | None] = []
    for text, line in zip(cells, lines, strict=True):
        day = parse_date(text, pattern) if text else None
        if text and day is None:
            message = (
                f"expected a whole date as {pattern}, from {_YEARS[0]} to {_YEARS[-1]}; correct it, or set date_format"
            )
            problems.add(file, message, row=line, column=column)
        found.append(day)
    return found


def _span(duration: Duration, dates: Mapping[str, list[date | None]], row: int) -> int | None:
    """Days of one patient; None where an end is missing."""
    start = dates[duration.since][row]
    end = next((day for c in duration.until if (day := dates[c][row]) is not None), None)
    return None if start is None or end is None else (end - start).days


def with_durations(
    file: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    lines: Sequence[int],
    *,
    settings: TableSettings,
    problems: Problems,
) -> tuple[list[str], list[list[str]]]:
    """Replace the columns of dates that a table's settings name by durations and events.

    Args:
        file: for messages.
        columns: names as in the file.
        rows: cells by row, the empty text for a missing one.
        lines: line of each row.
        settings: of the table.
        problems: notes absent columns, cells that are no dates, and spans that end before they begin.

    Returns:
        Columns and rows: those that hold no date, then the durations, then the events (1 where there is a date, 0 where not).

    Guarantees:
        - No column that `durations` or `events` reads is among them.
    """
    used = dict.fromkeys(c for d in settings.durations.values() for c in (d.since, *d.until))
    used |= dict.fromkeys(settings.events.values())
    if not used:
        return list(columns), [list(row) for row in rows]
    new = [*settings.durations, *settings.events]
    for name in (n for n in new if n in columns and n not in used):
        problems.add(file, "stands in the file and under durations or events of site.toml; remove one", column=name)
    dates = {}
    for column in used:
        if column not in columns:
            problems.add(
                file, "this column of dates, named in site.toml, is absent; correct durations and events", column=column
            )
        place = list(columns).index(column) if column in columns else None
        cells = [row[place] if place is not None else "" for row in rows]
        dates[column] = _dates(cells, lines, file=file, column=column, pattern=settings.date_format, problems=problems)
    left = [i for i, c in enumerate(columns) if c not in used and c not in new]
    made = [[row[i] for i in left] for row in rows]
    for name, duration in settings.durations.items():
        factor = conversion("days", duration.unit)
        for i, line in enumerate(lines):
            days = _span(duration, dates, i)
            if days is not None and days < 0:
                message = f"ends before it begins: the date under {duration.since} is the later one; correct it"
                problems.add(file, message, row=line, column=name)
                days = None
            made[i].append("" if days is None or factor is None else _number(float(days * factor)))
    for column in settings.events.values():
        for row, day in zip(made, dates[column], strict=True):
            row.append("0" if day is None else "1")
    return [columns[i] for i in left] + new, made


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
