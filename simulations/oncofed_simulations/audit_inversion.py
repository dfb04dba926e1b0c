"""Records out of gradients: what the layer that reads the columns gives away, under an honest model and a malicious one.

The gradient of a linear layer is a sum over patients of (how wrong an output was) times (his row). With one patient each row of it
is his record. A malicious model makes an output a step: as the step moves from round to round, patients fall off one side of it one
by one, and the difference of two rounds is the record of whoever fell ("imprint": Fowl et al. 2022; here with the steps in time and
not in a wide layer, since the network is the plan's and only its numbers are the aggregator's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed_client.training import TrainingSet, doubled
from oncofed_shared.messages import Arrays
from oncofed_simulations.audit_gradients import Attacker
from oncofed_simulations.audit_path import Planted, Release

__all__ = ["SAME", "Recovery", "guessed", "imprint", "records_of", "recovered", "rows_of"]

Floats = NDArray[np.float64]
SAME = 0.99
"""Cosine above which a guess is a record."""
STEEP = 400.0
"""How steep a malicious output is, over the spread of what it looks at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovery:
    """What an attack found.

    Attributes:
        records: how many there were to find.
        found: of which a guess has a cosine above SAME.
        closest: cosine of the best guess of each record, on average.
    """

    records: int
    found: int
    closest: float

    def facts(self) -> dict[str, Any]:
        """For `audit.json`."""
        return {"records": self.records, "found": self.found, "closest": self.closest}


def records_of(attacker: Attacker, patients: TrainingSet) -> Floats:
    """What the layer reads of each patient, (patients, columns): his record, scaled."""
    layer = attacker.network.get_submodule("linear")
    heard: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: heard.append(given[0].detach()))
    own = doubled(patients)
    with torch.no_grad():
        attacker.network(own.values, own.seen)
    handle.remove()
    return np.asarray(heard[0].numpy())


def rows_of(attacker: Attacker, releases: Sequence[Release]) -> Floats:
    """The reading layer's part of each release, (releases, outputs, columns)."""
    totals = [attacker.layout.arrays(r.total, "float64")["linear.weight"] for r in releases]
    return np.stack(totals)


def imprint(attacker: Attacker, everybody: Floats, rounds: int, *, seed: int) -> Planted:
    """A model whose outputs are steps along one direction, further on in every round.

    The attacker is given where patients lie along it, so that the steps part them as evenly as can be.
    """
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(everybody.shape[1])
    along = np.sort(everybody @ direction)
    reach = max(float(along[-1] - along[0]), 1e-9)
    slope = STEEP / reach
    # The first step is below everybody and the last above, so that each of them falls once.
    steps = np.quantile(along, np.linspace(0, 1, rounds))
    steps[[0, -1]] += np.array([-1, 1]) * reach / 20
    shapes = attacker.layout.shapes

    def planted(honest: Arrays, number: int) -> Arrays:
        step = float(steps[min(max(number - 1, 0), rounds - 1)])
        made = dict(honest)
        for name in shapes:
            if name == "linear.weight":
                made[name] = np.broadcast_to(slope * direction, shapes[name]).astype(honest[name].dtype)
            elif name.startswith("baselines."):
                made[name] = np.full(shapes[name], -slope * step, dtype=honest[name].dtype)
        return made

    return planted


def _guesses(rows: Floats) -> Floats:
    """Directions in which a record may lie: each row, rows less rows of one release, rows less those of the next, and means."""
    outputs, columns = rows.shape[1:]
    first, second = np.triu_indices(outputs, 1)
    parts = [rows, rows[:, first] - rows[:, second], rows[1:] - rows[:-1], rows.mean(axis=0)[None]]
    whole = np.concatenate([p.reshape(-1, columns) for p in parts])
    lengths = np.linalg.norm(whole, axis=1)
    return np.asarray(whole[lengths > 0] / lengths[lengths > 0, None])


def recovered(records: Floats, rows: Floats) -> Recovery:
    """How many records are among the guesses; a sign is for free."""
    return _best(records, _guesses(rows))


def guessed(records: Floats, others: Floats) -> Recovery:
    """The same for somebody who guesses the mean of other patients: what a cosine says by itself."""
    mean = others.mean(axis=0)
    return _best(records, (mean / np.linalg.norm(mean))[None])


def _best(records: Floats, guesses: Floats) -> Recovery:
    units = records / np.maximum(np.linalg.norm(records, axis=1, keepdims=True), 1e-12)
    best = np.abs(units @ guesses.T).max(axis=1) if len(guesses) else np.zeros(len(records))
    return Recovery(records=len(records), found=int((best > SAME).sum()), closest=float(best.mean()))
