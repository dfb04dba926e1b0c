"""A site's settings: every mistake is named with its path, and consent has one of two whole forms."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_client.settings import (
    DEFAULT_MISSING,
    load_settings,
    settings_from_study,
    settings_from_text,
)
from oncofed_client.units import conversion, known_units
from oncofed_shared.errors import ConfigError, ExitCode

SMALL = """
[site]
name = "north"
[tables.clinical]
file = "clinical.csv"
"""


def mistakes(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        settings_from_text(text, "site.toml")
    assert caught.value.exit_code == ExitCode.INPUT
    return caught.value.problems


def test_defaults() -> None:
    settings = settings_from_text(SMALL, "site.toml")
    assert settings.tables["clinical"].id == "patient_id"
    assert settings.tables["clinical"].missing == DEFAULT_MISSING
    assert settings.policy.minimum_cohort == 10
    assert not settings.consent.given


def test_every_mistake_is_named_with_its_path_at_once() -> None:
    lines = mistakes(
        """
        [site]
        name = "north"
        town = "x"
        [tables.clinical]
        file = "clinical.csv"
        idd = "pid"
        [policy]
        minimum_cohort = "10"
        """
    )
    assert any(line.startswith("site.toml: site.town: unknown key") for line in lines)
    assert any(line.startswith("site.toml: tables.clinical.idd: unknown key") for line in lines)
    assert any("policy.minimum_cohort" in line for line in lines)


@pytest.mark.parametrize(
    ("consent", "expected"),
    [
        ('column = "consent"', "column also needs value"),
        ('basis = "b"\nreference = "r"', "basis, reference also needs approved_by"),
        ('basis = "b"\nreference = "r"\napproved_by = " "', "approved_by"),
        (
            'column = "c"\nvalue = "y"\nbasis = "b"\nreference = "r"\napproved_by = "a"',
            "not both",
        ),
        ('table = "clinical"', "table goes with column"),
        ('table = "other"\ncolumn = "c"\nvalue = "y"', "no table has this name"),
    ],
)
def test_half_a_consent_is_a_mistake(consent: str, expected: str) -> None:
    assert any(expected in line for line in mistakes(f"{SMALL}[consent]\n{consent}"))


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ('file = "../other/clinical.csv"', "site's folder"),
        ('file = "/data/clinical.csv"', "site's folder"),
        ('file = "clinical.xlsx"', ".csv"),
        ('file = "c.csv"\nrename = { a = "x", b = "x" }', "same name"),
        ('file = "c.csv"\nrename = { patient_id = "x" }', "id column"),
        ('file = "clinical.csv"', "already the file of tables.clinical"),
    ],
)
def test_tables_that_cannot_be_meant(table: str, expected: str) -> None:
    assert any(expected in line for line in mistakes(f"{SMALL}[tables.second]\n{table}"))


def test_a_study_names_the_site_after_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "north-hospital"
    folder.mkdir()
    site = {"tables": {"clinical": {"file": "clinical.csv"}}}
    assert settings_from_study(site, folder).site.name == "north-hospital"
    with pytest.raises(ConfigError, match=r"study: simulation\.site: tables"):
        settings_from_study({}, folder)


def test_absent_or_malformed_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="oncofed-site init"):
        load_settings(tmp_path)
    (tmp_path / "site.toml").write_text("[site\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"site\.toml: is not valid TOML.*line 1"):
        load_settings(tmp_path)
    (tmp_path / "site.toml").write_text(SMALL, encoding="utf-8")
    assert load_settings(tmp_path).site.name == "north"


@settings(max_examples=50)
@given(a=st.sampled_from(known_units()), b=st.sampled_from(known_units()))
def test_conversions_invert_and_never_cross_dimensions(a: str, b: str) -> None:
    there, back = conversion(a, b), conversion(b, a)
    if there is None or back is None:
        assert there is None
        assert back is None
    else:
        assert there * back == 1


def test_known_conversions() -> None:
    known = {
        ("years", "days"): 365.25,
        ("month", "Days"): 30.4375,
        ("weeks", "days"): 7,
        ("kg", "g"): 1000,
        ("cGy", "Gy"): 0.01,
        ("m", "mm"): 1000,
        ("ml", "mm3"): 1000,
        ("percent", "fraction"): 0.01,
        ("score", "score"): 1,
    }
    for (a, b), factor in known.items():
        assert conversion(a, b) == pytest.approx(factor, rel=1e-15)
    assert all(conversion(a, b) is None for a, b in product(("score", "kg"), ("days", "Gy")))
