"""Radiomics by our own path: against the published values, and against pyradiomics itself on the same crop."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import math
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import radiomics
import SimpleITK as sitk
from radiomics.featureextractor import RadiomicsFeatureExtractor

from oncofed_client.imaging.regions import read_region
from oncofed_client.imaging.series import find_series
from oncofed_client.imaging.settings import ImagingSettings
from oncofed_client.imaging.volume import read_volume
from oncofed_client.prepare.radiomics import crop, extract, load_extraction, parse_extraction, study_name
from oncofed_shared.errors import ConfigError, DataError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "pyradiomics"
LUNG = DATA.parent / "dicom" / "lung_ct_rtstruct"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public pyradiomics images are not beside this project")
CASES = ("brain1", "brain2", "breast1")
CLASSES = ("shape", "firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm")
ALL = dict.fromkeys(CLASSES)
FILTERS = {"Original": {}, "Wavelet": {}, "LoG": {"sigma": [1.0, 3.0]}}
# pyradiomics 2.0.1b1 wrote the shapes of brain1; its mesh of this region is not that of 3.0.1, by less than a thousandth.
OLDER_MESH = {("shape", "brain1", f) for f in ("MeshVolume", "SurfaceArea", "Sphericity", "SurfaceVolumeRatio")}
UNREAD = {"additionalInfo", "label", "preCrop", "gldm_a"}


@cache
def case(name: str) -> tuple[sitk.Image, sitk.Image]:
    return sitk.ReadImage(str(DATA / f"{name}_image.nrrd")), sitk.ReadImage(str(DATA / f"{name}_label.nrrd"))


@cache
def baseline(kind: str) -> dict[str, dict[str, str]]:
    """Published rows by test case and then by name, whichever way the table lies."""
    with (DATA / f"baseline_{kind}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    if rows[0][1].startswith(("brain", "breast", "lung")):
        return {case: {row[0]: row[i] for row in rows[1:]} for i, case in enumerate(rows[0][1:], 1)}
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[1:]}


def published() -> list[tuple[str, str]]:
    if not DATA.is_dir():
        return [("shape", "brain1")]
    return [(kind, name) for kind in CLASSES for name in baseline(kind) if name.split("_")[0] in CASES]


def plain(image: sitk.Image, mask: sitk.Image, parameters: dict) -> dict[str, float]:
    """What pyradiomics says by itself."""
    radiomics.setVerbosity(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = RadiomicsFeatureExtractor(parameters).execute(image, mask)
    return {study_name(n): float(v) for n, v in found.items() if not n.startswith("diagnostics")}


def worst(found: dict[str, float], expected: dict[str, float]) -> float:
    assert set(found) == set(expected)
    pairs = [(found[n], expected[n]) for n in found if math.isfinite(expected[n])]
    assert len(pairs) > 0.9 * len(found)
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)


def ball(size: int = 32, radius: float = 5.0, seed: int = 0) -> tuple[sitk.Image, sitk.Image]:
    """A textured volume with a ball in it that is not in its middle."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[:size, :size, :size]
    inside = (z - 14) ** 2 + (y - 13) ** 2 + (x - 15) ** 2 <= radius**2
    image = sitk.GetImageFromArray(rng.normal(40, 20, (size,) * 3).astype(np.float32))
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    for made in (image, mask):
        made.SetSpacing((0.8, 0.8, 2.0))
        made.SetOrigin((-10.0, 5.0, 300.0))
    return image, mask


@needs_data
@pytest.mark.parametrize(("kind", "name"), published())
def test_published_values(kind: str, name: str) -> None:
    rows = baseline(kind)[name]
    settings = ast.literal_eval(rows["diagnostics_Configuration_Settings"])
    chosen = {k: v for k, v in settings.items() if v is not None and k not in UNREAD}
    made = parse_extraction({"setting": chosen, "imageType": {"Original": {}}, "featureClass": {kind: None}})
    image, mask = case(name.split("_", maxsplit=1)[0])
    found = extract(image, mask == int(settings["label"]), made)
    expected = {study_name(k): float(v) for k, v in rows.items() if k.startswith("original_")}
    assert expected
    for feature, value in expected.items():
        older = (kind, name, feature.partition("_")[2]) in OLDER_MESH
        assert found[feature] == pytest.approx(value, rel=1e-3 if older else 1e-6, abs=1e-9), feature


@needs_data
@pytest.mark.parametrize("name", CASES)
def test_equals_plain_pyradiomics_on_the_same_crop_and_nearly_on_the_whole_volume(name: str) -> None:
    parameters = {"setting": {"binWidth": 25}, "imageType": FILTERS, "featureClass": ALL}
    made = parse_extraction(parameters)
    image, mask = case(name)
    found = extract(image, mask, made)
    assert worst(found, plain(*crop(image, mask, made), parameters)) <= 1e-9
    whole = plain(image, mask, parameters)
    exact = [n for n in whole if not n.startswith("log")]
    assert worst({n: found[n] for n in exact}, {n: whole[n] for n in exact}) <= 1e-9
    assert worst(found, whole) <= 1e-5
    assert {n.split("_")[0].split("-")[0] for n in found} == {*CLASSES, "wavelet", "log"}


@pytest.mark.skipif(not LUNG.is_dir(), reason="../shared/data/dicom/lung_ct_rtstruct is not there")
def test_the_tumour_of_a_real_export_measures_what_plain_pyradiomics_measures_in_the_whole_volume() -> None:
    """DICOM in, RTSTRUCT in, numbers out; the volume beside is read by SimpleITK's own series reader."""
    own = ImagingSettings.model_validate(
        {"series": {"ct": {"modality": "CT"}}, "regions": {"tumour": {"names": ["Tumor_c40"]}}}
    )
    inventory = find_series(LUNG, own)
    [patient] = inventory.patients()
    series = inventory.images(patient)["ct"]
    image = read_volume(series, own)
    mask = read_region("tumour", image, series, inventory, own)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(LUNG / "ct" if (LUNG / "ct").is_dir() else LUNG)))
    theirs = sitk.Cast(reader.Execute(), sitk.sitkFloat32)
    parameters = {"setting": {"binWidth": 25}, "imageType": {"Original": {}}, "featureClass": ALL}
    found = extract(image, mask, parse_extraction(parameters))
    assert worst(found, plain(theirs, mask, parameters)) <= 1e-9
    voxels = int(np.count_nonzero(sitk.GetArrayViewFromImage(mask)))
    assert found["shape_VoxelVolume"] == pytest.approx(voxels * float(np.prod(theirs.GetSpacing())), rel=1e-9)


@pytest.mark.parametrize(
    "setting",
    [
        {"binWidth": 10.0},
        {"normalize": True, "normalizeScale": 100, "binWidth": 5.0},
        {"resampledPixelSpacing": [1.3, 1.3, 1.7], "interpolator": "sitkBSpline", "binWidth": 10.0},
        {"resampledPixelSpacing": [0, 0, 1.1], "interpolator": "sitkLinear", "binWidth": 10.0},
        {"resegmentRange": [-2, 2], "resegmentMode": "sigma"},
    ],
)
def test_what_happens_before_the_cut_equals_plain_pyradiomics_on_the_whole_volume(setting: dict) -> None:
    parameters = {"setting": setting, "imageType": {"Original": {}, "Wavelet": {}}, "featureClass": ALL}
    image, mask = ball()
    assert worst(extract(image, mask, parse_extraction(parameters)), plain(image, mask, parameters)) <= 1e-9


def test_the_cut_is_small_and_on_the_old_grid() -> None:
    made = parse_extraction({"imageType": {"Original": {}}, "featureClass": ALL})
    image, mask = ball(size=64)
    part, region = crop(image, mask, made)
    assert part.GetSize() == region.GetSize() == (21, 21, 21)  # eleven voxels across, padDistance 5 on both sides
    corner = image.TransformPhysicalPointToIndex(part.GetOrigin())
    assert corner == (5, 3, 4)
    cut = sitk.GetArrayFromImage(image)[4:25, 3:24, 5:26]
    assert np.array_equal(cut, sitk.GetArrayFromImage(part))


def test_a_mask_of_another_grid_or_without_a_voxel_or_too_small_is_refused_without_numbers_of_the_patient() -> None:
    made = parse_extraction({"featureClass": {"firstorder": None}})
    image, mask = ball()
    moved = sitk.Image(mask)
    moved.SetOrigin((-10.0, 5.0, 301.0))
    for wrong in (moved, mask[:-1, :, :]):
        with pytest.raises(DataError, match="does not lie on its image") as caught:
            extract(image, wrong, made)
        assert caught.value.code == "mask-grid"
    with pytest.raises(DataError, match="no voxel"):
        extract(image, mask * 0, made)
    array = np.zeros(sitk.GetArrayFromImage(mask).shape, np.uint8)
    for shape, why in (((1, 1, 1), "single voxel"), ((1, 1, 5), "flat")):
        array[:] = 0
        array[4 : 4 + shape[0], 4 : 4 + shape[1], 4 : 4 + shape[2]] = 1
        small = sitk.GetImageFromArray(array)
        small.CopyInformation(image)
        with pytest.raises(DataError, match=why) as caught:
            extract(image, small, made)
        assert not any(c.isdigit() for c in str(caught.value))


def test_a_settings_file_is_read_only_with_the_bytes_that_the_plan_says(tmp_path: Path) -> None:
    path = tmp_path / "radiomics.yaml"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_extraction(path, "0" * 64)
    text = "setting:\n  binWidth: 12.5\nimageType:\n  Original: {}\n  LoG:\n    sigma: [2.0]\nfeatureClass:\n  shape:\n"
    path.write_text(text, encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    made = load_extraction(path, digest)
    assert made.sha256 == digest
    assert made.settings["binWidth"] == 12.5
    assert json.loads(made.content)["featureClass"] == {"shape": None}
    path.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=digest):
        load_extraction(path, digest)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"imageType": {"Square": {}}}, "imageType.Square: expected one of Original, Wavelet, LoG"),
        ({"featureClass": {"shape2D": None}}, "featureClass.shape2D"),
        ({"setting": {"correctMask": True}}, "setting.correctMask: leave it out"),
        ({"setting": {"label": 3}}, "setting.label: leave it out"),
        ({"setting": {"binwidth": 3}}, "does not accept"),
        ({"setting": {"binWidth": -3}}, "does not accept"),
    ],
)
def test_settings_that_are_not_offered_are_refused_by_name(content: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parse_extraction(content)


def test_a_file_that_chooses_nothing_measures_everything_that_a_volume_has() -> None:
    image, mask = ball()
    found = extract(image, mask, parse_extraction({"imageType": {"Original": {}}}))
    assert {n.split("_")[0] for n in found} == set(CLASSES)


@pytest.mark.parametrize("text", ["{[", "a: &a [*a, *a]\n", "\x00\x01", "- 1\n", "!!python/object:os.system {}\n"])
def test_a_broken_settings_file_gives_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "radiomics.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"radiomics\.yaml"):
        parse_extraction(path)
