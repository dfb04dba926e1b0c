"""Many small sites in one process: what a round costs beside its mathematics, and what more sites cost in memory.

The sites are the real ones, the aggregator and the bytes too; only their patients are invented and never on disk.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_client.scratch import Scratch
from oncofed_client.site import Site
from oncofed_server.aggregator import Aggregator
from oncofed_server.run_state import Phase, Roster
from oncofed_shared.determinism import one_thread
from oncofed_shared.errors import Interrupted
from oncofed_shared.losses import patient_losses
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan, parse
from oncofed_simulations.allocator import return_large_arrays
from oncofed_simulations.bench_measure import KIBIBYTE, MEBIBYTE, Measure
from oncofed_simulations.loopback import FakeClock, drive

__all__ = ["Crowd", "Invented", "crowd_memory", "crowd_round", "main", "small_plan"]

TRIAL = Trial(seed=0)
SITES, FEW = 1000, 10
PATIENTS, FEW_PATIENTS, COLUMNS = 32, 4, 16
FLOAT = 4
ROUNDS = 8
ANCHOR = {"width": 32, "heads": 2, "layers": 1, "feedforward": 64}
"""About the 9,400 parameters with which other simulators were measured (pfl-research 3.4 times the mathematics, Flower 46)."""
SMALL = {"width": 2, "heads": 1, "layers": 1, "feedforward": 2}
WIDE = {"width": 256, "heads": 2, "layers": 1, "feedforward": 1400}
"""About a million parameters that do not grow with the number of columns."""


def small_plan(*, rounds: int, model: dict[str, int] | None = None) -> Plan:
    """One question with two classes; a linear model if no other is given."""
    return parse(
        {
            "study": {"name": "crowd", "purpose": "see what many sites cost"},
            "tasks": {"response": {"kind": "classification", "label": "response", "classes": ["no", "yes"]}},
            "modalities": {"values": {"patterns": ["v*"]}},
            "model": model or {"layers": 0},
            "training": {"rounds": rounds, "max_sites": SITES, "range": 4096.0},
        }
    )


@dataclass(frozen=True, kw_only=True)
class Invented:
    """Patients that nobody is, all of whom train; all sites of a crowd may have the same."""

    name: str
    patients: Cohort

    @classmethod
    def of(cls, number: int, count: int) -> Invented:
        """The patients of a site."""
        rng = np.random.default_rng(number)
        values = rng.standard_normal((count, COLUMNS))
        cohort = Cohort(
            patients=tuple(f"p{i}" for i in range(count)),
            values={"values": values},
            columns={"values": tuple(f"v{i}" for i in range(COLUMNS))},
            labels={"response": (values[:, 0] + rng.standard_normal(count) > 0).astype(np.int64)},
            subgroups={},
            split_labels=None,
        )
        return cls(name=f"site-{number}", patients=cohort)

    def cohort(self, plan: Plan) -> Cohort:  # noqa: ARG002 - a source's signature
        """All of them, at every call."""
        return self.patients

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:  # noqa: ARG002 - a source's signature
        """Everybody trains."""
        return np.zeros(len(cohort.patients), dtype=np.int64)


@dataclass(kw_only=True)
class Crowd:
    """Sites with one scratch network, and the rounds that they trained.

    Attributes:
        rounds: processor seconds of each round, from its first request to the new global model.
        pure: seconds of a forward and a backward pass over each site's batch, taken after each round.
    """

    plan: Plan
    sites: dict[str, Site]
    rounds: list[float] = field(default_factory=list)
    pure: list[float] = field(default_factory=list)
    parameters: int = 0
    _begun: float = 0.0

    @classmethod
    def of(cls, plan: Plan, count: int, *, patients: int) -> Crowd:
        """Sites with patients of their own."""
        scratch = Scratch()
        sources = [Invented.of(i, patients) for i in range(count)]
        sites = {s.name: Site(s, {plan.hash: plan}, minimum_cohort=1, scratch=scratch) for s in sources}
        return cls(plan=plan, sites=sites)

    def train(self, *, beside: bool) -> None:
        """All rounds of the plan; the tables at the end are left out.

        Args:
            beside: whether the bare mathematics is timed too.
        """
        names = tuple(self.sites)
        roster = Roster(trainers=names, evaluators=names)
        aggregator = Aggregator(self.plan, roster, TRIAL, session="crowd", curves=False)

        def after(aggregator: Aggregator) -> None:
            state = aggregator.state
            if len(state.losses) > len(self.rounds):
                self.rounds.append(time.process_time() - self._begun)
                if beside:
                    self.pure.append(_processor(self.mathematics))
                if len(state.losses) == self.plan.training.rounds:
                    raise Interrupted("the rounds are over")
                self._begun = time.process_time()
            elif state.phase is not Phase.TRAIN:
                self._begun = time.process_time()

        with suppress(Interrupted):
            drive(aggregator, self.sites, clock=FakeClock(), after_step=after)
        self.parameters = aggregator.layout.size

    def mathematics(self) -> None:
        """A forward and a backward pass of each site's network over each site's batch, and nothing else."""
        with one_thread():
            for site in self.sites.values():
                (session,) = site.sessions.values()
                network, data = session.network.train(), session.cache["train"][1]
                loss = patient_losses(self.plan, network(data.values, data.seen), data.goals).sum() / len(data)
                torch.autograd.grad(loss, list(network.named.values()))


def _processor(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def crowd_round(_: Path) -> list[Measure]:
    """A round of many sites beside the mathematics in it.

    The models are the smallest that a plan can ask for: a logistic regression, in which nothing hides what a site costs, and a
    transformer. Processor time, because the other work of a machine is not in it; round and mathematics in turn.
    """
    return [
        *_round({"layers": 0}, "logistic"),
        *_round(SMALL, "transformer"),
        *_round(ANCHOR, "9,000 parameters"),
    ]


def _round(model: dict[str, int], kind: str) -> list[Measure]:
    crowd = Crowd.of(small_plan(rounds=ROUNDS, model=model), SITES, patients=PATIENTS)
    crowd.train(beside=True)
    fine, whole = min(crowd.pure), min(crowd.rounds)
    pairs = [r / p for r, p in zip(crowd.rounds, crowd.pure, strict=True)]
    note = f"{SITES} sites, {PATIENTS} patients each, {crowd.parameters} parameters, smallest of {ROUNDS}"
    return [
        Measure(name=f"round of many sites, {kind}", value=whole, unit="s", note=note),
        Measure(
            name=f"forward and backward, {kind}",
            value=fine,
            unit="s",
            note="of the same networks over the same batches",
        ),
        Measure(name=f"round / mathematics, {kind}", value=whole / fine, unit="x", goal=3.0, note="of the smallest"),
        Measure(name=f"round / mathematics, {kind}, median", value=statistics.median(pairs), unit="x", note="of pairs"),
    ]


def crowd_memory(_: Path) -> list[Measure]:
    """What a process with many sites needs at most, more than one with few, in copies of the model.

    Everything counts: driver, aggregator, messages, the sites with their patients. The sites have one scratch network in
    common, and the C library was told what `oncofed-simulate` tells it (`allocator`).
    """
    command = [sys.executable, "-m", "oncofed_simulations.bench_crowd"]
    # Side by side: memory is measured and not time.
    started = [
        subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own command
        for n in (FEW, SITES)
    ]
    (few, size), (many, _size) = (_peak(process) for process in started)
    note = f"{FEW} to {SITES} sites, {few:.0f} to {many:.0f} MiB, a model of {size:.1f} MiB"
    return [Measure(name="memory of more sites", value=(many - few) / size, unit="models", goal=3.0, note=note)]


def _peak(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Largest memory and size of the model, in MiB, as the process prints them."""
    printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the round ended with exit code {process.returncode}")
    peak, parameters = (int(n) for n in printed.split())
    return peak / MEBIBYTE, parameters * FLOAT / MEBIBYTE


def main(count: int) -> None:
    """One round in this process: print its largest memory in bytes, and the number of parameters."""
    return_large_arrays()
    torch.set_num_threads(1)
    crowd = Crowd.of(small_plan(rounds=1, model=WIDE), count, patients=FEW_PATIENTS)
    crowd.train(beside=False)
    # Not `ru_maxrss`: it begins with what the process that started this one had.
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    print(int(peak) * KIBIBYTE, crowd.parameters)


if __name__ == "__main__":
    main(int(sys.argv[1]))
