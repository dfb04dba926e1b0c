"""A private study from the command line that harmonises and reduces inside its budget, from folders to predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from oncofed_client.predicting import read_model
from oncofed_shared.errors import ConfigError
from oncofed_shared.features import network_columns
from oncofed_shared.plan import parse
from oncofed_simulations.__main__ import main as simulate
from oncofed_simulations.consortium import by_constants
from oncofed_simulations.location_error import apart, main

SIZES = {
    "MeshVolume": (42000, 11000),
    "SurfaceArea": (7200, 1500),
    "Sphericity": (0.62, 0.08),
    "Elongation": (0.71, 0.11),
}
SHAPES = {f"shape_{n}": {"kind": "numeric", "range": [c - 25 * s, c + 25 * s]} for n, (c, s) in SIZES.items()}
STUDY: dict[str, Any] = {
    "main_task": "response",
    "study": {"name": "located", "purpose": "take scanners out inside the budget"},
    "tasks": {
        "response": {"kind": "classification", "table": "clinical", "label": "response", "classes": ["non-responder", "responder"]}
    },
    "modalities": {
        "clinical": {
            "table": "clinical",
            "scaling": "none",
            "columns": {"sex": {"kind": "categorical", "categories": ["female", "male"]}},
        },
        "shape": {
            "table": "radiomics",
            "columns": SHAPES,
            "harmonise": {"kind": "combat", "bound": 0.2, "minimum": 5},
            "reduction": {"kind": "pca", "components": 2, "bound": 0.2},
        },
    },
    "model": {"layers": 0},
    "training": {"rounds": 2, "rate": 0.5},
    "privacy": {
        "noise": "consortium", "epsilon": 2.0, "delta": 1e-4, "statistics_epsilon": 3.0, "harmonise_epsilon": 4.0,
        "clip_norm": 1.0, "sampling_rate": 0.5, "patients": {f"site-{k}": 40 for k in range(1, 5)},
    },
    "evaluation": {
        "minimum_shown": 5, "minimum_events": 1, "bootstrap": 50,
        "split": {"train": 0.8, "validation": 0.0, "test": 0.2},
    },
    "simulation": {"noise_seed": 3, "cohort": {"sites": 4, "patients": 200, "seed": 4, "site_effect": 4.0}},
}  # fmt: skip


def by_command(*arguments: object) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["oncofed-simulate", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            simulate()
    return caught.value.code


def test_a_private_study_that_harmonises_and_reduces_runs_and_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, out = tmp_path / "located.toml", tmp_path / "out"
    study.write_text(tomli_w.dumps(STUDY))
    assert by_command("run", study, "--out", out) == 0, capsys.readouterr().err
    page = (out / "report.html").read_text()
    assert "own location, which harmonises its values" in page
    result = json.loads((out / "result.json").read_text())
    assert not any("sums" in line for line in result["uncharged"])
    model = read_model(out / "model.safetensors")
    assert network_columns(model.plan, model.preparation)["shape"] == ("component_1", "component_2")
    plan = parse(STUDY)
    # Each hospital moves towards the others, by what noise leaves of it.
    rows = apart(plan, out, out / "cohort")
    assert np.mean([r.after for r in rows]) < 0.7 * np.mean([r.before for r in rows])
    assert main([str(study), str(out), str(out / "cohort")]) == 0
    assert "site-1" in capsys.readouterr().out
    assert main([]) == 2
    # A hospital that trained predicts with its noised location, and a new one with that of its patients.
    for state in (["--state", out / "sites" / "site-1"], []):
        table = tmp_path / f"{len(state)}.csv"
        arguments = ["predict", out / "model.safetensors", "--site", out / "cohort" / "site-1", "--out", table, *state]
        assert by_command(*arguments) == 0, capsys.readouterr().err
    assert (tmp_path / "2.csv").read_text() != (tmp_path / "0.csv").read_text()
    (out / "sites").rename(out / "elsewhere")
    with pytest.raises(ConfigError, match="noised no locations"):
        apart(plan, out, out / "cohort")


def test_arms_that_compare_have_neither_and_all_of_epsilon() -> None:
    content = by_constants(parse(STUDY))
    assert content["modalities"]["shape"]["reduction"] is None
    assert content["modalities"]["shape"]["harmonise"] is None
