"""DICOM headers at the door: bounded, quiet, and every mistake named with file and tag, never with a value.

pydicom warns with the offending value and raises whatever its conversions raise. Here a file is read once, under limits,
and every value is taken through `Header`, which turns all of that into one `DataError`.
"""

from __future__ import annotations

import logging
import math
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_file_meta_info
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from oncofed_client.imaging.settings import Limits
from oncofed_shared.errors import DataError

__all__ = ["Header", "looks_like_dicom", "open_regular", "quiet", "read_header", "shown", "tag_name"]

_PREAMBLE = 132
_UNDEFINED = 0xFFFFFFFF
_BARE_STARTS = (b"\x08\x00", b"\x02\x00")
"""Groups 0008 and 0002: how a file begins that was written without a preamble."""
_LARGEST = 1 << 28
"""Bytes of the largest element of a sound header; pixels may have more."""
_MOST_READS = 2_000_000
"""Elements of a sound header, two or three for each: pydicom turns eight bytes of an empty item into a kilobyte."""
_ITEM = b"\xfe\xff\x00\xe0"
_MOST_ITEMS = 200_000

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its records quote header values


@contextmanager
def quiet() -> Iterator[None]:
    """Keep a library's warnings from the terminal and the log: they quote header values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def shown(path: Path) -> str:
    """Return a file's name as text that any terminal and log can show."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def tag_name(keyword: str) -> str:
    """Return the tag and the keyword: `(0028,0030) PixelSpacing`."""
    tag = tag_for_keyword(keyword)
    return keyword if tag is None else f"{Tag(tag)} {keyword}"


@contextmanager
def open_regular(path: Path, limits: Limits) -> Iterator[BinaryIO]:
    """Open a regular file, no link, no pipe, not larger than allowed.

    Raises:
        DataError: it is none of that, or cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its name cannot be opened"
        raise DataError(f"{shown(path)}: cannot be read ({reason}); let this user read the file") from None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{shown(path)}: is no regular file; put a copy of the file itself here")
        if status.st_size > limits.file_bytes:
            raise DataError(
                f"{shown(path)}: is larger than {limits.file_bytes} bytes, the limit imaging.limits.file_bytes; "
                "raise it if the file is sound"
            )
        yield file


class _Bounded:
    """A file that never makes room for more than is left in it, and notices a value that was cut off.

    It gives no more at once than `most` bytes, and not more often than a sound file needs. An element may say that it is
    four gigabytes long. pydicom searches for delimiters in pieces of fixed size, which alone may reach over the end.
    """

    _PIECES = frozenset({128, 8192})

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file = file
        self._most = most
        self._reads = 0
        self._size = os.fstat(file.fileno()).st_size
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read at most what is left.

        Raises:
            ValueError: more is asked than there is, and not to search; or more than a sound file needs.
        """
        left = self._size - self._file.tell()
        self._reads += 1
        if (0 < left < size and size not in self._PIECES) or size > self._most or self._reads > _MOST_READS:
            message = "cut off, or too much"
            raise ValueError(message)
        return self._file.read(min(size, max(left, 0)))


def looks_like_dicom(start: bytes) -> bool:
    """Whether a file's first 132 bytes are those of a DICOM file, also of one without a preamble."""
    if start[128:_PREAMBLE] == b"DICM":
        return True
    return start[:2] in _BARE_STARTS and start[2:4] in {b"\x00\x00", b"\x01\x00", b"\x05\x00", b"\x08\x00", b"\x16\x00"}


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class Header:
    """A DICOM dataset, or an item of one, that knows its file.

    Attributes:
        dataset: pydicom's.
        path: for messages.
    """

    dataset: Dataset
    path: Path

    def __repr__(self) -> str:
        return "Header()"

    def wrong(self, keyword: str, message: str) -> DataError:
        """Build an error that names the file and the tag; `message` has no value."""
        return DataError(f"{shown(self.path)}: {tag_name(keyword)} {message}")

    def _value(self, keyword: str) -> object:
        try:
            with quiet():
                self._refuse_crowd(keyword)
                return self.dataset.get(keyword)
        except DataError:
            raise
        except Exception:  # noqa: BLE001 - pydicom converts when asked, and raises whatever the conversion raises
            raise self.wrong(keyword, "cannot be read as its kind of value; export the file again") from None

    def _refuse_crowd(self, keyword: str) -> None:
        """Refuse a sequence of very many items before pydicom makes a dataset of each."""
        tag = tag_for_keyword(keyword)
        element = None if tag is None or tag not in self.dataset else self.dataset.get_item(tag)
        if tag is None or not isinstance(element, RawDataElement) or not isinstance(element.value, bytes):
            return
        if (
            len(element.value) > len(_ITEM) * _MOST_ITEMS
            and dictionary_VR(tag) == "SQ"
            and element.value.count(_ITEM) > _MOST_ITEMS
        ):
            raise self.wrong(keyword, f"has more than {_MOST_ITEMS} items; export the file again")

    def has(self, keyword: str) -> bool:
        """Whether a tag is there and not empty."""
        value = self._value(keyword)
        return value is not None and (
            not isinstance(value, str | bytes | MultiValue | pydicom.Sequence) or len(value) > 0
        )

    def text(self, keyword: str) -> str:
        r"""Return a tag as text without surrounding blanks, several values joined by `\`; empty where absent."""
        value = self._value(keyword)
        if value is None:
            return ""
        try:
            many = value if isinstance(value, MultiValue) else (value,)
            return "\\".join(str(v) for v in many).strip().strip("\0")
        except Exception:  # noqa: BLE001 - a person's name is decoded when it becomes text
            raise self.wrong(keyword, "cannot be read as text; export the file again") from None

    def numbers(self, keyword: str, count: int) -> NDArray[np.float64] | None:
        """Return a tag's finite numbers, (count,); None where it is absent or empty.

        Raises:
            DataError: another count, no numbers, or not finite.
        """
        if not self.has(keyword):
            return None
        value = self._value(keyword)
        try:
            many = [float(str(v)) for v in (value if isinstance(value, MultiValue | list) else [value])]
        except (TypeError, ValueError, OverflowError):
            raise self.wrong(keyword, "holds no number; export the file again") from None
        if len(many) != count or not all(math.isfinite(v) for v in many):
            raise self.wrong(keyword, f"should hold {count} finite numbers; export the file again")
        return np.array(many, dtype=np.float64)

    def number(self, keyword: str) -> float | None:
        """Return a tag's number; None where it is absent."""
        found = self.numbers(keyword, 1)
        return None if found is None else float(found[0])

    def need_numbers(self, keyword: str, count: int) -> NDArray[np.float64]:
        """Return a tag's numbers, or refuse where it is absent."""
        found = self.numbers(keyword, count)
        if found is None:
            raise self.missing(keyword)
        return found

    def need_number(self, keyword: str) -> float:
        """Return a tag's number, or refuse where it is absent."""
        return float(self.need_numbers(keyword, 1)[0])

    def need_count(self, keyword: str, *, least: int = 1) -> int:
        """Return a tag's whole number of at least `least`, or refuse."""
        value = self.need_number(keyword)
        if value != int(value) or value < least:
            raise self.wrong(keyword, f"should be a whole number of at least {least}; export the file again")
        return int(value)

    def missing(self, keyword: str) -> DataError:
        """Build the refusal for an absent tag."""
        return self.wrong(keyword, "is missing; export the series again with its full header")

    def items(self, keyword: str, limits: Limits) -> tuple[Header, ...]:
        """Return a sequence's items; none where it is absent."""
        value = self._value(keyword)
        if value is None:
            return ()
        if not isinstance(value, pydicom.Sequence):
            raise self.wrong(keyword, "is not a sequence; export the file again")
        if len(value) > limits.items:
            raise self.wrong(keyword, f"has more than {limits.items} items, the limit imaging.limits.items")
        return tuple(Header(dataset=item, path=self.path) for item in value)

    def item(self, keyword: str, limits: Limits) -> Header | None:
        """Return a sequence's first item, or None."""
        found = self.items(keyword, limits)
        return found[0] if found else None

    def many_numbers(self, keyword: str, limit: int) -> NDArray[np.float64]:
        """Return all numbers of a long tag, such as a contour, (n,), without an object for each.

        Raises:
            DataError: absent, too many, or not finite numbers.
        """
        tag = tag_for_keyword(keyword)
        try:
            with quiet():
                element = self.dataset.get_item(Tag(tag)) if tag is not None and tag in self.dataset else None
            value = None if element is None else element.value
            if isinstance(element, RawDataElement) and isinstance(value, bytes):
                parts = value.rstrip(b" \0").split(b"\\", limit)  # one more than allowed, then it is refused below
                many = np.array([float(p) for p in parts[:limit]] + [math.inf] * (len(parts) > limit))
            else:
                many = np.atleast_1d(np.array(value, dtype=np.float64)) if value is not None else np.zeros(0)
        except Exception:  # noqa: BLE001 - whatever the conversion raises
            raise self.wrong(keyword, "holds no numbers; export the file again") from None
        if not many.size:
            raise self.missing(keyword)
        if many.size > limit or not np.isfinite(many).all():
            raise self.wrong(keyword, "should hold finite numbers, not more than imaging.limits.points")
        return many


def _transfer_syntax(path: Path) -> UID:
    """Transfer syntax of a file with a preamble; implicit little endian where none is stated."""
    try:
        with quiet():
            stated = read_file_meta_info(path).get("TransferSyntaxUID")
            return UID(str(stated)) if stated else ImplicitVRLittleEndian
    except Exception:  # noqa: BLE001 - pydicom raises whatever the broken bytes lead to
        raise _unreadable(path) from None


def _last_is_cut(dataset: Dataset) -> bool:
    """Whether the file ended right behind the start of its last element."""
    element = dataset.get_item(list(dataset.keys())[-1])
    if not isinstance(element, RawDataElement) or element.length == _UNDEFINED or element.value is None:
        return False
    return len(element.value) < element.length


def _unreadable(path: Path) -> DataError:
    return DataError(f"{shown(path)}: cannot be read as DICOM, it is cut off or damaged; export it again")


def read_header(path: Path, limits: Limits, *, pixels: bool = False) -> Header:
    """Read a DICOM file, by default without its pixels.

    Args:
        path: the file.
        limits: bounds.
        pixels: whether the pixel data are read too (not decoded).

    Raises:
        DataError: not a regular DICOM file, too large, damaged, or deflated (which is refused by name, because it can
            grow without bound).
    """
    with open_regular(path, limits) as file:
        start = file.read(_PREAMBLE)
        if not looks_like_dicom(start):
            raise DataError(f"{shown(path)}: is not a DICOM file; remove it or export it again")
        bare = start[128:_PREAMBLE] != b"DICM"
        syntax = ImplicitVRLittleEndian if bare else _transfer_syntax(path)
        if syntax == DeflatedExplicitVRLittleEndian:
            raise DataError(
                f"{shown(path)}: has the transfer syntax Deflated Explicit VR Little Endian, which is not accepted; "
                "export it uncompressed"
            )
        file.seek(0)
        try:
            with quiet():
                most = max(_LARGEST, 4 * limits.voxels if pixels else 0)
                dataset = pydicom.dcmread(_Bounded(file, most), stop_before_pixels=not pixels, force=bare)
                whole = len(dataset) > 0 and not _last_is_cut(dataset)
        except Exception:  # noqa: BLE001 - pydicom raises whatever the broken bytes lead to
            raise _unreadable(path) from None
    if not whole:
        raise _unreadable(path)
    return Header(dataset=dataset, path=path)
