"""Broken and hostile files: one clear error each, whatever the bytes."""

from __future__ import annotations

import gzip
import resource
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import ImplicitVRLittleEndian

from oncofed_client.imaging.files import read_file
from oncofed_client.imaging.headers import read_header, shown
from oncofed_client.imaging.regions import read_regions
from oncofed_client.imaging.series import Series, find_series
from oncofed_client.imaging.settings import ImagingSettings, Limits, RegionRule
from oncofed_client.imaging.volume import read_volume
from oncofed_shared.errors import DataError

NONE = ImagingSettings()
ALL = RegionRule(names=("*",))
SLOW = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def ct(path):
    return Series(patient="p", kind="CT", files=(path,))


@pytest.fixture(scope="module")
def whole(dicom, tmp_path_factory):
    """Bytes of one CT slice, explicit and implicit, of an RTSTRUCT, and a blank image under it."""
    folder = tmp_path_factory.mktemp("whole")
    explicit, _ = dicom.series_of(1)
    implicit, _ = dicom.series_of(1)
    implicit[0].file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    line = np.array([[1, 1, 0], [5, 1, 0], [5, 8, 0], [1, 8, 0]], float)
    outlines = dicom.outlines_of({"a": [line], "b": [line]})
    paths = dicom.save(folder, explicit[0], implicit[0], outlines)
    image = read_volume(ct(paths[0]), NONE)
    return [p.read_bytes() for p in paths], image


@SLOW
@given(data=st.data(), which=st.integers(0, 1))
def test_any_truncation_of_a_slice_is_a_data_error(whole, data, which):
    content = whole[0][which]
    length = data.draw(st.integers(0, len(content) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.dcm"
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"cut\.dcm"):
            read_volume(ct(path), NONE)
        find_series(Path(folder), NONE)


@SLOW
@given(data=st.data())
def test_any_truncation_of_outlines_is_a_data_error_or_leaves_whole_regions(whole, data):
    contents, image = whole
    content = contents[2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.dcm"
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        with pytest.raises(DataError, match=r"cut\.dcm"):
            read_regions(Series(patient="p", kind="RTSTRUCT", files=(path,)), image, ALL, NONE)


@SLOW
@given(data=st.data(), which=st.integers(0, 2))
def test_any_damage_gives_a_result_or_a_data_error_and_quotes_nothing(whole, data, which):
    contents, image = whole
    content = bytearray(contents[which])
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(128, len(content) - 1))
        content[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF, data.draw(st.integers(0, 255))]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "odd.dcm"
        path.write_bytes(bytes(content))
        problems = list(find_series(Path(folder), NONE).problems)
        try:
            if which == 2:
                read_regions(Series(patient="p", kind="RTSTRUCT", files=(path,)), image, ALL, NONE)
            else:
                read_volume(ct(path), NONE)
        except DataError as error:
            problems += error.problems
    assert not [p for p in problems if "Secret" in p or "4711" in p]
    assert all(p.isprintable() for p in problems)


def nested(depth):
    """A sequence in a sequence in a sequence, of undefined length, as bytes."""
    start = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    return start * depth


def test_sequences_nested_without_end_are_one_error(dicom, tmp_path):
    (path,) = dicom.save(tmp_path, dicom.slice_of())
    content = path.read_bytes()
    at = content.index(struct.pack("<HH", 0x0008, 0x0060))
    path.write_bytes(content[:at] + nested(100_000) + content[at:])
    with pytest.raises(DataError, match="cut off or damaged"):
        read_header(path, Limits())
    assert len(find_series(tmp_path, NONE).problems) == 1


@pytest.mark.parametrize("element", [(0x7FE0, 0x0010), (0x0028, 0x0010)])
def test_an_element_that_says_it_has_four_gigabytes_is_one_error(dicom, tmp_path, element):
    one = dicom.slice_of()
    one.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    (path,) = dicom.save(tmp_path, one)
    content = path.read_bytes()
    at = content.index(struct.pack("<HH", *element)) - 4
    path.write_bytes(content[: at + 8] + struct.pack("<I", 0xFFFFFFF0) + content[at + 12 :])
    with pytest.raises(DataError, match=r"0\.dcm"):
        read_volume(ct(path), NONE)


@pytest.mark.parametrize(
    "tags", [{"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 2**31 - 1}, {"Rows": 0}, {"NumberOfFrames": -1}]
)
def test_absurd_sizes_are_refused_before_anything_is_made_of_them(dicom, tmp_path, tags):
    (path,) = dicom.save(tmp_path, dicom.slice_of(**tags))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"0\.dcm"):
        read_volume(ct(path), NONE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 192", "Müller".encode()),
        ("ISO_IR 192", b"M\xff\xfe\x80"),
        ("NO SUCH SET", b"M\xfcller"),
        ("ISO 2022 IR 87", b"\x1b$B;3ED\x1b(J"),
        ("ISO 2022 IR 87\\ISO 2022 IR 159", b"\x1b$(Q\xff"),
    ],
)
def test_any_encoding_of_a_patients_id_is_read_or_refused_once(dicom, tmp_path, charset, name):
    one = dicom.slice_of()
    (path,) = dicom.save(tmp_path, one)
    content = path.read_bytes()
    place = content.index(b"HOSPITAL-4711 ")
    data = name.ljust(14)[:14]
    content = content[:place] + data + content[place + 14 :]
    at = content.index(struct.pack("<HH", 0x0008, 0x0016))
    text = charset.encode().ljust(len(charset) + len(charset) % 2)
    content = content[:at] + struct.pack("<HH2sH", 0x0008, 0x0005, b"CS", len(text)) + text + content[at:]
    path.write_bytes(content)
    inventory = find_series(tmp_path, NONE)
    assert len(inventory.series) + len(inventory.problems) == 1


def test_values_that_are_no_numbers_are_refused_by_tag(dicom, tmp_path):
    (path,) = dicom.save(tmp_path, dicom.slice_of(SliceThickness="3.25"))
    content = path.read_bytes()
    for text in (b"NaN ", b"inf ", b"1e99", b"x.25", b"\xff\xfe\x00\x01"):
        path.write_bytes(content.replace(b"3.25", text))
        if text == b"1e99":
            continue
        with pytest.raises(DataError, match=r"\(0018,0050\) SliceThickness"):
            read_volume(ct(path), NONE)


def nifti(tmp_path, name="x.nii.gz"):
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32))
    sitk.WriteImage(image, str(tmp_path / name), useCompression=name == "packed.nrrd")
    return tmp_path / name, image


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.nrrd"])
def test_volume_files_are_read_as_they_stand(tmp_path, name):
    path, image = nifti(tmp_path, name)
    found = read_volume(Series(patient="p", kind="file", holds="MR", files=(path,)), NONE)
    assert np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(image))
    assert found.GetMetaDataKeys() == ()


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.nrrd", "packed.nrrd"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_truncation_of_a_volume_file_is_a_data_error(name, data):
    with tempfile.TemporaryDirectory() as folder:
        path, _ = nifti(Path(folder), name)
        content = path.read_bytes()
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        with pytest.raises(DataError, match=name):
            read_file(path, Limits())


def test_volume_files_with_other_contents_are_refused(tmp_path):
    path, image = nifti(tmp_path)
    content = bytearray(gzip.decompress(path.read_bytes()))
    target = tmp_path / "y.nii.gz"

    def refuse(message, data):
        target.write_bytes(gzip.compress(bytes(data), 1))
        with pytest.raises(DataError, match=message):
            read_file(target, Limits())

    big = bytearray(content)
    big[40:56] = struct.pack("<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)
    refuse("imaging.limits.voxels", big)
    for at in (76 + 4, 256, 280 + 40):  # ITK would not come back from a direction that is not finite
        odd = bytearray(content)
        odd[at : at + 4] = struct.pack("<f", -np.inf)
        refuse("spacing, origin or direction cannot be", odd)
    pair = bytearray(content)
    pair[344:348] = b"ni1\0"
    refuse("voxels are in another file", pair)
    colour = bytearray(content)
    colour[70:74] = struct.pack("<2h", 128, 24)
    refuse("holds colours", colour)
    refuse("neither NIfTI nor NRRD", b"\0" * 400)
    refuse("neither NIfTI nor NRRD", b"\0" * 20_000_000)  # a bomb: only its first bytes are unpacked
    values = sitk.GetArrayFromImage(image)
    values[1, 2, 3] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(values), str(target))
    with pytest.raises(DataError, match="not finite"):
        read_file(target, Limits())
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.float32), isVector=False), str(target))
    with pytest.raises(DataError, match="4 dimensions"):
        read_file(target, Limits())
    target.write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cut off or damaged"):
        read_file(target, Limits())


def test_an_nrrd_that_points_elsewhere_is_refused(tmp_path):
    (tmp_path / "secret.raw").write_bytes(b"\0" * 8)
    text = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nDATA FILE: secret.raw\n\n"
    for ending in ("\n", "\r\n"):
        (tmp_path / "x.nrrd").write_bytes(text.replace("\n", ending).encode() + b"\0" * 8)
        with pytest.raises(DataError, match="voxels are in another file"):
            read_file(tmp_path / "x.nrrd", Limits())


def test_a_link_or_a_pipe_is_never_opened(tmp_path, dicom):
    (path,) = dicom.save(tmp_path, dicom.slice_of())
    (tmp_path / "link.dcm").symlink_to(path)
    with pytest.raises(DataError, match=r"link\.dcm: cannot be read"):
        read_header(tmp_path / "link.dcm", Limits())
    with pytest.raises(DataError, match="no regular file"):
        read_header(tmp_path, Limits()) if sys.platform == "win32" else read_header(Path("/dev/null"), Limits())
    with pytest.raises(DataError, match="cannot be read"):
        read_header(tmp_path / "absent", Limits())
    with pytest.raises(DataError, match="cannot be read"):
        read_header(tmp_path / "a\0b", Limits())


def test_names_are_shown_without_control_characters():
    assert shown(Path("a\x1b[2Jb")) == "a\\x1b[2Jb"
    assert shown(Path("a\udcffb")) == "a\\xffb"
    assert shown(Path("für/x")) == "für/x"


def test_nothing_reaches_the_terminal_from_the_libraries(tmp_path, dicom):
    """pydicom, GDCM and ITK warn with the file's own text; a hospital's terminal and log must not get it."""
    one = dicom.slice_of(
        StudyDate="99999999", PatientBirthDate="Secret-day", PatientAge="Secret-age", Manufacturer="x" * 80
    )
    (path,) = dicom.save(tmp_path, one)
    path.write_bytes(path.read_bytes().replace(b"HOSPITAL-4711", b"HOSPITAL\x1b$X\xff1"))
    nifti(tmp_path)[0].write_bytes(b"Secret")
    code = (
        "import sys; from pathlib import Path\n"
        "from oncofed_client.imaging.series import find_series\n"
        "from oncofed_client.imaging.volume import read_volume\n"
        "from oncofed_client.imaging.settings import ImagingSettings\n"
        "s = ImagingSettings(); i = find_series(Path(sys.argv[1]), s)\n"
        "[read_volume(x, s) for x in i.series]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout + done.stderr == ""
