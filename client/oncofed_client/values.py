"""From a table's texts to numbers, with the place of whatever the study did not declare."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from oncofed_client.settings import SETTINGS_FILE
from oncofed_client.tables import Problems, Table
from oncofed_client.units import conversion, known_units
from oncofed_shared.plan import NumericColumn

__all__ = ["Quantity", "chosen", "codes", "numbers", "quantity"]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.ASCII | re.IGNORECASE)
_LISTED = 12
"""Declared values that a message lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """One numeric column of a table and what the study declared of it.

    Attributes:
        index: the column's place in the table.
        factor: from the file's unit to the study's.
        low, high: limits after conversion, both allowed.
        expected: in words, for messages.
    """

    index: int
    factor: Fraction = Fraction(1)
    low: float = -np.inf
    high: float = np.inf
    expected: str = "a finite number"


def quantity(
    table: Table,
    index: int,
    declared: NumericColumn,
    *,
    not_negative: str | None,
    problems: Problems,
) -> Quantity:
    """Put together what is declared of a numeric column by the study and by `site.toml`.

    Args:
        table: the table.
        index: the column's place in it.
        declared: unit and range of the study.
        not_negative: why a negative value is wrong, if it is.
        problems: notes a unit that cannot be converted.
    """
    column = table.columns[index]
    unit, limits = declared.unit, declared.range
    low, high = limits or (-np.inf, np.inf)
    shown = f" {unit}" if unit else ""
    expected = f"from {low:g} to {high:g}{shown}" if limits else "a finite number"
    if not_negative is not None and low < 0:
        low = 0.0
        expected = f"0 or more{shown}, {not_negative}"
    factor: Fraction | None = Fraction(1)
    local = table.settings.units.get(column)
    if local is not None:
        factor = None if unit is None else conversion(local, unit)
        if factor is None:
            why = (
                "the study declares no unit for this column; remove this unit, if the file's numbers are in the study's"
                if unit is None
                else f"expected one that converts to {unit}; known are {', '.join(known_units())}"
            )
            message = f"the unit under tables.{table.name}.units in {SETTINGS_FILE}: {why}"
            problems.add(table.file, message, column=column)
    return Quantity(index=index, factor=factor or Fraction(1), low=low, high=high, expected=expected)


def _parsed(block: NDArray[np.object_]) -> NDArray[np.float64]:
    """Texts to floats: NaN for a missing value and for a text that is no number."""
    cells = block.ravel().tolist()
    joined = "".join(cells)
    # float() also takes digits of other scripts and underscores; with those it is the slow way.
    if joined.isascii() and "_" not in joined:
        try:
            fast = np.array([c or "nan" for c in cells], dtype=object).astype(np.float64)
            return fast.reshape(block.shape)
        except ValueError:
            pass
    slow = [float(c) if _NUMBER.fullmatch(c) or _INFINITE.fullmatch(c) else np.nan for c in cells]
    return np.array(slow, dtype=np.float64).reshape(block.shape)


def _complaint(table: Table, wanted: Quantity, *, text: bool, infinite: bool) -> str:
    """Say what is wrong with a cell, without the cell."""
    if text:
        return (
            "expected a number with a decimal point, found text; correct it or, if it means "
            f"'missing', add it to tables.{table.name}.missing in {SETTINGS_FILE}"
        )
    if infinite:
        return f"expected {wanted.expected}, found an infinite value; correct it"
    return (
        f"expected {wanted.expected}, found a number outside; correct it, or name the "
        f"file's unit under tables.{table.name}.units in {SETTINGS_FILE}"
    )


def numbers(
    table: Table, rows: NDArray[np.int64], wanted: Sequence[Quantity], problems: Problems
) -> NDArray[np.float64]:
    """Read numeric columns of a table in the study's units.

    Args:
        table: the table.
        rows: (n,) row of each patient, -1 for a patient without one.
        wanted: the columns.
        problems: notes text, infinite values and values out of range, each with its place.

    Returns:
        (n, len(wanted)), NaN where there is no value or the value is wrong.
    """
    full = np.full((len(rows), len(wanted)), np.nan)
    present = np.flatnonzero(rows >= 0)
    own = rows[present]
    if not len(own) or not wanted:
        return full
    block = table.cells[own[:, None], np.array([q.index for q in wanted])]
    missing = np.equal(block, "").astype(bool)
    values = _parsed(block)
    for c, q in enumerate(wanted):
        if q.factor != 1:
            values[:, c] = values[:, c] * float(q.factor.numerator) / float(q.factor.denominator)
    text = np.isnan(values) & ~missing
    infinite = np.isinf(values)
    low, high = np.array([q.low for q in wanted]), np.array([q.high for q in wanted])
    outside = ((values < low) | (values > high)) & ~infinite
    for r, c in np.argwhere(text | infinite | outside).tolist():
        message = _complaint(table, wanted[c], text=bool(text[r, c]), infinite=bool(infinite[r, c]))
        problems.add(
            table.file,
            message,
            row=int(table.lines[own[r]]),
            column=table.columns[wanted[c].index],
        )
    values[text | infinite | outside] = np.nan
    full[present] = values
    return full


def chosen(text: str, values: Sequence[str]) -> int:
    """Index of a text among declared values, -1 if it is none of them.

    Numbers are compared as numbers, because tools write 1 as 1.0.

    >>> chosen("1.0", ("0", "1")), chosen("WT", ("Mutant", "WT")), chosen("x", ("0", "1"))
    (1, 1, -1)
    """
    if text in values:
        return values.index(text)
    if _NUMBER.fullmatch(text):
        for i, value in enumerate(values):
            if _NUMBER.fullmatch(value) and float(value) == float(text):
                return i
    return -1


def codes(
    table: Table,
    rows: NDArray[np.int64],
    index: int,
    values: Sequence[str],
    problems: Problems | None,
) -> NDArray[np.int64]:
    """Read a column of declared values as indices into them.

    Args:
        table: the table.
        rows: (n,) row of each patient, -1 for a patient without one.
        index: the column's place.
        values: the declared values.
        problems: notes values that are not declared; without it they are simply -1.

    Returns:
        (n,) index, or -1 where there is no value or another one.
    """
    known: dict[str, int] = {"": -1}
    full = np.full(len(rows), -1, dtype=np.int64)
    listed = ", ".join(values[:_LISTED]) + (", ..." if len(values) > _LISTED else "")
    for i, row in enumerate(rows.tolist()):
        if row < 0:
            continue
        text = table.cells[row, index]
        if text not in known:
            known[text] = chosen(text, values)
        full[i] = known[text]
        if text and full[i] < 0 and problems is not None:
            problems.add(
                table.file,
                f"expected one of: {listed}; correct it or, if it means 'missing', add it to "
                f"tables.{table.name}.missing in {SETTINGS_FILE}",
                row=int(table.lines[row]),
                column=table.columns[index],
            )
    return full
