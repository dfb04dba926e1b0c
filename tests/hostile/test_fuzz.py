"""A hundred thousand inputs that a coverage-guided fuzzer made, at each door: none ends it, none fills the memory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from fuzz_seeds import write_seeds, write_words  # noqa: E402 - lies beside this file

INPUTS = 100_000
OPTIONS = ("-seed=1", "-max_len=8192", "-rss_limit_mb=2048", "-timeout=60", "-len_control=0", "-print_final_stats=1")


@pytest.mark.slow
@pytest.mark.parametrize("door", ["dicom", "variants"])
def test_fuzzing(door: str, tmp_path: Path) -> None:
    write_seeds(door, tmp_path / "corpus")
    write_words(door, tmp_path / "words")
    (tmp_path / "here").mkdir()
    command = [sys.executable, str(HERE / "fuzz_door.py"), door, str(tmp_path / "corpus")]
    made = subprocess.run(
        [*command, *OPTIONS, f"-runs={INPUTS}", f"-dict={tmp_path}/words", f"-artifact_prefix={tmp_path}/found-"],
        cwd=tmp_path / "here",
        capture_output=True,
        check=False,
        timeout=3600,
    )
    said = made.stderr.decode(errors="replace")
    assert made.returncode == 0, said[-4000:]
    assert not list(tmp_path.glob("found-*"))
    assert not list((tmp_path / "here").iterdir())
    facts = dict(re.findall(r"stat::(\w+):\s+(\d+)", said))
    print(f"{door}: {facts['average_exec_per_sec']} inputs a second, {facts['peak_rss_mb']} MB")
    assert int(facts["number_of_executed_units"]) >= INPUTS
