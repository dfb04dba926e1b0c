"""Finding the study's columns in a site's tables, and reading a modality from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed_client.settings import SiteSettings
from oncofed_client.tables import Problems, Table
from oncofed_client.values import Quantity, codes, numbers, quantity
from oncofed_shared.plan import (
    CategoricalColumn,
    Modality,
    NumericColumn,
    OrdinalColumn,
    Plan,
    SplitColumn,
    SurvivalTask,
    compile_pattern,
)

__all__ = ["Block", "Place", "find", "read_modality", "reserved_columns"]

_Declared = CategoricalColumn | OrdinalColumn


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a column is."""

    table: Table
    index: int


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class Block:
    """A modality at a site.

    Attributes:
        values: (n, c) in plan units, encoded, NaN = missing.
        columns: (c,) encoded names.
        found: columns of the files that were read, before encoding.
        first: index of each found column's first encoded one.
        absent: named columns of the plan that the site lacks.
        present: (n,) whether the patient has the modality: one value, or all of them under
            `missing = "drop"`.
    """

    values: NDArray[np.float64]
    columns: tuple[str, ...]
    found: tuple[str, ...]
    first: tuple[int, ...]
    absent: tuple[str, ...]
    present: NDArray[np.bool_]


def find(tables: Mapping[str, Table], column: str, table: str | None, problems: Problems) -> Place | None:
    """Find a column by its study name.

    Args:
        tables: the site's tables.
        column: its name.
        table: the only table to look in; without it, all.
        problems: notes a column that two tables have.

    Returns:
        Its place, or None if the site lacks it (or two tables have it).
    """
    places = [
        Place(table=t, index=t.columns.index(column))
        for name, t in tables.items()
        if (table is None or name == table) and column in t.columns
    ]
    if len(places) > 1:
        _ambiguous(column, [p.table for p in places], problems)
        return None
    return places[0] if places else None


def _ambiguous(column: str, tables: Sequence[Table], problems: Problems) -> None:
    names = " and ".join(f"'{t.name}'" for t in tables)
    problems.add(
        tables[0].file,
        f"the tables {names} both have this column; the study must say which table it means, "
        "or rename one in site.toml",
        column=column,
    )


def reserved_columns(plan: Plan, settings: SiteSettings) -> frozenset[str]:
    """Columns that a pattern must never read as features: labels, the published split, consent."""
    names: set[str] = set()
    for task in plan.tasks.values():
        if isinstance(task, SurvivalTask):
            names |= {task.time, task.event}
        else:
            names.add(task.label)
    if isinstance(plan.evaluation.split, SplitColumn):
        names.add(plan.evaluation.split.column)
    if settings.consent.column is not None:
        names.add(settings.consent.column)
    return frozenset(names)


def _matching(
    tables: Mapping[str, Table],
    modality: Modality,
    reserved: frozenset[str],
    problems: Problems,
) -> list[tuple[str, Place]]:
    """Columns of the site that a modality's patterns choose, by name."""
    wanted = [compile_pattern(p) for p in modality.patterns or ()]
    excluded = [compile_pattern(p) for p in modality.exclude]
    listed = modality.vocabulary and frozenset(modality.vocabulary)
    ids = {p for table in tables.values() for p in table.ids}
    places: dict[str, list[Place]] = {}
    for name, table in tables.items():
        if modality.table not in {None, name}:
            continue
        matched = [
            (i, c)
            for i, c in enumerate(table.columns)
            if c not in reserved and any(p.fullmatch(c) for p in wanted) and not any(p.fullmatch(c) for p in excluded)
        ]
        if any(c in ids for _, c in matched):
            # Names of columns go to the aggregator, so this one would carry ids over the boundary.
            problems.add(
                table.file,
                "expected column names, found patient ids; does the table lie on its side?",
            )
            continue
        for i, c in matched:
            if listed is None or c in listed:
                places.setdefault(c, []).append(Place(table=table, index=i))
    for column, where in places.items():
        if len(where) > 1:
            _ambiguous(column, [p.table for p in where], problems)
    return sorted((c, where[0]) for c, where in places.items() if len(where) == 1)


def _named(tables: Mapping[str, Table], modality: Modality, problems: Problems) -> list[tuple[str, Place]]:
    """Columns of the site that a modality names, in the plan's order."""
    excluded = [compile_pattern(p) for p in modality.exclude]
    places = []
    for column in modality.columns or {}:
        if any(p.fullmatch(column) for p in excluded):
            continue
        place = find(tables, column, modality.table, problems)
        if place is not None:
            places.append((column, place))
    return places


def _numeric(
    places: Sequence[tuple[str, Place]],
    modality: Modality,
    patients: Sequence[str],
    problems: Problems,
) -> dict[str, NDArray[np.float64]]:
    """All numeric columns of a modality, by name, each (n,)."""
    by_table: dict[str, list[tuple[str, Table, Quantity]]] = {}
    why = "because the study takes the logarithm" if modality.transform == "log" else None
    for column, place in places:
        spec = (modality.columns or {}).get(column)
        unit, limits = (spec.unit, spec.range) if isinstance(spec, NumericColumn) else (None, None)
        wanted = quantity(
            place.table,
            place.index,
            NumericColumn(kind="numeric", unit=unit, range=limits or modality.range),
            not_negative=why,
            problems=problems,
        )
        by_table.setdefault(place.table.name, []).append((column, place.table, wanted))
    read: dict[str, NDArray[np.float64]] = {}
    for group in by_table.values():
        table = group[0][1]
        block = numbers(table, table.rows_of(patients), [q for *_, q in group], problems)
        read |= {column: block[:, i] for i, (column, *_) in enumerate(group)}
    return read


def _bent(
    column: str, values: NDArray[np.float64], spec: NumericColumn | None
) -> tuple[NDArray[np.float64], list[str]]:
    """A numeric column, (n, 1 + knots), and behind it what is above each of its knots."""
    bends = spec.bends if isinstance(spec, NumericColumn) else {}
    above = [np.maximum(values - knot, 0) for knot in bends.values()]
    return np.stack([values, *above], axis=1), [column, *(column + bend for bend in bends)]


def _encoded(
    column: str,
    place: Place,
    spec: CategoricalColumn | OrdinalColumn,
    patients: Sequence[str],
    problems: Problems,
) -> tuple[NDArray[np.float64], list[str]]:
    """Encode a categorical column one-hot, (n, categories), or an ordinal one by rank, (n, 1)."""
    values = spec.categories if isinstance(spec, CategoricalColumn) else spec.order
    rows = place.table.rows_of(patients)
    code = codes(place.table, rows, place.index, values, problems)[:, None]
    if isinstance(spec, OrdinalColumn):
        return np.where(code < 0, np.nan, code.astype(np.float64)), [column]
    one_hot = (code == np.arange(len(values))).astype(np.float64)
    return np.where(code < 0, np.nan, one_hot), [f"{column}={v}" for v in values]


def read_modality(
    tables: Mapping[str, Table],
    modality: Modality,
    patients: Sequence[str],
    reserved: frozenset[str],
    problems: Problems,
) -> Block:
    """Read one modality for the given patients.

    Args:
        patients: (n,) ids, in the order of the result.
        reserved: columns that patterns must not read.
        problems: notes every value that is not what the plan declares.

    Returns:
        The block; (n, 0) when the site has none of the columns.
    """
    named = modality.columns is not None
    places = _named(tables, modality, problems) if named else _matching(tables, modality, reserved, problems)
    specs = modality.columns or {}
    plain = [p for p in places if not isinstance(specs.get(p[0]), _Declared)]
    numeric = _numeric(plain, modality, patients, problems)
    parts: list[NDArray[np.float64]] = []
    names: list[str] = []
    first: list[int] = []
    for column, place in places:
        first.append(len(names))
        spec = specs.get(column)
        if isinstance(spec, _Declared):
            values, own = _encoded(column, place, spec, patients, problems)
        else:
            values, own = _bent(column, numeric[column], spec)
        parts.append(values)
        names += own
    block = np.concatenate(parts, axis=1) if parts else np.empty((len(patients), 0))
    absent = tuple(c for c in specs if c not in dict(places))
    seen = ~np.isnan(block)
    whole = modality.missing == "drop"
    present = np.asarray(seen.all(axis=1) if whole else seen.any(axis=1))
    if not names or (whole and absent):
        present = np.zeros(len(patients), dtype=bool)
    return Block(
        values=np.ascontiguousarray(block),
        columns=tuple(names),
        found=tuple(c for c, _ in places),
        first=tuple(first),
        absent=absent,
        present=present,
    )
