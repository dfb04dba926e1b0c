"""Counts of parameters: what the command prints, what the page shows, and what a formula gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from oncofed_shared.errors import ConfigError, ExitCode
from oncofed_shared.plan import load, parse
from oncofed_shared.plan_sizes import SIZES
from oncofed_simulations.flamby import import_flamby
from oncofed_simulations.sizes import agreed_columns, main, parameter_counts, table

ROOT = Path(__file__).resolve().parents[3]
STUDIES = ROOT / "simulations" / "studies"
PAGE = (ROOT / "docs" / "network.md").read_text(encoding="utf-8")
REAL = ROOT / ".." / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the real hospitals' tables are absent: ../shared/data")


@pytest.mark.parametrize("name", ["demo", "demo_private"])
def test_the_page_has_what_the_command_prints(name: str) -> None:
    assert table(load(STUDIES / f"{name}.toml"), None) in PAGE


@needs_real_data
@pytest.mark.parametrize("name", ["glioma_survival", "glioma_survival_private", "glioma_idh"])
def test_the_page_has_what_the_command_prints_of_the_glioma_hospitals(name: str) -> None:
    assert table(load(STUDIES / f"{name}.toml"), REAL / "glioma") in PAGE


@needs_real_data
def test_the_page_has_what_the_command_prints_of_flamby_s_regions(tmp_path: Path) -> None:
    import_flamby(REAL / "fed_tcga_brca", tmp_path / "sites")
    assert table(load(STUDIES / "fed_tcga_brca.toml"), tmp_path / "sites") in PAGE


def test_the_page_has_the_numbers_of_every_size() -> None:
    for size, numbers in SIZES.items():
        assert f"| `{size}` | {' | '.join(str(n) for n in numbers.values())} |" in PAGE


def test_the_counts_are_those_of_the_formulas() -> None:
    """Two modalities of 3 and 5 columns, a token each, one task with one output; w = width, f = feedforward, l = layers."""
    plan = parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": {"two": {"kind": "classification", "label": "two", "classes": ["no", "yes"]}},
            "modalities": {"a": {"patterns": ["a*"], "side": "imaging"}, "b": {"patterns": ["b*"], "side": "genes"}},
            "training": {"rounds": 1},
        }
    )
    counts = parameter_counts(plan, {"a": ("a1", "a2", "a3"), "b": ("b1", "b2", "b3", "b4", "b5")})
    sizes = {"study": plan.model.model_dump(), **SIZES}
    for size, numbers in sizes.items():
        w, f, layers = numbers["width"], numbers["feedforward"], numbers["layers"]
        few = min(8, w // 2)
        outside, tokens, whole = 8 + 1, (4 + 1) * w + (6 + 1) * w, (10 + 1) * w
        behind = layers * (2 * w + (w + 1) * f + (f + 1) * w) + 2 * w + w
        attention = layers * (4 * (w + 1) * w + 2 * w)
        product = 2 * (w + 1) * few + (2 * (w + 1) + 1) * 2 * few + (2 * few + few**2 + 1) * w
        assert {fusion: by_size[size] for fusion, by_size in counts.items()} == {
            "transformer": outside + tokens + w + attention + behind,
            "concat": outside + tokens + (2 * (w + 1) + 1) * w + behind,
            "weighted_sum": outside + tokens + 2 + behind,
            "early": outside + whole + behind,
            "late": outside + tokens + 2 * behind,
            "hybrid": outside + whole + tokens + (3 * (w + 1) + 1) * w + behind + 2 * behind,
            "kronecker": outside + tokens + product + behind,
            "two_way": outside + tokens + w + attention + behind + 2 * (4 * (w + 1) * w + 2 * w),
        }


def test_a_plan_without_two_sides_has_no_two_way_network() -> None:
    plan = load(STUDIES / "glioma_idh.toml")
    assert "two_way" not in parameter_counts(plan, dict.fromkeys(plan.modalities, ("c",)))


def test_a_study_without_a_cohort_needs_sites() -> None:
    with pytest.raises(ConfigError, match="give --sites FOLDER"):
        agreed_columns(load(STUDIES / "glioma_idh.toml"), None)


def test_it_is_a_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(STUDIES / "demo.toml")
    assert capsys.readouterr().out.strip() in PAGE
    command = [sys.executable, "-m", "oncofed_simulations.sizes", str(STUDIES / "demo.toml"), "--sites", str(tmp_path)]
    empty = subprocess.run(command, capture_output=True, check=False, text=True)
    assert empty.returncode == ExitCode.INPUT
    assert "no subfolder holds a table" in empty.stderr
    assert "Traceback" not in empty.stderr
