"""A series as one volume, in the units of its modality: HU for CT, SUV by body weight for PET, the scanner's own for MR."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from oncofed_client.imaging.decoding import FrameDecoder
from oncofed_client.imaging.files import read_file
from oncofed_client.imaging.geometry import Slice, grid_of, plane_of
from oncofed_client.imaging.headers import Header, read_header, shown
from oncofed_client.imaging.identifying import burned_in
from oncofed_client.imaging.pet import suv_factors
from oncofed_client.imaging.pixels import frames_of, size_of
from oncofed_client.imaging.series import Series
from oncofed_client.imaging.settings import ImagingSettings, Limits
from oncofed_shared.errors import DataError

__all__ = ["read_volume"]

_HOUNSFIELD = frozenset({"", "HU", "US"})
"""RescaleType of a CT in HU: absent, said, or unspecified, as some scanners write."""


def _headers(series: Series, limits: Limits) -> list[Header]:
    """Headers of all files without pixels, checked to be of one series."""
    headers = [read_header(path, limits) for path in series.files]
    if not headers:
        raise DataError("a series has no files")
    for header in headers:
        if header.text("SeriesInstanceUID") != headers[0].text("SeriesInstanceUID"):
            raise header.wrong(
                "SeriesInstanceUID", f"is not that of {shown(headers[0].path)}; read one series at a time"
            )
        if header.text("Modality") != series.kind:
            raise header.wrong("Modality", f"is not {series.kind}, as that of the series is")
        if burned_in(header):
            raise header.wrong("BurnedInAnnotation", "is YES: a name may stand in its pixels; the series is refused")
        if series.kind == "CT" and header.text("RescaleType") not in _HOUNSFIELD:
            raise header.wrong("RescaleType", "is not HU; export the series in Hounsfield units")
        if header.has("ModalityLUTSequence"):
            raise header.wrong("ModalityLUTSequence", "is not accepted; export the series with a rescale slope")
    return headers


def _rescale(header: Header) -> tuple[float, float]:
    """Slope and intercept; a CT without them has no HU, other modalities then keep their values."""
    slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
    if header.text("Modality") != "MR":
        for keyword, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
            if value is None:
                raise header.missing(keyword)
    if slope == 0:
        raise header.wrong("RescaleSlope", "is 0: every value would be the same; export the series again")
    return 1.0 if slope is None else slope, intercept or 0.0


def _planes(headers: Sequence[Header], limits: Limits) -> list[Slice]:
    """Where each file's plane lies; the size of the whole is checked before any pixel is read."""
    planes, voxels = [], 0
    for header in headers:
        frames, rows, columns = size_of(header, limits)
        if frames != 1:
            raise header.wrong("NumberOfFrames", "is more than 1: a multi-frame file; export it as single slices")
        voxels += rows * columns
        planes.append(plane_of(header, (rows, columns)))
    if voxels > limits.voxels:
        raise DataError(
            f"{shown(headers[0].path)}: its series has more than {limits.voxels} voxels, the limit imaging.limits.voxels"
        )
    return planes


def _room(header: Header, shape: tuple[int, ...]) -> NDArray[np.float32]:
    try:
        return np.empty(shape, dtype=np.float32)
    except MemoryError:
        raise DataError(
            f"{shown(header.path)}: its series does not fit into this machine's memory; resample it, or use a larger one"
        ) from None


def _dicom(series: Series, limits: Limits, factors: Callable[[Sequence[Header]], list[float]]) -> sitk.Image:
    headers = _headers(series, limits)
    grid = grid_of(_planes(headers, limits))
    scale = dict(zip((h.path for h in headers), factors(headers), strict=True))
    values = np.empty(0, dtype=np.float32)
    with FrameDecoder() as decoder:
        for place, one in enumerate(grid.slices):
            header = read_header(one.path, limits, pixels=True)
            slope, intercept = _rescale(header)
            (stored,) = frames_of(header, limits, decoder)
            if place == 0:  # only now: headers may promise a volume for which there are no pixels
                values = _room(header, (len(grid.slices), *one.shape))
            values[place] = (stored.astype(np.float64) * slope + intercept) * scale[one.path]
    if not np.isfinite(values).all():
        raise headers[0].wrong("RescaleSlope", "makes values that are not finite; export the series again")
    return grid.image(values)


def read_volume(series: Series, settings: ImagingSettings) -> sitk.Image:
    """Read a series.

    Args:
        series: of kind CT, MR, PT or file.
        settings: its limits.

    Returns:
        float32; spacing, origin and direction in mm and LPS. CT in HU, PET in SUV by body weight (g/ml), MR rescaled as its
        header says, a NIfTI or NRRD file as it stands.

    Raises:
        DataError: the series has a problem, or its slices make no regular volume (tilt, gap, copy, mixed spacing, size or
            orientation), a tag is missing, a transfer syntax is not accepted, data are damaged or too large. The message has
            file and tag.

    Guarantees:
        - The order and the names of the files change nothing.
        - No message quotes a header value.
        - At most one float32 volume within `limits.voxels` and a few slices are in memory.
    """
    series.refuse_problems()
    limits = settings.limits
    if series.kind == "file":
        return read_file(series.files[0], limits)
    if series.kind == "PT":
        return _dicom(series, limits, lambda headers: suv_factors(headers, limits))
    if series.kind in {"CT", "MR"}:
        return _dicom(series, limits, lambda headers: [1.0] * len(headers))
    raise DataError(f"{shown(series.files[0])}: is of kind {series.kind}, which is no image; read it with read_regions")
