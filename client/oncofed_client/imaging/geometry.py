"""Where the slices of a series lie, and whether they make one regular volume.

Slices are ordered by their position along the normal of their plane, never by name or number. A grid is made only where the
slices share one orientation, size and spacing, lie exactly above each other, and are equally far apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from oncofed_client.imaging.headers import Header, shown, tag_name
from oncofed_shared.errors import DataError

__all__ = ["Grid", "Slice", "grid_of", "plane_of"]

_ANGLE = 1e-3
"""Largest difference of direction cosines within one series, and from a right angle."""
_STEP = 0.1
"""Largest distance of a slice from its place in the regular grid, in slice distances."""
_SAME = 0.01
"""Slices nearer than this (mm) are at one position."""
_LENGTH = 1e-3
"""Largest relative difference of pixel spacing within one series."""
_BETWEEN = 0.05
"""Largest relative difference between the stated and the measured distance of slices, where only two are there."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Slice:
    """One plane of pixels.

    Attributes:
        path, frame: where its pixels are.
        position: (3,) mm, centre of the first pixel.
        across, down: (3,) unit vectors of increasing column and row.
        spacing: mm between columns, mm between rows.
        shape: rows, columns.
        thickness, between: SliceThickness and SpacingBetweenSlices, None where absent.
        tilt: GantryDetectorTilt in degrees, 0 where absent.
    """

    path: Path
    frame: int
    position: NDArray[np.float64]
    across: NDArray[np.float64]
    down: NDArray[np.float64]
    spacing: tuple[float, float]
    shape: tuple[int, int]
    thickness: float | None
    between: float | None
    tilt: float

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) across x down."""
        return np.cross(self.across, self.down)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Grid:
    """A regular volume.

    Attributes:
        slices: in the order of their position.
        spacing: mm along x, y, z.
        origin: (3,) mm, of the first voxel.
        direction: (3, 3), columns are the unit vectors of x, y, z.
    """

    slices: tuple[Slice, ...]
    spacing: tuple[float, float, float]
    origin: NDArray[np.float64]
    direction: NDArray[np.float64]

    def image(self, values: NDArray[np.float32]) -> sitk.Image:
        """Make the image of values (z, y, x)."""
        image = sitk.GetImageFromArray(values)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin.tolist())
        image.SetDirection(self.direction.ravel().tolist())
        return image


def plane_of(
    header: Header,
    shape: tuple[int, int],
    *,
    position: Header | None = None,
    orientation: Header | None = None,
    measures: Header | None = None,
    frame: int = 0,
) -> Slice:
    """Read where one plane lies.

    Args:
        header: of the file.
        shape: rows, columns.
        position, orientation, measures: items that hold these tags in a multi-frame file; the header itself elsewhere.
        frame: its number.

    Raises:
        DataError: a tag is missing or cannot be (directions not at right angles, a spacing that is not positive).
    """
    position, orientation, measures = position or header, orientation or header, measures or header
    cosines = orientation.need_numbers("ImageOrientationPatient", 6).reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1)
    if np.any(np.abs(lengths - 1) > _ANGLE) or abs(float(cosines[0] @ cosines[1])) > _ANGLE:
        raise header.wrong("ImageOrientationPatient", "should be two unit vectors at a right angle; export it again")
    across = cosines[0] / lengths[0]
    down = cosines[1] - (cosines[1] @ across) * across
    rows, columns = measures.need_numbers("PixelSpacing", 2).tolist()
    if min(rows, columns) <= 0:
        raise header.wrong("PixelSpacing", "should be positive; export it again")
    return Slice(
        path=header.path,
        frame=frame,
        position=position.need_numbers("ImagePositionPatient", 3),
        across=across,
        down=down / np.linalg.norm(down),
        spacing=(columns, rows),
        shape=shape,
        thickness=measures.number("SliceThickness"),
        between=measures.number("SpacingBetweenSlices"),
        tilt=header.number("GantryDetectorTilt") or 0.0,
    )


def _wrong(one: Slice, keyword: str, message: str) -> DataError:
    return DataError(f"{shown(one.path)}: {tag_name(keyword)} {message}")


def _check_alike(slices: Sequence[Slice]) -> None:
    """Refuse slices of different size, orientation or spacing; the commonest is not guessed."""
    first = slices[0]
    for one in slices[1:]:
        where = f"differs from that of {shown(first.path)} in the same series"
        if max(np.abs(one.across - first.across).max(), np.abs(one.down - first.down).max()) > _ANGLE:
            raise _wrong(one, "ImageOrientationPatient", f"{where}; export scouts and reformats as series of their own")
        if one.shape != first.shape:
            raise _wrong(one, "Rows", f"or Columns {where}; export series of one size")
        if not np.allclose(one.spacing, first.spacing, rtol=_LENGTH, atol=0):
            raise _wrong(one, "PixelSpacing", f"{where}; export series of one spacing")


def _check_above(slices: Sequence[Slice], normal: NDArray[np.float64]) -> None:
    """Refuse slices that are shifted against each other in their plane: a gantry tilt makes a sheared volume."""
    first, last = slices[0], slices[-1]
    for one in slices:
        apart = one.position - first.position
        sideways = float(np.linalg.norm(apart - (apart @ normal) * normal))
        if sideways > max(_SAME, 0.1 * min(first.spacing)):
            whole = last.position - first.position
            degrees = math.degrees(math.acos(min(1.0, abs(float(whole @ normal)) / float(np.linalg.norm(whole)))))
            tag = tag_name("GantryDetectorTilt")
            raise _wrong(
                one,
                "ImagePositionPatient",
                f"is shifted sideways against {shown(first.path)}, as with a gantry tilt ({tag}) of {degrees:.1f} "
                "degrees; export the series corrected for tilt",
            )


def _check_even(slices: Sequence[Slice], heights: NDArray[np.float64]) -> None:
    """Refuse two slices at one position, a gap, and mixed distances."""
    if len(slices) == 1:
        return
    steps = np.diff(heights)
    for i in np.flatnonzero(steps < _SAME).tolist():
        raise _wrong(
            slices[i + 1],
            "ImagePositionPatient",
            f"is that of {shown(slices[i].path)} too: a slice is there twice; remove the copy, or tell the two "
            "acquisitions apart by a rule under imaging.series",
        )
    place = np.arange(len(heights)) * (heights[-1] - heights[0]) / (len(heights) - 1)
    if np.all(np.abs(heights - heights[0] - place) <= _STEP * steps.min()):
        return
    least = float(steps.min())
    for i in np.flatnonzero(steps > (1 + _STEP) * least).tolist():
        times = float(steps[i]) / least
        whole = abs(times - round(times)) <= _STEP * times
        what = f"{round(times) - 1} slices are missing" if whole else "the distance between slices changes"
        raise _wrong(
            slices[i + 1],
            "ImagePositionPatient",
            f"is {times:.2f} slice distances from {shown(slices[i].path)}: {what}; export the whole series with one spacing",
        )
    raise _wrong(
        slices[-1], "ImagePositionPatient", "shows that the distance between slices drifts; export it with one spacing"
    )


def _distance(slices: Sequence[Slice], heights: NDArray[np.float64]) -> float:
    """Distance of slices in mm; of a single slice what the header says."""
    first = slices[0]
    if len(slices) == 1:
        stated = first.between or first.thickness
        if stated is None:
            raise _wrong(first, "SliceThickness", "is missing, and the series has one slice; export it again")
        if stated <= 0:
            raise _wrong(first, "SliceThickness", "should be positive; export it again")
        return stated
    measured = float(heights[-1] - heights[0]) / (len(slices) - 1)
    # With two slices left of three nothing but the header can tell that one is missing.
    if len(slices) == 2 and first.between and abs(measured / abs(first.between) - 1) > _BETWEEN:
        raise _wrong(first, "SpacingBetweenSlices", "is not the distance of the two slices; export the whole series")
    return measured


def grid_of(slices: Sequence[Slice]) -> Grid:
    """Order slices by position and check that they make one regular volume.

    Args:
        slices: at least one, in any order.

    Guarantees:
        - The result does not depend on the order of the slices.
        - A slice that is there twice, a gap between others, mixed distances, sizes, spacings or orientations, and a gantry
          tilt are refused, with the file and the tag.

    Raises:
        DataError: one of these.
    """
    # An order that is the same whatever the caller's, so that the same mistake gives the same message.
    ordered = sorted(slices, key=lambda s: (*s.position.tolist(), str(s.path), s.frame))
    _check_alike(ordered)
    normal = ordered[0].normal
    heights = np.array([float(s.position @ normal) for s in ordered])
    order = np.argsort(heights, kind="stable").tolist()
    ordered, heights = [ordered[i] for i in order], heights[order]
    _check_above(ordered, normal)
    _check_even(ordered, heights)
    first = ordered[0]
    return Grid(
        slices=tuple(ordered),
        spacing=(*first.spacing, _distance(ordered, heights)),
        origin=first.position,
        direction=np.stack([first.across, first.down, normal], axis=1),
    )
