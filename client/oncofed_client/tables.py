"""Strict reading of a site's tables: what a file says, or the exact place where it is wrong.

pandas fills short rows silently, renames duplicate columns and takes a long row's first cell for an
index, so the records come from the standard library's `csv` in strict mode, which also knows the
line of each.

A message names file, row (the 1-based line in the file), column and what was expected. It never
holds a cell: not a value, not a patient's id, and not even the header while it is not certain that
the first line is one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_client.prepare.clinical import with_durations
from oncofed_client.settings import SiteSettings, TableSettings
from oncofed_shared.errors import DataError, OncofedError

__all__ = ["SHOWN", "Problems", "Records", "Table", "load_tables", "read_records", "read_table"]

SHOWN = 20
"""Problems of one file that are shown; the rest are counted."""


class Problems:
    """Collects what is wrong in a site's files, so that a person can mend it in one go.

    Falsy while there is none.
    """

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}
        self._count: dict[str, int] = {}

    def add(self, file: str, message: str, *, row: int | None = None, column: str | None = None) -> None:
        """Note one problem; `message` says what was expected and what to do, never a value."""
        self._count[file] = self._count.get(file, 0) + 1
        lines = self._lines.setdefault(file, [])
        if len(lines) < SHOWN:
            place = file
            place += "" if row is None else f", row {row}"
            place += "" if column is None else f", column {column}"
            lines.append(f"{place}: {message}")

    def take(self, error: OncofedError) -> None:
        """Note the problems of an error, whose lines already say where."""
        self._count[""] = self._count.get("", 0) + len(error.problems)
        self._lines.setdefault("", []).extend(error.problems)

    def __len__(self) -> int:
        return sum(self._count.values())

    def lines(self) -> tuple[str, ...]:
        """At most `SHOWN` lines per file, and a count of the rest."""
        shown: list[str] = []
        for file, lines in self._lines.items():
            shown += lines
            if self._count[file] > len(lines):
                shown.append(f"{file}: and {self._count[file] - len(lines)} more problems")
        return tuple(shown)

    def raise_if_any(self) -> None:
        """Raise what was collected.

        Raises:
            DataError: there was a problem.
        """
        if len(self):
            raise DataError(*self.lines())


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class Records:
    """A file as it stands: the header and its line, the rows and the line on which each starts."""

    header: tuple[str, ...]
    header_line: int
    rows: list[list[str]]
    lines: list[int]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class Table:
    """One table, with the study's column names and without the id column.

    Attributes:
        name: its name in `site.toml`.
        file: its path, for messages.
        ids: (n,) patient ids, unique, in file order.
        columns: (c,) column names, unique.
        cells: (n, c) texts without surrounding blanks; the empty text is a missing value.
        lines: (n,) line in the file on which each row starts.
        settings: what `site.toml` says of it.
    """

    name: str
    file: str
    ids: tuple[str, ...]
    columns: tuple[str, ...]
    cells: NDArray[np.object_]
    lines: NDArray[np.int64]
    settings: TableSettings

    def __repr__(self) -> str:
        return f"Table({self.name!r}, {len(self.ids)} patients, {len(self.columns)} columns)"

    def rows_of(self, patients: Sequence[str]) -> NDArray[np.int64]:
        """Row of each patient, (len(patients),), -1 for a patient who is not in this table."""
        place = {p: i for i, p in enumerate(self.ids)}
        return np.array([place.get(p, -1) for p in patients], dtype=np.int64)


def _text(path: Path, problems: Problems) -> str | None:
    """Read the file's text; None when it cannot be had. A missing file raises FileNotFoundError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        problems.add(str(path), f"cannot be read ({error.strerror}); let this user read the file")
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        problems.add(str(path), "expected UTF-8 text; save the file as 'CSV UTF-8'", row=row)
        return None


def read_records(path: Path, problems: Problems) -> Records | None:
    """Read a .csv or .tsv as it stands; None, with the problem noted, when it is not one.

    Rows with too few or too many cells are noted and left out; empty lines are skipped.

    Raises:
        FileNotFoundError: there is no such file.
    """
    text = _text(path, problems)
    if text is None:
        return None
    file, delimiter = str(path), "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: tuple[str, ...] | None = None
    header_line = start = 1
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not any(cells):
                continue
            if header is None:
                header, header_line = tuple(c.strip() for c in cells), line
            elif len(cells) != len(header):
                problems.add(
                    file,
                    f"expected {len(header)} cells as in the header, found {len(cells)}",
                    row=line,
                )
            else:
                rows.append(cells)
                lines.append(line)
    except csv.Error:
        problems.add(file, "a quote is not closed, or text follows a closing quote", row=start)
        return None
    if header is None:
        problems.add(file, "expected a header in the first line; the file is empty")
        return None
    return Records(header=header, header_line=header_line, rows=rows, lines=lines)


def _header_ok(file: str, records: Records, settings: TableSettings, problems: Problems) -> bool:
    """Check the header. Without the id column its cells may be a patient's, so none is shown."""
    header, row = records.header, records.header_line
    if settings.id not in header:
        separator = "tabs" if file.lower().endswith(".tsv") else "commas"
        problems.add(
            file,
            f"expected a header with the id column '{settings.id}', separated by {separator}; "
            "correct the file, or name its id column in site.toml",
            row=row,
        )
        return False
    seen: set[str] = set()
    before = len(problems)
    for place, local in enumerate(header, 1):
        name = settings.rename.get(local, local)
        if not name:
            problems.add(file, f"column number {place} has no name; name it or delete it", row=row)
        elif name in seen:
            problems.add(file, "this column appears twice; delete or rename one", row=row, column=name)
        seen.add(name)
    return len(problems) == before


def _unique_ids(file: str, ids: Sequence[str], lines: Sequence[int], column: str, problems: Problems) -> list[int]:
    """Find the rows with an id of their own; the others are noted."""
    first: dict[str, int] = {}
    keep = []
    for i, (patient, line) in enumerate(zip(ids, lines, strict=True)):
        if not patient:
            problems.add(file, "expected a patient id, the cell is empty or missing", row=line, column=column)
        elif patient in first:
            problems.add(
                file,
                f"the same patient id as in row {first[patient]}; expected one row per patient",
                row=line,
                column=column,
            )
        else:
            first[patient] = line
            keep.append(i)
    return keep


def read_table(path: Path, name: str, settings: TableSettings, problems: Problems) -> Table | None:
    """Read one table; None, with the problems noted, when it is unusable as a whole.

    Args:
        path: the file.
        name: its name in `site.toml`.
        settings: its id column, renamings and texts that mean missing.
        problems: collects duplicate or empty ids, ragged rows and the like.

    Raises:
        FileNotFoundError: there is no such file.
    """
    records = read_records(path, problems)
    if records is None or not _header_ok(str(path), records, settings, problems):
        return None
    missing = {*settings.missing, ""}
    rows = [["" if (text := cell.strip()) in missing else text for cell in row] for row in records.rows]
    place = records.header.index(settings.id)
    ids = [row.pop(place) for row in rows]
    keep = _unique_ids(str(path), ids, records.lines, settings.id, problems)
    local = [c for i, c in enumerate(records.header) if i != place]
    local, rows = with_durations(str(path), local, rows, records.lines, settings=settings, problems=problems)
    columns = [settings.rename.get(c, c) for c in local]
    cells: NDArray[Any] = np.empty((len(keep), len(columns)), dtype=object)
    if keep and columns:
        cells[:] = [rows[i] for i in keep]
    return Table(
        name=name,
        file=str(path),
        ids=tuple(ids[i] for i in keep),
        columns=tuple(columns),
        cells=cells,
        lines=np.array([records.lines[i] for i in keep], dtype=np.int64),
        settings=settings,
    )


def load_tables(folder: Path, settings: SiteSettings, problems: Problems) -> dict[str, Table]:
    """Read all tables that a site has, by their names in `site.toml`.

    A file that does not exist is a table that the site lacks, unless `required = true`.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be read as a folder ({error.strerror}); check its name and rights",
            code="folder",
        ) from None
    tables: dict[str, Table] = {}
    for name, table in settings.tables.items():
        try:
            read = read_table(folder / table.file, name, table, problems)
        except FileNotFoundError:
            if table.required:
                problems.add(str(folder / table.file), f"does not exist, but tables.{name} is required")
            continue
        if read is not None:
            tables[name] = read
    return tables
