"""Broken and hostile files at the doors: no crash, no unbounded memory, nothing written, one clear error each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from dicom_cases import DICOM, SLOW, VOLUMES  # noqa: E402 - lies beside this file
from small_export import PERSON  # noqa: E402
from variant_cases import VARIANTS  # noqa: E402

Cases = Mapping[str, tuple[Callable[[Path], None], str]]
ALLOWED_MB = 1000
SLOWEST = 40.0
LONGEST = 900


def everything(root: Path) -> set[tuple[str, int]]:
    """All files below a folder with their sizes, without following links; for very deep folders."""
    found = set()
    for here, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f != "d"]
        found |= {(f"{here}/{f}", (Path(here) / f).lstat().st_size) for f in files}
    return found


def outcomes(door: str, cases: Cases, root: Path) -> dict[str, dict]:
    """Write every case, let the door read each in a process of its own, and see that it wrote nothing."""
    for name, (make, _) in cases.items():
        make(root / name)
    before = everything(root)
    made = subprocess.run(
        [sys.executable, str(HERE / "doors.py"), door, str(root)], capture_output=True, check=False, timeout=300
    )
    assert made.returncode == 0, made.stderr.decode()[-2000:]
    assert made.stderr == b"", "a library wrote to the terminal"
    assert everything(root) == before
    return dict(json.loads(made.stdout))


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return outcomes("dicom", DICOM, tmp_path_factory.mktemp("dicom"))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return outcomes("volumes", VOLUMES, tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return outcomes("variants", VARIANTS, tmp_path_factory.mktemp("variants"))


def judge(outcome: dict, expected: str) -> None:
    """One clear error, in bounds."""
    assert "raised" not in outcome, outcome
    assert outcome["rss_mb"] < ALLOWED_MB, outcome
    assert outcome["seconds"] < SLOWEST, outcome
    messages = outcome["messages"]
    assert bool(messages) == bool(expected), messages
    assert not expected or any(expected in m for m in messages), messages
    for message in messages:
        assert message.isprintable(), message
        assert len(message) < LONGEST
        assert "Traceback" not in message
        assert not any(value in message for value in PERSON.identifying())


@pytest.mark.parametrize("name", DICOM)
def test_dicom(dicom: dict[str, dict], name: str) -> None:
    judge(dicom[name], DICOM[name][1])


@pytest.mark.parametrize("name", VOLUMES)
def test_nifti_and_nrrd(volumes: dict[str, dict], name: str) -> None:
    judge(volumes[name], VOLUMES[name][1])


@pytest.mark.parametrize("name", VARIANTS)
def test_vcf_and_maf(variants: dict[str, dict], name: str) -> None:
    judge(variants[name], VARIANTS[name][1])


@pytest.mark.slow
def test_what_takes_long_to_refuse(tmp_path: Path) -> None:
    found = outcomes("dicom", SLOW, tmp_path)
    for name, (_, expected) in SLOW.items():
        judge(found[name], expected)
