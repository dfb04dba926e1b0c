"""Dates become durations and are gone; units are converted and ranges checked (A-23..26)."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.cohort import read_cohort
from oncofed_client.prepare.clinical import parse_date
from oncofed_client.settings import SiteSettings, TableSettings
from oncofed_client.tables import Problems, Table, read_table
from oncofed_shared.errors import ConfigError, DataError
from oncofed_shared.plan import validate

DURATIONS = {
    "durations": {
        "os_days": {"since": "diagnosed", "until": ["died", "seen"]},
        "age": {"since": "born", "until": ["diagnosed"], "unit": "years"},
    },
    "events": {"os_event": "died"},
}


def read(folder: Path, text: str, **more: object) -> tuple[Table | None, Problems]:
    (folder / "t.csv").write_text(text)
    problems = Problems()
    settings = validate(TableSettings, {"file": "t.csv", **DURATIONS, **more}, "site.toml")
    return read_table(folder / "t.csv", "t", settings, problems), problems


TEXT = (
    "patient_id,born,diagnosed,died,seen,sex\n"
    "P1,1950-01-01,2010-01-01,2011-01-01,2010-06-01,f\n"
    "P2,1960-06-15,2010-01-01T00:00:00,,2010-01-31,m\n"
    "P3,,2010-01-01,NA,,f\n"
)


def test_dates_become_durations_and_are_gone(tmp_path):
    table, problems = read(tmp_path, TEXT)
    assert not problems
    assert table is not None
    assert table.columns == ("sex", "os_days", "age", "os_event")
    assert table.cells[:, 1].tolist() == ["365", "30", ""]
    assert table.cells[:, 3].tolist() == ["1", "0", "0"]
    assert [round(float(a), 1) for a in table.cells[:2, 2]] == [60.0, 49.5]
    assert not any("-" in cell for cell in table.cells.ravel())


@given(
    st.dates(date(1900, 1, 1), date(2100, 1, 1)),
    st.integers(0, 20_000),
    st.sampled_from(["%d.%m.%Y", "%Y/%m/%d", "%Y-%m-%d"]),
)
def test_a_duration_is_the_days_between(tmp_path_factory, start, days, pattern):
    end = start + timedelta(days=days)
    text = f"patient_id,a,b\nP1,{start.strftime(pattern)},{end.strftime(pattern)}\n"
    if end.year > 2150 or start.year < 1000:
        return
    folder = tmp_path_factory.getbasetemp()
    own = {"durations": {"t": {"since": "a", "until": ["b"]}}, "events": {}, "date_format": pattern}
    table, problems = read(folder, text, **own)
    assert not problems
    assert table is not None
    assert (table.columns, table.cells.tolist()) == (("t",), [[str(days)]])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("2011-01-01", "2011", "row 2, column died: expected a whole date as %Y-%m-%d"),
        ("2011-01-01", "01.01.2011", "row 2, column died: expected a whole date as %Y-%m-%d"),
        ("2011-01-01", "2011-02-30", "row 2, column died: expected a whole date"),
        ("2011-01-01", "9999-12-31", "row 2, column died: expected a whole date as %Y-%m-%d, from 1850 to 2150"),
        (
            "2011-01-01",
            "2009-12-31",
            "row 2, column os_days: ends before it begins: the date under diagnosed is the later one",
        ),
        ("born", "birth", "column born: this column of dates, named in site.toml, is absent"),
        ("sex", "os_days", "column os_days: stands in the file and under durations"),
    ],
)
def test_a_wrong_date_has_its_place_and_no_value(tmp_path, old, new, expected):
    _, problems = read(tmp_path, TEXT.replace(old, new, 1))
    assert any(expected in line for line in problems.lines())
    assert not any(new in line for line in problems.lines() if new[0].isdigit())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"durations": {"d": {"since": "a", "until": []}}}, r"durations\.d\.until: "),
        ({"durations": {"d": {"since": "a", "until": ["b"], "unit": "fortnights"}}}, r"durations\.d\.unit: "),
        ({"durations": {"d": {"since": "a", "until": ["b"]}}, "events": {"d": "a"}}, "d: is made twice"),
        ({"durations": {"d": {"since": "a", "until": ["b"]}}, "rename": {"x": "d"}}, "d: is made twice"),
        ({"events": {"patient_id": "a"}}, "must not make the id column"),
        ({"date_format": "%Y-%m"}, "date_format: "),
        ({"date_format": "%d-%d-%Y"}, "date_format needs %Y, %m and %d"),
    ],
)
def test_settings_of_dates_name_their_mistakes(settings, expected):
    with pytest.raises(ConfigError, match=expected):
        validate(TableSettings, {"file": "t.csv", **settings}, "site.toml")


def test_only_days_of_this_world_are_dates():
    assert parse_date("1980-02-29", "%Y-%m-%d") == date(1980, 2, 29)
    assert [parse_date(t, "%Y-%m-%d") for t in ("", "0001-01-01", "1981-02-29", "1980-02-29x", "today")] == [None] * 5


CLINICAL = (
    "mrn,sex,stage,treatment,prior_cancer,dose,born,diagnosed,died,seen,consent\n"
    "a,female,II,surgery,no,4500,1950-01-01,2010-01-01,2011-01-01,,yes\n"
    "b,male,IV,radiotherapy,yes,6000,1940-01-01,2010-01-01,,2012-01-01,yes\n"
)


def clinical_site(folder: Path, text: str) -> SiteSettings:
    (folder / "clinical.csv").write_text(text)
    table = {
        "file": "clinical.csv",
        "id": "mrn",
        "rename": {"dose": "dose_gy"},
        "units": {"dose_gy": "cGy"},
        **DURATIONS,
    }
    content = {
        "site": {"name": "s"}, "tables": {"clinical": table}, "consent": {"column": "consent", "value": "yes"},
    }  # fmt: skip
    return validate(SiteSettings, content, "site.toml")


def test_the_clinical_variables_of_a_hospital_reach_the_study(tmp_path, make_plan):
    columns = {
        "age": {"kind": "numeric", "unit": "years", "range": [0, 120]},
        "sex": {"kind": "categorical", "categories": ["female", "male"]},
        "stage": {"kind": "ordinal", "order": ["I", "II", "III", "IV"]},
        "treatment": {"kind": "categorical", "categories": ["surgery", "radiotherapy"]},
        "prior_cancer": {"kind": "categorical", "categories": ["no", "yes"]},
        "dose_gy": {"kind": "numeric", "unit": "Gy", "range": [0, 100]},
    }
    task = {"kind": "survival", "time": "os_days", "event": "os_event", "edges": [0, 365, 800], "horizon": 365}
    plan = make_plan(modalities={"clinical": {"columns": columns}}, tasks={"survival": task}, evaluation__subgroups={})
    cohort = read_cohort(tmp_path, clinical_site(tmp_path, CLINICAL), plan)
    values = dict(zip(cohort.columns["clinical"], cohort.values["clinical"].T.tolist(), strict=True))
    assert values["dose_gy"] == [45.0, 60.0]
    assert values["age"] == pytest.approx([60.0, 70.0], abs=0.01)
    assert (values["stage"], values["sex=female"], values["prior_cancer=yes"]) == ([1, 3], [1, 0], [0, 1])
    assert cohort.labels["survival"].tolist() == [[365, 1], [730, 0]]
    with pytest.raises(DataError, match="row 2, column dose_gy: expected from 0 to 100 Gy, found a number outside"):
        read_cohort(tmp_path, clinical_site(tmp_path, CLINICAL.replace("4500", "45000")), plan)
