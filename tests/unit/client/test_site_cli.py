"""`oncofed-site init` and `check`: one clear message, the right exit code, nothing half-written, no traceback."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from oncofed_client.init import propose_settings
from oncofed_client.settings import load_settings, settings_from_text
from oncofed_shared.errors import ExitCode

with warnings.catch_warnings():
    # typer 0.20 asks click 8.5, on import, for names that click is about to drop.
    warnings.simplefilter("ignore", DeprecationWarning)
    from oncofed_client.__main__ import main

GLIOMA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "glioma"
BASIS = '[consent]\nbasis = "public data"\nreference = "none"\napproved_by = "nobody"\n'
STUDY = """
[study]
name = "small"
purpose = "a study for tests"
[tasks.os]
kind = "survival"
time = "days"
event = "event"
edges = [0, 365, 730]
horizon = 365
[modalities.clinical.columns]
age = { kind = "numeric", unit = "years", range = [0, 120] }
[training]
rounds = 1
"""
SIMULATED = (
    STUDY
    + """
[simulation.site.tables.clinical]
file = "clinical.csv"
[simulation.site.consent]
basis = "public data"
reference = "none"
approved_by = "nobody"
"""
)
CLINICAL = "patient_id,age,days,event\n" + "".join(f"P{i},{30 + i},{i * 31 % 97},{i % 2}\n" for i in range(20))

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `oncofed-site` with arguments; its exit code, stdout and stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["oncofed-site", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site's folder with one table and no settings."""
    made = tmp_path / "north"
    made.mkdir()
    (made / "clinical.csv").write_text(CLINICAL, encoding="utf-8")
    return made


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(STUDY, encoding="utf-8")
    return path


def test_init_writes_settings_that_load_and_let_nobody_in(run: Run, folder: Path, study: Path) -> None:
    (folder / "genes.tsv").write_text("Patient ID\tTP53\nP1\t1\n", encoding="utf-8")
    (folder / "hospitals.csv").write_text("hospital,patients\na,1\n", encoding="utf-8")
    (folder / "broken.csv").write_bytes(b"patient_id\n\xff\n")
    code, out, err = run("init", folder)
    assert (code, err) == (0, "")
    assert "site.toml written. Nobody may enter until you fill in [consent]." in out
    text = (folder / "site.toml").read_text(encoding="utf-8")
    settings = load_settings(folder)
    assert settings.site.name == "north"
    assert {n: (t.file, t.id) for n, t in settings.tables.items()} == {
        "clinical": ("clinical.csv", "patient_id"),
        "genes": ("genes.tsv", "Patient ID"),
    }
    assert not settings.consent.given
    assert settings.policy.minimum_cohort == 10
    assert '#   "hospitals.csv": no column looks like a patient id' in text
    assert '#   "broken.csv": row 2: expected UTF-8 text' in text
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []

    code, out, _ = run("check", folder, "--study", study)
    assert code == ExitCode.REFUSED
    assert "nobody may enter" in out
    (folder / "site.toml").write_text(text.replace("[consent]\n", BASIS), encoding="utf-8")
    code, out, _ = run("check", folder, "--study", study)
    assert code == 0
    assert "The study can run here." in out


def test_both_commented_forms_of_consent_are_valid_once_uncommented(folder: Path) -> None:
    (folder / "clinical.csv").write_text(CLINICAL.replace("event", "consent"), encoding="utf-8")
    text = propose_settings(folder)
    for keys in (("table ", "column", "value"), ("basis", "reference", "approved_by")):
        chosen = text
        for key in keys:
            assert f"\n# {key}" in chosen
            chosen = chosen.replace(f"\n# {key}", f"\n{key}")
        assert settings_from_text(chosen, "site.toml").consent.given


def test_init_overwrites_nothing(run: Run, folder: Path) -> None:
    (folder / "site.toml").write_text("mine", encoding="utf-8")
    code, out, err = run("init", folder)
    assert (code, out) == (ExitCode.INPUT, "")
    assert "site.toml: exists already and is left as it is" in err
    assert (folder / "site.toml").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "has no .csv or .tsv file"),
        ({"a.csv": "hospital,patients\na,1\n"}, "no table has a patient id column"),
        ({"a.csv": "patient_id,x\nP1,1\nP1,2\n"}, "no table has a patient id column"),
    ],
)
def test_init_refuses_a_folder_without_tables(run: Run, tmp_path: Path, files: dict[str, str], expected: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    code, _, err = run("init", tmp_path)
    assert code == ExitCode.INPUT
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "site.toml").exists()


def test_init_into_a_folder_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    code, _, err = run("init", tmp_path / "nowhere")
    assert code == ExitCode.INPUT
    assert "nowhere: cannot be read as a folder" in err


def test_init_prefers_the_id_that_the_tables_share(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,case,x\n1,P1,5\n2,P2,6\n", encoding="utf-8")
    (tmp_path / "b-1.csv").write_text("case,y\nP2,6\n", encoding="utf-8")
    (tmp_path / "b 1.tsv").write_text("pid\ty\nX2\t6\n", encoding="utf-8")
    text = propose_settings(tmp_path)
    tables = settings_from_text(text, "site.toml").tables
    assert {n: t.id for n, t in tables.items()} == {"a": "case", "b 1": "pid", "b-1": "case"}
    assert text.count("shares no patient with the other tables") == 1


def test_an_inventory_is_always_done(run: Run, folder: Path) -> None:
    code, out, err = run("check", folder)
    assert (code, err) == (0, "")
    assert "No site.toml here; going by what" in out
    assert "20 patients in all tables together." in out
    assert not (folder / "site.toml").exists()
    (folder / "clinical.csv").write_text(CLINICAL + "P3,1,1,1\n", encoding="utf-8")
    (folder / "site.toml").write_text('[site]\nname = "n"\n[tables.c]\nfile = "clinical.csv"\n', encoding="utf-8")
    code, out, _ = run("check", folder)
    assert code == 0
    assert "row 22, column patient_id: the same patient id as in row 5" in out


def test_a_study_brings_settings_for_folders_without(run: Run, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "simulated.toml"
    path.write_text(SIMULATED, encoding="utf-8")
    code, out, _ = run("check", folder, "--study", path)
    assert code == 0
    assert "Study small at site north" in out
    (folder / "site.toml").write_text(propose_settings(folder), encoding="utf-8")
    assert run("check", folder, "--study", path)[0] == ExitCode.REFUSED


def test_a_study_without_them_goes_by_what_init_would_write(run: Run, folder: Path, study: Path) -> None:
    code, out, _ = run("check", folder, "--study", study)
    assert code == ExitCode.REFUSED
    assert "No site.toml here" in out
    assert "20 could take part" in out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text.replace("days", "dayz"), "no table has the column 'days'"),
        (lambda text: text + "P77,old,5,1\n", "row 22, column age: expected a number"),
        (lambda text: text + "P7,60,5,1\n", "row 22, column patient_id: the same patient id as in row 9"),
        (lambda text: text + "P77,inf,5,1\n", "row 22, column age: expected from 0 to 120 years, found an infinite"),
        (lambda text: text + "P77,60,5,2\n", "row 22, column event: expected one of: 0, 1"),
    ],
)
def test_wrong_files(run: Run, folder: Path, study: Path, change: Callable[[str], str], expected: str) -> None:
    (folder / "clinical.csv").write_text(change(CLINICAL), encoding="utf-8")
    settings = f'[site]\nname = "north"\n[tables.clinical]\nfile = "clinical.csv"\n{BASIS}'
    (folder / "site.toml").write_text(settings, encoding="utf-8")
    code, out, _ = run("check", folder, "--study", study)
    assert code == ExitCode.INPUT
    assert expected in out
    assert "The study cannot run here" in out


def test_a_unit_out_of_range(run: Run, folder: Path, study: Path) -> None:
    settings = '[site]\nname = "n"\n[tables.c]\nfile = "clinical.csv"\nunits = { age = "UNIT" }\n' + BASIS
    (folder / "clinical.csv").write_text(CLINICAL.replace("P3,33", "P3,660"), encoding="utf-8")
    for unit, expected in (("months", 0), ("years", ExitCode.INPUT), ("kg", ExitCode.INPUT)):
        (folder / "site.toml").write_text(settings.replace("UNIT", unit), encoding="utf-8")
        assert run("check", folder, "--study", study)[0] == expected


def test_mistakes_in_settings_study_and_usage(run: Run, folder: Path, study: Path, tmp_path: Path) -> None:
    (folder / "site.toml").write_text('[site]\nname = "n"\ntown = 1\n[tables]\n', encoding="utf-8")
    code, out, err = run("check", folder)
    assert (code, out) == (ExitCode.INPUT, "")
    assert "site.town: unknown key" in err
    (folder / "site.toml").unlink()
    study.write_text(STUDY + "[training2]\n", encoding="utf-8")
    code, _, err = run("check", folder, "--study", study)
    assert code == ExitCode.INPUT
    assert "training2: unknown key" in err
    assert run("check", folder, "--study", tmp_path / "none.toml")[0] == ExitCode.INPUT
    assert run("check", tmp_path / "nowhere")[0] == ExitCode.INPUT
    assert run("check")[0] == ExitCode.USAGE
    assert run("chek", folder)[0] == ExitCode.USAGE
    assert run("--help")[0] == 0


@pytest.mark.skipif(not GLIOMA.exists(), reason="../shared/data/glioma is not beside the project")
def test_a_real_hospital_from_init_to_check(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(GLIOMA / "henry-ford", folder)
    assert run("init", folder)[0] == 0
    assert {t.id for t in load_settings(folder).tables.values()} == {"patient_id"}
    path = tmp_path / "study.toml"
    study = STUDY.replace('"days"', '"os_days"').replace('"event"', '"os_event"')
    path.write_text(study, encoding="utf-8")
    code, out, _ = run("check", folder, "--study", path)
    assert code == ExitCode.REFUSED
    assert "241 could take part" in out
    text = (folder / "site.toml").read_text(encoding="utf-8")
    (folder / "site.toml").write_text(text.replace("[consent]\n", BASIS), encoding="utf-8")
    code, out, _ = run("check", folder, "--study", path)
    assert code == 0
    assert "TCGA-" not in out
