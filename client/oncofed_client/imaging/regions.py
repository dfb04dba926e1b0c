"""Regions of interest as masks on the grid of their image, from outlines, segments and mask files, chosen by name.

A mask that does not lie on its image is an error. It is never shifted or resampled onto it.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from oncofed_client.imaging.contours import OFF, check_room, mask_like, rasterise, region_headers
from oncofed_client.imaging.files import read_file
from oncofed_client.imaging.headers import read_header, shown
from oncofed_client.imaging.segmentation import read_segments, segment_numbers
from oncofed_client.imaging.series import Inventory, Series
from oncofed_client.imaging.settings import ImagingSettings, RegionRule, matches
from oncofed_shared.errors import DataError

__all__ = ["check_grid", "read_region", "read_regions", "region_names"]


def region_names(source: Series, settings: ImagingSettings) -> tuple[str, ...]:
    """List the names of the ROIs or segments of a file, as they stand; empty for a mask file, which has none.

    For a person at the site who writes `[imaging.regions]`; names are free text and belong in no message.

    Raises:
        DataError: the file cannot be read.
    """
    source.refuse_problems()
    if source.kind == "file":
        return ()
    header = read_header(source.files[0], settings.limits)
    if source.kind == "SEG":
        return tuple(segment_numbers(header, settings.limits))
    return tuple(region_headers(header, settings.limits))


def _of_outlines(
    source: Series, image: sitk.Image, rule: RegionRule, settings: ImagingSettings
) -> dict[str, sitk.Image]:
    header = read_header(source.files[0], settings.limits)
    regions = region_headers(header, settings.limits)
    chosen = {name: contours for name, (_, contours) in regions.items() if matches(name, rule.names)}
    check_room(header, len(chosen), image, settings.limits)
    found: dict[str, sitk.Image] = {}
    for name, contours in chosen.items():
        if contours is None:
            raise header.wrong("ROIContourSequence", "has no contours for a region that was chosen")
        found[name] = rasterise(contours, image, settings.limits)
    return found


def _of_file(source: Series, image: sitk.Image, rule: RegionRule, settings: ImagingSettings) -> sitk.Image:
    path = source.files[0]
    mask = read_file(path, settings.limits)
    check_grid(mask, image, shown(path))
    values = sitk.GetArrayViewFromImage(mask)
    if np.any(values != np.round(values)) or values.min() < 0:
        raise DataError(f"{shown(path)}: a mask should hold whole numbers from 0; save the labels, not probabilities")
    inside = values > 0 if rule.label is None else values == rule.label
    if not inside.any():
        which = "above 0" if rule.label is None else f"with the label {rule.label}"
        raise DataError(f"{shown(path)}: has no voxel {which}; choose another label under imaging.regions")
    return mask_like(image, inside.astype(np.uint8))


def check_grid(mask: sitk.Image, image: sitk.Image, where: str) -> None:
    """Refuse a mask that is not on the very grid of its image.

    The size must be equal, and no corner may be further from the image's than a tenth of a voxel.

    Raises:
        DataError: it is not.
    """
    if mask.GetSize() != image.GetSize():
        raise DataError(f"{where}: has another size than its image; draw it on that image, or resample it on purpose")
    least = OFF * min(image.GetSpacing())
    for corner in np.ndindex(2, 2, 2):
        index = [c * (n - 1) for c, n in zip(corner, image.GetSize(), strict=True)]
        here, there = (np.array(i.TransformIndexToPhysicalPoint(index)) for i in (mask, image))
        if np.abs(here - there).max() > least:
            raise DataError(
                f"{where}: does not lie on its image (spacing, origin or direction differ); draw it on that image"
            )


def read_regions(
    source: Series, image: sitk.Image, rule: RegionRule, settings: ImagingSettings
) -> dict[str, sitk.Image]:
    """Read the regions that a rule chooses.

    Args:
        source: of kind RTSTRUCT, SEG or file.
        image: that they must lie on.
        rule: which of them; a mask file has one, of the name of the file.
        settings: its limits.

    Returns:
        Name -> uint8 mask, 1 inside, on the grid of the image; empty where no name fits.

    Raises:
        DataError: a region does not lie on the image, is empty, or the file is damaged or beyond a limit.
    """
    source.refuse_problems()
    if source.kind == "file":
        return {source.files[0].name: _of_file(source, image, rule, settings)}
    if source.kind == "RTSTRUCT":
        return _of_outlines(source, image, rule, settings)
    if source.kind == "SEG":
        return read_segments(source.files[0], image, rule, settings.limits)
    raise DataError(
        f"{shown(source.files[0])}: is of kind {source.kind}, which has no regions; read it with read_volume"
    )


def read_region(
    name: str, image: sitk.Image, series: Series, inventory: Inventory, settings: ImagingSettings
) -> sitk.Image:
    """Find and read the one region of a series that `[imaging.regions.NAME]` means.

    Args:
        name: of the rule.
        image: the series' volume.
        series: its entry in the inventory.
        inventory: where the outlines, segments and masks are.
        settings: the site's.

    Returns:
        uint8 mask, 1 inside, on the grid of the image.

    Raises:
        DataError: no region fits the rule (code `no-region`), or several do, or it cannot be read.
    """
    rule = settings.regions.get(name)
    where = shown(series.files[0])
    if rule is None:
        raise DataError(f"{where}: there is no imaging.regions.{name}; add it to the site's settings", code="no-region")
    found: list[sitk.Image] = []
    for source in inventory.regions_of(series):
        if source.kind == "file" and (name not in source.regions or (rule.roles and series.role not in rule.roles)):
            continue
        found += read_regions(source, image, rule, settings).values()
    if not found:
        raise DataError(
            f"{where}: its patient has no region that fits imaging.regions.{name}; draw one, or mend the pattern",
            code="no-region",
        )
    if len(found) == 1:
        return found[0]
    if rule.several == "refuse":
        raise DataError(
            f"{where}: {len(found)} regions fit imaging.regions.{name}; narrow the pattern, or set several = 'union'"
        )
    values = np.maximum.reduce([sitk.GetArrayViewFromImage(m) for m in found])
    return mask_like(image, values)
