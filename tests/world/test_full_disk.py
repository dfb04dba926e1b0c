"""The disk is full when the results are written: a clear message, nothing half-written, and it can be gone on with."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oncofed_shared.errors import ExitCode

PRODUCTS = {"model.safetensors", "result.json", "report.html", "manifest.json"}
PAGE = 4096
# In a mount of its own: a small disk with the unfinished run and a file that leaves FREE bytes; then more space again.
SMALL_DISK = """
set -eu
mount -t tmpfs -o size=8m tmpfs "$DISK"
cp -r "$UNFINISHED" "$DISK/out"
free=$(df --output=avail --block-size=1 "$DISK" | tail -n 1)
head -c $((free - FREE)) /dev/zero > "$DISK/ballast"
code=0; "$@" --out "$DISK/out" --resume 2> "$RESULTS/first.err" || code=$?
echo $code > "$RESULTS/first.code"
(cd "$DISK/out" && find . -type f) > "$RESULTS/first.files"
rm "$DISK/ballast"
code=0; "$@" --out "$DISK/out" --resume 2> "$RESULTS/second.err" || code=$?
echo $code > "$RESULTS/second.code"
cp "$DISK/out/model.safetensors" "$DISK/out/report.html" "$RESULTS/"
"""


@pytest.fixture(scope="module")
def shared(new_world: Callable[..., Any]) -> Any:
    return new_world().change(training={"rounds": 2}).write()


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """No file of this process may become larger, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files(out: Path) -> set[str]:
    return {p.name for p in out.rglob("*") if p.is_file()}


def nothing_half_written(names: set[str]) -> None:
    assert not names & PRODUCTS
    assert not [n for n in names if n.startswith(".")]
    assert "plan.json" in names


@pytest.fixture
def whole(shared: Any, tmp_path: Path, simulate: Callable[..., Any]) -> Path:
    """OUT of a run that had space."""
    out = tmp_path / "whole"
    assert simulate(*shared.arguments("--out", str(out))).code == 0
    return out


def limited_run(shared: Any, whole: Path, out: Path, simulate: Callable[..., Any]) -> Any:
    """A run in which the report is the first file that does not fit."""
    sizes = {n: (whole / n).stat().st_size for n in PRODUCTS}
    limit = sizes["report.html"] - PAGE
    assert all(size < limit for name, size in sizes.items() if name != "report.html"), sizes
    with no_file_above(limit):
        return simulate(*shared.arguments("--out", str(out)))


def test_results_that_do_not_fit(shared: Any, whole: Path, tmp_path: Path, simulate: Callable[..., Any]) -> None:
    out = tmp_path / "out"
    outcome = limited_run(shared, whole, out, simulate)
    outcome.refused(ExitCode.INPUT, "report.html", "cannot be written", "free some space")
    assert len(outcome.err.splitlines()) == 1
    nothing_half_written(files(out))
    assert simulate(*shared.arguments("--out", str(out), "--resume")).code == 0
    assert files(out) >= PRODUCTS
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def unshare() -> list[str]:
    """A prefix that gives a command mounts of its own."""
    command = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed, so no small disk can be made")
    trial = [*command, "sh", "-c", "d=$(mktemp -d) && mount -t tmpfs tmpfs $d && umount $d && rmdir $d"]
    if subprocess.run(trial, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let us mount a small disk")
    return command


def test_a_disk_that_is_full(
    shared: Any, whole: Path, tmp_path: Path, executable: str, simulate: Callable[..., Any]
) -> None:
    """A real file system without space for the report, in the real command."""
    prefix = unshare()
    unfinished, disk, results = (tmp_path / n for n in ("unfinished", "disk", "results"))
    disk.mkdir()
    results.mkdir()
    limited_run(shared, whole, unfinished, simulate)
    before = sum(-(-(whole / n).stat().st_size // PAGE) * PAGE for n in ("model.safetensors", "result.json"))
    paths = {"DISK": disk, "UNFINISHED": unfinished, "RESULTS": results}
    arguments = shared.arguments()
    del arguments[arguments.index("--out") :]
    subprocess.run(
        [*prefix, "sh", "-c", SMALL_DISK, "sh", executable, *arguments],
        env={**os.environ, **{k: str(v) for k, v in paths.items()}, "FREE": str(before + 2 * PAGE)},
        check=True,
    )
    said = (results / "first.err").read_text()
    assert int((results / "first.code").read_text()) == ExitCode.INPUT, said
    assert "report.html: cannot be written (No space left on device)" in said
    assert len(said.splitlines()) == 1
    nothing_half_written({Path(n).name for n in (results / "first.files").read_text().split()})
    assert int((results / "second.code").read_text()) == 0
    assert (results / "second.err").read_text() == ""
    assert (results / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (results / "report.html").read_bytes().rstrip().endswith(b"</html>")
