"""DICOM segmentations: equal to highdicom's reading, voxel by voxel; binary, fractional, overlapping, label map."""

from __future__ import annotations

import warnings

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.sr.codedict import codes

from oncofed_client.imaging.regions import read_regions, region_names
from oncofed_client.imaging.series import Series, find_series
from oncofed_client.imaging.settings import ImagingSettings, RegionRule
from oncofed_client.imaging.volume import read_volume
from oncofed_shared.errors import DataError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import highdicom as hd

ALL = RegionRule(names=("*",))
NONE = ImagingSettings()
REAL = (
    "dcmqi_liver.dcm",
    "dcmqi_partial_overlaps.dcm",
    "dcmqi_sr_seg.dcm",
    "highdicom_seg_image_ct_binary.dcm",
    "highdicom_seg_image_ct_binary_overlap.dcm",
)


def segments(path):
    return Series(patient="p", kind="SEG", files=(path,))


def voxels(mask):
    return sitk.GetArrayFromImage(mask)


def highdicom_reading(path):
    """Segment label -> highdicom's volume (slices, rows, columns) of it, and the image of that grid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = hd.seg.segread(path)
        found = {}
        for number in read.segment_numbers:
            volume = read.get_volume(segment_numbers=[number], combine_segments=False, allow_missing_positions=True)
            found[read.get_segment_description(number).segment_label] = np.asarray(volume.array)[..., 0]
    steps = volume.affine[:3, :3]
    lengths = np.linalg.norm(steps, axis=0)
    image = sitk.Image(*volume.spatial_shape[::-1], sitk.sitkFloat32)
    image.SetSpacing(lengths[::-1].tolist())
    image.SetOrigin(volume.affine[:3, 3].tolist())
    image.SetDirection((steps / lengths)[:, ::-1].ravel().tolist())
    return found, image


@pytest.mark.parametrize("name", REAL)
def test_every_real_segment_equals_highdicoms_reading(dicom, name):
    path = dicom.real("dicom", "seg", name)
    expected, image = highdicom_reading(path)
    found = read_regions(segments(path), image, ALL, NONE)
    assert set(found) == set(expected) == set(region_names(segments(path), NONE))
    assert all(voxels(found[k]).any() and np.array_equal(voxels(found[k]), expected[k]) for k in expected)


def test_the_real_liver_equals_its_nrrd_on_the_real_image(dicom):
    folder = dicom.real("dicom", "seg")
    inventory = find_series(folder, NONE)
    ct = next(s for s in inventory.series if s.kind == "CT" and len(s.files) == 3)
    image = read_volume(ct, NONE)
    source = next(s for s in inventory.regions_of(ct) if s.files[0].name == "dcmqi_liver.dcm")
    liver = read_regions(source, image, RegionRule(names=("liver",)), NONE)["Liver"]
    other = sitk.ReadImage(str(folder / "dcmqi_liver_seg.nrrd"))
    assert np.allclose(other.GetOrigin(), liver.GetOrigin(), atol=1e-4)
    assert np.allclose(other.GetDirection(), liver.GetDirection())
    assert voxels(liver).sum() == 107098
    assert np.array_equal(voxels(liver), voxels(other) != 0)
    by_file = Series(patient="p", kind="file", files=(folder / "dcmqi_liver_seg.nrrd",), regions=("liver",))
    assert np.array_equal(voxels(next(iter(read_regions(by_file, image, ALL, NONE).values()))), voxels(liver))


def sources(dicom, count=4, shape=(6, 5)):
    """CT slices with what highdicom wants of its source images."""
    slices, _ = dicom.series_of(count, shape=shape)
    for i, one in enumerate(slices):
        one.StudyDate, one.StudyTime, one.AccessionNumber, one.StudyID = "", "", "", ""
        one.PatientBirthDate, one.PatientSex, one.ReferringPhysicianName, one.PositionReferenceIndicator = (
            "",
            "",
            "",
            "",
        )
        one.InstanceNumber, one.Manufacturer = i + 1, "x"
    return slices


def write_segmentation(path, slices, values, kind, labels, **more):
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=i + 1,
            segment_label=label,
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for i, label in enumerate(labels)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hd.seg.Segmentation(
            source_images=slices,
            pixel_array=values,
            segmentation_type=kind,
            segment_descriptions=descriptions,
            series_instance_uid="1.2.3.8",
            series_number=9,
            sop_instance_uid="1.2.3.8.1",
            instance_number=1,
            manufacturer="x",
            manufacturer_model_name="y",
            software_versions="1",
            device_serial_number="0",
            **more,
        ).save_as(path)
    return segments(path)


def image_of(dicom, folder, slices):
    paths = dicom.save(folder, *slices)
    return read_volume(Series(patient="p", kind="CT", files=tuple(paths)), NONE)


@pytest.mark.parametrize("scale", ["PROBABILITY", "OCCUPANCY"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_a_fractional_segmentation_is_cut_at_the_fraction_that_was_asked(dicom, tmp_path, fraction, scale):
    slices = sources(dicom)
    values = np.random.default_rng(1).choice([0.0, 0.09, 0.1, 0.4, 0.5, 0.75, 1.0], (4, 6, 5, 2))
    source = write_segmentation(
        tmp_path / "s.dcm", slices, values, "FRACTIONAL", ["a", "b"], max_fractional_value=200, fractional_type=scale
    )
    image = image_of(dicom, tmp_path / "ct", slices)
    found = read_regions(source, image, RegionRule(names=("*",), fraction=fraction), NONE)
    expected, grid = highdicom_reading(source.files[0])
    there = read_regions(source, grid, RegionRule(names=("*",), fraction=fraction), NONE)
    for i, label in enumerate("ab"):
        assert np.array_equal(voxels(found[label]), values[..., i] >= fraction)
        assert np.array_equal(voxels(there[label]), expected[label] >= fraction)


@pytest.mark.parametrize("fraction", [0.1, 1.0])
def test_overlapping_segments_are_whole_each(dicom, tmp_path, fraction):
    slices = sources(dicom)
    values = np.random.default_rng(2).random((4, 6, 5, 3)) < 0.6
    source = write_segmentation(tmp_path / "s.dcm", slices, values, "BINARY", ["a", "b", "c"])
    found = read_regions(
        source, image_of(dicom, tmp_path / "ct", slices), RegionRule(names=("*",), fraction=fraction), NONE
    )
    assert (values.sum(axis=-1) > 1).any()
    assert all(np.array_equal(voxels(found[label]), values[..., i]) for i, label in enumerate("abc"))


def test_a_label_map_gives_each_label(dicom, tmp_path):
    slices = sources(dicom)
    values = np.random.default_rng(2).integers(0, 3, (4, 6, 5)).astype(np.uint8)
    source = write_segmentation(tmp_path / "s.dcm", slices, values, "LABELMAP", ["a", "b"])
    found = read_regions(source, image_of(dicom, tmp_path / "ct", slices), ALL, NONE)
    assert all(np.array_equal(voxels(found[label]), values == i + 1) for i, label in enumerate("ab"))


def test_frames_in_another_order_and_direction_are_at_their_place(dicom, tmp_path):
    """A segmentation that was written from feet to head, and mirrored, is the same region."""
    slices = sources(dicom)
    values = np.random.default_rng(3).random((4, 6, 5)) < 0.5
    source = write_segmentation(
        tmp_path / "s.dcm", slices, values.astype(np.uint8), "BINARY", ["a"], omit_empty_frames=False
    )
    image = image_of(dicom, tmp_path / "ct", slices)
    written = pydicom.dcmread(source.files[0])
    frames = written.pixel_array[::-1, :, ::-1]
    written.PixelData = pydicom.pixels.pack_bits(frames.ravel())
    written.PerFrameFunctionalGroupsSequence = list(written.PerFrameFunctionalGroupsSequence)[::-1]
    shared = written.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]
    for frame in written.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [float(place[0]) + 4 * 1.5, place[1], place[2]]
    written.save_as(source.files[0])
    assert np.array_equal(voxels(read_regions(source, image, ALL, NONE)["a"]), values)


@pytest.mark.parametrize(
    ("shift", "size", "message"),
    [
        ((0.4, 0, 0), None, "is not on the voxels"),
        ((0, 0, 1.5), None, "is not on the voxels"),
        ((1.5, 0, 0), None, "is outside the image"),
        ((0, 0, 6.0), None, "is outside the image"),
        ((1.5 * 2**31, 0, 0), None, "is far outside the image"),
        ((0, 0, 0), [2.0, 1.6], "is not on the voxels"),
    ],
)
def test_a_segmentation_of_another_image_is_an_error(dicom, tmp_path, shift, size, message):
    slices = sources(dicom)
    source = write_segmentation(tmp_path / "s.dcm", slices, np.ones((4, 6, 5), np.uint8), "BINARY", ["Secret^Name"])
    image = image_of(dicom, tmp_path / "ct", slices)
    written = pydicom.dcmread(source.files[0])
    for frame in written.PerFrameFunctionalGroupsSequence:
        item = frame.PlanePositionSequence[0]
        item.ImagePositionPatient = [float(p) + s for p, s in zip(item.ImagePositionPatient, shift, strict=True)]
    if size is not None:
        written.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = size
    written.save_as(source.files[0])
    with pytest.raises(DataError, match=message) as caught:
        read_regions(source, image, ALL, NONE)
    assert "Secret" not in str(caught.value)


def test_broken_segmentations_are_refused_by_tag(dicom, tmp_path):
    slices = sources(dicom)
    image = image_of(dicom, tmp_path / "ct", slices)
    values = np.ones((4, 6, 5, 2), np.uint8)
    values[..., 1] = 0
    source = write_segmentation(tmp_path / "s.dcm", slices, values, "BINARY", ["a", "b"])

    def refuse(message, change, names=("a",)):
        written = pydicom.dcmread(source.files[0])
        change(written)
        written.save_as(tmp_path / "x.dcm")
        with pytest.raises(DataError, match=message):
            read_regions(segments(tmp_path / "x.dcm"), image, RegionRule(names=names), NONE)

    frame = "PerFrameFunctionalGroupsSequence"
    refuse("PixelData of a segment that was chosen is empty", lambda d: None, ("b",))
    refuse("SegmentLabel is the same", lambda d: setattr(d.SegmentSequence[0], "SegmentLabel", "b"))
    refuse("SegmentNumber is the same", lambda d: setattr(d.SegmentSequence[0], "SegmentNumber", 2))
    refuse("SegmentSequence is missing", lambda d: delattr(d, "SegmentSequence"))
    refuse("SegmentationType should be", lambda d: setattr(d, "SegmentationType", "SURFACE"))
    refuse("should have one item per frame", lambda d: d[frame].value.pop(0))
    refuse("PlanePositionSequence is missing", lambda d: delattr(d[frame].value[0], "PlanePositionSequence"))
    refuse(
        "SegmentIdentificationSequence is missing",
        lambda d: delattr(d[frame].value[0], "SegmentIdentificationSequence"),
    )
    refuse(
        "PixelMeasuresSequence is missing",
        lambda d: delattr(d.SharedFunctionalGroupsSequence[0], "PixelMeasuresSequence"),
    )
    refuse("PixelData is shorter", lambda d: setattr(d, "PixelData", d.PixelData[:8]))
    refuse("exceeds", lambda d: setattr(d, "NumberOfFrames", 2_000_000_000))
