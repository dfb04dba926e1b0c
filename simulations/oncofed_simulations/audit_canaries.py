"""Canaries: invented patients of extreme values, of whom a coin decides whether they train."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_client.source import Source, keep_rows
from oncofed_client.training import TrainingSet
from oncofed_shared.errors import ConfigError
from oncofed_shared.features import no_sums, prepare
from oncofed_shared.messages import Columns, Trial
from oncofed_shared.plan import ClassificationTask, Modality, Plan, voxels_of
from oncofed_simulations.pooled import merge

__all__ = ["CanarySource", "invented_canaries", "joined", "shared_out"]

FAR = 8.0
"""How many spreads a canary's values are from their centre: its gradient is then several times the clip norm."""


def _raw(modality: Modality, scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values that the modality's transform makes of these; a logarithm has no value below zero."""
    if modality.transform == "none":
        return scaled
    if modality.transform == "log":
        return np.asarray(np.expm1(np.maximum(scaled, 0.0)))
    return np.asarray(np.sign(scaled) * np.expm1(np.abs(scaled)))


def invented_canaries(plan: Plan, columns: Columns, *, count: int, seed: int) -> Cohort:
    """Canaries with every column, `FAR` above or below its centre, a label for every task and an event.

    Signs are coins, so that the gradients of two of them are nearly at right angles.

    Args:
        columns: agreed by all sites.

    Raises:
        ConfigError: the network reads images, for which there are no canaries.
    """
    if any(voxels_of(m) for m in plan.modalities.values()):
        raise ConfigError("modalities: this study reads images, for which the audit has no canaries; leave them out")
    rng = np.random.default_rng(seed)
    preparation = prepare(plan, columns, no_sums(plan, columns))
    values, start = {}, 0
    for name in sorted(columns):
        part = slice(start, start + len(columns[name]))
        signs = rng.choice([-1.0, 1.0], size=(count, len(columns[name])))
        values[name] = _raw(plan.modalities[name], preparation.center[part] + FAR * preparation.spread[part] * signs)
        start = part.stop
    labels = {}
    for name, task in sorted(plan.tasks.items()):
        if isinstance(task, ClassificationTask):
            labels[name] = rng.integers(len(task.classes), size=count)
        else:
            edges = np.asarray(task.edges, dtype=np.float64)
            middle = (edges[:-1] + edges[1:]) / 2
            labels[name] = np.stack([rng.choice(middle, size=count), np.ones(count)], axis=1)
    return Cohort(
        patients=tuple(f"canary-{i:05}" for i in range(count)),
        values=values,
        columns=dict(columns),
        labels=labels,
        subgroups={s: np.full(count, -1) for s in plan.evaluation.subgroups},
        split_labels=None,
        site="canaries",
    )


@dataclass(frozen=True, kw_only=True)
class CanarySource:
    """A hospital's patients, and canaries who train with them.

    Attributes:
        source: the hospital's own.
        canaries: those who are in.
    """

    source: Source
    canaries: Cohort
    _merged: dict[str, tuple[Cohort, Cohort]]

    @classmethod
    def of(cls, source: Source, canaries: Cohort, inside: NDArray[np.bool_]) -> CanarySource:
        """The patients of a source, and the chosen canaries."""
        return cls(source=source, canaries=keep_rows(canaries, inside), _merged={})

    @property
    def name(self) -> str:
        """The site's name."""
        return self.source.name

    def cohort(self, plan: Plan) -> Cohort:
        """Patients who may enter now, then the canaries."""
        own = self.source.cohort(plan)
        known = self._merged.get(plan.hash)
        if known is None or known[0] is not own:
            whole = merge(plan, [own, self.canaries], [self.name, "canary"]) if self.canaries.patients else own
            self._merged[plan.hash] = known = (own, whole)
        return known[1]

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
        """Parts as the hospital has them; canaries train."""
        del cohort
        own = self.source.split(plan, self.source.cohort(plan), trial)
        return np.concatenate([own, np.zeros(len(self.canaries.patients), dtype=np.int64)])


def shared_out(count: int, sites: int) -> NDArray[np.int64]:
    """At which site each canary is, (count,) numbers of sites: in turn."""
    return np.arange(count) % sites


def joined(parts: list[TrainingSet]) -> TrainingSet:
    """Patients of several places in one."""
    goals = {}
    for name in parts[0].goals:
        each = [p.goals[name] for p in parts]
        goals[name] = type(each[0])(goal=torch.cat([t.goal for t in each]), weight=torch.cat([t.weight for t in each]))
    return TrainingSet(
        values=torch.cat([p.values for p in parts]), seen=torch.cat([p.seen for p in parts]), goals=goals
    )
