"""A site's half of a plan's reductions: the sums over its training patients that `reduction` asks for.

Against a survival task the response of a patient is his events less what the common hazards expect of him, interval by interval:
the gradient of the loss in his risk at a model without inputs, as a martingale residual is of the Cox likelihood (Therneau et al.
1990).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed_shared import autoencoder, relieff
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.features import Preparation
from oncofed_shared.losses import targets
from oncofed_shared.messages import Columns
from oncofed_shared.moments import moment_sums
from oncofed_shared.plan import Plan, SurvivalTask
from oncofed_shared.plan_reduction import Autoencoder, Lasso, PrincipalComponents, ReliefF
from oncofed_shared.reduction import asked, by_survival, exchanges, length

__all__ = ["Patients", "site_sums"]

Values = NDArray[np.float64]
Marks = NDArray[np.bool_]
CLIP = 10.0
"""Bound that stands for `clip` where a modality has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patients:
    """A site's training patients.

    Attributes:
        values, seen: (n, columns) scaled, 0 where missing; and what was observed.
        labels: per task, as in a cohort.
    """

    values: Values
    seen: Marks
    labels: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Exchange:
    """One exchange at one site: what is asked of whom, and what is agreed so far."""

    plan: Plan
    preparation: Preparation
    arrays: Mapping[str, Values]
    number: int
    patients: Patients

    def table(self, modality: str) -> tuple[Values, Marks, Marks]:
        """(n, columns) scaled values of a modality, (n, columns) what was observed, and (n,) who has any of it."""
        columns = self.preparation.columns
        start = sum(len(columns[m]) for m in sorted(columns) if m < modality)
        part = slice(start, start + len(columns[modality]))
        seen = self.patients.seen[:, part]
        return self.patients.values[:, part], seen, np.asarray(seen.any(axis=1), dtype=bool)

    def intervals(self) -> tuple[Values, Values]:
        """Events and patients at risk of the main task, (n, intervals) of 0 and 1 both."""
        made = targets(self.plan, self.patients.labels, self.preparation.class_weights)[self.plan.main_task]
        return made.goal.numpy().astype(np.float64), made.weight.numpy().astype(np.float64)

    def classes(self) -> NDArray[np.int64]:
        """(n,) class of the main task, or -1."""
        return np.asarray(self.patients.labels[self.plan.main_task], dtype=np.int64)


def _responses(at: _Exchange, name: str) -> tuple[Values, Marks]:
    """What columns are to go with, (n, responses), and of whom it is known, (n,)."""
    settings, task = at.plan.modalities[name].reduction, at.plan.tasks[at.plan.main_task]
    if isinstance(settings, Lasso | ReliefF) and settings.against is not None:
        table, _, has = at.table(settings.against)
        return table, has
    if isinstance(task, SurvivalTask):
        happened, at_risk = at.intervals()
        expected = at_risk @ at.arrays[f"{name}.hazards"]
        return (happened.sum(axis=1) - expected)[:, None], np.asarray(at_risk.any(axis=1), dtype=bool)
    label = at.classes()
    marks = (label[:, None] == np.arange(len(task.classes))).astype(np.float64)
    # Of two classes one says what the other does.
    return marks[:, 1:] if len(task.classes) == 2 else marks, label >= 0


def _differences(plan: Plan, name: str, table: Values) -> Values:
    """Values whose differences lie between 0 and 1."""
    return table / (2 * (plan.modalities[name].clip or CLIP))


def _relieff_sums(at: _Exchange, name: str, settings: ReliefF) -> Values:
    table, _, has = at.table(name)
    table, task = _differences(at.plan, name, table), at.plan.tasks[at.plan.main_task]
    if settings.against is None and not isinstance(task, SurvivalTask):
        label, count = at.classes(), len(task.classes)
        rows = has & (label >= 0)
        sums = relieff.class_sums(table[rows], label[rows], count, settings.neighbours)
        return np.concatenate([np.bincount(label[rows], minlength=count).astype(np.float64), sums])
    responses, known = _responses(at, name)
    if settings.against is None:
        # A patient's residual lies between minus all hazards and 1.
        responses = responses / (1 + at.arrays[f"{name}.hazards"].sum())
    else:
        responses = _differences(at.plan, settings.against, responses)
    rows = has & known
    return relieff.response_sums(table[rows], responses[rows], settings.neighbours)


def _autoencoder_sums(at: _Exchange, name: str, settings: Autoencoder) -> Values:
    table, seen, has = at.table(name)
    parameters = at.arrays[f"{name}.parameters"]
    if at.number == settings.rounds:
        return autoencoder.code_sums(settings, parameters, table[has])
    return autoencoder.gradient_sums(settings, parameters, table[has], seen[has])


def _sums_of(at: _Exchange, name: str) -> Values:
    settings = at.plan.modalities[name].reduction
    table, _, has = at.table(name)
    match settings:
        case PrincipalComponents():
            return moment_sums(table[has], np.zeros((int(has.sum()), 0)))
        case Autoencoder():
            return _autoencoder_sums(at, name, settings)
        case Lasso() | ReliefF() if by_survival(at.plan, settings) and at.number == 0:
            return np.concatenate([v[has].sum(axis=0) for v in at.intervals()])
        case ReliefF():
            return _relieff_sums(at, name, settings)
        case _:
            responses, known = _responses(at, name)
            rows = has & known
            return moment_sums(table[rows], responses[rows])


def site_sums(
    plan: Plan, preparation: Preparation, arrays: Mapping[str, Values], number: int, patients: Patients
) -> Values:
    """A site's answer to an exchange: the sums of all reductions that are not finished, modality after modality.

    Args:
        arrays: what is agreed so far.
        number: of exchanges that are over.

    Guarantees:
        - Sums and counts over training patients, never a row.

    Raises:
        RemoteProtocolError: no such exchange, or what is agreed does not fit the plan.
    """
    columns = preparation.columns
    if not 0 <= number < exchanges(plan, columns):
        raise RemoteProtocolError("the plan's reductions have no such exchange")
    _check_arrays(plan, columns, arrays, number)
    at = _Exchange(plan=plan, preparation=preparation, arrays=arrays, number=number, patients=patients)
    parts = [_sums_of(at, name) for name, settings in asked(plan, columns) if number < length(plan, settings)]
    return np.concatenate(parts, dtype=np.float64)


def _check_arrays(plan: Plan, columns: Columns, arrays: Mapping[str, Values], number: int) -> None:
    wanted: dict[str, int] = {}
    for name, settings in asked(plan, columns):
        if isinstance(settings, Autoencoder) and number <= settings.rounds:
            wanted[f"{name}.parameters"] = autoencoder.parameter_count(settings, len(columns[name]))
        task = plan.tasks[plan.main_task]
        if by_survival(plan, settings) and number == 1 and isinstance(task, SurvivalTask):
            wanted[f"{name}.hazards"] = task.intervals
    for name, size in wanted.items():
        found = arrays.get(name)
        if found is None or found.dtype != np.float64 or found.shape != (size,) or not np.isfinite(found).all():
            raise RemoteProtocolError("what is agreed of a reduction does not fit the plan")
