"""What is in an export: series by UID among mixed files, roles by the site's rules, problems by file; nothing outside is read."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ImplicitVRLittleEndian

from oncofed_client.imaging.identifying import IDENTIFYING
from oncofed_client.imaging.series import find_series
from oncofed_client.imaging.settings import ImagingSettings, Limits
from oncofed_shared.errors import ConfigError, DataError
from oncofed_shared.strict import validate

MR = {
    "flair": {"modality": "MR", "description": "*flair*"},
    "t1": {"modality": "MR", "description": ["*t1*"], "header": {"ContrastBolusAgent": ""}},
    "t1gd": {"modality": "MR", "description": ["*T1*"], "header": {"ContrastBolusAgent": "?*"}},
    "dwi": {"modality": "MR", "protocol": "diff*", "header": {"DiffusionBValue": [900, 1100]}},
}


def settings_of(**content) -> ImagingSettings:
    return validate(ImagingSettings, content, "site.toml: imaging")


def roles(inventory):
    return {(s.patient, s.role): len(s.files) for s in inventory.series}


def test_sequences_are_told_apart_by_header_rules_wherever_their_files_are(dicom, tmp_path):
    for i, (uid, text, agent) in enumerate(
        [("1.5", "AX FLAIR fs", None), ("1.6", "ax t1 se", None), ("1.7", "Ax T1 SE", "Gd")]
    ):
        slices, _ = dicom.series_of(
            3, modality="MR", SeriesInstanceUID=uid, SeriesDescription=text, ContrastBolusAgent=agent
        )
        dicom.save(tmp_path, *slices, names=[f"a/b{j % 2}/{j}-{i}" for j in range(3)])
    low, _ = dicom.series_of(2, modality="MR", SeriesInstanceUID="1.8", ProtocolName="Diff 3", DiffusionBValue=0.0)
    high, _ = dicom.series_of(2, modality="MR", SeriesInstanceUID="1.8", ProtocolName="Diff 3", DiffusionBValue=1000.0)
    dicom.save(tmp_path, *low, *high, names=[f"a/d{j}.bin" for j in range(4)])
    (tmp_path / "a" / "README").write_text("about")
    inventory = find_series(tmp_path, settings_of(series=MR))
    name = "HOSPITAL-4711"
    assert roles(inventory) == {
        (name, "flair"): 3,
        (name, "t1"): 3,
        (name, "t1gd"): 3,
        (name, "dwi"): 2,
        (name, None): 2,
    }
    assert inventory.problems == ()
    assert inventory.others == 1
    assert set(inventory.images(name)) == {"flair", "t1", "t1gd", "dwi"}


def test_two_series_of_one_role_are_a_problem_unless_the_larger_is_wanted(dicom, tmp_path):
    for uid, count in (("1.5", 3), ("1.6", 5)):
        dicom.save(tmp_path / uid, *dicom.series_of(count, SeriesInstanceUID=uid)[0])
    rule = {"modality": "CT"}
    inventory = find_series(tmp_path, settings_of(series={"ct": rule}))
    assert len(inventory.problems) == 2
    assert all("imaging.series.ct" in p and "4711" not in p for p in inventory.problems)
    chosen = find_series(tmp_path, settings_of(series={"ct": {**rule, "choose": "largest"}}))
    assert chosen.problems == ()
    assert len(chosen.images("HOSPITAL-4711")["ct"].files) == 5


def test_the_earliest_or_latest_of_a_patients_series_is_chosen_by_date_and_not_guessed(dicom, tmp_path):
    def counts(choose):
        found = find_series(tmp_path, settings_of(series={"ct": {"modality": "CT", "choose": choose}}))
        return len(found.images("HOSPITAL-4711")["ct"].files), len(found.problems)

    for uid, count, tags in (
        ("1.5", 3, {"StudyDate": "20200101", "SeriesTime": "101112"}),
        ("1.6", 2, {"SeriesDate": "20200101", "SeriesTime": "091112"}),
        ("1.7", 5, {"SeriesDate": "20191231", "StudyDate": "20210101", "SeriesTime": "235959"}),
    ):
        dicom.save(tmp_path / uid, *dicom.series_of(count, SeriesInstanceUID=uid, **tags)[0])
    assert counts("earliest") == (5, 0)
    assert counts("latest") == (3, 0)
    dicom.save(tmp_path / "1.8", *dicom.series_of(1, SeriesInstanceUID="1.8")[0])  # without a date
    assert counts("latest")[1] == counts("only")[1] == 4
    dicom.save(
        tmp_path / "1.8", *dicom.series_of(1, SeriesInstanceUID="1.8", StudyDate="20200101", SeriesTime="101112")[0]
    )
    assert counts("latest")[1] == 4


def test_rules_that_both_fit_and_shared_uids_and_burned_in_names_are_problems(dicom, tmp_path):
    dicom.save(tmp_path / "a", *dicom.series_of(2)[0])
    both = find_series(
        tmp_path, settings_of(series={"one": {"modality": "CT"}, "two": {"modality": "CT", "description": "*"}})
    )
    assert "fits the rules of one and two" in both.problems[0]
    dicom.save(tmp_path / "b", *dicom.series_of(2, PatientID="other")[0])
    shared = find_series(tmp_path, settings_of())
    assert len(shared.problems) == 2
    assert all("(0020,000E) SeriesInstanceUID is the same for two patients" in p for p in shared.problems)
    dicom.save(tmp_path / "b", *dicom.series_of(2, SeriesInstanceUID="7.7", BurnedInAnnotation="YES")[0])
    burned = find_series(tmp_path, settings_of())
    assert burned.burned_in == 2
    assert "(0028,0301) BurnedInAnnotation is YES" in burned.problems[0]


def test_identifying_tags_are_listed_by_name_and_never_by_value(dicom, tmp_path):
    slices, _ = dicom.series_of(2, PatientBirthDate="19500101", InstitutionName="Hospital X", AccessionNumber="")
    slices[0].add_new(0x00130010, "LO", "PRIVATE")
    dicom.save(tmp_path, *slices)
    inventory = find_series(tmp_path, settings_of())
    found = inventory.identifying
    assert {k: found.get(k) for k in ("PatientName", "PatientBirthDate", "InstitutionName", "AccessionNumber")} == {
        "PatientName": 2,
        "PatientBirthDate": 2,
        "InstitutionName": 2,
        "AccessionNumber": None,
    }
    assert found["private tags"] == 1
    for text in (repr(inventory), repr(inventory.series)):
        assert not [s for s in ("4711", "Secret", "19500101", "Hospital X", "1.2.3") if s in text]


def test_every_identifying_keyword_is_one_of_dicom():
    assert [k for k in IDENTIFYING if tag_for_keyword(k) is None] == []
    assert sorted(IDENTIFYING) == list(IDENTIFYING)


def test_the_patient_stands_in_a_header_a_folder_a_name_or_a_link_table(dicom, tmp_path):
    dicom.save(tmp_path / "sub-01" / "x", *dicom.series_of(2)[0])
    image = sitk.GetImageFromArray(np.zeros((2, 3, 4), np.float32))
    sitk.WriteImage(image, str(tmp_path / "sub-01" / "sub-01_T1.nii.gz"))
    rules = {"ct": {"modality": "CT"}, "t1": {"files": "*_t1.nii.gz", "kind": "MR"}}
    folder = find_series(
        tmp_path, settings_of(series=rules, patient={"source": "folder", "pattern": r"sub-(?P<patient>\d+)"})
    )
    assert roles(folder) == {("01", "ct"): 2, ("01", "t1"): 1}
    assert {s.role: s.holds for s in folder.series} == {"ct": "CT", "t1": "MR"}
    file = find_series(
        tmp_path, settings_of(series=rules, patient={"source": "file", "pattern": "^(?P<patient>sub-..)_"})
    )
    assert roles(file) == {("sub-01", "t1"): 1}
    assert len(file.problems) == 2
    (tmp_path / "links.csv").write_text("source,patient_id\nHOSPITAL-4711,P7\n")
    linked = find_series(tmp_path, settings_of(patient={"link": "links.csv"}))
    assert linked.patients() == ("P7",)
    (tmp_path / "links.csv").write_text("source,patient_id\nother,P7\n")
    lost = find_series(tmp_path, settings_of(patient={"link": "links.csv"}))
    assert lost.series == ()
    assert all("not in links.csv" in p and "4711" not in p for p in lost.problems)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "needs the columns"),
        ("source,patient_id\nx,1\nx,2\n", "second patient"),
        (None, "does not exist"),
    ],
)
def test_a_wrong_link_table_is_said(tmp_path, text, message):
    if text is not None:
        (tmp_path / "links.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        find_series(tmp_path, settings_of(patient={"link": "links.csv"}))


def test_no_link_is_followed_and_no_pipe_is_opened(dicom, tmp_path):
    outside = tmp_path / "outside"
    dicom.save(outside, *dicom.series_of(2)[0])
    inside = tmp_path / "site"
    dicom.save(inside / "real", *dicom.series_of(3, SeriesInstanceUID="9.9")[0])
    (inside / "out").symlink_to(outside)
    (inside / "one.dcm").symlink_to(outside / "0.dcm")
    (inside / "loop").symlink_to(inside)
    (inside / "self").symlink_to(inside / "self")
    (inside / "near").symlink_to(inside / "real" / "0.dcm")
    os.mkfifo(inside / "pipe.dcm")
    inventory = find_series(inside, settings_of())
    assert [len(s.files) for s in inventory.series] == [3]
    words = ("out of the folder", "out of the folder", "neither a file nor a folder", "leads nowhere")
    assert sorted(inventory.problems) == list(inventory.problems)
    assert all(sum(w in p for p in inventory.problems) == words.count(w) for w in words)
    (tmp_path / "way").symlink_to(inside)
    assert len(find_series(tmp_path / "way", settings_of()).series) == 1  # the folder itself may be a link
    (inside / "images").symlink_to(outside)
    with pytest.raises(DataError, match="leads out of the site's folder"):
        find_series(inside, settings_of(folder="images"))


def test_limits_on_depth_number_and_size_hold(dicom, tmp_path):
    deep = tmp_path / "/".join("abcdef")
    dicom.save(deep, *dicom.series_of(2)[0])
    shallow = find_series(tmp_path, settings_of(limits={"depth": 3}))
    assert shallow.series == ()
    assert "imaging.limits.depth" in shallow.problems[0]
    with pytest.raises(DataError, match=r"imaging\.limits\.files"):
        find_series(tmp_path, settings_of(limits={"files": 1}))
    small = find_series(tmp_path, settings_of(limits={"file_bytes": 100}))
    assert len(small.problems) == 2
    assert all("imaging.limits.file_bytes" in p for p in small.problems)


def test_odd_names_are_read_and_shown_without_control_characters(dicom, tmp_path):
    names = ["\x1b[31mred", "new\nline", "ä\u202eb", "..hidden", " ", "a" * 200]
    slices, _ = dicom.series_of(len(names))
    dicom.save(tmp_path, *slices, names=names)
    raw = os.fsencode(tmp_path) + b"/bad\xff.dcm"
    with open(raw, "wb") as file:  # noqa: PTH123 - no text can be this name
        file.write(b"no image")
    (tmp_path / "x\x07.dcm").write_bytes(b"no image either")
    inventory = find_series(tmp_path, settings_of())
    assert [len(s.files) for s in inventory.series] == [len(names)]
    assert len(inventory.problems) == 2
    assert all(p.isprintable() and p.isascii() for p in inventory.problems)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a DICOM file"),
        (b"\0" * 200, "is not a DICOM file"),
        (b"\0" * 128 + b"DICM", "cut off or damaged"),
        (b"\0" * 128 + b"DICM" + b"\xff" * 100, "cut off or damaged"),
    ],
)
def test_a_file_that_is_no_dicom_is_named(tmp_path, content, message):
    (tmp_path / "a.dcm").write_bytes(content)
    inventory = find_series(tmp_path, settings_of())
    assert inventory.series == ()
    assert len(inventory.problems) == 1
    assert message in inventory.problems[0]


def test_a_file_without_preamble_is_read(dicom, tmp_path):
    one = dicom.series_of(1)[0][0]
    one.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    paths = dicom.save(tmp_path, one)
    content = paths[0].read_bytes()
    paths[0].write_bytes(content[content.index(b"\x08\x00\x16\x00") :])
    inventory = find_series(tmp_path, settings_of())
    assert [s.kind for s in inventory.series] == ["CT"], inventory.problems


def test_a_deflated_file_is_refused_by_name(dicom, tmp_path):
    slices, _ = dicom.series_of(1)
    slices[0].file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    dicom.save(tmp_path, *slices)
    inventory = find_series(tmp_path, settings_of())
    assert inventory.series == ()
    assert "Deflated Explicit VR Little Endian" in inventory.problems[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"series": {"a": {"modality": "CT", "header": {"NoSuchTag": "x"}}}}, "no DICOM keyword"),
        ({"series": {"a": {"modality": "MR", "header": {"EchoTime": [9, 1]}}}}, "expected .lowest, highest."),
        ({"series": {"a": {"description": "x"}}}, "modality must say"),
        ({"series": {"a": {"files": "*.nii"}}}, "also needs kind"),
        ({"series": {"a": {"modality": "CT", "files": "*.nii", "kind": "CT"}}}, "one of the two"),
        ({"series": {"a": {"files": "*.nii", "kind": "CT"}}}, "have no PatientID"),
        ({"series": {"a": {}}}, "give rules"),
        ({"regions": {"a": {}}}, "give names"),
        ({"regions": {"a": {"names": "x", "fraction": 0.0}}}, "regions.a.fraction"),
        ({"regions": {"a": {"files": "x", "roles": "t9"}}}, "there is no imaging.series.t9"),
        ({"folder": "../x"}, "must lie in the site's folder"),
        ({"folder": "/x"}, "must lie in the site's folder"),
        ({"patient": {"pattern": "(x)"}}, "group named patient"),
        ({"patient": {"pattern": "("}}, "not a regular expression"),
        ({"patient": {"link": "../l.csv"}}, "link must be"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_mistakes_in_the_settings_are_named(content, message):
    with pytest.raises(ConfigError, match=message):
        settings_of(**content)


def test_masks_and_outlines_are_found_for_their_image_only(dicom, tmp_path):
    dicom.save(tmp_path / "ct", *dicom.series_of(2)[0])
    dicom.save(tmp_path / "other", *dicom.series_of(2, SeriesInstanceUID="8.8", FrameOfReferenceUID="8.9")[0])
    dicom.save(tmp_path / "rs", dicom.outlines_of({"GTV": []}))
    inventory = find_series(tmp_path, settings_of())
    by_uid = {s.uid: s for s in inventory.series}
    assert [s.kind for s in inventory.regions_of(by_uid["1.2.3.4"])] == ["RTSTRUCT"]
    assert inventory.regions_of(by_uid["8.8"]) == ()
    bare = dicom.outlines_of({"GTV": []})
    del bare.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
    dicom.save(tmp_path / "rs", bare)
    inventory = find_series(tmp_path, settings_of())
    by_uid = {s.uid: s for s in inventory.series}
    assert [s.kind for s in inventory.regions_of(by_uid["1.2.3.4"])] == ["RTSTRUCT"]
    assert inventory.regions_of(by_uid["8.8"]) == ()


def test_a_compressed_bomb_with_a_medical_name_is_not_unpacked(tmp_path):
    (tmp_path / "p").mkdir()
    Path(tmp_path / "p" / "x_t1.nii.gz").write_bytes(gzip.compress(b"\0" * 50_000_000))
    rules = settings_of(series={"t1": {"files": "*_t1.nii.gz", "kind": "MR"}}, patient={"source": "folder"})
    assert roles(find_series(tmp_path, rules)) == {("p", "t1"): 1}


def test_default_limits_are_finite():
    limits = Limits()
    assert limits.voxels * 4 <= 2**31
