"""`check` and `init` on raw files: what is there, what is wrong, and settings that need only consent."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from oncofed_client.__main__ import app
from oncofed_client.cohort import read_cohort
from oncofed_client.imaging.regions import read_region
from oncofed_client.imaging.series import find_series
from oncofed_client.imaging.volume import read_volume
from oncofed_client.init import propose_settings, write_settings
from oncofed_client.prepare.cache import existing_cache
from oncofed_client.prepare.cases import image_cases, measure
from oncofed_client.prepare.inventory import raw_report
from oncofed_client.prepare.preprocess import preprocess
from oncofed_client.prepare.propose_imaging import propose_imaging
from oncofed_client.prepare.propose_tables import propose_columns
from oncofed_client.prepare.radiomics import parse_extraction
from oncofed_client.settings import load_settings, settings_from_text
from oncofed_client.tables import Problems, read_records
from oncofed_shared.errors import DataError
from oncofed_shared.plan import Plan, RadiomicFeatures

STUDIES = Path(__file__).resolve().parents[2] / "simulations" / "studies"
LUNG = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom" / "lung_ct_rtstruct"
needs_lung = pytest.mark.skipif(not LUNG.is_dir(), reason="the public CT is not beside this project")
CONSENT = '[consent]\ntable = "clinical"\ncolumn = "consent"\nvalue = "yes"\n'


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@needs_lung
def test_check_lists_a_real_export_without_any_settings() -> None:
    code, out = run("check", LUNG)
    assert code == 0
    assert re.search(r"CT +ct +1 +1 +45 +0\n", out)
    assert re.search(r"RTSTRUCT +- +1 +1 +1 +0\n", out)
    assert "Carina_c40 1, LN_c40 1, Tumor_c40 1, Vertebra_c40 1" in out
    assert "PatientID 46, PatientName 46" in out
    settings = settings_from_text(propose_settings(LUNG), "proposed")
    assert settings.imaging is not None
    found = find_series(LUNG, settings.imaging)
    [patient] = found.patients()
    assert patient not in out


@needs_lung
def test_the_tumour_of_a_real_export_is_measured() -> None:
    settings = settings_from_text(propose_settings(LUNG), "proposed").imaging
    assert settings is not None
    found = find_series(LUNG, settings)
    made = parse_extraction({"imageType": {"Original": {}, "Wavelet": {}}, "setting": {"binWidth": 25}})
    wanted = RadiomicFeatures(file="r.yaml", sha256="0" * 64)
    [case] = image_cases("radiomics", wanted, made, inventory=found, patients=found.patients(), settings=settings)
    entry = measure(case)
    values = dict(zip(entry.columns, entry.values.tolist(), strict=True))
    series = found.images(case.patient)["ct"]
    image = read_volume(series, settings)
    mask = read_region("tumour", image, series, found, settings)
    inside = sitk.GetArrayViewFromImage(image)[sitk.GetArrayViewFromImage(mask) > 0]
    assert values["firstorder_Mean"] == pytest.approx(inside.mean(dtype=np.float64), rel=1e-6)
    assert values["shape_VoxelVolume"] == pytest.approx(len(inside) * np.prod(image.GetSpacing()))
    assert {n.split("_")[0].split("-")[0] for n in values} >= {
        "shape",
        "glcm",
        "glszm",
        "ngtdm",
        "gldm",
        "glrlm",
        "wavelet",
    }


@pytest.mark.parametrize("name", ["site-1", "site-2"])
def test_what_init_proposes_needs_only_consent(
    name: str, raw_sites: Path, prepared: Path, demo_plan: Plan, tmp_path: Path
) -> None:
    folder, state = tmp_path / name, tmp_path / "state"
    shutil.copytree(raw_sites / name, folder)
    given = load_settings(folder)
    (folder / "site.toml").unlink()
    write_settings(folder)
    text = (folder / "site.toml").read_text(encoding="utf-8")
    (folder / "site.toml").write_text(text.replace("[consent]\n", CONSENT), encoding="utf-8")
    proposed = load_settings(folder)
    report = preprocess(folder, proposed, demo_plan, study=STUDIES, state=state)
    assert report.failures == ()

    mine = read_cohort(folder, proposed, demo_plan, existing_cache(state))
    other = prepared / name
    expected = read_cohort(other, given, demo_plan, existing_cache(prepared / f"{name}.state"))
    assert mine.patients == expected.patients
    for modality, values in expected.values.items():
        np.testing.assert_array_equal(mine.values[modality], values, err_msg=modality)
    for task, labels in expected.labels.items():
        np.testing.assert_array_equal(mine.labels[task], labels, err_msg=task)


def test_check_with_a_study_says_what_is_prepared(copy_of: Callable[[str], Any]) -> None:
    hospital = copy_of("site-2")
    study = STUDIES / "demo.toml"
    elsewhere = hospital.folder.parent / "nothing"
    code, out = run("check", hospital.folder, "--study", study, "--state", elsewhere)
    assert "modality radiomics: is made from raw files and nothing of it is there yet" in out
    assert not elsewhere.exists(), "check writes nothing"
    code, out = run("check", hospital.folder, "--study", study)
    assert "nothing of it is there yet" not in out
    assert re.search(r"radiomics +\d+ +26 ", out)
    assert re.search(r"SEG +- ", out)
    assert "Sequencing files: expression 1, copy number 1, mutations 1" in out
    assert code in {0, 4}
    next(p for p in hospital.cache.folder.rglob("*-*") if p.is_file()).write_bytes(b"?")
    code, out = run("check", hospital.folder, "--study", study)
    assert code == 3
    assert "preprocess" in out


def test_check_names_what_is_wrong_in_raw_files(copy_of: Callable[[str], Any]) -> None:
    hospital = copy_of("site-1")
    rules = load_settings(hospital.folder).imaging
    found = find_series(hospital.folder, rules)
    one = next(s for s in found.series if s.role == "ct")
    one.files[0].write_bytes(one.files[0].read_bytes()[:400])
    (hospital.folder / "genomics" / "counts.tsv").unlink()
    report = raw_report(hospital.folder, load_settings(hospital.folder))
    assert report is not None
    assert any(one.files[0].name in p for p in report.problems)
    assert any("counts.tsv" in p for p in report.problems)
    code, out = run("check", hospital.folder)
    assert code == 0
    assert one.files[0].name in out
    assert one.patient not in out


def test_a_site_without_raw_files_has_no_raw_report(raw_sites: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    shutil.copy(raw_sites / "site-1" / "labels.csv", folder)
    settings = settings_from_text(propose_settings(folder), "proposed")
    assert (settings.imaging, settings.genomics) == (None, None)
    assert raw_report(folder, settings) is None
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no images and no sequencing files"):
        propose_settings(empty)


def write_volume(path: Path, value: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.full((4, 5, 6), value, np.float32)), str(path))


@pytest.mark.parametrize("deep", [True, False])
def test_nifti_and_nrrd_are_proposed_by_the_last_word_of_their_names(tmp_path: Path, deep: bool) -> None:
    for patient in ("A1", "B2"):
        for word in ("ct.nrrd", "flair.nii.gz", "seg.nii.gz"):
            where = tmp_path / "images" / (patient if deep else ".")
            write_volume(where / f"{patient}_{word}")
    settings = settings_from_text(f'[site]\nname = "a"\n{propose_imaging(tmp_path, ())}', "proposed").imaging
    assert settings is not None
    assert {r: s.kind for r, s in settings.series.items()} == {"ct": "CT", "flair": "MR"}
    found = find_series(tmp_path, settings)
    assert found.patients() == ("A1", "B2")
    assert set(found.images("A1")) == {"ct", "flair"}
    assert [s.regions for s in found.regions_of(found.images("A1")["ct"])] == [("tumour",)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("patient_id,dose_gy\na,60\nb,54.5\n", ""),
        ("patient_id,dose_gy\na,6000\nb,5450\n", 'units."dose_gy" = "cGy"'),
        ("patient_id,birth_date,diagnosis\na,1950-01-02,2010-03-04\n", 'durations.age = { since = "birth_date"'),
        ("patient_id,birth_date,diagnosis\na,13.01.1950,04.03.2010\n", 'date_format = "%d.%m.%Y"'),
        ("patient_id,birth,diagnosis\na,01/02/1950,03/04/2010\n", "# NOTE: every date also fits %d/%m/%Y"),
        ("patient_id,diagnosed,died,last_seen\na,2010-01-01,2011-01-01,\n", 'events.os_event = "died"'),
        ("patient_id,birth_date,age,diagnosis\na,1950-01-02,60,2010-03-04\n", ""),
        ("patient_id,when\na,2010-01-01\nb,soon\n", ""),
    ],
)
def test_dates_and_doses_are_proposed_from_columns(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    records = read_records(path, Problems())
    assert records is not None
    made = propose_columns(records)
    assert expected in made
    assert bool(made) == bool(expected)
    settings_from_text(f'[site]\nname = "a"\n[tables.t]\nfile = "t.csv"\n{made}', "proposed")
