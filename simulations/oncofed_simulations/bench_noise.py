"""What noise costs: a million discrete Gaussians at the width of a real share, beside OpenDP's exact sampler on fewer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from oncofed_client.exact_noise import exact_gaussian
from oncofed_client.noise import discrete_gaussian
from oncofed_client.randomness import Randomness
from oncofed_shared.consortium import ConsortiumMechanism
from oncofed_shared.plan import load
from oncofed_simulations.bench_measure import Measure

__all__ = ["sampler"]

STUDY = Path(__file__).resolve().parents[1] / "studies" / "glioma_survival_private.toml"
PARAMETERS = 160
"""About as many as the study's network has; the width of a share depends on the power of two above their root."""
DRAWS, FEWER, REPEATS = 1_000_000, 20_000, 25


def _smallest(work: Callable[[], object], repeats: int) -> float:
    """Processor seconds of the fastest repeat."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def _exact(sigma: float) -> Callable[[], object]:
    return lambda: exact_gaussian(sigma, FEWER)


def sampler(folder: Path) -> list[Measure]:
    """Milliseconds for a million numbers, at the width of a share in the private study of gliomas and of a large network."""
    del folder
    plan, random = load(STUDY), Randomness.from_os()
    share = ConsortiumMechanism.for_plan(plan, parameters=PARAMETERS).share_sigma
    large = ConsortiumMechanism.for_plan(plan, parameters=1_000_000).share_sigma
    for sigma in (share, large):
        discrete_gaussian(random, sigma, 1)  # makes the tables
    ours = 1000 * _smallest(lambda: discrete_gaussian(random, share, DRAWS), REPEATS)
    wide = 1000 * _smallest(lambda: discrete_gaussian(random, large, DRAWS), REPEATS)
    theirs = 1000 * _smallest(_exact(share), 3) * DRAWS / FEWER
    return [
        Measure(
            name="noise",
            value=ours,
            unit="ms/M",
            goal=20,
            note=f"shares {share:,.0f} steps wide, smallest of {REPEATS}",
        ),
        Measure(name="noise, a million parameters", value=wide, unit="ms/M", goal=20, note=f"{large:,.0f} steps wide"),
        Measure(name="noise by OpenDP, exact", value=theirs, unit="ms/M", note=f"of {FEWER:,} numbers"),
        Measure(
            name="noise / OpenDP",
            value=ours / theirs,
            unit="x",
            goal=1 / 450,
            note=f"{theirs / ours:,.0f} times faster",
        ),
    ]
