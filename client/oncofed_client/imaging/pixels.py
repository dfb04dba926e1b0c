"""Stored pixel values of a DICOM file, bounded before anything is decoded.

Uncompressed and RLE data are decoded by pydicom, JPEG, JPEG-LS and JPEG 2000 by GDCM in a process of its own. What a
codestream says of its own size is compared with the header first, because a decoder believes the codestream.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import iter_pixels

from oncofed_client.imaging.decoding import FrameDecoder
from oncofed_client.imaging.headers import Header, quiet, shown, tag_name
from oncofed_client.imaging.settings import Limits
from oncofed_shared.errors import DataError

__all__ = ["ACCEPTED", "codestream_size", "frames_of", "size_of"]

_GDCM = (
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEGLSNearLossless,
    uid.JPEG2000Lossless,
    uid.JPEG2000,
)
_NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
ACCEPTED: dict[str, str] = {
    **dict.fromkeys(_NATIVE, "plain"),
    uid.RLELossless: "coded",
    **dict.fromkeys(_GDCM, "apart"),
}
"""Transfer syntax -> how it is read; deflated data are refused, they can grow without bound."""

_STANDALONE = frozenset({0x01, *range(0xD0, 0xDA)})
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}


def size_of(header: Header, limits: Limits) -> tuple[int, int, int]:
    """Return frames, rows and columns.

    Raises:
        DataError: a tag is missing or no sensible count, or there are more voxels than allowed; nothing was decoded.
    """
    rows, columns = header.need_count("Rows"), header.need_count("Columns")
    frames = header.need_count("NumberOfFrames") if header.has("NumberOfFrames") else 1
    if rows * columns * frames > limits.voxels:
        raise header.wrong("Rows", f"x Columns x frames exceeds {limits.voxels}, the limit imaging.limits.voxels")
    return frames, rows, columns


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Rows and columns of a JPEG or JPEG-LS codestream: from the first start-of-frame marker (ISO 10918-1, B.2.2)."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _START_OF_FRAME:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        elif marker in _STANDALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def codestream_size(data: bytes) -> tuple[int, int] | None:
    """Return rows and columns that a JPEG, JPEG-LS or JPEG 2000 codestream states of itself; None where it states none.

    JPEG 2000: SIZ follows SOC (ISO 15444-1, A.5.1); the size is Xsiz - XOsiz by Ysiz - YOsiz.
    """
    if data[:2] == b"\xff\xd8":
        return _jpeg_size(data)
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) >= 24:
        width, height, left, top = (int.from_bytes(data[8 + 4 * i : 12 + 4 * i], "big") for i in range(4))
        return height - top, width - left
    return None


def _check_kind(header: Header) -> uid.UID:
    """Refuse what is not one grey value per pixel, or is coded in a way that is not accepted; return the transfer syntax."""
    file_meta = getattr(header.dataset, "file_meta", None)
    with quiet():
        syntax = uid.UID(str((file_meta or {}).get("TransferSyntaxUID", uid.ImplicitVRLittleEndian)))
    if syntax not in ACCEPTED:
        known = syntax.name if syntax.is_transfer_syntax else "unknown to this program"
        raise DataError(
            f"{shown(header.path)}: {tag_name('TransferSyntaxUID')} is {known}, which is not accepted; "
            "export it uncompressed"
        )
    samples = header.number("SamplesPerPixel")
    if samples is not None and samples != 1:
        raise header.wrong("SamplesPerPixel", "is not 1: a colour image, not accepted; export the original series")
    if not header.text("PhotometricInterpretation").startswith("MONOCHROME"):
        raise header.wrong("PhotometricInterpretation", "is not MONOCHROME1 or MONOCHROME2, as expected")
    if header.need_count("BitsAllocated") not in {1, 8, 16, 32}:
        raise header.wrong("BitsAllocated", "should be 1, 8, 16 or 32; export the file again")
    if not isinstance(header.dataset.get("PixelData"), bytes):
        raise header.missing("PixelData")
    return syntax


def _check_length(header: Header, size: tuple[int, int, int]) -> None:
    """Compare the length of uncompressed data with what the header says."""
    bits = header.need_count("BitsAllocated")
    if len(header.dataset.PixelData) < (size[0] * size[1] * size[2] * bits + 7) // 8:
        raise header.wrong("PixelData", "is shorter than Rows x Columns x frames; the file is cut off, export it again")


def _codestreams(header: Header, size: tuple[int, int, int], *, states_size: bool) -> Iterator[bytes]:
    """Yield the codestream of each frame, whose size was compared with the header's before it is decoded."""
    frames, rows, columns = size
    one = rows * columns * header.need_count("BitsAllocated") // 8
    found = 0
    for frame in islice(generate_frames(header.dataset.PixelData, number_of_frames=frames), frames + 1):
        found += 1
        if states_size and codestream_size(frame) != (rows, columns):
            raise header.wrong("PixelData", "is coded with another size than Rows x Columns; export it again")
        if len(frame) > 2 * one + 65536:
            raise header.wrong("PixelData", "is larger compressed than twice its size without; export it again")
        yield frame
    if found != frames:
        raise header.wrong("PixelData", "holds another number of frames than NumberOfFrames; export it again")


def _apart(header: Header, size: tuple[int, int, int], syntax: str, decoder: FrameDecoder) -> Iterator[NDArray[Any]]:
    """Frames that are decoded in a process of its own."""
    bits = header.need_count("BitsAllocated"), header.need_count("BitsStored")
    signed = header.number("PixelRepresentation") == 1
    for codestream in _codestreams(header, size, states_size=True):
        values = decoder.decode(codestream, syntax=syntax, shape=size[1:], bits=bits, signed=signed)
        if values is None:
            raise header.wrong("PixelData", "cannot be decoded; the file is damaged, export it again")
        yield values


def _bits(header: Header, size: tuple[int, int, int]) -> Iterator[NDArray[Any]]:
    """Frames of one bit per pixel; they follow each other without a gap, also within a byte (PS3.5, annex D)."""
    data = np.frombuffer(header.dataset.PixelData, dtype=np.uint8)
    pixels = size[1] * size[2]
    for start in range(0, pixels * size[0], pixels):
        first = start // 8
        bits = np.unpackbits(data[first : (start + pixels + 7) // 8], bitorder="little")
        yield bits[start - 8 * first :][:pixels]


def _frames(header: Header, size: tuple[int, int, int], decoder: FrameDecoder) -> Iterator[NDArray[Any]]:
    """Frames by the way that their transfer syntax needs."""
    syntax = _check_kind(header)
    if ACCEPTED[syntax] == "apart":
        return _apart(header, size, syntax, decoder)
    if ACCEPTED[syntax] == "coded":
        for _ in _codestreams(header, size, states_size=False):
            pass
        return iter_pixels(header.dataset, raw=True, decoding_plugin="pydicom")
    _check_length(header, size)
    if header.need_count("BitsAllocated") == 1:
        return _bits(header, size)
    return iter_pixels(header.dataset, raw=True)


def frames_of(header: Header, limits: Limits, decoder: FrameDecoder) -> Iterator[NDArray[Any]]:
    """Yield the stored values of each frame, (rows, columns), before any rescaling; one frame in memory at a time.

    Args:
        header: read with its pixels.
        limits: bounds.
        decoder: for frames that are compressed.

    Raises:
        DataError: a transfer syntax or kind of pixel that is not accepted (by name), a size beyond the limit or that
            does not agree with the data, or data that cannot be decoded.
    """
    size = size_of(header, limits)
    try:
        with quiet():
            frames = _frames(header, size, decoder)
        for _ in range(size[0]):
            with quiet():
                frame = next(frames)
            yield frame.reshape(size[1:])
    except DataError:
        raise
    except Exception:  # noqa: BLE001 - a decoder raises whatever the broken bytes lead to
        raise header.wrong("PixelData", "cannot be decoded; the file is damaged, export it again") from None
