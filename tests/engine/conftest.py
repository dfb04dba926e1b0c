"""Three small hospitals and a study that has everything with a memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from oncofed_simulations.synthetic import write_cohort

STUDY: dict[str, Any] = {
    "study": {"name": "engines", "purpose": "compare the engines"},
    "tasks": {
        "survival": {
            "kind": "survival",
            "table": "clinical",
            "time": "os_days",
            "event": "os_event",
            "edges": [0, 180, 365, 730, 1460],
            "horizon": 730,
        }
    },
    "modalities": {
        "clinical": {
            "table": "clinical",
            "tokens": "columns",
            "columns": {
                "age": {"kind": "numeric", "unit": "years", "range": [0, 120]},
                "sex": {"kind": "categorical", "categories": ["female", "male"]},
            },
        },
        "cnv": {"table": "cnv", "patterns": ["{gene}_cnv"], "tokens": 2},
    },
    "model": {"width": 4, "heads": 2, "layers": 1, "feedforward": 8},
    # Everything that has a memory or draws numbers: batches, dropout, momentum, the server's optimiser.
    "training": {
        "rounds": 3,
        "local_steps": 2,
        "batch": 8,
        "rate": 0.05,
        "momentum": 0.5,
        "dropout": 0.2,
        "validate_every": 2,
    },
    "strategy": {"name": "fedadam", "rate": 0.02},
    # Three runs: two folds and the released one.
    "evaluation": {"folds": 2, "bootstrap": 50, "minimum_shown": 2, "minimum_events": 1},
}


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "hospitals"
    write_cohort(folder, sites=3, patients=90, seed=1)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A study's file, with some keys of its training or evaluation changed."""

    def write(
        *, evaluation: dict[str, Any] | None = None, strategy: dict[str, Any] | None = None, **training: Any
    ) -> Path:
        content = STUDY | {"training": STUDY["training"] | training}
        content["strategy"] = strategy or STUDY["strategy"]
        judged = STUDY["evaluation"] | (evaluation or {})
        content["evaluation"] = {k: v for k, v in judged.items() if v is not None}
        path = tmp_path_factory.mktemp("study") / "study.toml"
        path.write_text(tomli_w.dumps(content), encoding="utf-8")
        return path

    return write
