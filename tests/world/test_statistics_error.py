"""The table that stands released statistics beside the exact ones, from a run of a private study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from oncofed_shared.plan import parse
from oncofed_shared.storage import read_arrays
from oncofed_simulations.__main__ import main as simulate
from oncofed_simulations.consortium import by_constants
from oncofed_simulations.statistics_error import compared, main

STUDY: dict[str, Any] = {
    "main_task": "response",
    "study": {"name": "spent", "purpose": "scale by what is paid for"},
    "tasks": {
        "response": {"kind": "classification", "table": "clinical", "label": "response", "classes": ["non-responder", "responder"]}
    },
    "modalities": {
        "clinical": {
            "table": "clinical",
            "columns": {
                "age": {"kind": "numeric", "unit": "years", "range": [20.0, 100.0]},
                "sex": {"kind": "categorical", "categories": ["female", "male"]},
                "stage": {"kind": "ordinal", "order": ["I", "II", "III", "IV"]},
            },
        },
        "shape": {
            "table": "radiomics",
            "columns": {"shape_Sphericity": {"kind": "numeric", "range": [0.0, 1.2]}},
            "scaling": "robust",
        },
    },
    "model": {"layers": 0},
    "training": {"rounds": 2, "rate": 0.5, "class_weights": "balanced"},
    "privacy": {
        "noise": "consortium", "epsilon": 2.0, "delta": 1e-4, "statistics_epsilon": 2.0, "clip_norm": 1.0, "sampling_rate": 0.5,
        "patients": {f"site-{k}": 30 for k in range(1, 5)},
    },
    "evaluation": {
        "minimum_shown": 5, "minimum_events": 1, "bootstrap": 50,
        "split": {"train": 0.8, "validation": 0.0, "test": 0.2},
    },
    "simulation": {"noise_seed": 3, "cohort": {"sites": 4, "patients": 200, "seed": 4}},
}  # fmt: skip


def test_a_private_run_with_all_its_arms_and_what_noise_made_of_its_statistics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, out = tmp_path / "spent.toml", tmp_path / "out"
    study.write_text(tomli_w.dumps(STUDY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["oncofed-simulate", "run", str(study), "--out", str(out)])
        with pytest.raises(SystemExit) as caught:
            simulate()
    assert caught.value.code == 0, capsys.readouterr().err
    page = (out / "report.html").read_text()
    assert "statistics that scale the values" in page
    plan = parse(STUDY)
    rows = compared(plan, out, out / "cohort")
    assert [r.column for r in rows] == [
        "clinical.age", "clinical.sex=female", "clinical.sex=male", "clinical.stage", "shape.shape_Sphericity",
    ]  # fmt: skip
    assert 0 < abs(rows[0].center[0] - rows[0].center[1]) < 12
    assert 50 < rows[0].center[1] < 75
    arrays, _ = read_arrays(out / "model.safetensors")
    assert len(arrays["preparation.statistics"]) == 3 * 4 + 64 + 2
    assert np.isfinite(arrays["preparation.statistics"]).all()
    capsys.readouterr()
    assert main([str(study), str(out), str(out / "cohort")]) == 0
    assert "clinical.age" in capsys.readouterr().out
    assert main([]) == 2
    content = by_constants(plan)
    assert content["modalities"]["clinical"]["scaling"] == "constants"
    assert content["modalities"]["clinical"]["columns"]["age"]["center"] == 60
    assert content["modalities"]["clinical"]["columns"]["age"]["spread"] == 40
    assert content["training"]["class_weights"] == "none"
