"""Exports that no scanner made: each function breaks a small whole export in one way."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from small_export import change, write_export

ELEMENT = struct.Struct("<HH2sHI")


def element(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """One element with an explicit VR and a long length, which may lie."""
    return ELEMENT.pack(group, number, vr, 0, len(value) if length is None else length) + value


def insert(path: Path, extra: bytes) -> None:
    """Put bytes in front of the pixel data, or of the end."""
    content = path.read_bytes()
    place = content.find(b"\xe0\x7f\x10\x00O")
    place = len(content) if place < 0 else place
    path.write_bytes(content[:place] + extra + content[place:])


def truncated(folder: Path) -> None:
    write_export(folder)
    for name in ("ct0", "region"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) * 2 // 3])


def absurd_rows(folder: Path) -> None:
    write_export(folder)
    for k in range(3):
        change(folder / f"ct{k}", Rows=65535, Columns=65535)


def absurd_frames(folder: Path) -> None:
    write_export(folder, segments=True)
    change(folder / "region", NumberOfFrames=2**31 - 1)


def rows_within_the_limit_and_hardly_a_pixel(folder: Path) -> None:
    write_export(folder)
    for k in range(3):
        change(folder / f"ct{k}", Rows=12000, Columns=12000)


def element_longer_than_the_file(folder: Path) -> None:
    write_export(folder)
    insert(folder / "ct1", element(0x0021, 0x0010, b"OB", b"short", length=0xFFFFFFF0))


def deep_nesting(folder: Path) -> None:
    write_export(folder)
    open_one = ELEMENT.pack(0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    insert(folder / "ct1", open_one * 20_000)


def many_items(folder: Path) -> None:
    write_export(folder)
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 400_000
    insert(folder / "ct1", element(0x0040, 0x0275, b"SQ", items))
    change_region_items(folder)


def change_region_items(folder: Path) -> None:
    """Give the structure set more regions than anybody can have drawn."""
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 400_000
    content = (folder / "region").read_bytes()
    sequence = content.index(b"\x06\x30\x39\x00SQ")
    (folder / "region").write_bytes(content[:sequence] + element(0x3006, 0x0039, b"SQ", items))


def many_items_without_a_length(folder: Path) -> None:
    """A sequence that pydicom reads at once, item by item."""
    write_export(folder)
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 3_000_000
    insert(folder / "ct1", ELEMENT.pack(0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF) + items)


def deflate_bomb(folder: Path) -> None:
    write_export(folder)
    path = folder / "ct1"
    content = path.read_bytes()
    data = content[content.index(b"\x08\x00\x05\x00CS") :]
    meta = Dataset()
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(data + element(0x0021, 0x0010, b"OB", b"", length=2**30))
    packed += b"".join(packer.compress(bytes(2**20)) for _ in range(256)) + packer.flush()
    uid = b"1.2.840.10008.1.2.1.99"
    syntax = struct.pack("<HH2sH", 0x0002, 0x0010, b"UI", len(uid)) + uid
    length = struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(syntax))
    path.write_bytes(bytes(128) + b"DICM" + length + syntax + packed)


def compressed(path: Path, syntax: str, frame: bytes, **tags: object) -> None:
    data = pydicom.dcmread(path)
    data.PixelData = encapsulate([frame])
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = syntax
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    data.save_as(path)


def run_length_bomb(folder: Path) -> None:
    write_export(folder)
    segments = struct.pack("<16I", 2, 64, 64 + 20_000, *[0] * 13) + b"\x81\x00" * 20_000
    for k in range(3):
        compressed(folder / f"ct{k}", RLELossless, segments, Rows=12000, Columns=12000)


def jpeg_2000_of_another_size(folder: Path) -> None:
    write_export(folder)
    size = struct.pack(">HHHIIIIIIIIHBBB", 0xFF51, 41, 0, 60000, 60000, 0, 0, 60000, 60000, 0, 0, 1, 15, 1, 1)
    compressed(folder / "ct1", JPEG2000Lossless, b"\xff\x4f" + size + bytes(64))


def damaged_jpeg_2000(folder: Path) -> None:
    write_export(folder)
    size = struct.pack(">HHHIIIIIIIIHBBB", 0xFF51, 41, 0, 8, 8, 0, 0, 8, 8, 0, 0, 1, 15, 1, 1)
    compressed(folder / "ct1", JPEG2000Lossless, b"\xff\x4f" + size + b"\xff\x93" + bytes(64))


def not_numbers(folder: Path) -> None:
    write_export(folder, pet=True)
    raw_text(folder / "ct0", b"\x28\x00\x53\x10DS", b"nan ")
    raw_text(folder / "ct1", b"\x20\x00\x32\x00DS", b"inf\\-inf\\1e999 ")
    raw_text(folder / "pet0", b"\x10\x00\x30\x10DS", b"NaN ")


def raw_text(path: Path, start: bytes, value: bytes) -> None:
    """Replace a short text element as bytes, which pydicom would not write."""
    content = path.read_bytes()
    place = content.index(start)
    (length,) = struct.unpack_from("<H", content, place + 6)
    path.write_bytes(content[: place + 6] + struct.pack("<H", len(value)) + value + content[place + 8 + length :])


def contour_that_is_no_number(folder: Path) -> None:
    write_export(folder)
    content = (folder / "region").read_bytes()
    (folder / "region").write_bytes(content.replace(b"-5.000\\-5.000\\", b"nan\\       \\1\\", 1))


def zigzag_contour(folder: Path) -> None:
    """A short file whose outline crosses every row of the image, sixty thousand times."""
    write_export(folder)
    for k in range(3):
        change(folder / f"ct{k}", Rows=2048, Columns=16, PixelData=bytes(2 * 2048 * 16))
    data = pydicom.dcmread(folder / "region")
    low, high = -6.9, 4080.0
    points = [f"0\\{high if i % 2 else low}\\0" for i in range(60_000)]
    contour = data.ROIContourSequence[0].ContourSequence[0]
    del data.ROIContourSequence[0].ContourSequence[1:]
    contour.ContourImageSequence[0].ReferencedSOPInstanceUID = "2.999.1"
    contour.ContourData = "\\".join(points).split("\\")
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # an explicit one has no room for it
    data.save_as(folder / "region", implicit_vr=True, little_endian=True)


def names_that_lead_away(folder: Path) -> None:
    write_export(folder)
    for path in sorted(folder.iterdir()):
        change(path, PatientID="../../../../etc/passwd", SeriesDescription="..\\..\\x")
    data = pydicom.dcmread(folder / "region")
    data.StructureSetROISequence[0].ROIName = "gtv/../../../../root"
    data.save_as(folder / "region")


def names_that_write_on_the_terminal(folder: Path) -> None:
    write_export(folder)
    (folder / "ct1").rename(folder / "\x1b[31mred\n\x07")
    (folder / "ct2").write_bytes(b"no dicom")
    (folder / "ct2").rename(os.fsdecode(bytes(folder) + b"/\xff\xfe\x1b]0;title\x07.dcm"))


def links_and_pipes(folder: Path) -> None:
    write_export(folder)
    (folder / "out.dcm").symlink_to("/etc/passwd")
    (folder / "self.dcm").symlink_to(folder / "self.dcm")
    (folder / "up").symlink_to(folder.parent, target_is_directory=True)
    os.mkfifo(folder / "pipe.dcm")


def deep_folders(folder: Path) -> None:
    write_export(folder / "whole")
    here = os.open(folder, os.O_RDONLY)
    for _ in range(200):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def unknown_encodings(folder: Path) -> None:
    write_export(folder)
    for name in ("ct0", "ct1", "ct2", "region"):
        raw_text(folder / name, b"\x08\x00\x05\x00CS", b"ISO 2022 IR 9999\\\\UTF-7")
        raw_text(folder / name, b"\x10\x00\x20\x00LO", b"\x1b$B\xff\xfe\x80\x00 ")


def wrong_kinds(folder: Path) -> None:
    """Numbers where texts are expected, texts where sequences are."""
    write_export(folder, segments=True)
    content = (folder / "region").read_bytes()
    (folder / "region").write_bytes(content.replace(b"\x62\x00\x02\x00SQ", b"\x62\x00\x02\x00UT"))
    raw_text(folder / "ct0", b"\x28\x00\x10\x00US", b"abcdef")
    raw_text(folder / "ct1", b"\x20\x00\x37\x00DS", b"1\\0\\0 ")


def a_kind_of_value_that_nobody_knows(folder: Path) -> None:
    """Found by fuzzing: pydicom raises while it hands out an element that it was not asked to convert."""
    write_export(folder)
    content = (folder / "region").read_bytes()
    place = content.index(b"\x06\x30\x42\x00CS")
    (length,) = struct.unpack_from("<H", content, place + 6)
    empty = b"\x06\x30\x42\x00C\x00\x00\x00" + struct.pack("<HH2sH", 0x3006, 0x0043, b"LO", length - 8)
    (folder / "region").write_bytes(content[:place] + empty + content[place + 16 :])


def segments_far_outside(folder: Path) -> None:
    write_export(folder, segments=True)
    data = pydicom.dcmread(folder / "region")
    for frame in data.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient = [1e15, -1e15, 1e15]
    data.save_as(folder / "region")


def a_large_private_element(folder: Path) -> None:
    """A file that is large on purpose and costs no disk: two gigabytes of nothing behind one private tag."""
    write_export(folder)
    content = (folder / "ct1").read_bytes()
    place = content.find(b"\xe0\x7f\x10\x00O")
    with (folder / "ct1").open("wb") as file:
        file.write(content[:place] + element(0x0021, 0x0010, b"OB", b"", length=2**31))
        file.truncate(place + 12 + 2**31)


DICOM: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncated, "ct0"),
    "absurd_rows": (absurd_rows, "Rows"),
    "absurd_frames": (absurd_frames, "region"),
    "rows_and_hardly_a_pixel": (rows_within_the_limit_and_hardly_a_pixel, "PixelData"),
    "element_longer_than_the_file": (element_longer_than_the_file, "ct1"),
    "deep_nesting": (deep_nesting, "ct1"),
    "many_items": (many_items, "items"),
    "deflate_bomb": (deflate_bomb, "Deflated"),
    "run_length_bomb": (run_length_bomb, "PixelData"),
    "jpeg_2000_of_another_size": (jpeg_2000_of_another_size, "another size"),
    "damaged_jpeg_2000": (damaged_jpeg_2000, "PixelData"),
    "not_numbers": (not_numbers, "finite"),
    "contour_that_is_no_number": (contour_that_is_no_number, "ContourData"),
    "zigzag_contour": (zigzag_contour, "ContourData goes up and down"),
    "names_that_lead_away": (names_that_lead_away, ""),
    "names_that_write_on_the_terminal": (names_that_write_on_the_terminal, "is not a DICOM file"),
    "links_and_pipes": (links_and_pipes, "link out of the folder"),
    "deep_folders": (deep_folders, "imaging.limits.depth"),
    "unknown_encodings": (unknown_encodings, ""),
    "wrong_kinds": (wrong_kinds, "Rows"),
    "a_kind_of_value_that_nobody_knows": (a_kind_of_value_that_nobody_knows, "ContourGeometricType"),
    "segments_far_outside": (segments_far_outside, "ImagePositionPatient"),
    "a_large_private_element": (a_large_private_element, "ct1"),
}
"""Name -> what makes it, and what some message must say; the empty text where reading it is right."""


SLOW: dict[str, tuple[Callable[[Path], None], str]] = {
    "many_items_without_a_length": (many_items_without_a_length, "ct1"),
}
"""Cases that take the door some seconds before it refuses."""


def nifti(shape: tuple[int, ...], content: bytes, *, datatype: int = 4) -> bytes:
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<2h", header, 70, datatype, 16)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    return bytes(header) + bytes(4) + content


def packed_bomb(folder: Path) -> None:
    folder.mkdir()
    (folder / "p.nii.gz").write_bytes(gzip.compress(nifti((30000, 30000, 100), bytes(2**24))))


def packed_bomb_within_the_limit(folder: Path) -> None:
    folder.mkdir()
    (folder / "p.nii.gz").write_bytes(gzip.compress(nifti((700, 700, 700), bytes(2**20))))


def truncated_volumes(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.nii").write_bytes(nifti((8, 8, 8), bytes(100)))
    (folder / "b.nii.gz").write_bytes(gzip.compress(nifti((8, 8, 8), bytes(1024)))[:60])
    (folder / "c.nrrd").write_bytes(nrrd(b"sizes: 8 8 8", bytes(20)))


def nrrd(*lines: bytes) -> bytes:
    head = [b"NRRD0004", b"type: short", b"dimension: 3", b"encoding: raw", b"endian: little", *lines[:-1]]
    return b"\n".join(head) + b"\n\n" + lines[-1]


def voxels_elsewhere(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.nrrd").write_bytes(nrrd(b"sizes: 8 8 8", b"data file: /etc/passwd", b""))
    (folder / "b.nrrd").write_bytes(nrrd(b"sizes: 8 8 8", b"datafile: LIST\n../../../etc/passwd", b""))
    (folder / "c.nrrd").write_bytes(nrrd(b"sizes: 8 8 8", b"Data File: p%03d.raw 1 8 1", b""))


def nrrd_sizes(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.nrrd").write_bytes(nrrd(b"sizes: 99999999999 99999999999 99999999999", bytes(64)))
    (folder / "b.nrrd").write_bytes(nrrd(b"sizes: -8 8 8", bytes(64)))
    (folder / "c.nrrd").write_bytes(nrrd(b"sizes: 8 8 8", b"byte skip: -99999999999999", bytes(1024)))


def voxels_that_are_no_numbers(folder: Path) -> None:
    folder.mkdir()
    values = np.full((4, 4, 4), np.nan, dtype="<f4").tobytes()
    (folder / "a.nii").write_bytes(nifti((4, 4, 4), values, datatype=16)[:70] + nifti((4, 4, 4), values)[70:])
    head = [b"NRRD0004", b"type: float", b"dimension: 3", b"encoding: raw", b"endian: little", b"sizes: 4 4 4"]
    (folder / "b.nrrd").write_bytes(b"\n".join([*head, b"", values]))


VOLUMES: dict[str, tuple[Callable[[Path], None], str]] = {
    "packed_bomb": (packed_bomb, "voxels"),
    "packed_bomb_within_the_limit": (packed_bomb_within_the_limit, "damaged"),
    "truncated_volumes": (truncated_volumes, "damaged"),
    "voxels_elsewhere": (voxels_elsewhere, "in another file"),
    "nrrd_sizes": (nrrd_sizes, ".nrrd"),
    "voxels_that_are_no_numbers": (voxels_that_are_no_numbers, "not finite"),
}
