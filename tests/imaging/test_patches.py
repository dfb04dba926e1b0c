"""Patches: the voxels that another library interpolates, whatever the scanner's axes; scaled; varied the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from oncofed_client.imaging.patches import augmentation, body, centre_of, patch
from oncofed_shared.errors import ConfigError, DataError
from oncofed_shared.plan_imaging import AugmentationSettings, PatchSettings
from oncofed_shared.strict import validate

WINDOW = PatchSettings(size=(6, 8, 10), spacing=(2.5, 1.25, 1.75), window=(-160.0, 240.0))
ZSCORE = PatchSettings(size=(6, 8, 10), spacing=(2.0, 1.0, 1.0), intensity="zscore", cut=3.0)
SPACING, ORIGIN = (1.5, 2.0, 3.0), (10.0, -20.0, 5.0)


def volume(seed=0, size=(14, 12, 16)):
    """An image (z, y, x) of a bright body with texture on a dark ground, and a region in it."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 3, size)
    values[2:-2, 2:-2, 2:-2] += 200 + rng.normal(0, 60, tuple(n - 4 for n in size))
    image, mask = sitk.GetImageFromArray(values.astype(np.float32)), sitk.Image(size[::-1], sitk.sitkUInt8)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    mask.CopyInformation(image)
    first = [int(rng.integers(2, n - 5)) for n in size[::-1]]
    mask[first[0] : first[0] + 3, first[1] : first[1] + 2, first[2] : first[2] + 4] = 1
    return image, mask


def interpolated(image, mask, config, outside):
    """The same grid, interpolated by scipy from voxel indices."""
    place = np.argwhere(sitk.GetArrayFromImage(mask))
    centre = (place.min(axis=0) + place.max(axis=0)) / 2
    step = np.array(config.spacing) / np.array(SPACING[::-1])
    axes = [c + (np.arange(n) - (n - 1) / 2) * s for c, n, s in zip(centre, config.size, step, strict=True)]
    index = np.stack(np.meshgrid(*axes, indexing="ij"))
    values = sitk.GetArrayFromImage(image)
    result = map_coordinates(values, index, order=1, mode="nearest", output=np.float64)
    limits = np.array(values.shape).reshape(3, 1, 1, 1) - 0.5
    off = np.any((index < -0.5 + 1e-9) | (index >= limits - 1e-9), axis=0)
    return np.where(off, outside, result)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_a_windowed_patch_is_what_scipy_interpolates(seed):
    image, mask = volume(seed)
    found = patch(image, mask, WINDOW)
    expected = np.clip((interpolated(image, mask, WINDOW, -160.0) + 160) / 400, 0, 1)
    assert found.dtype == np.float32
    assert found.shape == WINDOW.size
    assert found.min() >= 0
    assert found.max() <= 1
    assert np.allclose(found, expected, atol=1e-4)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_a_z_score_is_by_the_moments_inside_the_body(seed):
    image, mask = volume(seed)
    values = sitk.GetArrayFromImage(image)
    inside = sitk.GetArrayFromImage(body(image)) > 0
    assert inside[2:-2, 2:-2, 2:-2].mean() > 0.95
    assert inside.sum() <= values[2:-2, 2:-2, 2:-2].size
    mean, deviation = values[inside].mean(dtype=float), values[inside].std(dtype=float)
    expected = np.clip((interpolated(image, mask, ZSCORE, values.min()) - mean) / deviation, -3, 3)
    assert np.allclose(patch(image, mask, ZSCORE), expected, atol=1e-3)


def test_the_scanners_unit_means_nothing_after_a_z_score():
    image, mask = volume()
    assert np.allclose(patch(image, mask, ZSCORE), patch(image * 7.5 + 100, mask, ZSCORE), atol=1e-3)


@settings(max_examples=20)
@given(
    order=st.permutations(range(3)),
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    kind=st.sampled_from([WINDOW, ZSCORE]),
)
def test_the_axes_of_the_scanner_change_nothing(order, flips, kind):
    image, mask = volume(5)
    other, moved = (sitk.PermuteAxes(sitk.Flip(i, flips), order) for i in (image, mask))
    assert np.allclose(centre_of(mask), centre_of(moved))
    assert np.allclose(patch(image, mask, kind), patch(other, moved, kind), atol=1e-4)


def test_what_cannot_be_cut_is_said():
    image, mask = volume()
    with pytest.raises(DataError, match="has no voxel"):
        patch(image, mask * 0, WINDOW)
    with pytest.raises(DataError, match="not on the grid"):
        patch(image, mask[1:], WINDOW)
    with pytest.raises(DataError, match="one value throughout"):
        patch(image * 0 + 3, mask, ZSCORE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"intensity": "window"}, "window: goes with intensity"),
        ({"intensity": "zscore", "window": [0, 1]}, "window: goes with intensity"),
        ({"window": [1.0, 1.0]}, r"expected .low, high."),
        ({"window": [0.0, 1.0], "size": [1024, 1024, 1024]}, "size: has more than"),
        ({"window": [0.0, 1.0], "size": [0, 4, 4]}, "greater than or equal to 1"),
        ({"window": [0.0, 1.0], "spacing": [1.0, 1.0, 0.0]}, "greater than"),
    ],
)
def test_mistakes_in_the_plan_are_named(content, message):
    with pytest.raises(ConfigError, match=message):
        validate(PatchSettings, content, "plan: patch")


def changes(config, seed, count=4, size=(6, 8, 10)):
    values = np.random.default_rng(0).random((1, *size)).astype(np.float32)
    change = augmentation(config, size, seed)
    return values, [change(values) for _ in range(count)]


def test_the_same_seed_varies_the_same_way_and_another_does_not():
    config = AugmentationSettings(flip=0.5, rotation=20.0, crop=0.7, noise=0.05)
    values, first = changes(config, 3)
    _, again = changes(config, 3)
    _, other = changes(config, 4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert not any(np.array_equal(a, values) for a in first)
    assert all(isinstance(a, np.ndarray) and a.dtype == np.float32 and a.shape == values.shape for a in first)


def test_each_step_does_what_it_says():
    values, flipped = changes(AugmentationSettings(flip=1.0, rotation=0.0, crop=1.0), 1)
    assert all(np.array_equal(a, values[..., ::-1]) for a in flipped)
    values, nothing = changes(AugmentationSettings(flip=0.0, rotation=0.0, crop=1.0), 1)
    assert all(np.array_equal(a, values) for a in nothing)
    values, noisy = changes(AugmentationSettings(flip=0.0, rotation=0.0, crop=1.0, noise=0.1), 1, size=(20, 20, 20))
    assert all(abs(float((a - values).std()) - 0.1) < 0.005 for a in noisy)
    values, cropped = changes(AugmentationSettings(flip=0.0, rotation=0.0, crop=0.5), 1)
    assert all(set(np.unique(a)) < set(np.unique(values)) for a in cropped)
    # A turn about the z axis moves nothing between slices.
    flat = np.broadcast_to(np.arange(6, dtype=np.float32).reshape(1, 6, 1, 1), (1, 6, 8, 10)).copy()
    turned = augmentation(AugmentationSettings(flip=0.0, rotation=45.0, crop=1.0), (6, 8, 10), 2)(flat)
    assert np.allclose(turned, flat, atol=1e-4)
