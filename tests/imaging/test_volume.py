"""Series become volumes: sorted, checked, in the units of their modality; what cannot be is refused by file and tag."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from oncofed_client.imaging.series import Series, find_series
from oncofed_client.imaging.settings import ImagingSettings, Limits, SeriesRule
from oncofed_client.imaging.volume import read_volume
from oncofed_shared.errors import DataError

CODED = (RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)
CT = ImagingSettings(series={"ct": SeriesRule(modality="CT")})
SECRETS = ("4711", "Secret", "1.2.3")


def as_series(paths, kind="CT"):
    return Series(patient="p", role="ct", kind=kind, files=tuple(paths))


def read(folder, dicom, slices, kind="CT", config=CT):
    return read_volume(as_series(dicom.save(folder, *slices), kind), config)


def refusal(folder, dicom, slices, kind="CT", config=CT):
    with pytest.raises(DataError) as caught:
        read(folder, dicom, slices, kind, config)
    text = str(caught.value)
    assert str(folder) in text
    assert not [s for s in SECRETS if s in text.replace(str(folder), "")]
    return text


def test_the_real_lung_is_read_as_simpleitk_reads_it(dicom):
    folder = dicom.real("dicom", "lung_ct_rtstruct")
    inventory = find_series(folder, CT)
    image = read_volume(next(s for s in inventory.series if s.kind == "CT"), CT)
    find = sitk.ImageSeriesReader
    names = find.GetGDCMSeriesFileNames(str(folder), find.GetGDCMSeriesIDs(str(folder))[0])
    other = sitk.ReadImage(names)
    assert image.GetSize() == other.GetSize() == (512, 512, 45)
    assert np.allclose(image.GetSpacing(), other.GetSpacing())
    assert np.allclose(image.GetSpacing(), (0.9766, 0.9766, 3.0))
    assert np.allclose(image.GetOrigin(), other.GetOrigin())
    assert image.GetDirection() == other.GetDirection()
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(other).astype(np.float32))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), count=st.integers(1, 6), angle=st.floats(-1.5, 1.5), down=st.booleans())
def test_order_and_names_of_files_do_not_matter(dicom, data, count, angle, down):
    across = np.array([np.cos(angle), 0.0, np.sin(angle)])
    normal = np.cross(across, [0, 1, 0]) * (-1 if down else 1)
    slices, values = dicom.series_of(count)
    for i, one in enumerate(slices):
        one.ImageOrientationPatient = [*(f"{v:.10f}" for v in across), 0, 1, 0]
        one.ImagePositionPatient = [f"{v:.10f}" for v in 7 + 2.5 * i * normal]
        one.SliceThickness = 2.5
    order = data.draw(st.permutations(range(count)))
    names = data.draw(
        st.lists(st.text("ab_-. ä1", min_size=1, max_size=8), min_size=count, max_size=count, unique=True)
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = dicom.save(
            Path(folder), *(slices[i] for i in order), names=[f"{i}/x{n}.dcm" for i, n in enumerate(names)]
        )
        image = read_volume(as_series(paths), CT)
    expected = values[::-1] if down and count > 1 else values
    assert np.array_equal(sitk.GetArrayFromImage(image), expected.astype(np.float32))
    first = 7 + (2.5 * (count - 1) * normal if down else 0 * normal)
    assert np.allclose(image.GetOrigin(), first, atol=1e-6)
    assert np.allclose(image.GetSpacing(), (1.5, 2.0, 2.5), atol=1e-6)
    assert np.allclose(np.reshape(image.GetDirection(), (3, 3))[:, 0], across, atol=1e-6)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(5, 9), data=st.data())
def test_a_gap_a_copy_and_a_tilt_are_found(dicom, count, data):
    slices, _ = dicom.series_of(count, shape=(2, 2))
    fault = data.draw(st.sampled_from(["gap", "copy", "tilt", "drift"]))
    at = data.draw(st.integers(1, count - 2))
    if fault == "gap":
        del slices[at]
    elif fault == "copy":
        slices.append(dicom.changed(slices[at].copy(), SOPInstanceUID="1.2.3.77"))
    elif fault == "tilt":
        shift = data.draw(st.sampled_from([-0.4, 0.3, 1.0]))
        for i, one in enumerate(slices):
            one.ImagePositionPatient = [0, shift * i, 3.0 * i]
    else:
        for i, one in enumerate(slices):
            one.ImagePositionPatient = [0, 0, 3.0 * i * (1 + 0.05 * i)]
    with tempfile.TemporaryDirectory() as folder:
        text = refusal(Path(folder), dicom, slices)
    words = {"gap": "missing", "copy": "there twice", "tilt": "gantry tilt", "drift": "distance between slices"}
    assert words[fault] in text
    assert "(0020,0032) ImagePositionPatient" in text


def test_two_of_three_slices_are_told_by_the_stated_distance(dicom, tmp_path):
    slices, _ = dicom.series_of(3, SpacingBetweenSlices=3.0)
    assert "(0018,0088) SpacingBetweenSlices" in refusal(tmp_path, dicom, [slices[0], slices[2]])
    assert read(tmp_path / "whole", dicom, slices[:2]).GetSpacing()[2] == 3.0


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}, "(0020,0037) ImageOrientationPatient differs"),
        ({"PixelSpacing": [2.0, 1.6]}, "(0028,0030) PixelSpacing differs"),
        ({"Rows": 5}, "(0028,0010) Rows or Columns differs"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "(0020,0037) ImageOrientationPatient should be"),
        ({"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]}, "(0020,0037) ImageOrientationPatient should be"),
        ({"ImageOrientationPatient": None}, "(0020,0037) ImageOrientationPatient is missing"),
        ({"ImagePositionPatient": None}, "(0020,0032) ImagePositionPatient is missing"),
        ({"PixelSpacing": None}, "(0028,0030) PixelSpacing is missing"),
        ({"PixelSpacing": [0, 1]}, "(0028,0030) PixelSpacing should be positive"),
        ({"PixelSpacing": [1, 1, 1]}, "(0028,0030) PixelSpacing should hold 2"),
        ({"RescaleSlope": None}, "(0028,1053) RescaleSlope is missing"),
        ({"RescaleIntercept": None}, "(0028,1052) RescaleIntercept is missing"),
        ({"RescaleSlope": 0}, "(0028,1053) RescaleSlope is 0"),
        ({"PixelData": None}, "(7FE0,0010) PixelData is missing"),
        ({"PixelData": b"\0" * 20}, "(7FE0,0010) PixelData is shorter"),
        ({"NumberOfFrames": 2}, "(0028,0008) NumberOfFrames is more than 1"),
        ({"SamplesPerPixel": 3}, "(0028,0002) SamplesPerPixel is not 1"),
        ({"PhotometricInterpretation": "RGB"}, "(0028,0004) PhotometricInterpretation"),
        ({"BitsAllocated": 12}, "(0028,0100) BitsAllocated"),
        ({"BurnedInAnnotation": "YES"}, "(0028,0301) BurnedInAnnotation is YES"),
        ({"Modality": "MR"}, "(0008,0060) Modality"),
        ({"SeriesInstanceUID": "1.2.3.99"}, "(0020,000E) SeriesInstanceUID"),
        ({"RescaleType": "MGML"}, "(0028,1054) RescaleType is not HU"),
        ({"ModalityLUTSequence": [Dataset()]}, "(0028,3000) ModalityLUTSequence is not accepted"),
        ({"Columns": 60000, "Rows": 60000}, "imaging.limits.voxels"),
    ],
)
def test_a_slice_that_does_not_fit_is_refused_by_file_and_tag(dicom, tmp_path, tags, named):
    slices, _ = dicom.series_of(4)
    dicom.changed(slices[2], **tags)
    text = refusal(tmp_path, dicom, slices)
    assert named in text
    assert "2.dcm" in text


def test_a_series_of_too_many_voxels_is_refused_before_it_is_decoded(dicom, tmp_path):
    slices, _ = dicom.series_of(4)
    small = ImagingSettings(limits=Limits(voxels=4 * 30 - 1))
    assert "imaging.limits.voxels" in refusal(tmp_path, dicom, slices, config=small)
    assert read(tmp_path / "fits", dicom, slices, config=ImagingSettings(limits=Limits(voxels=4 * 30))).GetSize() == (
        5,
        6,
        4,
    )


def test_values_are_rescaled_slice_by_slice(dicom, tmp_path):
    slices, values = dicom.series_of(3, modality="MR")
    for i, one in enumerate(slices):
        one.RescaleSlope, one.RescaleIntercept = 0.5 + i, 10 * i
    found = sitk.GetArrayFromImage(read(tmp_path, dicom, slices, kind="MR"))
    expected = np.stack([v * (0.5 + i) + 10 * i for i, v in enumerate(values.astype(float))])
    assert np.allclose(found, expected, rtol=1e-6)


def test_an_mr_without_rescale_keeps_its_values(dicom, tmp_path):
    slices, values = dicom.series_of(3, modality="MR", RescaleSlope=None, RescaleIntercept=None)
    assert np.array_equal(sitk.GetArrayFromImage(read(tmp_path, dicom, slices, kind="MR")), values.astype(np.float32))


def compress(one, syntax, folder):
    """Compress a slice: RLE and JPEG-LS by pydicom's encoders, the others by ITK."""
    if syntax in {RLELossless, JPEGLSLossless}:
        one.compress(syntax)
        return
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(folder / "itk.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor({JPEG2000Lossless: "JPEG2000", JPEGLosslessSV1: "JPEG"}[syntax])
    writer.Execute(sitk.GetImageFromArray(one.pixel_array[None]))
    written = pydicom.dcmread(folder / "itk.dcm")
    assert written.file_meta.TransferSyntaxUID == syntax
    one.PixelData, one.file_meta.TransferSyntaxUID = written.PixelData, syntax
    one["PixelData"].VR, one["PixelData"].is_undefined_length = "OB", True
    (folder / "itk.dcm").unlink()


def compressed(dicom, syntax, folder, *, shape=(16, 12)):
    folder.mkdir(exist_ok=True)
    slices, values = dicom.series_of(3, shape=shape)
    unsigned = (values + 1024).astype(np.uint16)
    for one, pixels in zip(slices, unsigned, strict=True):
        one.PixelData, one.PixelRepresentation, one.RescaleIntercept = pixels.tobytes(), 0, -1024
        compress(one, syntax, folder)
    return slices, values


@pytest.mark.parametrize("syntax", CODED, ids=lambda u: u.name)
def test_compressed_slices_give_the_values_that_were_compressed(dicom, tmp_path, syntax):
    slices, values = compressed(dicom, syntax, tmp_path)
    assert np.array_equal(sitk.GetArrayFromImage(read(tmp_path / "x", dicom, slices)), values.astype(np.float32))


@pytest.mark.parametrize("syntax", CODED, ids=lambda u: u.name)
def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(dicom, tmp_path, syntax):
    slices, _ = compressed(dicom, syntax, tmp_path)
    for one in slices:  # RLE does not say its size: there, more pixels than it holds
        one.Rows, one.Columns = (17, 12) if syntax == RLELossless else (12, 16)
    text = refusal(tmp_path / "x", dicom, slices)
    assert ("cannot be decoded" if syntax == RLELossless else "another size than Rows x Columns") in text


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), syntax=st.sampled_from(CODED))
def test_damaged_codestreams_give_values_or_one_error(dicom, data, syntax):
    with tempfile.TemporaryDirectory() as folder:
        slices, _ = compressed(dicom, syntax, Path(folder))
        content = bytearray(slices[1].PixelData)
        for _ in range(data.draw(st.integers(1, 6))):
            content[data.draw(st.integers(16, len(content) - 1))] = data.draw(st.integers(0, 255))
        slices[1].PixelData = bytes(content)
        paths = dicom.save(Path(folder) / "x", *slices)
        with suppress(DataError):
            assert read_volume(as_series(paths), CT).GetSize() == (12, 16, 3)


def test_a_transfer_syntax_that_is_not_accepted_is_refused_by_name(dicom, tmp_path):
    slices, _ = dicom.series_of(3)
    paths = dicom.save(tmp_path, *slices)
    slices[1].file_meta.TransferSyntaxUID = MPEG2MPML
    slices[1].PixelData = encapsulate([b"\0" * 60])
    slices[1]["PixelData"].VR, slices[1]["PixelData"].is_undefined_length = "OB", True
    slices[1].save_as(paths[1])
    with pytest.raises(DataError, match=r"1\.dcm: \(0002,0010\) TransferSyntaxUID is MPEG2"):
        read_volume(as_series(paths), CT)
