"""Segments of a DICOM SEG as masks on the voxels of their image: binary, fractional, overlapping, label map.

Each frame is placed by its own position and orientation, so that neither the order of the frames nor the direction in which
they were written matters, and a segmentation of a part of the image is at its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from oncofed_client.imaging.contours import OFF, check_room, grid_matrix, mask_like
from oncofed_client.imaging.decoding import FrameDecoder
from oncofed_client.imaging.geometry import Slice, plane_of
from oncofed_client.imaging.headers import Header, read_header
from oncofed_client.imaging.pixels import frames_of, size_of
from oncofed_client.imaging.settings import Limits, RegionRule, matches

__all__ = ["read_segments", "segment_numbers"]

_TYPES = frozenset({"BINARY", "FRACTIONAL", "LABELMAP"})
_DIRECTION = 1e-3
"""Largest difference between the step of a frame and a step of the image, in voxels."""


def segment_numbers(header: Header, limits: Limits) -> dict[str, int]:
    """Return the label of each segment -> its number.

    Raises:
        DataError: a label or number is missing, or stands twice.
    """
    found: dict[str, int] = {}
    for item in header.items("SegmentSequence", limits):
        label, number = item.text("SegmentLabel"), item.need_count("SegmentNumber", least=0)
        if not label:
            raise header.missing("SegmentLabel")
        if label in found:
            raise header.wrong("SegmentLabel", "is the same for two segments; give each its own label")
        if number in found.values():
            raise header.wrong("SegmentNumber", "is the same for two segments; export the segmentation again")
        found[label] = number
    if not found:
        raise header.missing("SegmentSequence")
    return found


def _group(frame: Header, shared: Header | None, keyword: str, limits: Limits) -> Header | None:
    """Return a functional group of a frame: its own, else the one that all share."""
    return frame.item(keyword, limits) or (shared.item(keyword, limits) if shared is not None else None)


def _frames(header: Header, limits: Limits) -> list[tuple[Slice, int | None]]:
    """Where each frame lies, and the segment it is of (None in a label map)."""
    count, rows, columns = size_of(header, limits)
    shared = header.item("SharedFunctionalGroupsSequence", limits)
    each = header.items("PerFrameFunctionalGroupsSequence", limits)
    if len(each) != count:
        raise header.wrong("PerFrameFunctionalGroupsSequence", "should have one item per frame; export it again")
    found: list[tuple[Slice, int | None]] = []
    for number, frame in enumerate(each):
        groups = [
            _group(frame, shared, keyword, limits)
            for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        ]
        for group, keyword in zip(groups, ("PlanePosition", "PlaneOrientation", "PixelMeasures"), strict=True):
            if group is None:
                raise header.missing(f"{keyword}Sequence")
        position, orientation, measures = groups
        plane = plane_of(
            header, (rows, columns), position=position, orientation=orientation, measures=measures, frame=number
        )
        segment = _group(frame, shared, "SegmentIdentificationSequence", limits)
        found.append((plane, None if segment is None else segment.need_count("ReferencedSegmentNumber", least=0)))
    return found


def _place(header: Header, plane: Slice, image: sitk.Image) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index of a frame's first pixel (3,), and the step in the image for one row and one column more, (2, 3)."""
    matrix, origin = grid_matrix(image)
    start = matrix @ (plane.position - origin)
    steps = np.stack([matrix @ (plane.down * plane.spacing[1]), matrix @ (plane.across * plane.spacing[0])])
    whole = np.round(steps)
    ends = start + np.array([[0, 0], [plane.shape[0] - 1, 0], [0, plane.shape[1] - 1]]) @ steps
    if (
        np.abs(steps - whole).max() > max(_DIRECTION, OFF / max(plane.shape))
        or np.abs(whole).sum(axis=1).tolist() != [1, 1]
        or np.abs(ends - np.round(ends)).max() > OFF
    ):
        raise header.wrong(
            "ImagePositionPatient",
            "or orientation or spacing of a frame is not on the voxels of the image, it was drawn on another; choose the right one",
        )
    first = np.round(start)
    corners = np.stack([first, first + whole[0] * (plane.shape[0] - 1) + whole[1] * (plane.shape[1] - 1)])
    if np.abs(corners).max() > 1e9:
        raise header.wrong("ImagePositionPatient", "of a frame is far outside the image; choose the right image")
    return first.astype(np.int64), whole.astype(np.int64)


def _inside(frame: NDArray[Any], segment: int | None, wanted: int, least: float) -> NDArray[np.bool_]:
    """Pixels of a frame that belong to a segment; in a label map those with its number."""
    return np.asarray(frame == wanted if segment is None else frame >= least)


def _least(header: Header, rule: RegionRule) -> float:
    """Smallest stored value that counts as inside."""
    kind = header.text("SegmentationType")
    if kind not in _TYPES:
        raise header.wrong("SegmentationType", f"should be one of {', '.join(sorted(_TYPES))}; export it again")
    if kind != "FRACTIONAL":
        return 1.0
    return rule.fraction * header.need_count("MaximumFractionalValue")


def read_segments(path: Path, image: sitk.Image, rule: RegionRule, limits: Limits) -> dict[str, sitk.Image]:
    """Read the segments whose label a rule chooses.

    Args:
        path: a DICOM SEG.
        image: that it must lie on.
        rule: patterns of labels, and the least fraction that counts as inside.
        limits: bounds.

    Returns:
        Label -> uint8 mask, 1 inside, on the grid of the image.

    Raises:
        DataError: a frame is not on the voxels of the image or outside it, a segment is empty, or the file is damaged or
            beyond a limit.
    """
    header = read_header(path, limits, pixels=True)
    chosen = {n: label for label, n in segment_numbers(header, limits).items() if matches(label, rule.names)}
    if not chosen:
        return {}
    least, is_map = _least(header, rule), header.text("SegmentationType") == "LABELMAP"
    columns, rows, depth = image.GetSize()
    check_room(header, len(chosen), image, limits)
    masks = {n: np.zeros((depth, rows, columns), dtype=np.uint8) for n in chosen}
    with FrameDecoder() as decoder:
        for (plane, segment), frame in zip(_frames(header, limits), frames_of(header, limits, decoder), strict=True):
            if segment is None and not is_map:
                raise header.missing("SegmentIdentificationSequence")
            for number in [n for n in chosen if is_map or n == segment]:
                first, steps = _place(header, plane, image)
                row, column = np.nonzero(_inside(frame, None if is_map else segment, number, least))
                index = first + row[:, None] * steps[0] + column[:, None] * steps[1]
                if np.any(index < 0) or np.any(index >= np.array(image.GetSize())):
                    raise header.wrong(
                        "ImagePositionPatient", "of a frame is outside the image; choose the right image"
                    )
                masks[number][index[:, 2], index[:, 1], index[:, 0]] = 1
    for values in masks.values():
        if not values.any():
            raise header.wrong("PixelData", "of a segment that was chosen is empty; choose another, or draw it")
    return {label: mask_like(image, masks[n]) for n, label in chosen.items()}
