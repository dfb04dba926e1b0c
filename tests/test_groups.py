"""What the suite relies on of its own tools: tests of one group share a worker, so that a long fixture is made once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GROUPED = """
import os, pytest
from pathlib import Path
@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("i", range(8))
def test_where(i):
    (Path(__file__).parent / os.environ["PYTEST_XDIST_WORKER"]).touch()
"""


def test_tests_of_one_group_share_a_worker(tmp_path: Path) -> None:
    (tmp_path / "test_grouped.py").write_text(GROUPED, encoding="utf-8")
    words = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", str(tmp_path)]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "8 passed" in ended.stdout, ended.stdout
    assert len(list(tmp_path.glob("gw*"))) == 1
