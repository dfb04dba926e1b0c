"""All sites' patients in one place: what a federation is compared with, and what only a simulation may do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_client.source import Source
from oncofed_shared.features import unite
from oncofed_shared.messages import Columns, Trial
from oncofed_shared.plan import Plan, voxels_of

__all__ = ["PooledSource", "merge"]


def merge(plan: Plan, cohorts: Sequence[Cohort], names: Sequence[str]) -> Cohort:
    """One cohort of all patients; a column that a site lacks is missing for its patients."""
    columns: Columns = unite(plan, [c.columns for c in cohorts])

    def block(cohort: Cohort, modality: str) -> NDArray[np.float64]:
        place = {c: i for i, c in enumerate(columns[modality])}
        filled = np.full((len(cohort.patients), len(place)), np.nan)
        for i, column in enumerate(cohort.columns[modality]):
            filled[:, place[column]] = cohort.values[modality][:, i]
        return filled

    def voxels(cohort: Cohort, modality: str) -> NDArray[np.float32]:
        given = cohort.images[modality]
        filled = np.zeros((len(given), len(columns[modality]), *given.shape[2:]), dtype=np.float32)
        for i, column in enumerate(cohort.columns[modality]):
            filled[:, columns[modality].index(column)] = given[:, i]
        return filled

    return Cohort(
        patients=tuple(f"{n}/{p}" for c, n in zip(cohorts, names, strict=True) for p in c.patients),
        values={m: np.concatenate([block(c, m) for c in cohorts]) for m in plan.modalities},
        columns=columns,
        labels={t: np.concatenate([c.labels[t] for c in cohorts]) for t in plan.tasks},
        subgroups={s: np.concatenate([c.subgroups[s] for c in cohorts]) for s in plan.evaluation.subgroups},
        split_labels=None,
        images={
            m: np.concatenate([voxels(c, m) for c in cohorts]) for m in plan.modalities if voxels_of(plan.modalities[m])
        },
        hospital=np.repeat(np.arange(len(cohorts)), [len(c.patients) for c in cohorts]),
    )


class PooledSource:
    """The union of several sources, with each patient's part as his own site has it."""

    def __init__(self, sources: Sequence[Source], name: str = "pooled") -> None:
        self.sources = sources
        self._name = name
        self._merged: tuple[list[Cohort], Cohort] | None = None

    @property
    def name(self) -> str:
        """Name of the pooled site."""
        return self._name

    def cohort(self, plan: Plan) -> Cohort:
        """All patients who may enter now."""
        parts = [s.cohort(plan) for s in self.sources]
        if self._merged is None or any(a is not b for a, b in zip(parts, self._merged[0], strict=True)):
            self._merged = (parts, merge(plan, parts, [s.name for s in self.sources]))
        return self._merged[1]

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
        """Part of each patient, from his own site."""
        del cohort
        return np.concatenate([s.split(plan, s.cohort(plan), trial) for s in self.sources])
