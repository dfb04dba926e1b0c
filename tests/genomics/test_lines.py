"""A stranger's text file: every line that it has, or one clear error with the file and the row."""

from __future__ import annotations

import gzip
import os
import re
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pysam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.genomics.lines import text_lines, text_rows
from oncofed_client.genomics.settings import Limits
from oncofed_shared.errors import DataError

SMALL = Limits(line_mb=1)


def read(path: Path, limits: Limits = SMALL) -> list[tuple[int, str]]:
    return list(text_lines(path, limits))


def written(folder: Path, content: bytes, name: str = "f.tsv") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


LINE = st.text(st.characters(blacklist_characters="\n\r\0\ufeff", blacklist_categories=["Cs"]), max_size=30)


@given(st.lists(LINE, min_size=1), st.booleans(), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_gives_every_line_whatever_the_packing_and_line_ends(lines, packed, end, mark, last):
    content = (("\ufeff" if mark else "") + end.join(lines) + (end if last else "")).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), gzip.compress(content) if packed else content)
        # What follows the last line end is a line only when there is something.
        expected = lines if last or lines[-1] or (mark and len(lines) == 1) else lines[:-1]
        assert read(path) == list(enumerate(expected, 1))


def test_a_line_across_chunks_is_whole(tmp_path):
    long = "x" * 1_000_000
    path = written(tmp_path, f"a\n{long}\nb\n{long}\nc".encode())
    assert [t for _, t in read(path)] == ["a", long, "b", long, "c"]


def one(path: Path, limits: Limits = SMALL) -> str:
    with pytest.raises(DataError) as caught:
        read(path, limits)
    assert len(caught.value.problems) == 1
    text = caught.value.problems[0]
    assert text.startswith(str(path))
    return text.removeprefix(str(path))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\nb\xe9\n", ", row 2: expected UTF-8 text"),
        ("a\nb\n".encode("utf-16"), ", row 1: expected text, found a zero byte"),
        (b"a\nb\0c\n", ", row 2: expected text, found a zero byte"),
        (b"a\rb\rc\n", ", row 1: a line ends with a bare carriage return"),
        (b"PK\x03\x04...", ": is packed with zip"),
        (b"BZh91AY", ": is packed with bzip2"),
        (gzip.compress(b"a\n" * 1000, mtime=0)[:-9], ": ends in the middle"),
        (gzip.compress(b"a\n" * 1000, mtime=0)[:10] + b"\xff" * 30, ": is not valid gzip"),
        (gzip.compress(b"a\n", mtime=0) + b"rubbish", ": is not valid gzip"),
    ],
)
def test_says_what_is_wrong_and_where(tmp_path, content, expected):
    assert expected in one(written(tmp_path, content))


def test_a_bgzip_file_without_its_end_is_not_whole(tmp_path):
    path = tmp_path / "f.vcf.gz"
    with pysam.BGZFile(str(path), "w") as stream:
        stream.write(b"line\n" * 50_000)
    assert len(read(path)) == 50_000
    path.write_bytes(path.read_bytes()[:-28])
    assert "ends in the middle" in one(path)


def test_what_is_no_file_is_refused_and_nothing_waits(tmp_path):
    assert "does not exist" in one(tmp_path / "absent")
    assert "is not a regular file" in one(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in one(tmp_path / "pipe")


@pytest.fixture
def peak() -> Iterator[None]:
    """Fails the test when Python holds more than 30 MB at once."""
    tracemalloc.start()
    yield
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 30_000_000


@pytest.mark.usefixtures("peak")
@pytest.mark.parametrize("packed", [False, True])
def test_a_line_of_100_mb_is_refused_before_it_is_held(tmp_path, packed):
    path = tmp_path / "f.vcf"
    with (gzip.open if packed else open)(path, "wb") as stream:
        stream.write(b"##fileformat=VCFv4.2\n")
        for _ in range(100):
            stream.write(b"A" * 1_000_000)
    assert "row 2: the line is longer than 1 MB" in one(path)


@pytest.mark.usefixtures("peak")
def test_a_bomb_is_refused_by_its_ratio(tmp_path):
    path = tmp_path / "f.tsv.gz"
    with gzip.open(path, "wb", compresslevel=9) as stream:
        for _ in range(90):
            stream.write((b"0" * 99_999 + b"\n") * 10)
    with pytest.raises(DataError, match="unpacks to more than 400 times its size"):
        for _ in text_lines(path, SMALL):
            pass
    assert sum(1 for _ in text_lines(path, Limits(ratio=1100))) == 900


def test_a_file_larger_than_the_limit_is_refused(tmp_path):
    nothing = Limits.model_construct(line_mb=1, file_gb=0, ratio=400)
    assert "is larger than 0 GB" in one(written(tmp_path, b"a\n"), nothing)


def test_rows_of_tabs_and_commas(tmp_path):
    tabs = written(tmp_path, b'# note\na\t"b c"\n\n d \t"e"\n')
    assert list(text_rows(tabs, SMALL)) == [(2, ["a", "b c"]), (4, ["d", "e"])]
    commas = written(tmp_path, b'a,"b, c"\nd,"e""f"\n', "f.csv")
    assert list(text_rows(commas, SMALL)) == [(1, ["a", "b, c"]), (2, ["d", 'e"f'])]
    broken = written(tmp_path, b'a,b\nc,"d\n', "g.csv")
    with pytest.raises(DataError, match=re.escape("g.csv, row 2: a quote is not closed")):
        list(text_rows(broken, SMALL))
