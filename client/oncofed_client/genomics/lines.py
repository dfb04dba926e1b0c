"""Lines of a stranger's text file, plain or gzip, with a bound on everything that could be without one.

Memory is bounded by the longest line that is allowed, time by the largest file. Nothing is unpacked to disk.
"""

from __future__ import annotations

import csv
import gzip
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from oncofed_client.genomics.settings import Limits
from oncofed_shared.errors import DataError

__all__ = ["cells_of", "fault", "plain_suffix", "text_lines", "text_rows"]

_CHUNK = 1 << 20
_TRUSTED = 64 << 20
"""Unpacked bytes before the ratio counts: a short file of one repeated line is no attack."""
_PACKED = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block at the end of every whole bgzip file (SAM/BAM specification 4.1.2)."""


def fault(path: Path, message: str, *, row: int | None = None, column: str | int | None = None) -> DataError:
    """Make the error of one place in a file. A column is a name from a specification, or a number from 1 on."""
    place = str(path)
    place += "" if row is None else f", row {row}"
    if column is not None:
        place += f", column number {column}" if isinstance(column, int) else f", column {column}"
    return DataError(f"{place}: {message}")


def plain_suffix(path: Path) -> str:
    """The name's suffix in small letters, `.gz` and `.bgz` apart."""
    name = path.name.lower()
    for packed in (".gz", ".bgz"):
        name = name.removesuffix(packed)
    return Path(name).suffix


def _opened(path: Path) -> BinaryIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise fault(path, "is not a regular file; copy the file itself here")
        return path.open("rb")
    except FileNotFoundError:
        raise fault(path, "does not exist; correct its name in site.toml") from None
    except OSError as error:
        raise fault(path, f"cannot be read ({error.strerror}); let this user read the file") from None


def _is_gzip(path: Path, raw: BinaryIO) -> bool:
    """Look at the beginning of a file, and at the end of a bgzip one."""
    start = raw.read(18)
    for magic, name in _PACKED.items():
        if start.startswith(magic):
            raise fault(path, f"is packed with {name}; expected plain text or gzip")
    if start[:4] == _BGZF_END[:4] and start[12:14] == b"BC":
        raw.seek(max(0, raw.seek(0, 2) - len(_BGZF_END)))
        if raw.read() != _BGZF_END:
            raise fault(path, "ends in the middle; it was not copied whole, copy it again")
    raw.seek(0)
    return start.startswith(b"\x1f\x8b")


def _read(path: Path, source: BinaryIO | gzip.GzipFile) -> bytes:
    try:
        return source.read(_CHUNK)
    except EOFError:
        raise fault(path, "ends in the middle; it was not copied whole, copy it again") from None
    except (gzip.BadGzipFile, zlib.error):
        raise fault(path, "is not valid gzip after its beginning; copy it again") from None
    except OSError as error:
        raise fault(path, f"cannot be read ({error.strerror})") from None


def _chunks(path: Path, limits: Limits) -> Iterator[bytes]:
    """Unpacked bytes, at most `_CHUNK` at a time."""
    with _opened(path) as raw:
        packed = _is_gzip(path, raw)
        source = gzip.GzipFile(fileobj=raw, mode="rb") if packed else raw
        total = 0
        while chunk := _read(path, source):
            total += len(chunk)
            if total > limits.file_gb << 30:
                raise fault(path, f"is larger than {limits.file_gb} GB; split it, or raise genomics.limits.file_gb")
            if packed and total > _TRUSTED and total > limits.ratio * raw.tell():
                message = (
                    f"unpacks to more than {limits.ratio} times its size, as an attack would; raise "
                    "genomics.limits.ratio if it is in order"
                )
                raise fault(path, message)
            yield chunk


def _text(path: Path, line: bytes, row: int) -> str:
    if b"\0" in line:
        raise fault(path, "expected text, found a zero byte; save the file as UTF-8", row=row)
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise fault(path, "expected UTF-8 text; save the file as UTF-8", row=row) from None
    text = text.removesuffix("\r")
    if "\r" in text:
        raise fault(path, "a line ends with a bare carriage return; save the file with line feeds", row=row)
    return text


def text_lines(path: Path, limits: Limits) -> Iterator[tuple[int, str]]:
    """Read lines with their numbers, from 1 on, without their ends.

    Guarantees:
        - At most one line of `limits.line_mb` and two chunks of 1 MiB are held.
        - A line is given only when it is whole UTF-8 text.

    Raises:
        DataError: unreadable, too large, packed too tightly, not whole, not text: with file and row.
    """
    longest = limits.line_mb << 20
    row, rest = 0, b""
    pending: list[bytes] = []
    held = 0
    for chunk in _chunks(path, limits):
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            row += 1
            if pending:
                line, pending, held = b"".join((*pending, line)), [], 0  # noqa: PLW2901 - the line's beginning
            if len(line) > longest:
                raise _too_long(path, limits, row)
            yield row, _text(path, line.removeprefix(b"\xef\xbb\xbf") if row == 1 else line, row)
        if rest:
            pending.append(rest)
            held += len(rest)
            if held > longest:
                raise _too_long(path, limits, row + 1)
    if pending:
        line = b"".join(pending)
        yield row + 1, _text(path, line.removeprefix(b"\xef\xbb\xbf") if row == 0 else line, row + 1)


def _too_long(path: Path, limits: Limits, row: int) -> DataError:
    return fault(
        path, f"the line is longer than {limits.line_mb} MB; raise genomics.limits.line_mb if it is right", row=row
    )


def cells_of(path: Path, text: str, row: int, *, comma: bool) -> list[str]:
    """Cells of one line, without blanks and quotes around them."""
    if comma:
        try:
            return [c.strip() for c in next(csv.reader([text], strict=True))]
        except csv.Error:
            raise fault(path, "a quote is not closed, or a cell is too long", row=row) from None
    cells = [c.strip() for c in text.split("\t")]
    if '"' in text:
        cells = [c[1:-1] if len(c) > 1 and c[0] == c[-1] == '"' else c for c in cells]
    return cells


def text_rows(path: Path, limits: Limits) -> Iterator[tuple[int, list[str]]]:
    """Rows of cells with their line numbers: tabs, or commas in a `.csv`. Empty lines and `#` comments are left out."""
    comma = plain_suffix(path) == ".csv"
    for row, text in text_lines(path, limits):
        if text.strip() and not text.startswith("#"):
            yield row, cells_of(path, text, row, comma=comma)
