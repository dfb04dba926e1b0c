"""NIfTI and NRRD files: checked by their own first bytes, then read by SimpleITK."""

from __future__ import annotations

import gzip
import math
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
_FLOATS = {16: "f4", 64: "f8"}
"""NIfTI data type -> numpy's, for those that can hold what is not finite (nifti1.h, NIFTI_TYPE_*)."""
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
    """Refuse a file with fewer voxels than its header says, or with some that are not finite.

    ITK reads the absent ones, and those that are not finite, as 0. Positions are those of nifti1.h and nifti2.h.
    """
    second = start[4:12] == b"n+2\0\r\n\x1a\n"
    order = "<" if int.from_bytes(start[:4], "little") == (540 if second else 348) else ">"
    try:
        if second:
            (kind, bits), shape = (
                struct.unpack_from(order + "2h", start, 12),
                struct.unpack_from(order + "8q", start, 16),
            )
            first = struct.unpack_from(order + "q", start, 168)[0]
        else:
            shape, (kind, bits) = (
                struct.unpack_from(order + "8h", start, 40),
                struct.unpack_from(order + "2h", start, 70),
            )
            first = int(struct.unpack_from(order + "f", start, 108)[0])
    except (struct.error, ValueError, OverflowError):
        raise _damaged(path) from None
    sizes = shape[1 : 1 + min(max(shape[0], 0), 7)]
    voxels = math.prod(sizes)
    if not sizes or min(sizes) < 1 or bits < 8 or not 0 <= first <= _HEAD:
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
