"""NIfTI and NRRD files: checked by their own first bytes, then read by SimpleITK."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from oncofed_client.imaging.headers import open_regular, shown
from oncofed_client.imaging.settings import Limits
from oncofed_shared.errors import DataError

__all__ = ["read_file"]

_HEAD = 65536
sitk.ProcessObject.SetGlobalWarningDisplay(False)  # noqa: FBT003 - it has no name; warnings quote the file's content


def _start(path: Path, limits: Limits) -> bytes:
    """First bytes of a file, unpacked where it is a .nii.gz."""
    with open_regular(path, limits) as file:
        if not path.name.lower().endswith(".gz"):
            return file.read(_HEAD)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return unpacked.read(_HEAD)
        except (OSError, EOFError, zlib.error):
            raise _damaged(path) from None


def _damaged(path: Path) -> DataError:
    return DataError(f"{shown(path)}: cannot be read as NIfTI or NRRD, it is cut off or damaged; export it again")


def _reader_name(path: Path, limits: Limits) -> str:
    """Name of SimpleITK's reader, decided by the content; a file that takes its voxels from elsewhere is refused."""
    start = _start(path, limits)
    if start[:4] == b"NRRD":
        head, _, rest = start.partition(b"\n\n")
        crlf, _, _ = start.partition(b"\r\n\r\n")
        head = min(head, crlf, key=len)
        keys = {line.split(b":")[0].strip().lower().replace(b" ", b"") for line in head.splitlines()}
        if b"datafile" in keys:
            raise DataError(f"{shown(path)}: is an NRRD header whose voxels are in another file; save it as one .nrrd")
        if not rest or len(head) == len(start):
            raise _damaged(path)
        return "NrrdImageIO"
    if start[344:348] == b"n+1\0" or start[4:12] == b"n+2\0\r\n\x1a\n":
        return "NiftiImageIO"
    if start[344:348] == b"ni1\0":
        raise DataError(f"{shown(path)}: is a NIfTI header whose voxels are in another file; save it as one .nii.gz")
    raise DataError(f"{shown(path)}: is neither NIfTI nor NRRD, as its name says; save it as .nii.gz or .nrrd")


def read_file(path: Path, limits: Limits) -> sitk.Image:
    """Read a NIfTI or NRRD volume.

    Args:
        path: .nii, .nii.gz or .nrrd.
        limits: bounds.

    Returns:
        float32, three dimensions, geometry in mm and LPS.

    Raises:
        DataError: another format, several channels or times, too large (nothing was read then), damaged, a spacing or
            direction that cannot be, or a value that is not finite.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_reader_name(path, limits))
    reader.SetFileName(str(path))
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        depth, channels = reader.GetDimension(), reader.GetNumberOfComponents()
    except Exception:  # noqa: BLE001 - SimpleITK raises RuntimeError and, for odd names, UnicodeError
        raise _damaged(path) from None
    if depth != 3 or channels != 1:
        raise DataError(
            f"{shown(path)}: has {depth} dimensions and {channels} channels; expected one volume of grey values"
        )
    if math.prod(size) > limits.voxels:
        raise DataError(f"{shown(path)}: has more than {limits.voxels} voxels, the limit imaging.limits.voxels")
    try:
        image = reader.Execute()
    except Exception:  # noqa: BLE001 - as above
        raise _damaged(path) from None
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    geometry = np.array([*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection()])
    if not np.isfinite(geometry).all() or min(image.GetSpacing()) <= 0:
        raise DataError(f"{shown(path)}: its spacing, origin or direction cannot be; save it again")
    if not np.isfinite(sitk.GetArrayViewFromImage(image)).all():
        raise DataError(f"{shown(path)}: has voxels that are not finite numbers; replace them and save it again")
    return image
