"""Who may enter. Consent is read from the file at every call, and what is not stated is a no."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from oncofed_client.columns import find
from oncofed_client.settings import SETTINGS_FILE, Consent, SiteSettings, TableSettings
from oncofed_client.tables import Problems, Table, read_table
from oncofed_shared.errors import DataError, PolicyRefusal

__all__ = ["allowed_patients", "consented"]

_SETTLED = 2_000_000_000
"""Nanoseconds after which a further change of a file surely changes its time stamp."""


def _stated(consent: Consent) -> None:
    if not consent.given:
        raise PolicyRefusal(
            f"{SETTINGS_FILE}, [consent]: nobody may enter, because no consent is stated; give "
            "column and value, or basis, reference and approved_by",
            code="consent",
        )


def _with_value(table: Table, index: int, consent: Consent) -> frozenset[str]:
    cells = table.cells[:, index]
    return frozenset(p for p, c in zip(table.ids, cells, strict=True) if c == consent.value)


def allowed_patients(tables: Mapping[str, Table], settings: SiteSettings) -> frozenset[str]:
    """Patients who may enter, from tables that were just read.

    Raises:
        PolicyRefusal: no form of consent is stated (code `consent`).
        DataError: the consent column is in no table, or in two.
    """
    consent = settings.consent
    _stated(consent)
    if consent.column is None:
        return frozenset(p for table in tables.values() for p in table.ids)
    problems = Problems()
    place = find(tables, consent.column, consent.table, problems)
    problems.raise_if_any()
    if place is None:
        where = f"table '{consent.table}'" if consent.table else "any table"
        raise DataError(
            f"{SETTINGS_FILE}, consent.column: '{consent.column}' is not a column of {where} that "
            "is here; nobody may enter",
            code="no-consent-column",
        )
    return _with_value(place.table, place.index, consent)


def consented(folder: Path, settings: SiteSettings) -> frozenset[str]:
    """Patients who may enter now: the same as `read_cohort` would ask, without reading their data.

    Cheap enough for every round: a file is read again only when its inode, size or time stamps
    changed, or when it changed
    so recently that they could not tell.

    Guarantees:
        - A withdrawal that is in the file when this is called is in the answer.

    Raises:
        PolicyRefusal: no form of consent is stated.
        DataError: a file with consent is unreadable or malformed.
    """
    consent = settings.consent
    _stated(consent)
    ids: set[str] = set()
    has_column: list[str] = []
    for name, table in settings.tables.items():
        if consent.table is not None and name != consent.table:
            continue
        path = folder / table.file
        try:
            stamp = _stamp(path)
            read = _agreed.__wrapped__ if _fresh(stamp) else _agreed
            found = read(str(path), stamp, name, table.model_dump_json(), consent)
        except FileNotFoundError:
            continue
        if found is not None:
            has_column.append(name)
            ids |= found
    if consent.column is not None and len(has_column) != 1:
        which = " and ".join(has_column) or "no table that is here"
        raise DataError(
            f"{folder}: the consent column '{consent.column}' is in {which}; expected one table",
            code="no-consent-column",
        )
    return frozenset(ids)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", code="folder") from None
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        max(status.st_mtime_ns, status.st_ctime_ns),
    )


def _fresh(stamp: tuple[int, ...]) -> bool:
    return time.time_ns() - stamp[-1] < _SETTLED


@lru_cache(maxsize=1024)
def _agreed(file: str, stamp: tuple[int, ...], name: str, table_json: str, consent: Consent) -> frozenset[str] | None:
    """Patients of one file who agreed; None when it lacks the consent column."""
    del stamp  # only there to tell the file's states apart
    problems = Problems()
    table = read_table(Path(file), name, TableSettings.model_validate_json(table_json), problems)
    problems.raise_if_any()
    if table is None or (consent.column is not None and consent.column not in table.columns):
        return None
    if consent.column is None:
        return frozenset(table.ids)
    return _with_value(table, table.columns.index(consent.column), consent)
