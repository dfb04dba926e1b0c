"""A hundred thousand inputs that a coverage-guided fuzzer made, at the site's door and at the aggregator's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from oncofed_simulations.synthetic import write_cohort

HERE = Path(__file__).resolve().parent
INPUTS = 100_000
OPTIONS = ("-seed=1", "-max_len=16384", "-rss_limit_mb=4096", "-timeout=60", "-len_control=0", "-print_final_stats=1")


def fuzz(core: str, folder: Path, inputs: int) -> dict[str, str]:
    write_cohort(folder / "sites", sites=3, patients=60, seed=11, gaps=0.05)
    program = [sys.executable, str(HERE / "fuzz_airlock.py")]
    places = [str(folder / "sites"), str(folder / "corpus")]
    subprocess.run([*program, "seeds", *places], cwd=folder, capture_output=True, check=True, timeout=600)
    places[1] += f"/{core}"
    made = subprocess.run(
        [*program, core, *places, *OPTIONS, f"-runs={inputs}", f"-artifact_prefix={folder}/found-"],
        cwd=folder,
        capture_output=True,
        check=False,
        timeout=7200,
    )
    said = made.stderr.decode(errors="replace")
    assert made.returncode == 0, said[-4000:]
    assert not list(folder.glob("found-*"))
    return dict(re.findall(r"stat::(\w+):\s+(\d+)", said))


@pytest.mark.slow
@pytest.mark.parametrize("core", ["site", "aggregator"])
def test_a_hundred_thousand_inputs(core: str, tmp_path: Path) -> None:
    facts = fuzz(core, tmp_path, INPUTS)
    print(f"{core}: {facts['average_exec_per_sec']} inputs a second, {facts['peak_rss_mb']} MB")
    assert int(facts["number_of_executed_units"]) >= INPUTS
