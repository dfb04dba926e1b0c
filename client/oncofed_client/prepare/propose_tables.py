"""What `init` proposes for the columns of a table: dates become durations, a dose that cannot be in Gy is in cGy."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from statistics import median
from typing import Any

from oncofed_client.prepare.clinical import parse_date
from oncofed_client.settings import DEFAULT_MISSING
from oncofed_client.tables import Records

__all__ = ["propose_columns"]

_HIGHEST_DOSE = 200.0
"""Gy; no course of treatment comes near it."""
_FORMATS = ("%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y")
_BIRTH, _DIAGNOSIS = ("birth", "dob", "born"), ("diagnos",)
_DEATH, _LAST = ("death", "died", "deceased"), ("last", "follow", "seen", "contact")


def _date_columns(records: Records) -> tuple[dict[str, int], list[str]]:
    """Columns that hold nothing but dates, by their place, and the forms that fit all of them."""
    forms = list(_FORMATS)
    found: dict[str, int] = {}
    for place, column in enumerate(records.header):
        cells = [text for row in records.rows if (text := row[place].strip()) not in DEFAULT_MISSING]
        fitting = [form for form in _FORMATS if cells and all(parse_date(c, form) for c in cells)]
        if fitting and set(fitting) & set(forms):
            forms = [form for form in forms if form in fitting]
            found[column] = place
    return found, forms


def _named(columns: Iterable[str], words: Collection[str]) -> list[str]:
    return [c for c in columns if any(word in c.casefold() for word in words)]


def propose_columns(records: Records) -> str:
    """Lines of a table's settings for its dates and units; empty where there is nothing to say."""
    return _dates(records) + _units(records)


def _units(records: Records) -> str:
    """A column whose name ends in Gy and whose values would be deadly in Gy."""
    wrong = []
    for place, column in enumerate(records.header):
        if column.casefold().endswith("gy") and not column.casefold().endswith("cgy"):
            values = [v for row in records.rows if (v := _number(row[place])) is not None]
            if values and median(values) > _HIGHEST_DOSE:
                wrong.append(column)
    if not wrong:
        return ""
    note = "# NOTE: these values are too high for Gy and are taken as cGy\n"
    return note + "".join(f'units.{json.dumps(column, ensure_ascii=False)} = "cGy"\n' for column in wrong)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _dates(records: Records) -> str:
    """Lines that turn dates into age, follow-up and event."""
    columns, forms = _date_columns(records)
    if not columns:
        return ""
    birth, diagnosis = _named(columns, _BIRTH), _named(columns, _DIAGNOSIS)
    death = _named(columns, _DEATH)
    last = [c for c in _named(columns, _LAST) if c not in {*birth, *diagnosis, *death}]
    content: dict[str, Any] = {} if forms[0] == _FORMATS[0] else {"date_format": forms[0]}
    durations: dict[str, Any] = {}
    taken = set(records.header)
    if birth and diagnosis and "age" not in taken:
        durations["age"] = {"since": birth[0], "until": diagnosis[:1], "unit": "years"}
    if diagnosis and (death or last) and "os_days" not in taken:
        durations["os_days"] = {"since": diagnosis[0], "until": [*death, *last], "unit": "days"}
    events = {"os_event": death[0]} if death and "os_event" not in taken else {}
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in content.items()]
    if len(forms) > 1:
        lines.append(f"# NOTE: every date also fits {forms[1]}: which of the two is it?\n")
    lines += [f"durations.{name} = {_inline(value)}\n" for name, value in durations.items()]
    lines += [f"events.{name} = {json.dumps(column, ensure_ascii=False)}\n" for name, column in events.items()]
    return "".join(lines)


def _inline(content: Mapping[str, Any]) -> str:
    """An inline table. JSON's texts and lists are TOML's."""
    return "{ " + ", ".join(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in content.items()) + " }"
