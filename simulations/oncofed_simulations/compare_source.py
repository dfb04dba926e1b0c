"""A hospital of a comparison: the same patients in the same parts for every variant, and folds inside its training patients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_client.source import UNUSED, Source
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan
from oncofed_simulations.compare_variants import HOSPITAL, SHUFFLE

__all__ = ["TEST", "TRAIN", "ComparedSource", "InnerSource", "hospital_groups"]

TRAIN, TEST = 0, 2


class ComparedSource:
    """A hospital read by the whole plan, so that every variant has the same patients in the same parts.

    Args:
        held_out: whether all its patients are tested; without it they are in folds.
        spread: whether there are folds; without them everybody else trains.
        task: `label-shuffle` permutes the labels of training patients; `predict-hospital` gives everybody `number`.
    """

    def __init__(
        self,
        source: Source,
        whole: Plan,
        *,
        held_out: bool = False,
        spread: bool = True,
        task: str = "",
        number: int = 0,
    ) -> None:
        self.source, self.whole, self.held_out, self.spread = source, whole, held_out, spread
        self.task, self.number = task, number
        self._made: dict[str, tuple[Cohort, Cohort]] = {}
        self.trial = Trial(seed=0)

    @property
    def name(self) -> str:
        """The site's name."""
        return self.source.name

    def cohort(self, plan: Plan) -> Cohort:
        """The whole plan's patients with the modalities of this one."""
        read = self.source.cohort(self.whole)
        known = self._made.get(plan.hash)
        if known is None or known[0] is not read:
            known = self._made[plan.hash] = (read, self._changed(plan, read))
        return known[1]

    def _changed(self, plan: Plan, cohort: Cohort) -> Cohort:
        labels = cohort.labels
        if self.task == HOSPITAL:
            labels = {t: np.full(len(cohort.patients), self.number) for t in plan.tasks}
        elif self.task == SHUFFLE:
            rng = np.random.default_rng([self.trial.seed, self.trial.fold + 1, *self.name.encode()])
            rows = np.flatnonzero(self._parts(cohort) == TRAIN)
            order = rng.permutation(rows)
            labels = {t: v.copy() for t, v in labels.items()}
            for values in labels.values():
                values[rows] = values[order]
        return replace(
            cohort,
            values={m: cohort.values[m] for m in plan.modalities},
            columns={m: cohort.columns[m] for m in plan.modalities},
            labels=labels,
        )

    def _parts(self, cohort: Cohort) -> NDArray[np.int64]:
        if self.held_out or not self.spread:
            return np.full(len(cohort.patients), TEST if self.held_out else TRAIN, dtype=np.int64)
        return self.source.split(self.whole, cohort, self.trial)

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
        """Part of each patient: that of the whole plan."""
        del plan, cohort, trial
        return self._parts(self.source.cohort(self.whole))


class InnerSource:
    """The training patients of a compared hospital, some of them held out once more; the others are in no part.

    Args:
        outer: the hospital as a point has it.
        fold, folds: which of how many parts of its training patients is held out; each has its share of events or classes.
        group: where whole hospitals are held out, which one this belongs to; it is then held out with all its training patients
            or with none.

    Guarantees:
        - A patient whom the point tests is in no part.
    """

    def __init__(self, outer: ComparedSource, *, fold: int, folds: int, group: int | None = None) -> None:
        self.outer, self.fold, self.folds, self.group = outer, fold, folds, group

    @property
    def name(self) -> str:
        """The site's name."""
        return self.outer.name

    def cohort(self, plan: Plan) -> Cohort:
        """The hospital's patients, as the point has them."""
        return self.outer.cohort(plan)

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
        """Part of each patient."""
        parts = self.outer.split(plan, cohort, trial)
        inner = np.full(len(parts), UNUSED, dtype=np.int64)
        rows = np.flatnonzero(parts == TRAIN)
        inner[rows] = np.where(self._held(plan, cohort, rows), TEST, TRAIN)
        return inner

    def _held(self, plan: Plan, cohort: Cohort, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        if self.group is not None:
            return np.full(len(rows), self.group == self.fold)
        return np.equal(self._folds(plan, cohort, rows), self.fold)

    def _folds(self, plan: Plan, cohort: Cohort, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        rng = np.random.default_rng([self.outer.trial.seed, self.outer.trial.fold + 1, *self.name.encode()])
        labels = cohort.labels[plan.main_task][rows]
        strata = labels[:, 1] if labels.ndim > 1 else labels
        order = np.lexsort((rng.permutation(len(rows)), strata))
        folds = np.empty(len(rows), dtype=np.int64)
        # One after another through each stratum, from a drawn beginning: the shares are equal up to one patient.
        folds[order] = (np.arange(len(rows)) + rng.integers(self.folds)) % self.folds
        return folds


def hospital_groups(patients: Mapping[str, int], groups: int) -> dict[str, int]:
    """Hospitals in groups of about as many patients: the largest goes first, each to the group that has the fewest."""
    filled = [0] * groups
    made: dict[str, int] = {}
    for name in sorted(patients, key=lambda n: (-patients[n], n)):
        made[name] = filled.index(min(filled))
        filled[made[name]] += patients[name]
    return made
