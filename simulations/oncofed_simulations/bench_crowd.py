"""Many small sites in one process: what a round costs beside its mathematics, and what more sites cost in memory.

The sites are the real ones, the aggregator and the bytes too; only their patients are invented and never on disk.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_client.site import Site
from oncofed_client.training import TrainingSet
from oncofed_server.aggregator import Aggregator, Phase, Roster
from oncofed_shared.determinism import one_thread
from oncofed_shared.errors import Interrupted
from oncofed_shared.losses import patient_losses
from oncofed_shared.messages import Trial
from oncofed_shared.network import FusionNetwork
from oncofed_shared.plan import Plan, parse
from oncofed_simulations.bench_measure import MEBIBYTE, Measure, seconds
from oncofed_simulations.loopback import FakeClock, drive

__all__ = ["Crowd", "Invented", "crowd_memory", "crowd_round", "small_plan"]

TRIAL = Trial(seed=0)
SITES, FEW = 1000, 10
PATIENTS, COLUMNS = 32, 16
ROUNDS = 8
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

    def cohort(self, plan: Plan) -> Cohort:
        """All of them, at every call."""
        return self.patients

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
        """Everybody trains."""
        return np.zeros(len(cohort.patients), dtype=np.int64)
