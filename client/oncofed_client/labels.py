"""Labels of a study's tasks, subgroups, and the published split, at a site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_client.columns import Place, find
from oncofed_client.tables import Problems, Table
from oncofed_client.values import codes, numbers, quantity
from oncofed_shared.plan import (
    ClassificationTask,
    NumericColumn,
    Plan,
    SplitColumn,
    Subgroup,
    SurvivalTask,
)

__all__ = ["TaskLabels", "label_columns", "read_labels", "read_split", "read_subgroup"]

Tables = Mapping[str, Table]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class TaskLabels:
    """One task's labels.

    Attributes:
        values: (n,) class index or -1, or (n, 2) days and event, or number of the cause, with NaN NaN where missing.
        absent: label columns that the site lacks; then nobody has a label.
        incomplete: patients with a time and no event, or the reverse.
    """

    values: NDArray[Any]
    absent: tuple[str, ...]
    incomplete: int = 0

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(n,) whether the patient has a label."""
        if self.values.ndim == 1:
            return np.asarray(self.values >= 0)
        return np.asarray(~np.isnan(self.values[:, 0]))


def label_columns(task: ClassificationTask | SurvivalTask) -> tuple[str, ...]:
    """Columns that hold a task's label."""
    return (task.label,) if isinstance(task, ClassificationTask) else (task.time, task.event)


def _numeric_column(
    place: Place,
    patients: Sequence[str],
    problems: Problems,
    *,
    unit: str | None,
    not_negative: str | None = None,
) -> NDArray[np.float64]:
    declared = NumericColumn(kind="numeric", unit=unit)
    wanted = quantity(place.table, place.index, declared, not_negative=not_negative, problems=problems)
    return numbers(place.table, place.table.rows_of(patients), [wanted], problems)[:, 0]


def _event(place: Place, patients: Sequence[str], problems: Problems, number: int) -> NDArray[np.float64]:
    """(n,) 1 for an event, or its cause from 1 to `number`, 0 for a censored follow-up, NaN where missing."""
    valid = tuple(str(cause) for cause in range(number + 1))
    code = codes(place.table, place.table.rows_of(patients), place.index, valid, problems)
    return np.where(code < 0, np.nan, code.astype(np.float64))


def read_labels(
    tables: Tables,
    task: ClassificationTask | SurvivalTask,
    patients: Sequence[str],
    problems: Problems,
) -> TaskLabels:
    """Read a task's labels for the given patients.

    A time is converted to days and is 0 or more; an event is 0 or 1, or up to the number of causes; a class is one of the task's.
    """
    places = {c: find(tables, c, task.table, problems) for c in label_columns(task)}
    here = {c for name, t in tables.items() if task.table in {None, name} for c in t.columns}
    absent = tuple(c for c in places if c not in here)
    n = len(patients)
    if isinstance(task, ClassificationTask):
        place = places[task.label]
        if place is None:
            return TaskLabels(values=np.full(n, -1, dtype=np.int64), absent=absent)
        rows = place.table.rows_of(patients)
        classes = codes(place.table, rows, place.index, task.classes, problems)
        return TaskLabels(values=classes, absent=absent)
    time, event = places[task.time], places[task.event]
    if time is None or event is None:
        return TaskLabels(values=np.full((n, 2), np.nan), absent=absent)
    days = _numeric_column(time, patients, problems, unit="days", not_negative="because it is a follow-up time")
    values = np.column_stack([days, _event(event, patients, problems, task.number)])
    half = np.isnan(values).any(axis=1)
    incomplete = int(np.count_nonzero(half & ~np.isnan(values).all(axis=1)))
    values[half] = np.nan
    return TaskLabels(values=values, absent=absent, incomplete=incomplete)


def read_subgroup(
    tables: Tables, subgroup: Subgroup, plan: Plan, patients: Sequence[str], problems: Problems
) -> NDArray[np.int64]:
    """Group of each patient, (n,), -1 for none.

    Bands between edges hold their lower edge; the last one holds its upper edge too.
    """
    place = find(tables, subgroup.column, subgroup.table, problems)
    if place is None:
        return np.full(len(patients), -1, dtype=np.int64)
    if subgroup.values is not None:
        rows = place.table.rows_of(patients)
        return codes(place.table, rows, place.index, subgroup.values, None)
    values = _numeric_column(place, patients, problems, unit=_declared_unit(plan, subgroup.column))
    edges = np.asarray(subgroup.edges, dtype=np.float64)
    bands = np.searchsorted(edges, values, side="right") - 1
    bands[values == edges[-1]] = len(edges) - 2
    outside = np.isnan(values) | (values < edges[0]) | (values > edges[-1])
    return np.where(outside, -1, bands).astype(np.int64)


def _declared_unit(plan: Plan, column: str) -> str | None:
    for modality in plan.modalities.values():
        spec = (modality.columns or {}).get(column)
        if isinstance(spec, NumericColumn) and spec.unit is not None:
            return spec.unit
    return None


def read_split(
    tables: Tables, split: SplitColumn, patients: Sequence[str], problems: Problems
) -> NDArray[np.int64] | None:
    """Read the published part of each patient, (n,): 0 train, 1 validation, 2 test, -1 none.

    None when the site lacks the column.
    """
    place = find(tables, split.column, split.table, problems)
    if place is None:
        return None
    values = (*split.train, *split.validation, *split.test)
    parts = [0] * len(split.train) + [1] * len(split.validation) + [2] * len(split.test)
    code = codes(place.table, place.table.rows_of(patients), place.index, values, None)
    return np.array([*parts, -1], dtype=np.int64)[code]
