"""Outlines of an RTSTRUCT as a mask on the voxels of their image.

A voxel is inside where its centre is, by the even-odd rule over all contours of a region in its slice: a contour inside
another is a hole, whether it is drawn as a contour of its own or by a keyhole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from oncofed_client.imaging.headers import Header, shown
from oncofed_client.imaging.settings import Limits
from oncofed_shared.errors import DataError

__all__ = ["OFF", "check_room", "fill", "grid_matrix", "mask_like", "rasterise", "region_headers"]

OFF = 0.1
"""How far (in slice distances, in voxels) a mask may be from its image's grid: rounding of written positions, no shift."""
_CROSSINGS = 1 << 20
"""Crossings of edges with rows that are held at once: a short file can have edges that cross every row of an image."""
_MOST_CROSSINGS = 1 << 24
"""Crossings of one contour with rows, for which filling it takes about a second."""
_CLOSED = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})


def grid_matrix(image: sitk.Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the matrix (3, 3) and the origin (3,) that turn mm into voxel indices x, y, z: `(p - origin) @ matrix.T`."""
    direction = np.array(image.GetDirection()).reshape(3, 3)
    return np.linalg.inv(direction @ np.diag(image.GetSpacing())), np.array(image.GetOrigin())


def mask_like(image: sitk.Image, values: NDArray[np.uint8]) -> sitk.Image:
    """Make a mask of values (z, y, x) on the grid of an image."""
    mask = sitk.GetImageFromArray(values)
    mask.SetSpacing(image.GetSpacing())
    mask.SetOrigin(image.GetOrigin())
    mask.SetDirection(image.GetDirection())
    return mask


def check_room(header: Header, count: int, image: sitk.Image, limits: Limits) -> None:
    """Refuse more masks at once than fit into the memory of one volume (a byte per voxel against four).

    Raises:
        DataError: they do not fit.
    """
    if count * math.prod(image.GetSize()) > 4 * limits.voxels:
        raise DataError(
            f"{shown(header.path)}: {count} regions were chosen, too many for imaging.limits.voxels; narrow the pattern"
        )


def _toggle(toggles: NDArray[np.int64], start: NDArray[np.float64], end: NDArray[np.float64]) -> None:
    """Note where edges cross rows; each edge crosses every row at most once."""
    rows, columns = toggles.shape[0], toggles.shape[1] - 1
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(low), 0, rows).astype(np.int64)
    last = np.clip(np.ceil(high), 0, rows).astype(np.int64)
    count = last - first
    edge = np.repeat(np.arange(len(start)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    part = (row - start[edge, 1]) / (end[edge, 1] - start[edge, 1])
    crossing = start[edge, 0] + part * (end[edge, 0] - start[edge, 0])
    np.add.at(toggles, (row, np.clip(np.ceil(crossing), 0, columns).astype(np.int64)), 1)


def fill(contours: Iterable[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill polygons of one slice by the even-odd rule.

    Each edge is crossed with the rows between its ends (lower end in, upper end out, so that a corner counts once); a voxel
    is inside where the number of crossings at or left of its centre is odd.

    Args:
        contours: each (n, 2), x and y in voxels; closed by themselves.
        shape: rows, columns.

    Returns:
        (rows, columns).
    """
    rows, columns = shape
    toggles = np.zeros((rows, columns + 1), dtype=np.int64)
    step = max(1, _CROSSINGS // max(1, rows))
    for contour in contours:
        start, end = contour, np.roll(contour, -1, axis=0)
        for first in range(0, len(contour), step):
            _toggle(toggles, start[first : first + step], end[first : first + step])
    return np.asarray(np.cumsum(toggles, axis=1)[:, :-1] % 2 == 1)


def region_headers(header: Header, limits: Limits) -> dict[str, tuple[Header, Header | None]]:
    """Return ROI name -> its entry and its contours of an RTSTRUCT.

    Raises:
        DataError: no list of ROIs, an ROI without number or name, two with one name, or two with one number.
    """
    for keyword in ("StructureSetROISequence", "ROIContourSequence"):
        if keyword not in header.dataset:
            raise header.missing(keyword)
    contours: dict[int, Header] = {}
    for item in header.items("ROIContourSequence", limits):
        if contours.setdefault(item.need_count("ReferencedROINumber", least=0), item) is not item:
            raise header.wrong("ReferencedROINumber", "stands twice; export the structure set again")
    found: dict[str, tuple[Header, Header | None]] = {}
    numbers = set()
    for item in header.items("StructureSetROISequence", limits):
        name, number = item.text("ROIName"), item.need_count("ROINumber", least=0)
        if not name:
            raise header.missing("ROIName")
        if name in found:
            raise header.wrong("ROIName", "is the same for two regions; give each its own name")
        if number in numbers:
            raise header.wrong("ROINumber", "is the same for two regions; export the structure set again")
        numbers.add(number)
        found[name] = (item, contours.get(number))
    return found


def _slices(region: Header, image: sitk.Image, limits: Limits) -> dict[int, list[NDArray[np.float64]]]:
    """Slice of the image -> contours in it, x and y in voxels."""
    matrix, origin = grid_matrix(image)
    size = np.array(image.GetSize())
    found: dict[int, list[NDArray[np.float64]]] = {}
    points = 0
    for item in region.items("ContourSequence", limits):
        if item.text("ContourGeometricType") not in _CLOSED:
            raise region.wrong("ContourGeometricType", "is not CLOSED_PLANAR: points and open lines enclose nothing")
        flat = item.many_numbers("ContourData", 3 * limits.points)
        if flat.size % 3:
            raise region.wrong("ContourData", "should hold three numbers per point; export the structure set again")
        points += flat.size // 3
        if points > limits.points:
            raise region.wrong("ContourData", f"has more than {limits.points} points, the limit imaging.limits.points")
        place = (flat.reshape(-1, 3) - origin) @ matrix.T
        level = round(float(np.clip(place[:, 2].mean(), -1e9, 1e9)))
        if np.abs(place[:, 2] - level).max() > OFF:
            raise region.wrong(
                "ContourData",
                "does not lie in the slices of the image: it was drawn on another; choose the right image",
            )
        if not 0 <= level < size[2] or np.any(place[:, :2] < -0.5 - OFF) or np.any(place[:, :2] > size[:2] - 0.5 + OFF):
            raise region.wrong("ContourData", "lies outside the image; slices are missing, or it was drawn on another")
        if np.abs(np.diff(place[:, 1], append=place[:1, 1])).sum() > _MOST_CROSSINGS:
            raise region.wrong("ContourData", "goes up and down across the image as no outline does; draw it again")
        found.setdefault(level, []).append(place[:, :2])
    if not found:
        raise region.wrong("ContourSequence", "is empty: a region without contours; choose another, or draw it")
    return found


def rasterise(region: Header, image: sitk.Image, limits: Limits) -> sitk.Image:
    """Turn one ROI's contours into a mask.

    Args:
        region: its item of ROIContourSequence.
        image: that it was drawn on.
        limits: bounds.

    Returns:
        uint8, 1 inside, on the grid of the image.

    Raises:
        DataError: the contours do not lie in the slices of the image, or outside it, are not closed, or enclose no voxel.
    """
    columns, rows, depth = image.GetSize()
    values = np.zeros((depth, rows, columns), dtype=np.uint8)
    for level, contours in _slices(region, image, limits).items():
        values[level] = fill(contours, (rows, columns))
    if not values.any():
        raise region.wrong("ContourData", "encloses the centre of no voxel; the region is too small for the image")
    return mask_like(image, values)
