"""The exchanges by which sites agree on a reduction before training: how many there are, and what follows from the sums.

    kind           exchanges   sums over training patients who have the modality
    pca            1           patients, columns, products of each two columns
    lasso          1, or 2     the same, and products of each column with each response
    relieff        1, or 2     differences from near patients
    autoencoder    rounds + 1  gradients and losses; at last the code's sums and sums of squares

Against a survival task there is an exchange before: events and patients at risk per interval. `reduction_sums` is a site's half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from oncofed_shared import autoencoder, relieff
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.messages import Columns
from oncofed_shared.moments import Moments, components, lasso_weights, moments_size, strongest
from oncofed_shared.plan import Plan, SurvivalTask
from oncofed_shared.plan_reduction import Autoencoder, Lasso, PrincipalComponents, ReliefF, Statistical

__all__ = [
    "Agreed",
    "asked",
    "begin",
    "by_survival",
    "exchanges",
    "finished",
    "fixed_components",
    "length",
    "next_agreed",
    "sums_size",
]

Values = NDArray[np.float64]


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


def asked(plan: Plan, columns: Columns) -> list[tuple[str, Statistical]]:
    """Modalities that are reduced by sums, with what the plan wants of each, sorted."""
    return [
        (name, modality.reduction)
        for name, modality in sorted(plan.modalities.items())
        if isinstance(modality.reduction, Statistical) and columns.get(name)
    ]


def by_survival(plan: Plan, settings: Statistical) -> bool:
    """Whether columns are chosen by a survival task: its hazards are agreed first."""
    selects = isinstance(settings, Lasso | ReliefF) and settings.against is None
    return selects and isinstance(plan.tasks[plan.main_task], SurvivalTask)


def length(plan: Plan, settings: Statistical) -> int:
    """Exchanges that one reduction takes."""
    if isinstance(settings, Autoencoder):
        return settings.rounds + 1
    return 1 + by_survival(plan, settings)


def exchanges(plan: Plan, columns: Columns) -> int:
    """How many exchanges a plan's reductions take; they go on side by side."""
    return max((length(plan, s) for _, s in asked(plan, columns)), default=0)


def begin(plan: Plan, columns: Columns, seed: int) -> Agreed:
    """What is agreed before the first exchange: an autoencoder's first values, which the seed decides."""
    arrays = {
        f"{name}.parameters": autoencoder.first_parameters(settings, len(columns[name]), seed)
        for name, settings in asked(plan, columns)
        if isinstance(settings, Autoencoder)
    }
    return Agreed(number=0, arrays=arrays, kept={}, memory={})


def _selection_size(plan: Plan, columns: Columns, name: str, settings: Lasso | ReliefF) -> int:
    """Length of the sums by which columns are chosen."""
    own, task = len(columns[name]), plan.tasks[plan.main_task]
    classes = 0 if settings.against is not None or isinstance(task, SurvivalTask) else len(task.classes)
    if isinstance(settings, ReliefF):
        return classes + relieff.class_size(own, classes) if classes else relieff.response_size(own)
    return moments_size(own, _responses(plan, columns, settings))


def _responses(plan: Plan, columns: Columns, settings: Lasso) -> int:
    """Numbers of a patient that columns are to go with: of two classes one says what the other does."""
    task = plan.tasks[plan.main_task]
    if settings.against is not None:
        return len(columns[settings.against])
    return 1 if isinstance(task, SurvivalTask) or len(task.classes) == 2 else len(task.classes)


def _size(plan: Plan, columns: Columns, number: int, name: str, settings: Statistical) -> int:
    own, task = len(columns[name]), plan.tasks[plan.main_task]
    match settings:
        case PrincipalComponents():
            return moments_size(own, 0)
        case Autoencoder() if number == settings.rounds:
            return 1 + 2 * autoencoder.width(settings, own)
        case Autoencoder():
            return 2 + autoencoder.parameter_count(settings, own)
        case _ if by_survival(plan, settings) and number == 0 and isinstance(task, SurvivalTask):
            return 2 * task.intervals
        case _:
            return _selection_size(plan, columns, name, settings)


def sums_size(plan: Plan, columns: Columns, number: int) -> int:
    """Length of a site's answer to an exchange."""
    return sum(_size(plan, columns, number, n, s) for n, s in asked(plan, columns) if number < length(plan, s))


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
    for name, settings in asked(plan, columns):
        if agreed.number >= length(plan, settings):
            continue
        size = _size(plan, columns, agreed.number, name, settings)
        own, start = sums[start : start + size], start + size
        if isinstance(settings, PrincipalComponents):
            arrays |= fixed_components(plan, name, settings, Moments.parse(own, len(columns[name]), 0))
        elif isinstance(settings, Autoencoder):
            _trained(name, settings, own, arrays, memory)
        elif by_survival(plan, settings) and agreed.number == 0:
            happened, at_risk = np.split(own, 2)
            arrays[f"{name}.hazards"] = happened / np.maximum(at_risk, 1)
        else:
            arrays.pop(f"{name}.hazards", None)
            scores = _scores(plan, columns, name, settings, own)
            kept[name] = strongest(scores, settings.keep)
    return replace(agreed, number=agreed.number + 1, arrays=arrays, kept=kept, memory=memory)


def fixed_components(plan: Plan, name: str, settings: PrincipalComponents, moments: Moments) -> dict[str, Values]:
    """What a modality is reduced by from now on: the mean of its columns, and a map to its components.

    Args:
        name: of the modality.
        moments: of its columns.
    """
    directions, variances = components(moments, settings.components)
    if settings.whiten:
        directions = directions / np.sqrt(variances)[:, None]
    elif plan.model.block_scaling:
        # The network divides by the root of the number of inputs; with this, by that of the number of columns.
        directions = directions * (len(directions) / len(moments.mean)) ** 0.5
    return {f"{name}.mean": moments.mean, f"{name}.map": directions.ravel()}


def _trained(
    name: str, settings: Autoencoder, sums: Values, arrays: dict[str, Values], memory: dict[str, Values]
) -> None:
    if memory.get(f"{name}.step", np.zeros(1))[0] == settings.rounds:
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
        responses = _responses(plan, columns, settings)
        lengths = np.linalg.norm(lasso_weights(Moments.parse(sums, count, responses), settings.keep), axis=1)
        return np.where(lengths > 0, lengths, -np.inf)
    if settings.against is None and not isinstance(task, SurvivalTask):
        classes = len(task.classes)
        return relieff.class_weights(sums[classes:], sums[:classes])
    return relieff.response_weights(sums)
