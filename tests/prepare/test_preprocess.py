"""Preprocessing as a whole: once, resumed, for the right patients alone, and in the same bytes whoever does it."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from oncofed_client.check import check_study
from oncofed_client.cohort import read_cohort
from oncofed_client.consent import consented
from oncofed_client.imaging.regions import read_region
from oncofed_client.imaging.series import find_series
from oncofed_client.imaging.volume import read_volume
from oncofed_client.prepare.cache import Damaged, existing_cache
from oncofed_client.prepare.keys import KEY_FILE
from oncofed_client.prepare.preprocess import preprocess
from oncofed_client.prepare.radiomics import extract, load_extraction
from oncofed_client.prepare.recipes import recipe
from oncofed_client.prepare.tables import prepared_tables
from oncofed_client.settings import load_settings
from oncofed_client.source import FolderSource
from oncofed_shared.errors import ConfigError, PolicyRefusal, StorageError
from oncofed_shared.plan import Plan, load, parse

STUDIES = Path(__file__).resolve().parents[2] / "simulations" / "studies"
CopyOf = Callable[[str], Any]


def changed(plan: Plan, **modalities: dict[str, Any]) -> Plan:
    content = plan.model_dump(mode="json")
    for name, more in modalities.items():
        content["modalities"][name] |= more
    return parse(content)


def images_of(hospital: Any) -> dict[str, tuple[Path, ...]]:
    """Files of the CT of every patient."""
    rules = load_settings(hospital.folder).imaging
    found = find_series(hospital.folder, rules)
    return {p: found.images(p)["ct"].files for p in found.patients()}


def rewrite(hospital: Any, old: str, new: str, file: str = "clinical.csv") -> None:
    path = hospital.folder / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def moved(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    """Pseudonyms whose entries are not the same."""
    return {path.split("/")[0] for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def test_everybody_who_consented_has_what_his_files_say(prepared: Path, demo_plan: Plan) -> None:
    for name in ("site-1", "site-2"):
        folder, settings = prepared / name, load_settings(prepared / name)
        cache = existing_cache(prepared / f"{name}.state")
        tables = prepared_tables(settings, demo_plan, cache, consented(folder, settings))
        assert set(tables) == {"radiomics", "expression", "cnv", "mutations"}
        found = find_series(folder, settings.imaging)
        made = load_extraction(STUDIES / "demo_radiomics.yaml", demo_plan.modalities["radiomics"].extraction.sha256)
        patient = tables["radiomics"].ids[0]
        series = found.images(patient)["ct"]
        image = read_volume(series, settings.imaging)
        expected = extract(image, read_region("tumour", image, series, found, settings.imaging), made)
        row = tables["radiomics"].cells[0].tolist()
        assert dict(zip(tables["radiomics"].columns, map(float, row), strict=True)) == expected
        assert set(tables["radiomics"].ids) == set(found.patients()) & consented(folder, settings)
        cohort = read_cohort(folder, settings, demo_plan, cache)
        assert {m: v.shape[1] for m, v in cohort.values.items() if m != "clinical"} == {
            "radiomics": 26, "expression": 40, "cnv": 20, "mutations": 20,
        }  # fmt: skip
        assert {
            p for p, v in zip(cohort.patients, cohort.values["radiomics"], strict=True) if not np.isnan(v).all()
        } == set(tables["radiomics"].ids) & set(cohort.patients)


def test_without_state_or_before_preprocessing_the_modality_is_absent(raw_sites: Path, demo_plan: Plan) -> None:
    folder, settings = raw_sites / "site-1", load_settings(raw_sites / "site-1")
    cohort = read_cohort(folder, settings, demo_plan)
    assert cohort.values["radiomics"].shape[1] == 0
    assert existing_cache(raw_sites / "nowhere") is None


def test_a_second_run_does_nothing_and_one_process_gives_the_bytes_of_two(copy_of: CopyOf, tmp_path: Path) -> None:
    hospital = copy_of("site-1")
    before = hospital.entries()
    again = hospital.preprocess(jobs=2)
    assert (again.made, again.failures) == (0, ())
    assert again.found == again.patients["radiomics"] + 3
    assert hospital.entries() == before
    other = tmp_path / "other.state"
    other.mkdir()
    shutil.copy(hospital.state / KEY_FILE, other / KEY_FILE)
    settings = load_settings(hospital.folder)
    report = preprocess(hospital.folder, settings, hospital.plan, study=STUDIES, state=other, jobs=1)
    assert report.made == again.found
    made = {str(p.relative_to(other / "cache")): p.read_bytes() for p in (other / "cache").rglob("*") if p.is_file()}
    made.pop("index")
    assert made == before


def test_nothing_is_read_where_nothing_changed(copy_of: CopyOf, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital = copy_of("site-1")
    time.sleep(2.1)  # time stamps are believed when they are two seconds old
    hospital.preprocess()
    monkeypatch.setattr("oncofed_client.prepare.preprocess.find_series", None)
    report = hospital.preprocess()
    assert (report.made, report.found) == (0, report.patients["radiomics"] + 3)
    monkeypatch.undo()
    path = next(iter(images_of(hospital).values()))[0]
    path.write_bytes(path.read_bytes())
    assert hospital.preprocess().made == 0, "another time stamp, the same bytes"


def test_a_changed_file_does_its_patient_anew_and_nobody_else(copy_of: CopyOf) -> None:
    hospital = copy_of("site-1")
    before = hospital.entries()
    allowed = consented(hospital.folder, load_settings(hospital.folder))
    patient, files = next((p, f) for p, f in images_of(hospital).items() if p in allowed)
    for path in files:
        content = pydicom.dcmread(path)
        pixels = content.pixel_array + 1
        content.PixelData = pixels.astype(content.pixel_array.dtype).tobytes()
        content.save_as(path)
    report = hospital.preprocess()
    assert report.made == 1
    after = hospital.entries()
    assert moved(before, after) == {hospital.cache.key.pseudonym(patient)}
    assert len(after) == len(before)


def test_files_under_other_names_and_in_other_folders_are_the_same_files(copy_of: CopyOf) -> None:
    hospital = copy_of("site-1")
    before = hospital.entries()
    for number, files in enumerate(images_of(hospital).values()):
        for place, path in enumerate(files):
            target = hospital.folder / "imaging" / f"export{number}" / f"{len(files) - place}.ima"
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
    assert hospital.preprocess().made == 0
    assert hospital.entries() == before


def test_one_variant_more_changes_that_patient_alone(copy_of: CopyOf) -> None:
    hospital = copy_of("site-1")
    before = hospital.entries()
    allowed = consented(hospital.folder, load_settings(hospital.folder))
    path = next(p for p in sorted((hospital.folder / "genomics/variants").glob("*.vcf")) if p.stem in allowed)
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.startswith("#")]
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    report = hospital.preprocess()
    assert report.made == 1
    assert moved(before, hospital.entries()) == {hospital.cache.key.pseudonym(path.stem)}


def test_withdrawn_consent_removes_everything_of_the_patient(copy_of: CopyOf) -> None:
    hospital = copy_of("site-2")
    settings = load_settings(hospital.folder)
    source = FolderSource(hospital.folder, settings, state=hospital.state)
    cohort = source.cohort(hospital.plan)
    withdraws, leaves = cohort.patients[0], cohort.patients[1]
    pseudonym = hospital.cache.key.pseudonym(withdraws)
    assert (hospital.cache.folder / pseudonym).is_dir()
    text = (hospital.folder / "clinical.csv").read_text(encoding="utf-8").splitlines()
    said = [line.replace(",yes,", ",no,") if line.startswith(withdraws) else line for line in text]
    (hospital.folder / "clinical.csv").write_text("\n".join(said) + "\n", encoding="utf-8")
    assert withdraws not in source.cohort(hospital.plan).patients
    assert not (hospital.cache.folder / pseudonym).exists(), "a site that runs a study removes them at its next request"
    said = [line.replace(",yes,", ",no,") if line.startswith(leaves) else line for line in said]
    (hospital.folder / "clinical.csv").write_text("\n".join(said) + "\n", encoding="utf-8")
    report = hospital.preprocess()
    assert (report.withdrawn, report.made) == (1, 0)
    assert not (hospital.cache.folder / hospital.cache.key.pseudonym(leaves)).exists()
    assert hospital.cache.key.pseudonym(leaves) not in str(hospital.cache.read_index())
    (hospital.folder / "clinical.csv").write_text("\n".join(text) + "\n", encoding="utf-8")
    assert hospital.preprocess().made >= 2, "who consents again is done again"


def test_a_corrupt_entry_is_noticed_and_made_again(copy_of: CopyOf) -> None:
    hospital = copy_of("site-1")
    settings = load_settings(hospital.folder)
    before = hospital.entries()
    for name in ("radiomics", "expression"):
        entries = hospital.cache.folder.glob(f"*/{recipe(hospital.plan.modalities[name], settings)}-*")
        path = min(entries)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Damaged, match="preprocess"):
        read_cohort(hospital.folder, settings, hospital.plan, hospital.cache)
    assert hospital.preprocess().made == 2
    assert hospital.entries() == before
    lost = next(hospital.cache.folder.glob(f"*/{recipe(hospital.plan.modalities['radiomics'], settings)}-*"))
    lost.unlink()
    assert hospital.preprocess().made == 1
    assert hospital.entries() == before


def test_a_failing_case_is_reported_without_names_and_skipped(copy_of: CopyOf) -> None:
    hospital = copy_of("site-2")
    allowed = consented(hospital.folder, load_settings(hospital.folder))
    patient, files = next((p, f) for p, f in images_of(hospital).items() if p in allowed)
    files[3].write_bytes(files[3].read_bytes()[:-500])
    report = hospital.preprocess()
    assert report.made == 0
    [failure] = report.failures
    assert failure.modality == "radiomics"
    assert failure.pseudonym == hospital.cache.key.pseudonym(patient)
    assert str(files[3]) in str(failure.problems)
    for name in (files[3].name, files[3].parent.name, patient, str(hospital.folder)):
        assert name not in str(failure.safe)
    recipe_hash = recipe(hospital.plan.modalities["radiomics"], load_settings(hospital.folder))
    assert hospital.cache.get(patient, recipe_hash) is None, "what was made of the whole file no longer holds"


def test_a_modality_whose_files_are_wrong_fails_as_a_whole_and_leaves_the_others(copy_of: CopyOf) -> None:
    hospital = copy_of("site-1")
    (hospital.folder / "genomics" / "counts.tsv").write_text("gene\tA\nTP53\tmany\n", encoding="utf-8")
    report = hospital.preprocess()
    [failure] = report.failures
    assert (failure.modality, failure.pseudonym) == ("expression", "")
    settings = load_settings(hospital.folder)
    tables = prepared_tables(settings, hospital.plan, hospital.cache, consented(hospital.folder, settings))
    assert set(tables) == {"radiomics", "cnv", "mutations"}


def test_a_table_of_the_site_goes_before_its_raw_files(copy_of: CopyOf) -> None:
    hospital = copy_of("site-1")
    rewrite(hospital, "[tables.labels]", '[tables.radiomics]\nfile = "ready.csv"\n\n[tables.labels]', "site.toml")
    patient = min(consented(hospital.folder, load_settings(hospital.folder)))
    (hospital.folder / "ready.csv").write_text(f"patient_id,shape_Ready\n{patient},4.5\n", encoding="utf-8")
    assert set(hospital.preprocess().patients) == {"expression", "cnv", "mutations"}
    settings = load_settings(hospital.folder)
    cohort = read_cohort(hospital.folder, settings, hospital.plan, hospital.cache)
    assert cohort.columns["radiomics"] == ("shape_Ready",)
    assert cohort.values["radiomics"][cohort.patients.index(patient), 0] == 4.5


def test_other_settings_are_other_entries_and_those_of_another_study_stay(copy_of: CopyOf, tmp_path: Path) -> None:
    hospital = copy_of("site-1")
    before = hospital.entries()
    text = (STUDIES / "demo_radiomics.yaml").read_text(encoding="utf-8") + "# another file\n"
    (tmp_path / "other.yaml").write_text(text, encoding="utf-8")
    wanted = {"file": "other.yaml", "sha256": hashlib.sha256(text.encode()).hexdigest()}
    plan = changed(hospital.plan, radiomics={"extraction": wanted})
    settings = load_settings(hospital.folder)
    another = plan.model_copy(update={"study": plan.study.model_copy(update={"name": "another"})})
    report = preprocess(hospital.folder, settings, another, study=tmp_path, state=hospital.state)
    assert report.made == report.patients["radiomics"]
    both = hospital.entries()
    assert before.items() < both.items()
    assert preprocess(hospital.folder, settings, plan, study=tmp_path, state=hospital.state).made == 0
    old = recipe(hospital.plan.modalities["radiomics"], settings)
    assert hospital.entries() == {place: e for place, e in both.items() if f"/{old}-" not in place}
    wanted["sha256"] = "0" * 64
    plan = changed(hospital.plan, radiomics={"extraction": wanted})
    with pytest.raises(ConfigError, match="the plan says 0000"):
        preprocess(hospital.folder, settings, plan, study=tmp_path, state=hospital.state)


def test_several_images_are_several_columns_and_one_missing_is_missing(copy_of: CopyOf) -> None:
    hospital = copy_of("site-1")
    wanted = hospital.plan.modalities["radiomics"].extraction.model_dump(mode="json") | {"images": ["ct", "nowhere"]}
    plan = changed(hospital.plan, radiomics={"extraction": wanted, "patterns": ["*_shape_*"], "tokens": "one"})
    settings = load_settings(hospital.folder)
    report = preprocess(hospital.folder, settings, plan, study=STUDIES, state=hospital.state)
    assert any("imaging.series.nowhere" in note for note in report.notes)
    assert any(
        "imaging.series.nowhere" in w for w in check_study(hospital.folder, settings, plan, hospital.state).warnings
    )
    cohort = read_cohort(hospital.folder, settings, plan, hospital.cache)
    assert set(cohort.columns["radiomics"]) == {c for c in cohort.columns["radiomics"] if c.startswith("ct_shape_")}
    assert cohort.columns["radiomics"]


def test_one_run_at_a_time_and_none_without_consent(copy_of: CopyOf) -> None:
    hospital = copy_of("site-1")
    with (hospital.state / ".preprocess.lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another"):
            hospital.preprocess()
    rewrite(hospital, 'value = "yes"', "", "site.toml")
    rewrite(hospital, 'column = "consent"', "", "site.toml")
    rewrite(hospital, 'table = "clinical"', "", "site.toml")
    with pytest.raises(PolicyRefusal, match="no consent"):
        hospital.preprocess()


def test_nothing_is_written_into_the_folder(copy_of: CopyOf) -> None:
    hospital = copy_of("site-1")
    before = {p: p.stat().st_mtime_ns for p in hospital.folder.rglob("*")}
    settings = load_settings(hospital.folder)
    with pytest.raises(ConfigError, match="nothing is written"):
        preprocess(hospital.folder, settings, hospital.plan, study=STUDIES, state=hospital.folder / "state")
    hospital.preprocess()
    assert {p: p.stat().st_mtime_ns for p in hospital.folder.rglob("*")} == before


def count(state: Path) -> dict[Path, int]:
    """Entries, and when each was written."""
    found = [p for p in (state / "cache").rglob("*") if p.is_file() and p.name[0] != "." and p.name != "index"]
    return {p: p.stat().st_mtime_ns for p in found}


def test_killed_half_way_and_run_again_no_case_is_repeated(raw_sites: Path, tmp_path: Path) -> None:
    folder, state = tmp_path / "site-1", tmp_path / "state"
    shutil.copytree(raw_sites / "site-1", folder)
    heavy = "imageType:\n  Original: {}\n  Wavelet: {}\n"
    (tmp_path / "heavy.yaml").write_text(heavy, encoding="utf-8")
    demo = (STUDIES / "demo.toml").read_text(encoding="utf-8")
    old = load(STUDIES / "demo.toml").modalities["radiomics"].extraction
    study = demo.replace(old.file, "heavy.yaml").replace(old.sha256, hashlib.sha256(heavy.encode()).hexdigest())
    (tmp_path / "study.toml").write_text(study, encoding="utf-8")
    options = [str(folder), "--study", str(tmp_path / "study.toml"), "--state", str(state), "--jobs", "2"]
    command = [sys.executable, "-m", "oncofed_client", "preprocess", *options]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(count(state)) < 3 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = count(state)
    assert len(before) >= 3, "it ended before it could be killed"
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    after = count(state)
    assert len(after) > len(before), "it was killed half-way"
    assert {path: after[path] for path in before} == before, "what was finished is left as it was"
    assert not [p for p in state.rglob(".*") if p.is_file() and p.name != ".preprocess.lock"]
    made, found = (int(again.stdout.split(word)[0].split()[-1]) for word in (" cases done now", " found in the cache"))
    settings, plan = load_settings(folder), load(tmp_path / "study.toml")
    imaged = recipe(plan.modalities["radiomics"], settings)
    assert found >= sum(path.name.startswith(imaged) for path in before)
    assert made + found == sum(path.name.startswith(imaged) for path in after) + 3
