"""What a synthetic consortium promises: same bytes, nothing overwritten, and gaps as told."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_client.settings import load_settings
from oncofed_shared.errors import ConfigError, ExitCode, StorageError
from oncofed_simulations.folders import new_folder, site_folders, write_table
from oncofed_simulations.population import COLUMNS, MODALITIES, STAGES, TREATMENTS
from oncofed_simulations.synthetic import read_settings, write_cohort

A_03 = {"sites": 6, "patients": 420}
Table = dict[str, dict[str, str]]


def read(path: Path) -> Table:
    """Read a table by patient id; ids must be unique."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = {row["patient_id"]: row for row in rows}
    assert len(table) == len(rows)
    return table


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort") / "sites"
    write_cohort(out, **A_03, seed=2024)
    return out


# -- files -------------------------------------------------------------------------------------


def test_same_seed_same_bytes_other_seed_other_patients(cohort: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "again", **A_03, seed=2024)
    assert contents(tmp_path / "again") == contents(cohort)
    write_cohort(tmp_path / "other", **A_03, seed=2025)
    assert not set(read(tmp_path / "other/site-1/labels.csv")) & set(read(cohort / "site-1/labels.csv"))


def test_shape_of_the_papers_cohort(cohort: Path) -> None:
    folders = site_folders(cohort)
    assert [f.name for f in folders] == [f"site-{k}" for k in range(1, 7)]
    clinical = [read(f / "clinical.csv") for f in folders]
    sizes = [len(t) for t in clinical]
    assert sum(sizes) == 420
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[-1]
    assert len({i for t in clinical for i in t}) == 420
    kinds = {r["cancer_type"] for f in folders for r in read(f / "labels.csv").values()}
    assert kinds == {"lung", "breast", "gbm"}


def test_site_settings_are_those_of_a_site(cohort: Path) -> None:
    for folder in site_folders(cohort):
        site = load_settings(folder)
        assert site.site.name == folder.name
        assert {t.file for t in site.tables.values()} == {p.name for p in folder.glob("*.csv")}
        assert (site.consent.table, site.consent.column, site.consent.value) == (
            "clinical",
            "consent",
            "yes",
        )
        consent = [r["consent"] for r in read(folder / "clinical.csv").values()]
        assert 0 < consent.count("no") < 0.1 * len(consent)
        assert set(consent) == {"yes", "no"}


def test_modalities_are_missing_as_promised(cohort: Path) -> None:
    held = {f.name: {m for m in MODALITIES if (f / f"{m}.csv").exists()} for f in site_folders(cohort)}
    assert held["site-6"] == {"clinical", "radiomics"}
    assert held["site-5"] == {"clinical", "expression", "cnv", "mutations"}
    assert all(held[f"site-{k}"] == set(MODALITIES) for k in range(1, 5))
    for folder in site_folders(cohort):
        everybody = set(read(folder / "clinical.csv"))
        for modality in held[folder.name] - {"clinical"}:
            table = read(folder / f"{modality}.csv")
            assert 0.8 * len(everybody) < len(table) < len(everybody)
            assert set(table) < everybody
            cells = [v for row in table.values() for k, v in row.items() if k != "patient_id"]
            assert 0.01 < cells.count("") / len(cells) < 0.06


def test_values_are_what_the_columns_say(cohort: Path) -> None:
    for folder in site_folders(cohort):
        for row in read(folder / "clinical.csv").values():
            assert row["age"] == "" or 18 <= float(row["age"]) <= 100
            assert row["sex"] in {"", "female", "male"}
            assert row["stage"] in {"", *STAGES}
            assert row["treatment"] in {"", *TREATMENTS}
            assert row["dose_gy"] == "" or 30 <= float(row["dose_gy"]) <= 90
            assert row["os_event"] in {"0", "1"}
            assert 1 <= int(row["os_days"]) <= 3000
            assert row["response"] in {"", "responder", "non-responder"}
        for modality, allowed in (("cnv", "-2 -1 0 1 2"), ("mutations", "0 1")):
            path = folder / f"{modality}.csv"
            if path.exists():
                values = {v for r in read(path).values() for c, v in r.items() if c != "patient_id"}
                assert values == {"", *allowed.split()}


def test_rows_are_in_no_order_that_tells_anything(cohort: Path) -> None:
    folder = cohort / "site-1"
    orders = [list(read(folder / f"{name}.csv")) for name in ("clinical", "labels", "radiomics")]
    assert orders[0] != orders[1]
    assert [i for i in orders[0] if i in set(orders[2])] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_tp53_label_agrees_with_the_mutation_table(cohort: Path) -> None:
    labels, mutations = read(cohort / "site-1/labels.csv"), read(cohort / "site-1/mutations.csv")
    known = {i: r["TP53_mut"] for i, r in mutations.items() if r["TP53_mut"]}
    assert all(labels[i]["tp53"] == ("mutant" if x == "1" else "wildtype") for i, x in known.items())
    assert all((labels[i]["tp53"] == "") == (i not in mutations) for i in labels)
    assert {r["tp53"] for r in read(cohort / "site-6/labels.csv").values()} == {""}


@settings(max_examples=15)
@given(sites=st.integers(1, 14), spare=st.integers(0, 60), seed=st.integers(0, 2**63 - 1))
def test_any_consortium_adds_up(tmp_path_factory: pytest.TempPathFactory, sites: int, spare: int, seed: int) -> None:
    out = tmp_path_factory.mktemp("any") / "sites"
    write_cohort(out, sites=sites, patients=4 * sites + spare, seed=seed)
    folders = site_folders(out)
    sizes = {f.name: len(read(f / "clinical.csv")) for f in folders}
    assert len(folders) == sites
    assert sum(sizes.values()) == 4 * sites + spare
    assert min(sizes.values()) >= 4
    without = {m: [f.name for f in folders if not (f / f"{m}.csv").exists()] for m in MODALITIES}
    expected = max(1, sites // 6) if sites > 2 else 0
    assert [len(without[m]) for m in MODALITIES] == [0, *[expected] * 4]
    assert not set(without["radiomics"]) & set(without["expression"])


def test_without_gaps_nobody_lacks_anything(tmp_path: Path) -> None:
    write_cohort(tmp_path / "out", sites=2, patients=60, seed=1, gaps=0.0)
    for folder in site_folders(tmp_path / "out"):
        everybody = set(read(folder / "clinical.csv"))
        for modality in COLUMNS:
            table = read(folder / f"{modality}.csv")
            assert set(table) == everybody
            assert all("" not in row.values() for row in table.values())


# -- refusals ----------------------------------------------------------------------------------


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept.txt").write_text("kept")
    with pytest.raises(ConfigError, match="not empty") as caught:
        write_cohort(tmp_path / "out", sites=3, patients=30, seed=1)
    assert caught.value.exit_code == ExitCode.INPUT
    assert contents(tmp_path) == {"out/kept.txt": b"kept"}
    with pytest.raises(ConfigError, match="not a folder"):
        write_cohort(tmp_path / "out/kept.txt", sites=3, patients=30, seed=1)


def test_an_empty_or_nested_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "a/b"):
        write_cohort(out, sites=2, patients=20, seed=1)
        assert [f.name for f in site_folders(out)] == ["site-1", "site-2"]
    assert not list(tmp_path.glob(".*"))


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_cohort(tmp_path / "file/out", sites=2, patients=20, seed=1)
    assert contents(tmp_path) == {"file": b""}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_nothing_half_written_stays(tmp_path: Path, stop: type[BaseException]) -> None:
    def half() -> None:
        with new_folder(tmp_path / "out") as partial:
            (partial / "site-1").mkdir()
            (partial / "site-1/clinical.csv").write_text("patient_id\n")
            raise stop

    with pytest.raises(stop):
        half()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No space left"), new_folder(tmp_path / "out"):
        write_table(Path("/dev/full"), ["patient_id"], [["P-1"]])
    assert not list(tmp_path.iterdir())


def test_every_wrong_setting_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings({"sites": 0, "patients": "many", "seed": 1, "sizes": [1]})
    text = str(caught.value)
    assert all(f"simulation.cohort: {key}: " in text for key in ("sites", "patients", "sizes"))
    with pytest.raises(ConfigError, match="at least 4 per site, 24"):
        read_settings({"sites": 6, "patients": 23, "seed": 1})


def test_site_folders_ignores_files_and_says_when_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        site_folders(tmp_path / "absent")
    (tmp_path / "hospitals.csv").write_text("hospital\n")
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/clinical.csv").write_text("patient_id\n")
    with pytest.raises(ConfigError, match="no subfolder holds a table"):
        site_folders(tmp_path)
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clinical.tsv").write_text("patient_id\n")
    assert [f.name for f in site_folders(tmp_path)] == ["a", "b"]


def test_sites_shift_the_radiomics(cohort: Path) -> None:
    def mean(name: str) -> float:
        rows = read(cohort / name / "radiomics.csv").values()
        return float(np.mean([float(r["firstorder_Entropy"]) for r in rows if r["firstorder_Entropy"]]))

    means = [mean(f"site-{k}") for k in (1, 2, 3, 4, 6)]
    # The standard error of a site's mean is below 0.1 here.
    assert max(means) - min(means) > 0.3


def test_settings_file_is_plain_toml(cohort: Path) -> None:
    content = tomllib.loads((cohort / "site-1/site.toml").read_text(encoding="utf-8"))
    assert set(content) == {"site", "tables", "consent", "policy"}
    assert content["policy"] == {"minimum_cohort": 10}
