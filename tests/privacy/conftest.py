"""A private plan of any shape, its network with values that tell patients apart, and invented patients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from oncofed_client.training import TrainingSet
from oncofed_shared.layout import Layout
from oncofed_shared.losses import targets
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.plan import Plan, SurvivalTask, parse

COLUMNS = {"clinical": ("age", "sex=f", "sex=m"), "genes": tuple(f"g{i}" for i in range(9))}
SURVIVAL = {"kind": "survival", "time": "days", "event": "event", "edges": [0, 100, 300, 700], "horizon": 300}
BINARY = {"kind": "classification", "label": "response", "classes": ["no", "yes"]}
THREE = {"kind": "classification", "label": "grade", "classes": ["I", "II", "III"]}
PLAN: dict[str, Any] = {
    "study": {"name": "private", "purpose": "see that nobody is seen"},
    "main_task": "survival",
    "tasks": {"survival": SURVIVAL, "response": BINARY},
    "modalities": {
        "clinical": {
            "scaling": "constants",
            "tokens": "columns",
            "columns": {
                "age": {"kind": "numeric", "center": 60, "spread": 12},
                "sex": {"kind": "categorical", "categories": ["f", "m"]},
            },
        },
        "genes": {"scaling": "none", "patterns": ["g*"], "tokens": 2},
    },
    "model": {"width": 4, "heads": 2, "layers": 1, "feedforward": 8},
    "training": {"rounds": 3, "local_steps": 2, "rate": 0.1},
    "privacy": {
        "noise": "site",
        "epsilon": 3,
        "delta": 1e-4,
        "clip_norm": 0.1,
        "sampling_rate": 0.5,
        "patients": {"alpha": 60, "beta": 40},
    },
}


def changed(changes: dict[str, Any]) -> Plan:
    """The plan with values at dotted paths."""
    content = copy.deepcopy(PLAN)
    for path, value in changes.items():
        *parents, last = path.split(".")
        here = content
        for name in parents:
            here = here.setdefault(name, {})
        here[last] = copy.deepcopy(value)
    return parse(content)


def patients_of(plan: Plan, count: int, seed: int = 1) -> TrainingSet:
    """Invented patients with gaps and labels, some of them far out."""
    rng = np.random.default_rng(seed)
    width = sum(len(c) for c in COLUMNS.values())
    labels: dict[str, Any] = {}
    weights = {}
    for name, task in plan.tasks.items():
        if isinstance(task, SurvivalTask):
            labels[name] = np.stack([rng.uniform(0, 800, count), rng.integers(0, 2, count)], axis=1)
        else:
            labels[name] = rng.integers(-1, len(task.classes), count)
            weights[name] = np.arange(1.0, len(task.classes) + 1)
    dtype = torch.float64 if plan.training.dtype == "float64" else torch.float32
    values = rng.standard_normal((count, width)) * np.where(rng.random((count, 1)) < 0.1, 50, 1)
    return TrainingSet(
        values=torch.from_numpy(values).to(dtype),
        seen=torch.from_numpy(rng.random((count, width)) > 0.2).to(dtype),
        goals=targets(plan, labels, weights),
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """A plan, its network away from its first values, and patients."""

    plan: Plan
    network: FusionNetwork
    patients: TrainingSet

    @property
    def layout(self) -> Layout:
        """Order of the parameters."""
        return Layout.of(self.network)

    @property
    def parameters(self) -> dict[str, Any]:
        """Copies of the network's parameters."""
        return {n: p.detach().numpy().copy() for n, p in self.network.named_parameters()}


@pytest.fixture
def make() -> Callable[..., Case]:
    """Make a case: `make({"model.layers": 0}, count=64)`."""

    def case(changes: dict[str, Any] | None = None, *, count: int = 64) -> Case:
        plan = changed(changes or {})
        network = build(plan, COLUMNS, seed=3)
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
        return Case(plan=plan, network=network, patients=patients_of(plan, count))

    return case


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
