"""`make bench`: what the machinery costs, as a table of numbers and goals. A new benchmark is a function and a row."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from oncofed_shared.plan import load
from oncofed_simulations.bare import Workload

__all__ = ["BENCHMARKS", "Measure", "demo", "loopback_overhead", "main"]

DEMO = Path(__file__).resolve().parents[1] / "studies" / "demo.toml"
REPEATS = 10
MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One number of a benchmark.

    Attributes:
        name: what was measured.
        value: the number, in `unit`.
        goal: what it should be at most; None where nothing is promised.
        note: how to read it.
    """

    name: str
    value: float
    unit: str
    goal: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the goal is met."""
        if self.goal is None:
            return ""
        return "met" if self.value <= self.goal else "MISSED"


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def loopback_overhead(folder: Path) -> list[Measure]:
    """A whole loopback run of the demo's federation beside a hand-written loop that trains the same networks.

    The run is everything from the first Describe to the last table: messages as bytes, consent in every round, validation,
    snapshots, final tables; the sites' files have been read before. Both are repeated in turn, so that a busy machine
    disturbs both alike; the smallest time of each is what it takes when nothing disturbs.
    """
    workload = Workload.of(load(DEMO), folder)
    off = workload.difference()
    runs, loops = [], []
    for i in range(REPEATS):
        runs.append(_seconds(lambda i=i: workload.federated(f"run-{i}")))  # type: ignore[misc]
        loops.append(_seconds(workload.bare))
    ratios = [r / b for r, b in zip(runs, loops, strict=True)]
    size = f"{len(workload.sets)} sites, {workload.plan.training.rounds} rounds"
    return [
        Measure(name="federated run, smallest", value=min(runs), unit="s", note=size),
        Measure(name="bare loop, smallest", value=min(loops), unit="s", note=f"same parameters to {off:.0e}"),
        Measure(name="run / loop, smallest times", value=min(runs) / min(loops), unit="x", goal=1.10),
        Measure(name="run / loop, median of pairs", value=statistics.median(ratios), unit="x", note=f"{REPEATS} pairs"),
    ]


def demo(folder: Path) -> list[Measure]:
    """What `make demo` does after installation: time and the largest memory of its process."""
    command = [sys.executable, "-m", "oncofed_simulations", "run", str(DEMO), "--out", str(folder / "demo")]
    started = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.Error:
            break
        time.sleep(0.05)
    code = process.wait()
    seconds = time.perf_counter() - started
    if code:
        raise SystemExit(f"the demo ended with exit code {code}")
    size = sum(f.stat().st_size for f in (folder / "demo").glob("*.*"))
    return [
        Measure(name="make demo", value=seconds, unit="s", goal=90),
        Measure(name="make demo, memory", value=peak / MEBIBYTE, unit="MiB", goal=2048),
        Measure(name="make demo, results", value=size / MEBIBYTE, unit="MiB"),
    ]


BENCHMARKS: Mapping[str, Callable[[Path], list[Measure]]] = {
    "loopback": loopback_overhead,
    "demo": demo,
}


def _table(rows: Sequence[Measure]) -> str:
    cells = [("", "value", "", "goal", "", "")]
    cells += [
        (r.name, f"{r.value:.4g}", r.unit, "" if r.goal is None else f"<= {r.goal:g}", r.verdict, r.note) for r in rows
    ]
    widths = [max(len(c) for c in column) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def main(names: Sequence[str]) -> None:
    """Run the named benchmarks, or all, and print their table."""
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        raise SystemExit(2)
    torch.set_num_threads(1)
    cores = psutil.cpu_count() or 1
    print(
        f"{platform.processor() or platform.machine()}, {cores} cores, load {psutil.getloadavg()[0]:.1f}, one thread\n"
    )
    rows: list[Measure] = []
    for name in names or BENCHMARKS:
        with tempfile.TemporaryDirectory(prefix="oncofed-bench-") as folder:
            rows += BENCHMARKS[name](Path(folder))
    print(_table(rows))
    print(json.dumps({r.name: r.value for r in rows}))


if __name__ == "__main__":
    main(sys.argv[1:])
