"""`make bench`: what the machinery costs, as a table of numbers and goals. A new benchmark is a function and a row."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import torch

from oncofed_shared.plan import load
from oncofed_simulations.bare import Workload
from oncofed_simulations.bench_clipping import clipping
from oncofed_simulations.bench_crowd import crowd_memory, crowd_round
from oncofed_simulations.bench_exchange import exchange
from oncofed_simulations.bench_measure import MEBIBYTE, Measure
from oncofed_simulations.bench_noise import sampler
from oncofed_simulations.bench_prepare import preprocessing
from oncofed_simulations.bench_private import private_step
from oncofed_simulations.bench_secagg import secure_sums
from oncofed_simulations.bench_sizes import preset_steps

__all__ = ["BENCHMARKS", "Measure", "Timed", "demo", "loopback_overhead", "main"]

DEMO = Path(__file__).resolve().parents[1] / "studies" / "demo.toml"
REPEATS = 10
KIBIBYTE = 2**10


@dataclass(kw_only=True)
class Timed:
    """Repeated times of one piece of work, in seconds: of the processor, and by the clock on the wall."""

    processor: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def take(self, work: Callable[[], object]) -> None:
        """Do it once more."""
        wall, processor = time.perf_counter(), time.process_time()
        work()
        self.processor.append(time.process_time() - processor)
        self.wall.append(time.perf_counter() - wall)


def loopback_overhead(folder: Path) -> list[Measure]:
    """A whole loopback run of the demo's federation beside a hand-written loop that trains the same networks.

    The run is everything from the first Describe to the last table: messages as bytes, consent in every round, validation,
    snapshots, final tables; the sites' files have been read before. The loop is federated averaging by hand and ends with the
    same parameters. They are repeated in turn, so that a busy machine disturbs both alike. Processor time is compared, because
    the other work of a machine is not in it; the smallest is what the work takes when nothing disturbs the caches either.
    """
    workload = Workload.of(load(DEMO), folder)
    off = workload.difference()
    run, loop, steps = Timed(), Timed(), Timed()
    for i in range(REPEATS):
        run.take(partial(workload.federated, f"run-{i}"))
        loop.take(workload.bare)
        steps.take(workload.steps)
    size = f"{len(workload.sets)} sites, {workload.plan.training.rounds} rounds, smallest of {REPEATS}"
    least = min(run.processor)
    pairs = [r / b for r, b in zip(run.processor, loop.processor, strict=True)]
    return [
        Measure(name="loopback run", value=least, unit="s", note=size),
        Measure(name="bare loop", value=min(loop.processor), unit="s", note=f"ends with the same network to {off:.0e}"),
        Measure(name="run / loop", value=least / min(loop.processor), unit="x", goal=1.10, note="of the smallest"),
        Measure(name="run / loop, median of pairs", value=statistics.median(pairs), unit="x"),
        Measure(name="run / loop, wall", value=min(run.wall) / min(loop.wall), unit="x", note="of the smallest"),
        Measure(name="run / steps", value=least / min(steps.processor), unit="x", note="steps alone, nothing averaged"),
    ]


def demo(folder: Path) -> list[Measure]:
    """What `make demo` does after installation: time and the largest memory of its process."""
    command = [sys.executable, "-m", "oncofed_simulations", "run", str(DEMO), "--out", str(folder / "demo")]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the demo ended with exit code {process.returncode}")
    size = sum(f.stat().st_size for f in (folder / "demo").glob("*.*"))
    return [
        Measure(name="make demo", value=seconds, unit="s", goal=90),
        Measure(name="make demo, processor", value=usage.ru_utime + usage.ru_stime, unit="s"),
        Measure(name="make demo, memory", value=usage.ru_maxrss * KIBIBYTE / MEBIBYTE, unit="MiB", goal=2048),
        Measure(name="make demo, results", value=size / MEBIBYTE, unit="MiB"),
    ]


BENCHMARKS: Mapping[str, Callable[[Path], list[Measure]]] = {
    "loopback": loopback_overhead,
    "demo": demo,
    "crowd": crowd_round,
    "memory": crowd_memory,
    "private": private_step,
    "clipping": clipping,
    "preprocessing": preprocessing,
    "noise": sampler,
    "secagg": secure_sums,
    "sizes": preset_steps,
    "exchange": exchange,
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
