"""What a private step costs: every patient's own gradient, clipping, sampling and noise, beside a plain step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oncofed_client.private_training import private_update
from oncofed_client.randomness import Randomness
from oncofed_client.session import training_set
from oncofed_client.training import TrainingSet, local_update
from oncofed_shared.determinism import one_thread
from oncofed_shared.features import no_sums, prepare, unite
from oncofed_shared.layout import Layout
from oncofed_shared.network import build
from oncofed_shared.plan import Plan, load, parse
from oncofed_shared.privacy import Mechanism
from oncofed_simulations.bench_measure import Measure
from oncofed_simulations.consortium import open_site
from oncofed_simulations.synthetic import write_cohort

__all__ = ["patients_of", "private_step"]

STUDIES = Path(__file__).resolve().parents[1] / "studies"
BATCH, PATIENTS = 64, 90
STEPS, REPEATS = 10, 25
SITE = "site-1"


def _plans(*, deep: bool) -> tuple[Plan, Plan]:
    """The private demo with and without noise, its batches of 64 always; deep: with the network of the plain demo."""
    content: dict[str, Any] = load(STUDIES / "demo_private.toml").model_dump(mode="json")
    if deep:
        other = load(STUDIES / "demo.toml").model_dump(mode="json")
        content["model"] = other["model"]
        for name, modality in content["modalities"].items():
            modality["tokens"] = other["modalities"][name]["tokens"]
    content["training"] |= {"local_steps": STEPS, "batch": "all", "rounds": 10}
    # Everybody enters every sample: each step, private or plain, is over the same 64 patients.
    noisy = content["privacy"] | {"sampling_rate": 1.0, "patients": {SITE: BATCH}}
    return parse({**content, "privacy": noisy}), parse({**content, "privacy": {"noise": "none"}})


def patients_of(plan: Plan, folder: Path) -> tuple[TrainingSet, dict[str, tuple[str, ...]]]:
    """A batch of synthetic patients as a plan reads them, and its columns; the files go below `folder`."""
    write_cohort(folder / "cohort", sites=1, patients=PATIENTS, seed=1)
    (place,) = sorted((folder / "cohort").iterdir())
    cohort = open_site(place, plan, state=None, minimum=None).source.cohort(plan)
    columns = unite(plan, [cohort.columns])
    preparation = prepare(plan, columns, no_sums(plan, columns))
    return training_set(plan, preparation, cohort, slice(0, BATCH)), columns


def _interleaved(*works: Callable[[], object]) -> list[list[float]]:
    """Processor seconds per step of each, in turn."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(REPEATS):
        for own, work in zip(times, works, strict=True):
            started = time.process_time()
            work()
            own.append((time.process_time() - started) / STEPS)
    return times


def private_step(folder: Path) -> list[Measure]:
    """A step at batch 64, private and plain, in turn, of the demo's network and of the private demo's linear one."""
    return [*_step(folder / "deep", deep=True), *_step(folder / "linear", deep=False)]


def _step(folder: Path, *, deep: bool) -> list[Measure]:
    """Rounds of ten steps; hooks are put on once a round."""
    private, plain = _plans(deep=deep)
    data, columns = patients_of(private, folder)
    network = build(private, columns, seed=0)
    layout, mechanism = Layout.of(network), Mechanism.for_plan(private, SITE)
    start = {n: p.detach().numpy().copy() for n, p in network.named.items()}
    random = Randomness.from_os()

    def noisy() -> object:
        return private_update(private, network, layout, data, start, mechanism=mechanism, random=random, key="k")

    def quiet() -> object:
        return local_update(plain, network, layout, data, start, key="k")

    with one_thread():
        noisy(), quiet()
        slow, fast = _interleaved(noisy, quiet)
    ratios = [s / f for s, f in zip(slow, fast, strict=True)]
    size = f"{layout.size} parameters, batch {len(data)}, smallest of {REPEATS} times {STEPS}"
    kind = "" if deep else ", linear"
    goal = 3.0 if deep else None
    least = min(slow) / min(fast)
    return [
        Measure(name=f"private step{kind}", value=1000 * min(slow), unit="ms", note=size),
        Measure(name=f"plain step{kind}", value=1000 * min(fast), unit="ms"),
        Measure(name=f"private / plain{kind}", value=least, unit="x", goal=goal, note="of the smallest"),
        Measure(name=f"private / plain{kind}, median", value=statistics.median(ratios), unit="x", note="of pairs"),
    ]
