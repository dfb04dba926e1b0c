"""A disk that takes no more: one clear error, exit code 3, and what was there before is as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from oncofed_client.approvals import approved
from oncofed_shared.plan import Plan

from .conftest import Papers


def files_of(*folders: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()}


def full(*arguments: str | Path, blocks: int = 0) -> subprocess.CompletedProcess[str]:
    """`oncofed-site` as a process that may write files of no more than so many KiB."""
    command = [sys.executable, "-W", "ignore", "-B", "-m", "oncofed_client", *map(str, arguments)]
    text = f'ulimit -f {blocks}; exec "$@"'
    return subprocess.run(
        ["bash", "-c", text, "bash", *command],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
        timeout=120,
    )


@pytest.fixture
def refused(site: Path, state: Path) -> Callable[..., str]:
    def call(*arguments: str | Path, keeps: tuple[Path, ...] = ()) -> str:
        before = files_of(site, *keeps)
        done = full(*arguments)
        assert "Traceback" not in done.stderr
        assert done.returncode == 3
        assert "cannot be written" in done.stderr
        assert files_of(site, *keeps) == before
        assert state
        return done.stderr

    return call


def test_keys_requests_and_answers(refused, site: Path, state: Path, tmp_path: Path):
    refused("enrol", "request", site, "--out", tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()
    assert [p.name for p in state.rglob("*") if p.is_file()] == []


def test_an_answer_an_approval_and_predictions(
    *, refused, site: Path, state: Path, papers: Papers, make_plan: Callable[..., Plan], trained: Path, tmp_path: Path
):
    refused("enrol", "install", site, papers.enrolment, keeps=(state,))
    refused("approve", papers.study(make_plan()), "--site", site, keeps=(state,))
    assert approved(state) == {}
    refused("predict", site, "--model", trained / "model.safetensors", "--out", tmp_path / "risk.csv", keeps=(state,))
    assert not (tmp_path / "risk.csv").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
