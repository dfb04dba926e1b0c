"""NIfTI and NRRD files: checked by their own first bytes, then read by SimpleITK."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from oncofed_client.imaging.headers import open_regular, shown
from oncofed_client.imaging.settings import Limits
from oncofed_shared.errors import DataError

__all__ = ["read_file"]

_HEAD = 65536
_PIECE = 2**20
_FARTHEST = 1e6
"""mm; no scanner is larger than a kilometre."""
_FLOATS = {16: "f4", 64: "f8"}
"""NIfTI data type -> numpy's, for those that can hold what is not finite (nifti1.h, NIFTI_TYPE_*)."""
_WHOLE = frozenset({2, 4, 8, 256, 512, 768, 1024, 1280})
"""NIfTI data types of whole numbers."""
_FIRST = ("8h", 40, "2h", 70, "f", 108, "8f", 76, "18f", 256)
_SECOND = ("8q", 16, "2h", 12, "q", 168, "8d", 104, "18d", 352)
"""Kind and position of sizes, data type and bits, start of the voxels, voxel sizes, and quaternion, offset and matrix."""
sitk.ProcessObject.SetGlobalWarningDisplay(False)  # noqa: FBT003 - it has no name; warnings quote the file's content


def _damaged(path: Path) -> DataError:
    return DataError(f"{shown(path)}: cannot be read as NIfTI or NRRD, it is cut off or damaged; export it again")


@contextmanager
def _unpacked(path: Path, limits: Limits) -> Iterator[BinaryIO | gzip.GzipFile]:
    """Open a file, unpacking a .gz as it is read."""
    with open_regular(path, limits) as file:
        try:
            if not path.name.lower().endswith(".gz"):
                yield file
                return
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked
        except (OSError, EOFError, ValueError, zlib.error):
            raise _damaged(path) from None


def _check_nrrd(start: bytes, path: Path, limits: Limits) -> None:
    """Refuse a header without an end, one whose voxels are elsewhere, and packed voxels that are cut off."""
    ends = [at + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if (at := start.find(mark)) >= 0]
    if not ends:
        raise _damaged(path)
    fields: dict[bytes, bytes] = {}
    for line in start[: min(ends)].splitlines():
        key, _, value = line.partition(b":")
        fields[key.strip().lower().replace(b" ", b"")] = value.strip().lower()
    if b"datafile" in fields:
        raise DataError(f"{shown(path)}: is an NRRD header whose voxels are in another file; save it as one .nrrd")
    if any(re.search(rb"nan|inf", fields.get(key, b"")) for key in (b"spacings", b"spaceorigin", b"spacedirections")):
        raise DataError(f"{shown(path)}: its spacing, origin or direction cannot be; save it again")
    if fields.get(b"encoding") not in {b"raw", b"gzip", b"gz"}:
        raise DataError(f"{shown(path)}: has an encoding other than raw and gzip, which is not accepted; save it again")
    if fields[b"encoding"] != b"raw":
        _check_packed(path, min(ends), limits)


def _check_packed(path: Path, start: int, limits: Limits) -> None:
    """Refuse packed voxels that have no end, or that unpack to more than any volume that is allowed."""
    unpacker, unpacked = zlib.decompressobj(wbits=31), 0
    with _unpacked(path, limits) as file:
        file.seek(start)
        piece = file.read(_PIECE)
        while piece and not unpacker.eof:
            unpacked += len(unpacker.decompress(piece, _PIECE))
            if unpacked > 8 * limits.voxels:
                raise DataError(f"{shown(path)}: unpacks to more than imaging.limits.voxels allows")
            piece = unpacker.unconsumed_tail or file.read(_PIECE)
    if not unpacker.eof:
        raise _damaged(path)


def _check_nifti(start: bytes, path: Path, limits: Limits) -> None:
    """Refuse a header that cannot be, and a file with fewer voxels than it says, or with some that are not finite.

    ITK reads the absent ones, and those that are not finite, as 0, and does not come back from a direction that is not
    finite. Positions are those of nifti1.h and nifti2.h.
    """
    second = start[4:12] == b"n+2\0\r\n\x1a\n"
    order = "<" if int.from_bytes(start[:4], "little") == (540 if second else 348) else ">"
    layout = (
        ("8q", 16, "2h", 12, "q", 168, "8d", 104, "18d", 352)
        if second
        else ("8h", 40, "2h", 70, "f", 108, "8f", 76, "18f", 256)
    )
    try:
        shape, (kind, bits), (first,), scale, place = (
            struct.unpack_from(order + what, start, at) for what, at in zip(layout[::2], layout[1::2], strict=True)
        )
    except struct.error:
        raise _damaged(path) from None
    if not np.isfinite([first, *scale, *place]).all() or np.abs([*scale, *place]).max() > _FARTHEST:
        raise DataError(f"{shown(path)}: its spacing, origin or direction cannot be; save it again")
    if kind not in _WHOLE | set(_FLOATS):
        raise DataError(f"{shown(path)}: holds colours, bits or complex numbers; expected grey values")
    sizes, first = shape[1 : 1 + max(shape[0], 0)], int(first)
    voxels = math.prod(sizes)
    if not 1 <= shape[0] <= 7 or min(sizes) < 1 or bits < 8 or not 0 <= first <= _HEAD:
        raise _damaged(path)
    if voxels > limits.voxels:
        raise DataError(f"{shown(path)}: has more than {limits.voxels} voxels, the limit imaging.limits.voxels")
    left = voxels * bits // 8
    with _unpacked(path, limits) as file:
        if len(file.read(first)) < first:
            raise _damaged(path)
        while left:
            piece = file.read(min(left, _PIECE))
            if not piece or (len(piece) % 8 and len(piece) != left):
                raise _damaged(path)
            left -= len(piece)
            if kind in _FLOATS and not np.isfinite(np.frombuffer(piece, order + _FLOATS[kind])).all():
                raise _not_finite(path)


def _not_finite(path: Path) -> DataError:
    return DataError(f"{shown(path)}: has voxels that are not finite numbers; replace them and save it again")


def _reader_name(path: Path, limits: Limits) -> str:
    """Name of SimpleITK's reader, decided by the content; a file that takes its voxels from elsewhere is refused."""
    with _unpacked(path, limits) as file:
        start = file.read(_HEAD)
    if start[:4] == b"NRRD":
        _check_nrrd(start, path, limits)
        return "NrrdImageIO"
    if start[344:348] == b"n+1\0" or start[4:12] == b"n+2\0\r\n\x1a\n":
        _check_nifti(start, path, limits)
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
        raise _not_finite(path)
    return image
