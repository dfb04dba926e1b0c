"""Counts of parameters: what the command prints, what the page shows, and what a formula gives."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from oncofed_shared.errors import ConfigError, ExitCode
from oncofed_shared.network import build
from oncofed_shared.plan import Plan, load, parse
from oncofed_shared.plan_sizes import SIZES
from oncofed_simulations.flamby import import_flamby
from oncofed_simulations.sizes import agreed_columns, main, parameter_counts, table

ROOT = Path(__file__).resolve().parents[3]
STUDIES = ROOT / "simulations" / "studies"
PAGE = (ROOT / "docs" / "network.md").read_text(encoding="utf-8")
REAL = ROOT / ".." / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the real hospitals' tables are absent: ../shared/data")


@pytest.mark.parametrize("name", ["demo_private", "planted_interaction"])
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


GENES, PATTERNS, CHANNELS, LAYERS = 100, 3, 4, 2


def encoder_plan(modality: dict[str, Any], folder: Path, size: str) -> Plan:
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": {"two": {"kind": "classification", "label": "two", "classes": ["no", "yes"]}},
            "modalities": {"a": {"patterns": ["a*"]}, "read": modality},
            "model": {"size": size},
            "training": {"rounds": 1},
            "simulation": {"files": str(folder)},
        }
    )


def encoder_count(plan: Plan, columns: tuple[str, ...]) -> int:
    network = build(plan, {"a": ("a1",), "read": columns}, seed=0)
    return sum(p.numel() for n, p in network.named_parameters() if n.startswith("tokenisers.encoders.0."))


def row(name: str, plans: list[Plan], columns: tuple[str, ...], wanted: list[int]) -> str:
    """A row of the page, of which the numbers are those of the networks and of the formula."""
    found = [encoder_count(plan, columns) for plan in plans]
    assert found == wanted
    return f"| {name} | {' | '.join(f'{n:,}' for n in found)} |"


def test_the_page_has_the_parameters_of_the_encoders_of_genes(tmp_path: Path) -> None:
    """A hundred genes in a ring, ten sets of ten; p patterns, c channels, w width."""
    files = {
        "graph": "".join(f"G{i}\tG{(i + 1) % GENES}\n" for i in range(GENES)).encode(),
        "pathways": "".join(
            f"S{k}\tx\t" + "\t".join(f"G{10 * k + i}" for i in range(10)) + "\n" for k in range(10)
        ).encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    graph, sets = ({"file": n, "sha256": hashlib.sha256(content).hexdigest()} for n, content in files.items())
    columns = tuple(sorted(f"G{i}_{what}" for i in range(GENES) for what in ("rna", "cnv", "mut")))
    patterns = ["{gene}_rna", "{gene}_cnv", "{gene}_mut"]
    widths = [numbers["width"] for numbers in SIZES.values()]
    c, first = CHANNELS, (PATTERNS + 1) * CHANNELS + 2 * CHANNELS
    step = {"convolution": 2 * c * c + c, "attention": 4 * c * c + c}
    cases: dict[str, tuple[dict[str, Any], list[int]]] = {}
    for kind, numbers in step.items():
        along = {"encoder": "graph", "graph": graph | {"kind": kind}}
        cases[f"`graph`, {kind}"] = along, [first + LAYERS * numbers + (GENES * c + 2) * w for w in widths]
        cases[f"`graph`, {kind}, ten gene sets"] = (
            along | {"pathways": sets},
            [first + LAYERS * numbers + (GENES * c + 20) * w for w in widths],
        )
    cases["`pathways`, ten gene sets"] = (
        {"encoder": "pathways", "pathways": sets},
        [(GENES * PATTERNS + 20) * w for w in widths],
    )
    for name, (modality, wanted) in cases.items():
        plans = [encoder_plan({"patterns": patterns} | modality, tmp_path, size) for size in SIZES]
        assert row(name, plans, columns, wanted) in PAGE


def test_the_page_has_the_parameters_of_the_encoder_of_images(tmp_path: Path) -> None:
    """Three stages of 3 x 3 x 3 weights and a bias, two numbers of a norm, and a map of the last stage and the absent series."""
    for series in (1, 2, 4):
        names = tuple(f"s{i}" for i in range(series))
        modality = {"encoder": "cnn", "patch": {n: {"size": [8, 8, 8], "window": [0, 1]} for n in names}}
        wanted = []
        for numbers in SIZES.values():
            width = numbers["width"]
            stages = [series, *(width * k // 4 for k in (1, 2, 4))]
            weights = sum(27 * a * b + 3 * b for a, b in pairwise(stages))
            wanted.append(weights + (stages[-1] + series + 1) * width)
        assert row(str(series), [encoder_plan(modality, tmp_path, s) for s in SIZES], names, wanted) in PAGE


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
