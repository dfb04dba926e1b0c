"""No byte that preprocessing writes, in clear or decrypted, and no word that it prints says who a patient is."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from pydicom.datadict import keyword_for_tag

from oncofed_client.consent import consented
from oncofed_client.imaging.identifying import IDENTIFYING
from oncofed_client.imaging.series import find_series
from oncofed_client.prepare.report import without_names
from oncofed_client.settings import load_settings
from oncofed_shared.strict import read_toml
from oncofed_simulations.raw_draw import identifying_values
from oncofed_simulations.synthetic import CohortSettings

STUDIES = Path(__file__).resolve().parents[2] / "simulations" / "studies"
COHORT = CohortSettings(sites=2, patients=12, seed=5)
SHORTEST = 4
"""Shorter texts turn up in any noise."""
TEXTS = {"AE", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UT"}
SHARED = {"CT", "MR", "PT", "SEG", "RTSTRUCT", "ORIGINAL", "PRIMARY", "AXIAL"}


def headers(folder: Path) -> Iterator[tuple[str, str]]:
    """Every identifying text of every header, also inside sequences, as another reader sees it."""
    for path in folder.rglob("*"):
        if path.is_file() and path.read_bytes()[128:132] == b"DICM":
            for element in pydicom.dcmread(path, stop_before_pixels=True).iterall():
                keyword = keyword_for_tag(element.tag)
                wanted = (
                    keyword in IDENTIFYING or element.VR in {"PN", "DA", "LT", "ST", "UT"} or element.tag.is_private
                )
                instance = element.VR == "UI" and not str(element.value).startswith("1.2.840.10008")
                if element.VR in TEXTS and (wanted or instance):
                    values = (
                        element.value if isinstance(element.value, pydicom.multival.MultiValue) else [element.value]
                    )
                    yield from ((keyword or str(element.tag), str(v)) for v in values)


def tables(folder: Path) -> Iterator[tuple[str, str]]:
    """Every cell that may identify: ids, names, dates, numbers of telephones, free text, numbers of samples."""
    told = {"patient_id", "source", "sample_id", "patient_name", "telephone", "remark", "ID", "Tumor_Sample_Barcode"}
    for path in (*folder.rglob("*.csv"), *folder.rglob("*.seg"), *folder.rglob("*.maf")):
        delimiter = "," if path.suffix == ".csv" else "\t"
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        for row in csv.DictReader(lines, delimiter=delimiter):
            yield from ((c, v) for c, v in row.items() if c in told or "date" in c or c == "last_seen")


def identifying(folder: Path) -> dict[str, str]:
    """Every text that tells who somebody is -> where it stands."""
    found = {text: place for place, text in (*headers(folder), *tables(folder))}
    for person, texts in identifying_values(COHORT)[folder.name].items():
        found |= dict.fromkeys(texts, "person" if person else "hospital")
    for path in folder.rglob("*"):
        inside = path.relative_to(folder).parts
        if len(inside) > 1 and inside[0] in {"imaging", "genomics"} and path.stem not in {"genomics", "variants"}:
            found |= dict.fromkeys((path.name, path.stem), "name of a file or folder")
    public = {
        "gene_names",
        "gene_positions",
        "counts",
        "segments",
        "mutations",
        "samples",
        "panel_genes",
        "cohort",
        "variants",
    }
    keep = {t: p for t, p in found.items() if len(t) >= SHORTEST and t.split(".")[0] not in public and t not in SHARED}
    assert len(keep) > 100
    return keep


def forms(text: str) -> set[bytes]:
    """A text as bytes that somebody might have written."""
    spread = {text, text.lower(), text.upper(), text.replace("^", " "), text.replace("-", "")}
    made = {v.encode(code) for v in spread for code in ("utf-8", "utf-16-le")}
    if all(ord(c) < 128 for c in text):
        made |= {text.encode().hex().encode(), json.dumps(text).strip('"').encode()}
    return {form for form in made if len(form) >= SHORTEST}


def guilty(content: bytes, secrets: dict[str, str]) -> list[str]:
    return [place for text, place in secrets.items() if any(form in content for form in forms(text))]


def with_patches(folder: Path) -> Path:
    """The demo study, which also asks for patches of the CT."""
    content = read_toml(STUDIES / "demo.toml")
    size = {"region": "tumour", "size": [8, 10, 12], "spacing": [3.0, 2.0, 2.0], "window": [-160.0, 240.0]}
    content["modalities"]["radiomics"]["patch"] = {"ct": size}
    shutil.copy(STUDIES / content["modalities"]["radiomics"]["extraction"]["file"], folder)
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["site-1", "site-2"])
def test_nothing_that_is_written_or_printed_says_who_a_patient_is(
    name: str, copy_of: Callable[[str], Any], tmp_path: Path
) -> None:
    hospital = copy_of(name)
    secrets = identifying(hospital.folder)
    settings = load_settings(hospital.folder)
    found = find_series(hospital.folder, settings.imaging)
    patient = min(set(found.patients()) & consented(hospital.folder, settings))
    broken = found.images(patient)["ct"].files[2]
    broken.write_bytes(broken.read_bytes()[:-300])  # so that something goes wrong and is told
    study = with_patches(tmp_path)
    command = [sys.executable, "-m", "oncofed_client", "preprocess", ".", "--study", str(study)]
    run = subprocess.run(
        [*command, "--state", str(hospital.state)], cwd=hospital.folder, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr
    # Its columns and its patch.
    assert b"2 failed" in run.stdout
    assert guilty(run.stdout + run.stderr, secrets) == []
    written = {p: p.read_bytes() for p in hospital.state.rglob("*") if p.is_file()}
    assert len(written) > 15
    names = "\n".join(str(p.relative_to(hospital.state)) for p in hospital.state.rglob("*")).encode()
    cache = hospital.cache
    decrypted = []
    for path, content in written.items():
        if cache.folder in path.parents:
            label = "index" if path.name == "index" else f"{path.parent.name}/{path.name}"
            decrypted.append(cache.key.unseal(label, content))
    assert None not in decrypted
    assert len(decrypted) > 15
    everything = b"\n".join([names, *written.values(), *decrypted])
    assert guilty(everything, secrets) == []
    assert b"shape_Sphericity" in b"".join(decrypted), "what is looked through is the plain text"
    assert b"shape_Sphericity" not in b"".join(written.values())


def test_the_search_finds_what_it_looks_for(raw_sites: Path) -> None:
    folder = raw_sites / "site-2"
    places = {place for place, _ in (*headers(folder), *tables(folder))}
    assert {
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "SeriesInstanceUID",
        "remark",
        "sample_id",
        "birth_date",
    } <= places
    assert len([p for p in places if p in IDENTIFYING]) > 12
    secrets = identifying(folder)
    for text, place in list(secrets.items())[::50]:
        assert place in guilty(b"noise " + text.upper().encode() + b" noise", {text: place})


@given(st.lists(st.text("abcXYZ-_. 0123456789", min_size=1, max_size=12), min_size=1, max_size=5), st.data())
def test_names_of_files_are_taken_out_of_messages(parts: list[str], data: st.DataObject) -> None:
    folder = Path("hospital")
    inner = [p for p in parts if p.strip(". ")]
    path = folder.joinpath(*inner, "IM0007.dcm")
    other = folder / "IM0008.dcm"
    patient = data.draw(st.text("PQR0123456789", min_size=3, max_size=10))
    lines = (f"{path}: (0028,0030) PixelSpacing is missing; {other.name} has it, {patient} has not",)
    [made] = without_names(lines, folder, [path, other], [patient])
    assert "IM0007" not in made
    assert "IM0008" not in made
    assert patient not in made
    assert str(path.parent) not in made
    assert "PixelSpacing is missing" in made or any(
        p in "(0028,0030) PixelSpacing is missing; has it, has not" for p in inner
    )
