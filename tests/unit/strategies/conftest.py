"""Small consortia in memory: hospitals as arrays, whole runs in under a second."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_client.site import Site
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan, parse
from oncofed_simulations.consortium import Consortium, Run, baseline_plan

COLUMNS = 4
STUDY: dict[str, Any] = {
    "study": {"name": "rules", "purpose": "see what an aggregation rule does"},
    "tasks": {"response": {"kind": "classification", "label": "response", "classes": ["no", "yes"]}},
    "modalities": {"x": {"patterns": ["x*"], "scaling": "none", "clip": 50.0}},
    "model": {"layers": 0, "block_scaling": False},
    "training": {"rounds": 4, "local_steps": 3, "rate": 0.2, "weight_decay": 0.05, "dtype": "float64"},
    "evaluation": {"minimum_shown": 1, "minimum_events": 1, "score_bins": 16, "bootstrap": 50},
}


@dataclass
class ArraySource:
    """A hospital whose patients are rows of arrays; all train but every fifth, who tests."""

    name: str
    values: NDArray[np.float64]
    labels: NDArray[np.int64]
    cohorts: dict[str, Cohort] = field(default_factory=dict)

    def cohort(self, plan: Plan) -> Cohort:
        if plan.hash not in self.cohorts:
            self.cohorts[plan.hash] = Cohort(
                patients=tuple(f"{self.name}-{i:03d}" for i in range(len(self.labels))),
                values={"x": self.values},
                columns={"x": tuple(f"x{i}" for i in range(self.values.shape[1]))},
                labels={"response": self.labels},
                subgroups={},
                split_labels=None,
            )
        return self.cohorts[plan.hash]

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
        del plan, cohort, trial
        return np.where(np.arange(len(self.labels)) % 5 == 4, 2, 0).astype(np.int64)


def different_hospitals(sizes: tuple[int, ...] = (30, 20, 40), seed: int = 1) -> list[ArraySource]:
    """Hospitals that disagree: other patients, and the columns mean something else at each."""
    rng = np.random.default_rng(seed)
    made = []
    for name, count in zip("abcdefgh", sizes, strict=False):
        values = rng.normal(size=(count, COLUMNS)) * rng.uniform(0.5, 2, COLUMNS) + rng.normal(size=COLUMNS)
        risk = values @ rng.normal(size=COLUMNS) * 2 + rng.normal()
        labels = (rng.random(count) < 1 / (1 + np.exp(-risk))).astype(np.int64)
        labels[:2] = (0, 1)
        made.append(ArraySource(name, values, labels))
    return made


@dataclass(kw_only=True)
class Small:
    """A plan, hospitals, and where runs are kept."""

    plan: Plan
    sources: list[ArraySource]
    root: Path
    on_disk: bool = True

    def consortium(self, **options: Any) -> Consortium:
        """The hospitals, each in a new process as far as it can tell."""
        plans = {p.hash: p for p in (self.plan, baseline_plan(self.plan))}
        sites = {
            s.name: Site(s, plans, minimum_cohort=1, state=self.root / s.name if self.on_disk else None)
            for s in self.sources
        }
        return Consortium(plan=self.plan, sites=sites, externals={}, **{"store": self.root / "store", **options})

    def run(self, **options: Any) -> Run:
        """A federated run."""
        return self.consortium(**options).federated(Trial(seed=3))


def changed(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The content with values at dotted paths."""
    made = copy.deepcopy(dict(content))
    for path, value in changes.items():
        *parents, last = path.split("__")
        here = made
        for name in parents:
            here = here.setdefault(name, {})
        here[last] = value
    return made


@pytest.fixture(scope="session")
def plan_of() -> Callable[..., Plan]:
    """A maker of plans: `plan_of(strategy__name="fedprox")`."""
    return lambda **changes: parse(changed(STUDY, changes))


@pytest.fixture
def small(tmp_path: Path, plan_of: Callable[..., Plan]) -> Callable[..., Small]:
    """A maker of small consortia; a new folder each."""
    made = iter(range(1000))

    def make(*, sources: list[ArraySource] | None = None, on_disk: bool = True, **changes: Any) -> Small:
        own = different_hospitals() if sources is None else sources
        return Small(plan=plan_of(**changes), sources=own, root=tmp_path / str(next(made)), on_disk=on_disk)

    return make


@pytest.fixture(scope="session")
def hospitals_of() -> Callable[..., list[ArraySource]]:
    """Make hospitals: `different_hospitals`."""
    return different_hospitals
