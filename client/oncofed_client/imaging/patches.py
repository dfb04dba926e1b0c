"""Patches for the network: resampled, cropped round the region of interest, scaled; and their augmentation.

Resampling is SimpleITK's, which knows directions: every patch has the axes of the patient, however the scanner had its
slices. Scaling and augmentation are MONAI's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import SimpleITK as sitk
from monai.transforms import (
    Compose,
    EnsureType,
    NormalizeIntensity,
    RandAffine,
    RandFlip,
    RandGaussianNoise,
    RandSpatialCrop,
    ScaleIntensityRange,
    SpatialPad,
)
from numpy.typing import NDArray

from oncofed_shared.errors import DataError
from oncofed_shared.plan_imaging import AugmentationSettings, PatchSettings

__all__ = ["augmentation", "body", "centre_of", "patch"]

_IDENTITY = np.eye(3).ravel().tolist()


def centre_of(mask: sitk.Image) -> tuple[float, ...]:
    """Return the centre of a region's bounding box in mm (x, y, z).

    Raises:
        DataError: the region is empty.
    """
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.ComputeFeretDiameterOff()
    shape.Execute(sitk.Cast(mask > 0, sitk.sitkUInt8))
    if not shape.HasLabel(1):
        raise DataError("the region of interest has no voxel; draw it, or choose another")
    first, size = np.array(shape.GetBoundingBox(1), dtype=np.float64).reshape(2, 3)
    return tuple(mask.TransformContinuousIndexToPhysicalPoint((first + (size - 1) / 2).tolist()))


def body(image: sitk.Image) -> sitk.Image:
    """Return the mask of what is not background: above Otsu's threshold, with holes filled; uint8."""
    return sitk.BinaryFillhole(sitk.OtsuThreshold(image, 0, 1), fullyConnected=False, foregroundValue=1)


def _resampled(
    image: sitk.Image, centre: tuple[float, ...], settings: PatchSettings, outside: float
) -> NDArray[np.float32]:
    """Voxels (z, y, x) of the grid round a centre, by linear interpolation; `outside` where the image ends."""
    size, spacing = settings.size[::-1], settings.spacing[::-1]
    origin = [c - (n - 1) / 2 * s for c, n, s in zip(centre, size, spacing, strict=True)]
    resampled = sitk.Resample(
        image,
        size,
        sitk.Transform(3, sitk.sitkIdentity),
        sitk.sitkLinear,
        origin,
        spacing,
        _IDENTITY,
        outside,
        sitk.sitkFloat32,
    )
    return np.asarray(sitk.GetArrayFromImage(resampled), dtype=np.float32)


def _moments(image: sitk.Image) -> tuple[float, float]:
    """Mean and standard deviation inside the body."""
    whole = body(image)  # kept: a view does not keep its image alive
    inside = sitk.GetArrayViewFromImage(image)[sitk.GetArrayViewFromImage(whole) > 0].astype(np.float64)
    deviation = float(inside.std()) if inside.size else 0.0
    if not deviation > 0:
        raise DataError("the image has one value throughout the body: nothing to scale by; check the series")
    return float(inside.mean()), deviation


def patch(image: sitk.Image, mask: sitk.Image, settings: PatchSettings) -> NDArray[np.float32]:
    """Cut the patch round a region out of a volume.

    Args:
        image: float32 volume.
        mask: of the region, on the grid of the image.
        settings: the plan's.

    Returns:
        (z, y, x) float32 of `settings.size`, axes along the patient's; outside the image the lowest value.

    Raises:
        DataError: the region is empty, not on the grid of the image, or the image is constant and is to be scaled by itself.

    Guarantees:
        - Flipping or exchanging the axes of image and mask together, as another scanner would write them, changes nothing.
        - With a window, all values are in [0, 1]; with zscore, in [-cut, cut].
    """
    if mask.GetSize() != image.GetSize():
        raise DataError("the region of interest is not on the grid of its image; read it with that image")
    centre = centre_of(mask)
    if settings.window is not None:
        low, high = settings.window
        scale = ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)
        lowest, cut = low, (0.0, 1.0)
    else:
        mean, deviation = _moments(image)
        scale = NormalizeIntensity(subtrahend=mean, divisor=deviation)
        lowest, cut = float(sitk.GetArrayViewFromImage(image).min()), (-settings.cut, settings.cut)
    values = np.asarray(scale(_resampled(image, centre, settings, lowest)[None]), dtype=np.float32)[0]
    return np.asarray(np.clip(values, *np.array(cut, dtype=np.float32)))


def augmentation(settings: AugmentationSettings, size: tuple[int, int, int], seed: int) -> Compose:
    """Make the random changes of patches in training.

    Args:
        settings: the plan's.
        size: of a patch.
        seed: the same seed gives the same changes, in the same order of calls.

    Returns:
        A MONAI transform of (channels, z, y, x) float32 arrays, which gives float32 arrays of the same shape.
    """
    steps: list[Any] = []
    if settings.flip:
        steps.append(RandFlip(prob=settings.flip, spatial_axis=2))
    if settings.rotation:
        turn = math.radians(settings.rotation)
        steps.append(
            RandAffine(prob=1.0, rotate_range=((-turn, turn), 0.0, 0.0), mode="bilinear", padding_mode="border")
        )
    if settings.crop < 1:
        least = [max(1, math.ceil(settings.crop * n)) for n in size]
        steps += [RandSpatialCrop(roi_size=least, random_size=True), SpatialPad(spatial_size=size, mode="edge")]
    if settings.noise:
        steps.append(RandGaussianNoise(prob=1.0, std=settings.noise, sample_std=False))
    steps.append(EnsureType(data_type="numpy", dtype=np.float32, track_meta=False))
    return Compose(steps).set_random_state(seed=seed)
