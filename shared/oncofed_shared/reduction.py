"""The exchanges by which sites agree on a reduction before training: what a site sums up in each, and what follows.

    kind           exchanges   sums over training patients who have the modality
    pca            1           patients, columns, products of each two columns
    lasso          1, or 2     the same, and products of each column with each response
    relieff        1, or 2     differences from near patients
    autoencoder    rounds + 1  gradients and losses; at last the code's sums and sums of squares

Against a survival task there is an exchange before: events and patients at risk per interval. The response of a patient is then his
events less what the common hazards expect of him, interval by interval: the gradient of the loss in his risk at a model without
inputs, as a martingale residual is of the Cox likelihood (Therneau et al. 1990).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from oncofed_shared import autoencoder, relieff
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.features import Preparation
from oncofed_shared.losses import targets
from oncofed_shared.messages import Columns
from oncofed_shared.moments import Moments, components, lasso_weights, moment_sums, moments_size, strongest
from oncofed_shared.plan import Plan, SurvivalTask
from oncofed_shared.plan_reduction import Autoencoder, Lasso, PrincipalComponents, ReliefF, Statistical

__all__ = ["Agreed", "Patients", "begin", "exchanges", "finished", "next_agreed", "site_sums", "sums_size"]

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
class Agreed:
    """What is agreed after some exchanges.

    Attributes:
        number: of exchanges that are over.
        arrays: what sites need for the next one, by `<modality>.<what>`; at last what they reduce by.
        kept: modality -> (columns,) places of the columns that stay, where some were chosen.
        memory: what only the aggregator needs.
    """

    number: int
    arrays: Mapping[str, Values]
    kept: Mapping[str, NDArray[np.int64]]
    memory: Mapping[str, Values]


def _asked(plan: Plan, columns: Columns) -> list[tuple[str, Statistical]]:
    """Modalities that are reduced by sums, with what the plan wants of each, sorted."""
    return [
        (name, modality.reduction)
        for name, modality in sorted(plan.modalities.items())
        if isinstance(modality.reduction, Statistical) and columns.get(name)
    ]


def _by_survival(plan: Plan, settings: Statistical) -> bool:
    selects = isinstance(settings, Lasso | ReliefF) and settings.against is None
    return selects and isinstance(plan.tasks[plan.main_task], SurvivalTask)


def _length(plan: Plan, settings: Statistical) -> int:
    """Exchanges of one reduction."""
    if isinstance(settings, Autoencoder):
        return settings.rounds + 1
    return 1 + _by_survival(plan, settings)


def exchanges(plan: Plan, columns: Columns) -> int:
    """How many exchanges a plan's reductions take; they go on side by side."""
    return max((_length(plan, s) for _, s in _asked(plan, columns)), default=0)


def begin(plan: Plan, columns: Columns, seed: int) -> Agreed:
    """What is agreed before the first exchange: an autoencoder's first values, which the seed decides."""
    arrays = {
        f"{name}.parameters": autoencoder.first_parameters(settings, len(columns[name]), seed)
        for name, settings in _asked(plan, columns)
        if isinstance(settings, Autoencoder)
    }
    return Agreed(number=0, arrays=arrays, kept={}, memory={})


def _place(columns: Columns, modality: str) -> slice:
    start = sum(len(columns[m]) for m in sorted(columns) if m < modality)
    return slice(start, start + len(columns[modality]))


# -- at a site --------------------------------------------------------------------------------------------------------------------


def _intervals(plan: Plan, preparation: Preparation, patients: Patients) -> tuple[Values, Values]:
    """Events and patients at risk, (n, intervals) of 0 and 1 both."""
    name = plan.main_task
    made = targets(plan, {**patients.labels}, preparation.class_weights)[name]
    return made.goal.numpy().astype(np.float64), made.weight.numpy().astype(np.float64)


def _responses(
    plan: Plan, preparation: Preparation, arrays: Mapping[str, Values], name: str, patients: Patients
) -> tuple[Values, Marks]:
    """What columns are to go with, (n, responses), and of whom it is known, (n,)."""
    settings = plan.modalities[name].reduction
    if isinstance(settings, Lasso | ReliefF) and settings.against is not None:
        part = _place(preparation.columns, settings.against)
        return patients.values[:, part], patients.seen[:, part].any(axis=1)
    task = plan.tasks[plan.main_task]
    if isinstance(task, SurvivalTask):
        happened, at_risk = _intervals(plan, preparation, patients)
        expected = at_risk @ arrays[f"{name}.hazards"]
        return (happened.sum(axis=1) - expected)[:, None], at_risk.any(axis=1)
    label = np.asarray(patients.labels[plan.main_task], dtype=np.int64)
    marks = (label[:, None] == np.arange(len(task.classes))).astype(np.float64)
    # Of two classes one says what the other does.
    return marks[:, 1:] if len(task.classes) == 2 else marks, label >= 0


def _differences(plan: Plan, name: str, table: Values) -> Values:
    """Values whose differences lie between 0 and 1."""
    return table / (2 * (plan.modalities[name].clip or CLIP))


def _relieff_sums(
    plan: Plan, preparation: Preparation, arrays: Mapping[str, Values], name: str, patients: Patients
) -> Values:
    settings = plan.modalities[name].reduction
    assert isinstance(settings, ReliefF)  # noqa: S101 - who calls has looked
    part = _place(preparation.columns, name)
    has = patients.seen[:, part].any(axis=1)
    table = _differences(plan, name, patients.values[:, part])
    task = plan.tasks[plan.main_task]
    if settings.against is None and not isinstance(task, SurvivalTask):
        label = np.asarray(patients.labels[plan.main_task], dtype=np.int64)
        rows, count = has & (label >= 0), len(task.classes)
        sums = relieff.class_sums(table[rows], label[rows], count, settings.neighbours)
        return np.concatenate([np.bincount(label[rows], minlength=count).astype(np.float64), sums])
    responses, known = _responses(plan, preparation, arrays, name, patients)
    if settings.against is None:
        # A patient's residual lies between minus all hazards and 1.
        responses = responses / (1 + arrays[f"{name}.hazards"].sum())
    else:
        responses = _differences(plan, settings.against, responses)
    rows = has & known
    return relieff.response_sums(table[rows], responses[rows], settings.neighbours)


def _sums_of(
    plan: Plan, preparation: Preparation, arrays: Mapping[str, Values], number: int, name: str, patients: Patients
) -> Values:
    settings, part = plan.modalities[name].reduction, _place(preparation.columns, name)
    has = patients.seen[:, part].any(axis=1)
    table = patients.values[:, part]
    match settings:
        case PrincipalComponents():
            return moment_sums(table[has], np.zeros((int(has.sum()), 0)))
        case Autoencoder():
            parameters = arrays[f"{name}.parameters"]
            if number == settings.rounds:
                return autoencoder.code_sums(settings, parameters, table[has])
            return autoencoder.gradient_sums(settings, parameters, table[has], patients.seen[has, part])
        case Lasso() | ReliefF() if _by_survival(plan, settings) and number == 0:
            return np.concatenate([v[has].sum(axis=0) for v in _intervals(plan, preparation, patients)])
        case ReliefF():
            return _relieff_sums(plan, preparation, arrays, name, patients)
        case _:
            responses, known = _responses(plan, preparation, arrays, name, patients)
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
    parts = [
        _sums_of(plan, preparation, arrays, number, name, patients)
        for name, settings in _asked(plan, columns)
        if number < _length(plan, settings)
    ]
    return np.concatenate(parts, dtype=np.float64)


def _check_arrays(plan: Plan, columns: Columns, arrays: Mapping[str, Values], number: int) -> None:
    wanted: dict[str, int] = {}
    for name, settings in _asked(plan, columns):
        if isinstance(settings, Autoencoder) and number <= settings.rounds:
            wanted[f"{name}.parameters"] = autoencoder.parameter_count(settings, len(columns[name]))
        task = plan.tasks[plan.main_task]
        if _by_survival(plan, settings) and number == 1 and isinstance(task, SurvivalTask):
            wanted[f"{name}.hazards"] = task.intervals
    for name, size in wanted.items():
        found = arrays.get(name)
        if found is None or found.dtype != np.float64 or found.shape != (size,) or not np.isfinite(found).all():
            raise RemoteProtocolError("what is agreed of a reduction does not fit the plan")


# -- at the aggregator ------------------------------------------------------------------------------------------------------------


def _size(plan: Plan, columns: Columns, number: int, name: str) -> int:
    settings, own, task = plan.modalities[name].reduction, len(columns[name]), plan.tasks[plan.main_task]
    match settings:
        case PrincipalComponents():
            return moments_size(own, 0)
        case Autoencoder():
            last = number == settings.rounds
            return 1 + 2 * autoencoder.width(settings, own) if last else 2 + autoencoder.parameter_count(settings, own)
        case Lasso() | ReliefF() if _by_survival(plan, settings) and number == 0 and isinstance(task, SurvivalTask):
            return 2 * task.intervals
        case ReliefF():
            if settings.against is not None or isinstance(task, SurvivalTask):
                return relieff.response_size(own)
            return len(task.classes) + relieff.class_size(own, len(task.classes))
        case Lasso(against=None):
            classes = 1 if isinstance(task, SurvivalTask) else len(task.classes)
            return moments_size(own, 1 if classes == 2 else classes)
        case Lasso(against=against):
            return moments_size(own, len(columns[str(against)]))
    message = "only reductions by sums have sums"
    raise AssertionError(message)


def sums_size(plan: Plan, columns: Columns, number: int) -> int:
    """Length of a site's answer to an exchange."""
    return sum(_size(plan, columns, number, n) for n, s in _asked(plan, columns) if number < _length(plan, s))


def finished(plan: Plan, columns: Columns, agreed: Agreed) -> bool:
    """Whether no exchange is left."""
    return agreed.number >= exchanges(plan, columns)


def next_agreed(plan: Plan, columns: Columns, agreed: Agreed, sums: Values) -> Agreed:
    """What is agreed after one more exchange.

    Args:
        sums: of all sites' answers.

    Raises:
        RemoteProtocolError: the sums cannot be those of patients.
    """
    arrays, kept, memory, start = dict(agreed.arrays), dict(agreed.kept), dict(agreed.memory), 0
    for name, settings in _asked(plan, columns):
        if agreed.number >= _length(plan, settings):
            continue
        size = _size(plan, columns, agreed.number, name)
        own, start = sums[start : start + size], start + size
        if isinstance(settings, PrincipalComponents):
            arrays |= _fixed_components(plan, name, settings, own, len(columns[name]))
        elif isinstance(settings, Autoencoder):
            _trained(name, settings, own, agreed.number, arrays, memory)
        elif _by_survival(plan, settings) and agreed.number == 0:
            happened, at_risk = np.split(own, 2)
            arrays[f"{name}.hazards"] = happened / np.maximum(at_risk, 1)
        else:
            arrays.pop(f"{name}.hazards", None)
            scores = _scores(plan, columns, name, settings, own)
            kept[name] = strongest(scores, settings.keep)
    return replace(agreed, number=agreed.number + 1, arrays=arrays, kept=kept, memory=memory)


def _fixed_components(plan: Plan, name: str, settings: PrincipalComponents, sums: Values, count: int) -> dict[str, Values]:
    moments = Moments.parse(sums, count, 0)
    directions, variances = components(moments, settings.components)
    if settings.whiten:
        directions = directions / np.sqrt(variances)[:, None]
    elif plan.model.block_scaling:
        # The network divides by the root of the number of inputs; with this, by that of the number of columns.
        directions = directions * (len(directions) / count) ** 0.5
    return {f"{name}.mean": moments.mean, f"{name}.map": directions.ravel()}


def _trained(
    name: str, settings: Autoencoder, sums: Values, number: int, arrays: dict[str, Values], memory: dict[str, Values]
) -> None:
    if number == settings.rounds:
        total, squares = np.split(sums[1:] / max(sums[0], 1.0), 2)
        spread = np.sqrt(np.maximum(squares - total**2, 0))
        arrays |= {f"{name}.center": total, f"{name}.spread": np.where(spread > 0, spread, 1.0)}
        return
    before = {k.removeprefix(f"{name}."): v for k, v in memory.items() if k.startswith(f"{name}.")}
    after, kept = autoencoder.written_step(settings, arrays[f"{name}.parameters"], before, sums)
    if not np.isfinite(after).all():
        raise RemoteProtocolError(f"the autoencoder of modality {name} diverged; lower its rate", code="diverged")
    arrays[f"{name}.parameters"] = after
    memory |= {f"{name}.{k}": v for k, v in kept.items()}


def _scores(plan: Plan, columns: Columns, name: str, settings: Lasso | ReliefF, sums: Values) -> Values:
    """How much each column has to say, (columns,); minus infinity for one that says nothing."""
    task, count = plan.tasks[plan.main_task], len(columns[name])
    if isinstance(settings, Lasso):
        responses = (_size(plan, columns, 1, name) - moments_size(count, 0)) // (1 + count)
        lengths = np.linalg.norm(lasso_weights(Moments.parse(sums, count, responses), settings.keep), axis=1)
        return np.where(lengths > 0, lengths, -np.inf)
    if settings.against is None and not isinstance(task, SurvivalTask):
        classes = len(task.classes)
        return relieff.class_weights(sums[classes:], sums[:classes])
    return relieff.response_weights(sums)
