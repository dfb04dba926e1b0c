"""Regions: outlines with holes, masks in NIfTI and NRRD, by name; what does not lie on its image is an error."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon

from oncofed_client.imaging.contours import fill
from oncofed_client.imaging.regions import read_region, read_regions, region_names
from oncofed_client.imaging.series import Series, find_series
from oncofed_client.imaging.settings import ImagingSettings, Limits, RegionRule, SeriesRule
from oncofed_client.imaging.volume import read_volume
from oncofed_shared.errors import DataError
from oncofed_shared.strict import validate

ALL = RegionRule(names=("*",))
NONE = ImagingSettings()
CT = ImagingSettings(series={"ct": SeriesRule(modality="CT")})


def voxels(mask):
    return sitk.GetArrayFromImage(mask)


def blank(size=(5, 6, 4), spacing=(1.5, 2.0, 3.0), origin=(0.0, 0.0, 0.0)):
    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def outlines(path):
    return Series(patient="p", kind="RTSTRUCT", files=(path,))


def square(x0, x1, y0, y1, z):
    return np.array([[x0, y0, z], [x1, y0, z], [x1, y1, z], [x0, y1, z]], dtype=float)


def contours_by_pydicom(path):
    import pydicom  # noqa: PLC0415 - the independent way to the same contours

    dataset = pydicom.dcmread(path)
    names = {r.ROINumber: r.ROIName for r in dataset.StructureSetROISequence}
    return {
        names[r.ReferencedROINumber]: [np.reshape(c.ContourData, (-1, 3)).astype(float) for c in r.ContourSequence]
        for r in dataset.ROIContourSequence
    }


def test_the_four_real_regions_have_the_volume_of_another_rasterisation_and_of_their_outlines(dicom):
    folder = dicom.real("dicom", "lung_ct_rtstruct")
    inventory = find_series(folder, CT)
    ct = next(s for s in inventory.series if s.kind == "CT")
    image = read_volume(ct, CT)
    (source,) = inventory.regions_of(ct)
    masks = read_regions(source, image, ALL, CT)
    assert set(masks) == set(region_names(source, CT)) == {"Tumor_c40", "LN_c40", "Carina_c40", "Vertebra_c40"}
    origin, spacing = np.array(image.GetOrigin()), np.array(image.GetSpacing())
    voxel = float(np.prod(spacing))
    for name, contours in contours_by_pydicom(folder / "rtstruct.dcm").items():
        mine = voxels(masks[name])
        other = np.zeros(mine.shape, dtype=bool)
        area = 0.0
        for contour in contours:
            place = (contour - origin) / spacing
            level = round(place[0, 2])
            low, high = np.floor(place.min(axis=0)).astype(int), np.ceil(place.max(axis=0)).astype(int) + 1
            y, x = np.mgrid[low[1] : high[1], low[0] : high[0]]
            inside = Polygon(place[:, :2]).contains_points(np.stack([x, y], axis=-1).reshape(-1, 2))
            other[level, low[1] : high[1], low[0] : high[0]] ^= inside.reshape(y.shape)
            shoelace = contour[:, 0] @ np.roll(contour[:, 1], 1) - contour[:, 1] @ np.roll(contour[:, 0], 1)
            area += abs(shoelace) / 2
        assert abs(mine.sum() / other.sum() - 1) < 0.01, name
        assert (mine != other).sum() < 0.01 * other.sum(), name
        if name in {
            "Tumor_c40",
            "Vertebra_c40",
        }:  # large, and without holes: the polygon's area times the slice distance
            assert abs(mine.sum() * voxel / (area * spacing[2]) - 1) < 0.01, name


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 4), corners=st.integers(3, 30))
def test_filling_is_the_even_odd_rule_of_another_library(seed, count, corners):
    rng = np.random.default_rng(seed)
    polygons = [rng.uniform(-3, 25, (corners, 2)) for _ in range(count)]  # self-crossing, overlapping, partly outside
    y, x = np.mgrid[:20, :17]
    grid = np.stack([x, y], axis=-1).reshape(-1, 2)
    # matplotlib's own point test is even-odd for one polygon; several are combined by exclusive or.
    expected = np.logical_xor.reduce([Polygon(p).contains_points(grid) for p in polygons]).reshape(20, 17)
    assert np.array_equal(fill(polygons, (20, 17)), expected)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), corners=st.integers(3, 12))
def test_neighbours_that_share_an_edge_share_no_voxel_and_leave_no_gap(seed, corners):
    rng = np.random.default_rng(seed)
    turn = np.sort(rng.uniform(0, 2 * np.pi, corners))
    ring = np.round(
        10 + 7 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    )  # corners on voxel centres: ties everywhere
    a, b = 0, corners // 2
    first, second = ring[a : b + 1], np.concatenate([ring[b:], ring[: a + 1]])
    parts = [fill([p], (21, 21)) for p in (first, second)]
    assert np.array_equal(parts[0] ^ parts[1], fill([ring], (21, 21)))


def test_holes_keyholes_and_several_contours_in_one_slice(dicom, tmp_path):
    image = blank(size=(20, 20, 3), spacing=(1, 1, 2))
    outer, inner = square(1.5, 12.5, 1.5, 12.5, 2), square(4.5, 8.5, 4.5, 8.5, 2)
    keyhole = np.concatenate([outer, outer[:1], inner[::-1], inner[-1:]])
    far = square(14.5, 17.5, 14.5, 17.5, 2)
    (path,) = dicom.save(
        tmp_path, dicom.outlines_of({"hole": [outer, inner], "key": [keyhole], "two": [outer, far], "one": [outer]})
    )
    masks = {k: voxels(v) for k, v in read_regions(outlines(path), image, ALL, NONE).items()}
    assert {k: int(m.sum()) for k, m in masks.items()} == {
        "hole": 121 - 16,
        "key": 121 - 16,
        "two": 121 + 9,
        "one": 121,
    }
    assert np.array_equal(masks["hole"], masks["key"])
    assert all(m[[0, 2]].sum() == 0 for m in masks.values())


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turn=st.floats(-1.5, 1.5), tip=st.floats(-1.5, 1.5))
def test_an_oblique_image_has_the_same_mask_as_a_straight_one(dicom, turn, tip):
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(tip), -np.sin(tip)], [0, np.sin(tip), np.cos(tip)]])
    rotation = about_z @ about_x
    line = square(1.2, 9.9, 2.3, 14.6, 6)
    straight, oblique = (blank(size=(12, 12, 4)) for _ in range(2))
    oblique.SetDirection(rotation.ravel().tolist())
    with tempfile.TemporaryDirectory() as folder:
        paths = dicom.save(
            Path(folder), dicom.outlines_of({"a": [line]}), dicom.outlines_of({"a": [line @ rotation.T]})
        )
        here, there = (
            read_regions(outlines(p), i, ALL, NONE)["a"] for p, i in zip(paths, (straight, oblique), strict=True)
        )
    assert voxels(here).sum() > 0
    assert np.array_equal(voxels(here), voxels(there))
    assert there.GetDirection() == oblique.GetDirection()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (square(1, 5, 1, 5, 4.0), "does not lie in the slices"),
        (square(1, 5, 1, 5, 6) + np.outer(range(4), (0, 0, 1)), "does not lie in the slices"),
        (square(1, 5, 1, 5, 12), "outside the image"),
        (square(1, 5, 1, 5, -3), "outside the image"),
        (square(1, 8, 1, 5, 3), "outside the image"),
        (square(-2, 5, 1, 5, 3), "outside the image"),
        (square(0.1, 0.2, 0.1, 0.2, 3), "encloses the centre of no voxel"),
    ],
)
def test_outlines_that_do_not_lie_on_their_image_are_an_error(dicom, tmp_path, line, message):
    (path,) = dicom.save(tmp_path, dicom.outlines_of({"GTV of Secret": [line]}))
    with pytest.raises(DataError, match=message) as caught:
        read_regions(outlines(path), blank(), ALL, NONE)
    assert "(3006,0050) ContourData" in str(caught.value)
    assert "Secret" not in str(caught.value)


def test_broken_structure_sets_are_refused_by_tag(dicom, tmp_path):
    line = square(1, 5, 1, 5, 3)

    def refuse(message, change, config=NONE):
        dataset = dicom.outlines_of({"a": [line], "b": [line]})
        change(dataset)
        (path,) = dicom.save(tmp_path, dataset)
        with pytest.raises(DataError, match=message):
            read_regions(outlines(path), blank(), ALL, config)

    first = lambda d: d.ROIContourSequence[0].ContourSequence[0]  # noqa: E731
    refuse("ContourGeometricType is not CLOSED_PLANAR", lambda d: setattr(first(d), "ContourGeometricType", "POINT"))
    refuse("ContourData should hold three numbers", lambda d: setattr(first(d), "ContourData", ["1", "2"]))
    refuse("ContourData is missing", lambda d: delattr(first(d), "ContourData"))
    refuse("ContourSequence is empty", lambda d: setattr(d.ROIContourSequence[0], "ContourSequence", []))
    refuse("ROIName is the same", lambda d: setattr(d.StructureSetROISequence[0], "ROIName", "b"))
    refuse("ROINumber is the same", lambda d: setattr(d.StructureSetROISequence[0], "ROINumber", 2))
    refuse("ReferencedROINumber stands twice", lambda d: setattr(d.ROIContourSequence[0], "ReferencedROINumber", 2))
    refuse("no contours for a region", lambda d: d.ROIContourSequence.pop(0))
    refuse("imaging.limits.points", lambda d: None, ImagingSettings(limits=Limits(points=3)))
    refuse("imaging.limits.items", lambda d: None, ImagingSettings(limits=Limits(items=1)))
    refuse("too many for imaging.limits.voxels", lambda d: None, ImagingSettings(limits=Limits(voxels=59)))


def test_patterns_choose_regions_without_regard_to_case(dicom, tmp_path):
    lines = [square(1, 5, 1, 5, 3)]
    (path,) = dicom.save(tmp_path, dicom.outlines_of({"GTV-1": lines, "gtv_node": lines, "Lung": lines}))
    chosen = {
        p: set(read_regions(outlines(path), blank(), RegionRule(names=(p,)), NONE))
        for p in ("gtv*", "LUNG", "x*", "GTV-?")
    }
    assert chosen == {"gtv*": {"GTV-1", "gtv_node"}, "LUNG": {"Lung"}, "x*": set(), "GTV-?": {"GTV-1"}}


def test_the_region_of_a_rule_is_found_for_its_series(dicom, tmp_path):
    slices, _ = dicom.series_of(4)
    dicom.save(tmp_path, *slices)
    boxes = {"GTV-1": [square(1, 4, 1, 4, 3)], "GTV-2": [square(4, 5, 5, 9, 6)], "Lung": [square(1, 4, 1, 4, 3)]}
    dicom.save(tmp_path / "rs", dicom.outlines_of(boxes))

    def region(name, **rule):
        config = ImagingSettings(series={"ct": SeriesRule(modality="CT")}, regions={"roi": RegionRule(**rule)})
        inventory = find_series(tmp_path, config)
        series = inventory.images("HOSPITAL-4711")["ct"]
        return voxels(read_region(name, read_volume(series, config), series, inventory, config))

    with pytest.raises(DataError, match=r"2 regions fit imaging\.regions\.roi"):
        region("roi", names=("gtv*",))
    with pytest.raises(DataError, match="no region that fits") as caught:
        region("roi", names=("PTV",))
    assert caught.value.code == "no-region"
    with pytest.raises(DataError, match=r"there is no imaging\.regions\.other"):
        region("other", names=("PTV",))
    both = region("roi", names=("gtv*",), several="union")
    assert np.array_equal(both, region("roi", names=("GTV-1",)) | region("roi", names=("GTV-2",)))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_mask_files_are_read_on_their_image_and_not_beside_it(tmp_path, suffix):
    labels = np.random.default_rng(3).integers(0, 3, (4, 6, 5)).astype(np.uint8)
    image, mask = blank(), sitk.GetImageFromArray(labels)
    mask.CopyInformation(image)
    path = tmp_path / f"m{suffix}"
    source = Series(patient="p", kind="file", files=(path,), regions=("a",))

    def read(**rule):
        return read_regions(source, image, RegionRule(files=("*",), **rule), NONE)

    sitk.WriteImage(mask, str(path))
    assert np.array_equal(voxels(read()[path.name]), labels > 0)
    assert np.array_equal(voxels(read(label=2)[path.name]), labels == 2)
    assert region_names(source, NONE) == ()
    with pytest.raises(DataError, match="no voxel with the label 7"):
        read(label=7)
    for change in (
        lambda m: m.SetOrigin((0.3, 0, 0)),
        lambda m: m.SetSpacing((1.5, 2.0, 3.2)),
        lambda m: m.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1)),
    ):
        shifted = sitk.Image(mask)
        change(shifted)
        sitk.WriteImage(shifted, str(path))
        with pytest.raises(DataError, match="does not lie on its image"):
            read()
    sitk.WriteImage(mask[1:], str(path))
    with pytest.raises(DataError, match="another size than its image"):
        read()
    sitk.WriteImage(sitk.Cast(mask, sitk.sitkFloat32) / 4, str(path))
    with pytest.raises(DataError, match="whole numbers"):
        read()


def test_masks_of_two_series_are_read_on_their_own(tmp_path):
    folder = tmp_path / "p1"
    folder.mkdir()
    small, large = blank(), blank(size=(7, 8, 4))
    for image, name in ((small, "t1"), (large, "flair")):
        sitk.WriteImage(image + 1, str(folder / f"x_{name}.nii.gz"))
        sitk.WriteImage(sitk.Cast(image + 1, sitk.sitkUInt8), str(folder / f"x_{name}_seg.nii.gz"))
    content = {
        "patient": {"source": "folder"},
        "series": {n: {"files": f"x_{n}.nii.gz", "kind": "MR"} for n in ("t1", "flair")},
        "regions": {n: {"files": f"*_{n}_seg.nii.gz", "roles": n} for n in ("t1", "flair")},
    }
    config = validate(ImagingSettings, content, "site.toml: imaging")
    inventory = find_series(tmp_path, config)
    series = inventory.images("p1")
    for name, image in (("t1", small), ("flair", large)):
        volume = read_volume(series[name], config)
        assert read_region(name, volume, series[name], inventory, config).GetSize() == image.GetSize()
    with pytest.raises(DataError, match="no region that fits"):
        read_region("flair", read_volume(series["t1"], config), series["t1"], inventory, config)


def test_the_wrong_kind_of_series_is_said(dicom, tmp_path):
    paths = dicom.save(tmp_path, *dicom.series_of(2)[0])
    with pytest.raises(DataError, match="has no regions"):
        read_regions(Series(patient="p", kind="CT", files=tuple(paths)), blank(), ALL, NONE)
    with pytest.raises(DataError, match="is no image"):
        read_volume(outlines(paths[0]), NONE)
