"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from oncofed_shared.errors import DataError, StorageError
from oncofed_shared.storage import alone, dump_json, read_arrays, write_arrays, write_whole


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c"
    write_whole(path, b"one")
    assert path.read_bytes() == b"one"
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["c"]


@pytest.mark.parametrize("call", ["fsync", "fdopen", "replace"])
@pytest.mark.parametrize("kind", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_goes_wrong_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, kind: BaseException
) -> None:
    path = tmp_path / "result.json"
    write_whole(path, b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise kind

    monkeypatch.setattr(Path if call == "replace" else os, call, fail)
    with pytest.raises(StorageError if isinstance(kind, OSError) else KeyboardInterrupt) as caught:
        write_whole(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    if isinstance(kind, OSError):
        assert "No space left" in str(caught.value)
        assert str(path) in str(caught.value)


def test_a_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        write_whole(tmp_path / "file" / "inside", b"")


def test_private_files_are_their_owners_alone(tmp_path: Path) -> None:
    write_whole(tmp_path / "private", b"", private=True)
    write_whole(tmp_path / "public", b"")
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "public").stat().st_mode & 0o777 == 0o644


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists))
def test_json_comes_back(content: Any) -> None:
    assert json.loads(dump_json(content)) == content


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_json_never_holds_what_is_not_json(bad: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        dump_json({"a": bad})


DTYPES = st.sampled_from(["float32", "float64", "int64", "uint64"]).map(np.dtype)
NAMED = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda t: t != "__metadata__" and t.isprintable()),
    DTYPES.flatmap(lambda d: arrays(d, array_shapes(min_dims=0, max_dims=2, max_side=4))),
    min_size=1,
    max_size=4,
)
FACTS = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9) | st.none(), max_size=4)


@given(NAMED, FACTS)
@settings(max_examples=50)
def test_arrays_and_facts_come_back_and_equal_content_gives_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, named: dict[str, Any], facts: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("arrays")
    write_arrays(folder / "a", named, facts)
    write_arrays(folder / "b", dict(reversed(named.items())), dict(reversed(facts.items())))
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    back, told = read_arrays(folder / "a")
    assert told == facts
    assert sorted(back) == sorted(named)
    for name, value in named.items():
        assert back[name].dtype == value.dtype
        assert back[name].shape == value.shape
        assert back[name].tobytes() == value.tobytes()


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    value = np.arange(12.0).reshape(3, 4)
    write_arrays(tmp_path / "a", {"t": value.T, "s": value[:, ::2]}, {})
    back, _ = read_arrays(tmp_path / "a")
    np.testing.assert_array_equal(back["t"], value.T)
    np.testing.assert_array_equal(back["s"], value[:, ::2])


def test_a_damaged_file_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_arrays(path, {"w": np.arange(10.0)}, {"round": 3})
    content = path.read_bytes()
    bad = [content[:n] for n in (0, 4, 20, len(content) - 1)] + [
        b"{}",
        b"\xff" * 100,
        content.replace(b"oncofed", b"another"),
    ]
    for damaged in bad:
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            read_arrays(path)
    with pytest.raises(DataError):
        read_arrays(tmp_path / "absent")


def test_one_process_at_a_time_has_a_folder_and_a_dead_one_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    code = "import sys; from pathlib import Path; from oncofed_shared.storage import alone\n"
    code += "with alone(Path(sys.argv[1]), 'oncofed-simulate measure'): print('in', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "in\n"
        with (
            pytest.raises(StorageError, match="another `oncofed-simulate measure` is at work here; wait"),
            alone(folder, "oncofed-simulate measure"),
        ):
            pass
        with alone(tmp_path / "new" / "other", "oncofed-simulate measure"):
            pass
        other.kill()
    with alone(folder, "oncofed-simulate measure"):
        assert not folder.exists(), "nothing is put into it"
    assert not list((tmp_path / "new").iterdir())
    with alone(folder, "a", lock=folder / ".own"):
        assert list(folder.iterdir()) == [folder / ".own"]
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "out"
    with pytest.raises(StorageError, match=r"cannot be used .*; choose another --out"), alone(below, "a"):
        pass
    with pytest.raises(StorageError, match="No space left on device"), alone(folder, "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
