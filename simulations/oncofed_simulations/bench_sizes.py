"""What a step of each size of network costs beside a plain network of as many parameters, with and without privacy."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oncofed_client.private_training import private_update
from oncofed_client.randomness import Randomness
from oncofed_client.training import TrainingSet, local_update
from oncofed_shared.determinism import one_thread
from oncofed_shared.heads import baseline_width, joined, outputs
from oncofed_shared.layout import Layout
from oncofed_shared.messages import Columns
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.plan import Plan, load, parse
from oncofed_shared.plan_sizes import SIZES
from oncofed_shared.privacy import Mechanism
from oncofed_simulations.bench_measure import Measure
from oncofed_simulations.bench_private import patients_of

__all__ = ["Plain", "preset_steps"]

STUDIES = Path(__file__).resolve().parents[1] / "studies"
BATCH, STEPS, REPEATS = 64, 2, 5
SITE = "site-1"


class Plain(FusionNetwork):
    """One hidden layer from all columns to the same heads, with about as many parameters as asked for."""

    def __init__(self, plan: Plan, columns: Columns, parameters: int) -> None:
        nn.Module.__init__(self)
        self.tasks = dict(sorted(plan.tasks.items()))
        self.sizes = {n: outputs(t, proportional=plan.model.hazards == "proportional") for n, t in self.tasks.items()}
        total, given = sum(len(c) for c in columns.values()), sum(self.sizes.values())
        self.baselines = nn.ModuleList(nn.Linear(1, baseline_width(t), bias=False) for t in self.tasks.values())
        rest = parameters - sum(baseline_width(t) for t in self.tasks.values()) - given
        width = max(1, round(rest / (total + given + 1)))
        self.hidden, self.last = nn.Linear(total, width), nn.Linear(width, given)
        self.named = dict(sorted(self.named_parameters()))
        self._vector = None

    def forward(self, values: Tensor, seen: Tensor) -> dict[str, Tensor]:
        """Logits per task, as of the network."""
        made = self.last(nn.functional.gelu(self.hidden(torch.where(seen > 0, values, 0))))
        one = values.new_ones(len(values), 1)
        split = torch.split(made, list(self.sizes.values()), dim=1)
        return {
            name: joined(task, part, baseline(one))
            for (name, task), part, baseline in zip(self.tasks.items(), split, self.baselines, strict=True)
        }


def _plans(size: str) -> tuple[Plan, Plan]:
    """The private demo's patients and the plain demo's tokens with the network of a size: private, and not."""
    content: dict[str, Any] = load(STUDIES / "demo_private.toml").model_dump(mode="json")
    other = load(STUDIES / "demo.toml").model_dump(mode="json")
    content["model"] = other["model"] | SIZES[size]
    for name, modality in content["modalities"].items():
        modality["tokens"] = other["modalities"][name]["tokens"]
    content["training"] |= {"local_steps": STEPS, "batch": "all", "rounds": 10}
    noisy = content["privacy"] | {"sampling_rate": 1.0, "patients": {SITE: BATCH}}
    return parse({**content, "privacy": noisy}), parse({**content, "privacy": {"noise": "none"}})


def _steps(
    plans: tuple[Plan, Plan], network: FusionNetwork, data: TrainingSet
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Rounds of steps of a network: private, and plain."""
    private, plain = plans
    layout = Layout.of(network)
    mechanism, random = Mechanism.for_plan(private, SITE), Randomness.from_os()
    start = {n: p.detach().numpy().copy() for n, p in network.named.items()}

    def noisy() -> object:
        return private_update(private, network, layout, data, start, mechanism=mechanism, random=random, key="k")

    def quiet() -> object:
        return local_update(plain, network, layout, data, start, key="k")

    return noisy, quiet


def preset_steps(folder: Path) -> list[Measure]:
    """Steps at batch 64 of every size on the demo's columns, each beside the plain network's, in turn; the smallest of each."""
    data, columns = patients_of(_plans("tiny")[0], folder)
    rows = []
    for size in SIZES:
        plans = _plans(size)
        network = build(plans[0], columns, seed=0)
        parameters = network.vector.numel()
        other = Plain(plans[0], columns, parameters)
        works = [*_steps(plans, network, data), *_steps(plans, other, data)]
        least = [float("inf")] * len(works)
        with one_thread():
            for work in works:
                work()
            for _ in range(REPEATS):
                for i, work in enumerate(works):
                    started = time.process_time()
                    work()
                    least[i] = min(least[i], 1000 * (time.process_time() - started) / STEPS)
        note = f"{parameters:,} and {other.vector.numel():,} parameters, batch {len(data)}"
        rows += [
            Measure(name=f"{size} step", value=least[1], unit="ms", note=note),
            Measure(name=f"{size} / plain network", value=least[1] / least[3], unit="x"),
            Measure(name=f"{size} private step", value=least[0], unit="ms"),
            Measure(name=f"{size} private / plain network private", value=least[0] / least[2], unit="x"),
        ]
    return rows
