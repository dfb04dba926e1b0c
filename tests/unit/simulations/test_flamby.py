"""What the import of FLamby promises: everybody in his region, texts as they were, clear errors."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from oncofed_client.settings import load_settings
from oncofed_shared.errors import ConfigError, DataError, ExitCode, OncofedError
from oncofed_simulations.flamby import REGIONS, import_flamby
from oncofed_simulations.folders import site_folders

REAL = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "fed_tcga_brca"
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason="FLamby's files are absent: ../shared/data/fed_tcga_brca"
)

AWKWARD = (
    "race_black or african american",
    "ajcc_pathologic_n_N0 (i-)",
    "icd_10_code_C50.9",
    "morphology_8500/3",
    "primary_diagnosis_Infiltrating duct carcinoma, NOS",
    'a "quoted" name',
    "{gene}*",
)
COLUMNS = (*AWKWARD, *(f"column_{i}" for i in range(39 - len(AWKWARD))))
Tables = dict[str, list[list[str]]]


def small() -> Tables:
    """Two patients per region, one of them with time 0, and in row 8 one who is in no fold."""
    people = [(f"PERSON-{i}", i % 6, "train" if i < 6 else "test") for i in range(12)]
    rows = [
        [pid, *("01"[(i + j) % 2] for j in range(39)), "1.0", f"{30 * i:.1f}"] for i, (pid, _, _) in enumerate(people)
    ]
    rows.insert(6, ["PERSON-X", *["0"] * 39, "0.0", "5.0"])
    return {
        "brca.csv": [["pid", *COLUMNS, "E", "T"], *rows],
        "train_test_split.csv": [
            ["pid", "fold", "fold2"],
            *([pid, fold, f"{fold}_{digit}"] for pid, digit, fold in people),
        ],
    }


def save(folder: Path, tables: Tables) -> Path:
    folder.mkdir()
    for name, rows in tables.items():
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_patient_of_a_fold_lands_in_his_region_with_his_texts(tmp_path: Path) -> None:
    tables = small()
    import_flamby(save(tmp_path / "src", tables), tmp_path / "out")
    assert {f.name for f in site_folders(tmp_path / "out")} == set(REGIONS)
    _, *rows = tables["brca.csv"]
    original = {row[0]: row for row in rows}
    for digit, region in enumerate(REGIONS):
        clinical = read(tmp_path / "out" / region / "clinical.csv")
        assert {r["patient_id"] for r in clinical} == {f"PERSON-{digit}", f"PERSON-{digit + 6}"}
        for row in clinical:
            assert list(row) == ["patient_id", *COLUMNS, "E", "T"]
            assert list(row.values()) == original[row["patient_id"]]
        split = {r["patient_id"]: r["fold"] for r in read(tmp_path / "out" / region / "split.csv")}
        assert split == {f"PERSON-{digit}": "train", f"PERSON-{digit + 6}": "test"}


def test_summary_names_what_was_dropped_and_what_was_kept(tmp_path: Path) -> None:
    summary = import_flamby(save(tmp_path / "src", small()), tmp_path / "out")
    assert "12 of 13 patients" in summary
    assert "1 patient dropped" in summary
    assert "in no fold of train_test_split.csv" in summary
    assert "row 8 of brca.csv" in summary
    assert "1 patient with time 0 kept" in summary
    assert "PERSON" not in summary


def test_sites_may_enter_without_a_consent_column(tmp_path: Path) -> None:
    import_flamby(save(tmp_path / "src", small()), tmp_path / "out")
    for folder in site_folders(tmp_path / "out"):
        site = load_settings(folder)
        assert site.site.name == folder.name
        assert site.consent.given
        assert site.consent.basis == "public de-identified data"


def change(row: int, column: str, text: str, table: str = "brca.csv") -> Callable[[Tables], None]:
    """Put `text` into a row of the file, the header being row 1."""

    def apply(tables: Tables) -> None:
        rows = tables[table]
        rows[row - 1][rows[0].index(column)] = text

    return apply


SPLIT = "train_test_split.csv"
BAD: dict[str, tuple[Callable[[Tables], object], type[OncofedError], str]] = {
    "no table": (lambda t: t.pop("brca.csv"), ConfigError, "brca.csv: there is no such file"),
    "no split": (lambda t: t.pop(SPLIT), ConfigError, f"{SPLIT}: there is no such file"),
    "empty file": (lambda t: t["brca.csv"].clear(), DataError, "row 1: no column pid, E, T"),
    "no event": (change(1, "E", "event"), DataError, "brca.csv: row 1: no column E"),
    "no fold": (change(1, "fold2", "f", SPLIT), DataError, f"{SPLIT}: row 1: no column fold2"),
    "same names": (change(1, "column_3", "column_4"), DataError, "two columns have the same name"),
    "one column more": (
        lambda t: t.update({"brca.csv": [[*row, "0"] for row in t["brca.csv"]]}),
        DataError,
        "40 columns beside pid, E and T; expected 39",
    ),
    "short row": (lambda t: t["brca.csv"][3].pop(), DataError, "row 4: expected 42 values"),
    "patient twice": (change(3, "pid", "PERSON-0"), DataError, "rows 2, 3: column pid"),
    "strange event": (change(5, "E", "dead"), DataError, "row 5: column E: expected 0 or 1"),
    "time before 0": (change(4, "T", "-1"), DataError, "row 4: column T: expected days"),
    "endless time": (change(4, "T", "inf"), DataError, "row 4: column T: expected days"),
    "seventh region": (change(2, "fold2", "train_6", SPLIT), DataError, "row 2: columns fold"),
    "folds disagree": (change(2, "fold2", "test_0", SPLIT), DataError, "row 2: columns fold"),
    "a stranger": (change(2, "pid", "PERSON-Y", SPLIT), DataError, "1 of its patients are not in"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    break_it, kind, message = BAD[name]
    tables = small()
    break_it(tables)
    source = save(tmp_path / "src", tables)
    with pytest.raises(kind) as caught:
        import_flamby(source, tmp_path / "out")
    assert message in str(caught.value)
    assert "PERSON" not in str(caught.value)
    assert caught.value.exit_code == ExitCode.INPUT
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    source = save(tmp_path / "src", small())
    (source / "brca.csv").write_bytes(b"pid,\xff\xfe,E,T\n")
    with pytest.raises(DataError, match=r"brca\.csv: is not a UTF-8 CSV file"):
        import_flamby(source, tmp_path / "out")


def test_an_occupied_folder_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "src", small())
    import_flamby(source, tmp_path / "out")
    before = (tmp_path / "out/canada/clinical.csv").read_bytes()
    with pytest.raises(ConfigError, match="not empty"):
        import_flamby(source, tmp_path / "out")
    assert (tmp_path / "out/canada/clinical.csv").read_bytes() == before


@needs_real_data
def test_published_counts(tmp_path: Path) -> None:
    summary = import_flamby(REAL, tmp_path / "out")
    assert "1088 of 1096 patients" in summary
    assert "8 patients dropped" in summary
    assert "rows 67, 198, 205, 222, 559, 643, 679, 736 of brca.csv" in summary
    assert "12 patients with time 0 kept" in summary
    patients, events = Counter[str](), []
    for region in REGIONS:
        clinical = read(tmp_path / "out" / region / "clinical.csv")
        fold = {r["patient_id"]: r["fold"] for r in read(tmp_path / "out" / region / "split.csv")}
        patients[region] = len(clinical)
        events.append(sum(r["E"] == "1.0" and fold[r["patient_id"]] == "test" for r in clinical))
        assert len(clinical[0]) == 1 + 39 + 2
        assert "primary_diagnosis_Infiltrating duct carcinoma, NOS" in clinical[0]
    assert patients.total() == 1088
    assert [patients[r] for r in REGIONS] == [311, 196, 206, 162, 162, 51]
    assert events == [14, 4, 8, 3, 2, 1]
