"""Small hospitals, written once, and small studies over them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from oncofed_shared.plan import Plan, parse
from oncofed_simulations.consortium import Consortium, open_site
from oncofed_simulations.synthetic import write_cohort

hypothesis.settings.register_profile("promise", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("promise")
"""A property is no promise of speed: on a machine that does other work, any one example may take a second."""

STUDY: dict[str, Any] = {
    "main_task": "survival",
    "study": {"name": "small", "purpose": "a study that a test can wait for"},
    "tasks": {
        "survival": {
            "kind": "survival",
            "table": "clinical",
            "time": "os_days",
            "event": "os_event",
            "edges": [0, 180, 365, 730, 1461],
            "horizon": 365,
        },
        "response": {
            "kind": "classification",
            "table": "clinical",
            "label": "response",
            "classes": ["non-responder", "responder"],
        },
    },
    "modalities": {
        "clinical": {
            "table": "clinical",
            "tokens": "columns",
            "columns": {
                "age": {"kind": "numeric", "unit": "years", "range": [0, 120]},
                "sex": {"kind": "categorical", "categories": ["female", "male"]},
                "stage": {"kind": "ordinal", "order": ["I", "II", "III", "IV"]},
            },
        },
        "shape": {"table": "radiomics", "patterns": ["shape_*"]},
        "mutations": {"table": "mutations", "patterns": ["{gene}_mut"], "tokens": 2},
    },
    "model": {"width": 4, "heads": 2, "layers": 1, "feedforward": 6},
    "training": {"rounds": 3, "rate": 0.05, "validate_every": 2, "deadline_minutes": 10, "attempts": 2},
    "evaluation": {
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
        "subgroups": {"sex": {"table": "clinical", "column": "sex", "values": ["female", "male"]}},
        "reference": {"age": {"features": ["age"]}},
        "main_reference": "age",
        "minimum_shown": 5,
        "minimum_events": 1,
        "score_bins": 32,
        "days_per_bin": 60,
        "bootstrap": 50,
    },
}


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders site-1 to site-4 of 120 synthetic patients. Whoever changes one copies it first."""
    root = tmp_path_factory.mktemp("hospitals") / "sites"
    write_cohort(root, sites=4, patients=120, seed=11, gaps=0.05)
    return root


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    """A maker of small plans over the hospitals: `make_plan(training__rounds=1)` changes the value at training.rounds."""

    def make(**changes: Any) -> Plan:
        content = copy.deepcopy(STUDY)
        for path, value in changes.items():
            *parents, last = path.split("__")
            here = content
            for name in parents:
                here = here.setdefault(name, {})
            here[last] = value
        return parse(content)

    return make


@pytest.fixture(scope="session")
def make_consortium(hospitals: Path) -> Callable[..., Consortium]:
    """A maker of consortia of the hospitals: `make_consortium(plan, store, externals=("site-3",))`."""

    def make(plan: Plan, store: Path, externals: tuple[str, ...] = (), **more: Any) -> Consortium:
        sites = {f.name: open_site(f, plan, state=None, minimum=None) for f in sorted(hospitals.iterdir())}
        outside = {n: sites.pop(n) for n in externals}
        return Consortium(plan=plan, sites=sites, externals=outside, store=store, **more)

    return make
