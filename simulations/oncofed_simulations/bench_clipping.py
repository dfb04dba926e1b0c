"""What a private step costs beside a plain one and beside Opacus's, in time and in memory, for three kinds of network.

Patients are invented and all of them are in every step, so that each way does the same work. Ours includes drawing its noise from
AES; Opacus draws from torch's generator, which can be predicted.
"""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping

from oncofed_client.noise import discrete_gaussian
from oncofed_client.private_training import private_update
from oncofed_client.randomness import Randomness
from oncofed_client.training import TrainingSet, local_update
from oncofed_shared.determinism import one_thread
from oncofed_shared.layout import Layout
from oncofed_shared.losses import patient_losses, targets
from oncofed_shared.messages import Columns
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.plan import Plan, parse
from oncofed_shared.privacy import Mechanism
from oncofed_simulations.bench_measure import KIBIBYTE, MEBIBYTE, Measure

__all__ = ["NETWORKS", "WAYS", "clipping", "ways_of"]

BATCH, STEPS, REPEATS, MEMORY_STEPS = 64, 2, 40, 3
SITE = "site-1"
LARGEST_MEMORY = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """A network to be timed: `[model]` and `[modalities]` of its plan, its columns, and what a step should cost at most."""

    model: Mapping[str, Any]
    modalities: Mapping[str, Any]
    columns: Columns
    goal: float


_PATCH = {"size": [32, 32, 32], "window": [-100, 200]}
NETWORKS: Mapping[str, _Kind] = {
    "linear-heavy": _Kind(
        model={"fusion": "concat", "width": 256, "heads": 4, "layers": 2, "feedforward": 512},
        modalities={"genes": {"scaling": "none", "patterns": ["g*"]}},
        columns={"genes": tuple(f"g{i}" for i in range(1700))},
        goal=2.5,
    ),
    "transformer": _Kind(
        model={"fusion": "transformer", "size": "base"},
        modalities={"genes": {"scaling": "none", "patterns": ["g*"], "tokens": 12}},
        columns={"genes": tuple(f"g{i}" for i in range(480))},
        goal=1.8,
    ),
    "3-D CNN": _Kind(
        model={"fusion": "concat", "width": 64, "heads": 4, "layers": 1, "feedforward": 64},
        modalities={"scan": {"scaling": "none", "encoder": "cnn", "patch": {"ct": _PATCH, "pet": _PATCH}}},
        columns={"scan": ("ct", "pet")},
        goal=1.3,
    ),
}


def _plans(kind: _Kind) -> tuple[Plan, Plan]:
    """With and without noise."""
    content = {
        "study": {"name": "clipping", "purpose": "time a step"},
        "tasks": {
            "survival": {"kind": "survival", "time": "t", "event": "e", "edges": [0, 100, 300, 700], "horizon": 300}
        },
        "modalities": kind.modalities,
        "model": kind.model,
        "training": {"rounds": 10, "local_steps": STEPS, "rate": 0.01, "batch": "all"},
    }
    noisy = {
        "noise": "site", "epsilon": 3, "delta": 1e-4, "clip_norm": 1.0, "sampling_rate": 1.0, "patients": {SITE: BATCH},
    }  # fmt: skip
    return parse({**content, "privacy": noisy}), parse({**content, "privacy": {"noise": "none"}})


def _patients(plan: Plan, network: FusionNetwork, columns: int) -> TrainingSet:
    rng = np.random.default_rng(1)
    labels = np.stack([rng.uniform(0, 800, BATCH), rng.integers(0, 2, BATCH)], axis=1)
    return TrainingSet(
        values=torch.from_numpy(rng.standard_normal((BATCH, network.reads), dtype=np.float32)),
        seen=torch.ones(BATCH, columns),
        goals=targets(plan, {"survival": labels}, {}),
    )


Step = Callable[[], object]
WAYS = ("plain", "ours", "Opacus hooks", "Opacus ghost")


def _hooks(network: FusionNetwork, plan: Plan, data: TrainingSet) -> Step:
    module = GradSampleModule(network, loss_reduction="sum")
    step = torch.optim.SGD(module.parameters(), lr=0.01)
    optimiser = DPOptimizer(
        step, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=BATCH, loss_reduction="sum"
    )

    def work() -> None:
        for _ in range(STEPS):
            optimiser.zero_grad()
            patient_losses(plan, module(data.values, data.seen), data.goals).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    return work


def _ghost(network: FusionNetwork, plan: Plan, data: TrainingSet) -> Step:
    module = GradSampleModuleFastGradientClipping(network, max_grad_norm=1.0, loss_reduction="sum")
    step = torch.optim.SGD(module.parameters(), lr=0.01)
    optimiser = DPOptimizerFastGradientClipping(
        step, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=BATCH, loss_reduction="sum"
    )

    def work() -> None:
        # As opacus.utils.fast_gradient_clipping_utils does it for losses of one tensor.
        for _ in range(STEPS):
            losses = patient_losses(plan, module(data.values, data.seen), data.goals)
            losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
            optimiser.zero_grad()
            weights = module.get_clipping_coef()
            module.disable_hooks()
            (losses * weights).sum().backward()
            module.enable_hooks()
            optimiser.step()

    return work


def ways_of(name: str, way: str) -> tuple[Step, FusionNetwork, Mechanism]:
    """`STEPS` steps of a network of `NETWORKS` in one of the `WAYS`; the network and our mechanism for it."""
    kind = NETWORKS[name]
    private, plain = _plans(kind)
    network = build(private, kind.columns, seed=0)
    layout, mechanism = Layout.of(network), Mechanism.for_plan(private, SITE)
    data = _patients(private, network, sum(len(c) for c in kind.columns.values()))
    start = {n: p.detach().numpy().copy() for n, p in network.named.items()}
    if way == "plain":
        return lambda: local_update(plain, network, layout, data, start, key="k"), network, mechanism
    if way == "ours":
        random = Randomness.from_os()
        return (
            lambda: private_update(private, network, layout, data, start, mechanism=mechanism, random=random, key="k"),
            network,
            mechanism,
        )
    made = {"Opacus hooks": _hooks, "Opacus ghost": _ghost}[way](network.train(), plain, data)
    return made, network, mechanism


def _memory(name: str, way: str) -> float:
    """Largest memory of a process that does nothing but some steps, MiB."""
    command = [sys.executable, "-m", "oncofed_simulations.bench_clipping", name, way]
    found = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own command
    return float(found.stdout)


def _timed(name: str) -> tuple[dict[str, float], float, int]:
    """Smallest processor seconds of a step in each way, in turn; of drawing its noise; and the number of parameters."""
    made = {way: ways_of(name, way) for way in WAYS}
    _, network, mechanism = made["ours"]
    size, random = network.vector.numel(), Randomness.from_os()
    sigma = mechanism.integers(size).share_sigma
    works: dict[str, Step] = {way: work for way, (work, _, _) in made.items()}
    works["drawing"] = lambda: [discrete_gaussian(random, sigma, size) for _ in range(STEPS)]
    least = dict.fromkeys(works, float("inf"))
    with one_thread(), warnings.catch_warnings():
        # Opacus's hooks on layers that read data, which has no gradient.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        for repeat in range(1 + REPEATS):
            for way, work in works.items():
                started = time.process_time()
                work()
                if repeat:
                    least[way] = min(least[way], (time.process_time() - started) / STEPS)
    return least, least.pop("drawing"), size


def clipping(folder: Path) -> list[Measure]:
    """A step at batch 64 of each network, plain, ours and Opacus's, side by side; and the memory of ours beside a plain one's."""
    del folder
    rows = []
    for name, kind in NETWORKS.items():
        least, drawing, size = _timed(name)
        plain, ours = least["plain"], least["ours"]
        memory = {way: _memory(name, way) for way in ("plain", "ours")}
        note = (
            f"{size:,} parameters, batch {BATCH}, smallest of {REPEATS}; drawing noise is {1000 * drawing:.3g} ms of it"
        )
        rows += [
            Measure(name=f"{name}: plain step", value=1000 * plain, unit="ms"),
            Measure(name=f"{name}: private step", value=1000 * ours, unit="ms", note=note),
            Measure(name=f"{name}: private / plain", value=ours / plain, unit="x", goal=kind.goal),
            Measure(
                name=f"{name}: private / plain, noise drawn", value=(ours - drawing) / plain, unit="x", note="before"
            ),
            *(Measure(name=f"{name}: {way} / plain", value=least[way] / plain, unit="x") for way in WAYS[2:]),
            Measure(name=f"{name}: ghost / private", value=least["Opacus ghost"] / ours, unit="x"),
            Measure(
                name=f"{name}: memory, private / plain",
                value=memory["ours"] / memory["plain"],
                unit="x",
                goal=LARGEST_MEMORY,
                note=f"{memory['ours']:.0f} and {memory['plain']:.0f} MiB, whole processes",
            ),
        ]
    return rows


def _main(name: str, way: str) -> None:
    torch.set_num_threads(1)
    work, _, _ = ways_of(name, way)
    with one_thread(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        for _ in range(MEMORY_STEPS):
            work()
    # Not getrusage's, which is that of the process that started this one where that was larger.
    (peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(int(peak.split()[1]) * KIBIBYTE / MEBIBYTE)


if __name__ == "__main__":
    _main(*sys.argv[1:])
