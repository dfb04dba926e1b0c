"""Reading a table: what a file says, or the exact place where it is wrong, and never a patient's value."""

from __future__ import annotations

import csv
import io
import os
import re
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from oncofed_client.check import check_study, inventory
from oncofed_client.cohort import consented, read_cohort
from oncofed_client.settings import SiteSettings, TableSettings
from oncofed_client.show import show_check, show_inventory
from oncofed_client.tables import SHOWN, Problems, Table, load_tables, read_table
from oncofed_client.values import Quantity, codes, numbers
from oncofed_shared.errors import DataError, ExitCode, OncofedError
from oncofed_shared.plan import Plan, parse


def read(folder: Path, content: str | bytes, file: str = "t.csv", **options: object) -> tuple[Table | None, Problems]:
    path = folder / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    problems = Problems()
    table_settings = TableSettings.model_validate({"file": file, **options})
    return read_table(path, "t", table_settings, problems), problems


def one(problems: Problems) -> str:
    assert len(problems) == 1
    return problems.lines()[0]


def good(folder: Path, content: str | bytes, file: str = "t.csv", **options: object) -> Table:
    table, problems = read(folder, content, file, **options)
    assert table is not None
    assert problems.lines() == ()
    return table


def test_reads_what_hospitals_write(tmp_path: Path) -> None:
    content = '\ufeffpatient_id, age ,note\r\n\r\nP2 , 34.0,"a, b"\r\n,,\r\nP1,NA,[Not Available]\r\n'
    table = good(tmp_path, content, rename={"note": "text"})
    assert table.ids == ("P2", "P1")
    assert table.columns == ("age", "text")
    assert table.cells.tolist() == [["34.0", "a, b"], ["", ""]]
    assert table.lines.tolist() == [3, 5]
    assert table.rows_of(["P1", "P3", "P2"]).tolist() == [1, -1, 0]
    tabs = good(tmp_path, "case\tx\nP1\t1,5\n", "t.tsv", id="case", missing=("-9",))
    assert tabs.cells.tolist() == [["1,5"]]


def test_rows_are_counted_by_lines_of_the_file(tmp_path: Path) -> None:
    table = good(tmp_path, 'patient_id,note\nP1,"two\nlines"\nP2,x\n')
    assert table.lines.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("patient_id,a\nP1,1\nP2,2\nP1,3\n", "row 4, column patient_id: the same patient id as in row 2"),
        ("patient_id,a\nP1,1\n,2\n", "row 3, column patient_id: expected a patient id"),
        ("patient_id,a\nP1,1\nNA,2\n", "row 3, column patient_id: expected a patient id"),
        ("patient_id,a,a\nP1,1,2\n", "row 1, column a: this column appears twice"),
        ("patient_id,a,\nP1,1,2\n", "row 1: column number 3 has no name"),
        ("patient_id,a\nP1\n", "row 2: expected 2 cells as in the header, found 1"),
        ("patient_id,a\nP1,1,2\n", "row 2: expected 2 cells as in the header, found 3"),
        ('patient_id,a\nP1,1\nP2,"2\nP3,3\n', "row 3: a quote is not closed"),
        (b"patient_id,a\nP1,1\nP2,\xe9\n", "row 3: expected UTF-8 text"),
        ("", "expected a header in the first line; the file is empty"),
        ("\n\n", "expected a header in the first line; the file is empty"),
    ],
)
def test_malformed_files(tmp_path: Path, content: str | bytes, expected: str) -> None:
    _, problems = read(tmp_path, content)
    assert f"t.csv{',' if expected.startswith('row') else ':'} {expected}" in one(problems)


def test_without_a_header_the_first_row_is_a_patient_and_not_shown(tmp_path: Path) -> None:
    table, problems = read(tmp_path, "SECRET-1,54,MALE\nSECRET-2,61,FEMALE\n")
    assert table is None
    assert "expected a header with the id column 'patient_id', separated by commas" in one(problems)
    assert not re.search("SECRET|54|MALE", one(problems).replace(str(tmp_path), ""))


def test_at_most_twenty_problems_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    _, problems = read(tmp_path, "patient_id,a\n" + "P1\n" * 50)
    assert len(problems.lines()) == SHOWN + 1
    assert problems.lines()[-1].endswith("t.csv: and 30 more problems")
    with pytest.raises(DataError) as caught:
        problems.raise_if_any()
    assert caught.value.exit_code == ExitCode.INPUT


def site(**tables: dict[str, object]) -> SiteSettings:
    return SiteSettings.model_validate({"site": {"name": "north"}, "tables": tables})


def test_folders_and_files_that_cannot_be_read(tmp_path: Path) -> None:
    problems = Problems()
    with pytest.raises(DataError, match="nowhere: cannot be read as a folder"):
        load_tables(tmp_path / "nowhere", site(a={"file": "a.csv"}), problems)
    (tmp_path / "b.csv").write_text("patient_id\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"b\.csv: cannot be read as a folder") as caught:
        load_tables(tmp_path / "b.csv", site(a={"file": "a.csv"}), problems)
    assert caught.value.exit_code == ExitCode.INPUT


def test_a_missing_file_is_a_lacking_table_unless_required(tmp_path: Path) -> None:
    problems = Problems()
    assert load_tables(tmp_path, site(a={"file": "a.csv"}), problems) == {}
    assert not problems
    assert load_tables(tmp_path, site(a={"file": "a.csv", "required": True}), problems) == {}
    assert "a.csv: does not exist, but tables.a is required" in one(problems)


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    problems = Problems()
    load_tables(tmp_path, site(a={"file": "a.csv"}), problems)
    assert "a.csv: cannot be read" in one(problems)


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator can read everything")
def test_a_folder_without_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be read as a folder"):
            load_tables(tmp_path, site(a={"file": "a.csv"}), Problems())
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("text", ["high", "1_000", "3,5", "0x10", "\u0663", "1 2", "NaN?"])
def test_text_in_a_numeric_column(tmp_path: Path, text: str) -> None:
    table = good(tmp_path, f'patient_id,age\nP1,50\nP2,"{text}"\n')
    problems = Problems()
    read_values = numbers(table, table.rows_of(table.ids), [Quantity(index=0)], problems)
    assert "t.csv, row 3, column age: expected a number with a decimal point, found text" in one(problems)
    assert text not in one(problems)
    np.testing.assert_array_equal(read_values, [[50], [np.nan]])


@pytest.mark.parametrize("text", ["inf", "-Infinity", "1e999"])
def test_infinite_values(tmp_path: Path, text: str) -> None:
    table = good(tmp_path, f"patient_id,age\nP1,{text}\n")
    problems = Problems()
    numbers(table, table.rows_of(table.ids), [Quantity(index=0)], problems)
    assert "row 2, column age: expected a finite number, found an infinite value" in one(problems)


def test_a_range_holds_after_conversion_to_the_last_digit(tmp_path: Path) -> None:
    table = good(tmp_path, "patient_id,age\nP1,1440\nP2,1441\nP3,0\nP4,-1\nP5,\n")
    problems = Problems()
    wanted = Quantity(index=0, factor=Fraction(1, 12), low=0, high=120, expected="from 0 to 120 years")
    got = numbers(table, table.rows_of(table.ids), [wanted], problems)
    np.testing.assert_array_equal(got[:, 0], [120, np.nan, 0, np.nan, np.nan])
    assert [re.search(r"row (\d)", line)[1] for line in problems.lines()] == ["3", "5"]  # type: ignore[index]
    assert all("expected from 0 to 120 years" in line for line in problems.lines())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(values=st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=12))
def test_numbers_are_read_exactly(tmp_path: Path, values: list[float | None]) -> None:
    lines = [f"P{i},{'' if v is None else repr(v)}" for i, v in enumerate(values)]
    table = good(tmp_path, "patient_id,x\n" + "\n".join(lines))
    problems = Problems()
    got = numbers(table, table.rows_of(table.ids), [Quantity(index=0)], problems)
    assert not problems
    np.testing.assert_array_equal(got[:, 0], [np.nan if v is None else v for v in values])


def test_codes_compare_numbers_as_numbers(tmp_path: Path) -> None:
    table = good(tmp_path, "patient_id,x\nP1,1.0\nP2,0\nP3,\nP4,2\nP5,01\n")
    problems = Problems()
    got = codes(table, table.rows_of([*table.ids, "P9"]), 0, ("0", "1"), problems)
    assert got.tolist() == [1, 0, -1, -1, 1, -1]
    assert "row 5, column x: expected one of: 0, 1" in one(problems)


PLAN = parse(
    {
        "study": {"name": "s", "purpose": "a study for tests"},
        "tasks": {
            "os": {
                "kind": "survival",
                "time": "days",
                "event": "event",
                "edges": [0, 1, 2],
                "horizon": 1,
            },
            "idh": {"kind": "classification", "label": "idh", "classes": ["WT", "MUT"]},
        },
        "modalities": {
            "clinical": {
                "columns": {
                    "age": {"kind": "numeric", "unit": "years", "range": [0, 120]},
                    "sex": {"kind": "categorical", "categories": ["F", "M"]},
                    "grade": {"kind": "ordinal", "order": ["low", "high"]},
                }
            },
            "genes": {"patterns": ["*_rnaseq"], "transform": "log"},
        },
        "evaluation": {"subgroups": {"age": {"column": "age", "edges": [0, 50, 100]}}},
        "training": {"rounds": 1},
    }
)
HEADER = ["patient_id", "days", "event", "idh", "age", "sex", "grade", "TP53_rnaseq", "consent"]
SENTINEL = st.from_regex(r"[A-Z]{4}[0-9]{6}", fullmatch=True)
NUMBER = st.integers(10**8, 10**9).map(lambda i: f"{i}.5")
CELL = (
    st.sampled_from(["", "0", "1", "WT", "M", "low", "12", "yes", "NA"])
    | SENTINEL
    | NUMBER
    | SENTINEL.map(lambda s: f'"{s}')
    | NUMBER.map(lambda s: f"-{s}")
)
ROWS = st.lists(st.lists(CELL, min_size=8, max_size=10), min_size=1, max_size=6)


def said(folder: Path, site_settings: SiteSettings, plan: Plan) -> str:
    """Everything that a person or a log could see of a folder."""
    texts = []
    calls: list[Callable[[], object]] = [
        lambda: read_cohort(folder, site_settings, plan),
        lambda: len(consented(folder, site_settings)),
    ]
    for call in calls:
        try:
            texts.append(repr(call()))
        except OncofedError as error:
            texts += [str(error), repr(error), error.code, str(error.__cause__)]
    console = Console(width=200, file=io.StringIO())
    show_inventory(console, inventory(folder, site_settings))
    show_check(console, check_study(folder, site_settings, plan))
    assert isinstance(console.file, io.StringIO)
    return "\n".join([*texts, console.file.getvalue()])


@settings(max_examples=40)
@given(rows=ROWS, header=st.booleans(), quoted=st.booleans(), column=st.booleans())
def test_no_cell_ever_appears_in_a_message(rows: list[list[str]], header: bool, quoted: bool, column: bool) -> None:
    content = [HEADER, *rows] if header else rows
    consent = {"column": "consent", "value": "yes"} if column else {"basis": "b", "reference": "r", "approved_by": "a"}
    site_settings = SiteSettings.model_validate(
        {
            "site": {"name": "north"},
            "tables": {"t": {"file": "t.csv"}},
            "consent": consent,
            "policy": {"minimum_cohort": 1},
        }
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "t.csv").open("w", newline="", encoding="utf-8") as file:
            if quoted:
                csv.writer(file).writerows(content)
            else:
                file.write("\n".join(",".join(row) for row in content))
        text = said(folder, site_settings, PLAN)
    planted = [c for row in rows for c in re.findall(r"[A-Z]{4}\d{6}|\d{9,10}", ",".join(row))]
    assert [c for c in planted if c in text] == []
