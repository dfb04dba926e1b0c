"""A private consortium in memory: real sites with ledgers and keys, the real aggregator, real bytes, invented patients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oncofed_client.cohort import Cohort
from oncofed_client.contributor import Contributor
from oncofed_client.identity import identity_of, raw_public
from oncofed_client.settings import Policy
from oncofed_client.site import Site
from oncofed_server.run_state import Roster
from oncofed_server.secure_aggregator import SecureAggregator
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan, parse
from oncofed_simulations.loopback import FakeClock, drive

NAMES = ("alpha", "beta", "delta", "gamma")
TRIAL = Trial(seed=3)
PLAN: dict[str, Any] = {
    "study": {"name": "sums", "purpose": "add up without looking"},
    "tasks": {"response": {"kind": "classification", "label": "response", "classes": ["no", "yes"]}},
    "modalities": {"values": {"patterns": ["v*"], "scaling": "none"}},
    "model": {"layers": 0},
    "training": {"rounds": 3, "rate": 0.5, "weight_decay": 0.01, "l1": 0.001, "attempts": 1},
    "privacy": {
        "noise": "consortium",
        "epsilon": 3,
        "delta": 1e-4,
        "clip_norm": 1.0,
        "sampling_rate": 0.5,
        "patients": dict.fromkeys(NAMES, 40),
        "spare_steps": 2,
        "score_epsilon": 3,
    },
    "simulation": {"noise_seed": 7},
}


def plan_of(**changes: Any) -> Plan:
    """The plan, with values at paths like `privacy__drop`."""
    content = copy.deepcopy(PLAN)
    for path, value in changes.items():
        *parents, last = path.split("__")
        here = content
        for name in parents:
            here = here.setdefault(name, {})
        here[last] = value
    return parse(content)


@dataclass(frozen=True, kw_only=True)
class Invented:
    """A site's patients; two thirds train."""

    name: str
    patients: Cohort

    @classmethod
    def of(cls, name: str, count: int = 40) -> Invented:
        rng = np.random.default_rng(sum(name.encode()))
        values = rng.standard_normal((count, 5))
        cohort = Cohort(
            patients=tuple(f"{name}-{i:03}" for i in range(count)),
            values={"values": values},
            columns={"values": tuple(f"v{i}" for i in range(5))},
            labels={"response": (values[:, 0] + rng.standard_normal(count) > 0).astype(np.int64)},
            subgroups={},
            split_labels=None,
        )
        return cls(name=name, patients=cohort)

    def cohort(self, plan: Plan) -> Cohort:
        del plan
        return self.patients

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> np.ndarray[Any, np.dtype[np.int64]]:
        del plan, trial
        return np.arange(len(cohort.patients)) % 6 // 4 + (np.arange(len(cohort.patients)) % 6 == 5)


@dataclass(kw_only=True)
class World:
    """Sites and where they keep their state."""

    plan: Plan
    folder: Path
    policies: dict[str, Policy] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)
    traffic: list[tuple[str, str, bytes]] = field(default_factory=list)

    def open(self, name: str) -> Site:
        """A site as after a start of its process."""
        contributor = Contributor(
            site=name,
            state=self.folder / name,
            identities=self.identities,
            policy=self.policies.get(name, Policy(minimum_cohort=1)),
            clock=lambda: 1_000.0,
            trusted=(raw_public(identity_of(self.folder / "aggregator").public_key()),),
            noise_seed=self.plan.simulation.noise_seed,
            synced=False,
        )
        self.sites[name] = Site(
            Invented.of(name),
            {self.plan.hash: self.plan},
            minimum_cohort=1,
            policy=self.policies.get(name),
            state=self.folder / name,
            contributor=contributor,
        )
        return self.sites[name]

    def identities(self) -> dict[str, bytes]:
        return {n: raw_public(identity_of(self.folder / n).public_key()) for n in NAMES}

    def aggregator(self, **more: Any) -> SecureAggregator:
        names = tuple(self.plan.privacy.patients)
        roster = Roster(trainers=names, evaluators=names, identities=self.identities())
        key = identity_of(self.folder / "aggregator")
        return SecureAggregator(self.plan, roster, TRIAL, session="run", key=key, **more)

    def run(self, aggregator: SecureAggregator | None = None, **more: Any) -> SecureAggregator:
        """Drive a run to its end."""
        chosen = aggregator or self.aggregator()
        drive(
            chosen, self.sites, clock=FakeClock(), tap=lambda *sent: self.traffic.append(sent), **more
        )  # fmt: skip
        return chosen


@pytest.fixture(scope="session")
def new_world_at() -> Callable[..., World]:
    """Make a world in a folder: `new_world_at(folder, privacy__drop=1)`."""

    def make(folder: Path, policies: dict[str, Policy] | None = None, **changes: Any) -> World:
        made = World(plan=plan_of(**changes), folder=folder, policies=policies or {})
        for name in NAMES:
            made.open(name)
        return made

    return make


@pytest.fixture
def new_world(tmp_path: Path, new_world_at: Callable[..., World]) -> Callable[..., World]:
    """Make a world: `new_world(privacy__drop=1)`."""
    return partial(new_world_at, tmp_path)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
