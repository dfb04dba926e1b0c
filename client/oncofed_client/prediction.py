"""A model applied to a site's patients: a table that stays at the site.

Per survival task: the risk of the event by the plan's horizon, and the days by which the event has happened to 10, 50 and 90 in a
hundred such patients, as the model sees it. Per classification task: the probability of each class, and the smallest set of
classes that holds the true one in at least 90 of a hundred such patients. Both intervals are the model's own: they are as wide as
the disease is uncertain, and say nothing of how well the model was trained; its report does.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed_client.newcomers import Newcomers, read_newcomers
from oncofed_client.prepare.cache import existing_cache
from oncofed_client.settings import SiteSettings
from oncofed_shared.errors import DataError
from oncofed_shared.features import prepared_input
from oncofed_shared.plan import ClassificationTask, SurvivalTask
from oncofed_shared.storage import write_whole
from oncofed_shared.trained_model import TrainedModel

__all__ = ["LEVEL", "Predicted", "class_set", "days_until", "predict_site", "table_of"]

LEVEL = 0.9
"""Coverage of a set of classes; a survival interval is between the tenth and the ninetieth in a hundred."""
_SHARES = {"days_10": 0.1, "days_50": 0.5, "days_90": 0.9}
_DIGITS = 6
Column = list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """What was written, without a patient.

    Attributes:
        patients: who have a prediction.
        left_out: who may be looked at and lack what the plan requires.
        columns: of the table.
    """

    patients: int
    left_out: int
    columns: tuple[str, ...]


def days_until(survival: NDArray[np.float64], edges: tuple[float, ...], share: float) -> NDArray[np.float64]:
    """Days by which the event has happened to a share of patients with these curves, (n,).

    Between two edges the curve is taken as straight. NaN where the share is not reached by the last edge.

    Args:
        survival: (n, intervals) at the end of each interval.
        edges: (intervals + 1,) days, from 0 on.
        share: above 0 and below 1.
    """
    curve = np.concatenate([np.ones((len(survival), 1)), survival], axis=1)
    left = 1 - share
    reached = curve[:, 1:] <= left
    first = reached.argmax(axis=1)
    rows = np.arange(len(curve))
    before, after = curve[rows, first], curve[rows, first + 1]
    start, stop = np.asarray(edges)[first], np.asarray(edges)[first + 1]
    fall = np.where(before > after, before - after, 1.0)
    days = start + (stop - start) * (before - left) / fall
    return np.where(reached.any(axis=1), days, np.nan)


def class_set(probabilities: NDArray[np.float64], classes: tuple[str, ...], level: float) -> Column:
    """Per patient the fewest classes whose probabilities add up to the level, the likeliest first, with | between."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    sums = np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1)
    # The last sum is 1 but for rounding, so that some number of classes is always enough.
    sizes = np.argmax(sums >= min(level, 1 - 1e-9), axis=1) + 1
    return ["|".join(classes[i] for i in row[:size]) for row, size in zip(order.tolist(), sizes.tolist(), strict=True)]


def _numbers(values: NDArray[np.float64]) -> Column:
    return ["" if np.isnan(v) else f"{v:.{_DIGITS}g}" for v in values.tolist()]


def _days(values: NDArray[np.float64]) -> Column:
    return ["" if np.isnan(v) else f"{v:.0f}" for v in values.tolist()]


def table_of(model: TrainedModel, people: Newcomers) -> dict[str, Column]:
    """Columns of the table by name, each with one text per patient, in the patients' order."""
    plan = model.plan
    made = model.apply(*prepared_input(plan, model.preparation, people.values, people.columns))
    columns: dict[str, Column] = {"patient": list(people.patients)}
    for name in plan.task_names:
        task, predicted = plan.tasks[name], made.tasks[name]
        if isinstance(task, SurvivalTask):
            at = task.edges.index(task.horizon) - 1
            columns[f"{name}.risk"] = _numbers(1 - predicted[:, at])
            for key, share in _SHARES.items():
                columns[f"{name}.{key}"] = _days(days_until(predicted, task.edges, share))
        elif isinstance(task, ClassificationTask):
            for i, label in enumerate(task.classes):
                columns[f"{name}.p.{label}"] = _numbers(predicted[:, i])
            columns[f"{name}.set"] = class_set(predicted, task.classes, LEVEL)
    for modality in sorted(made.weights):
        columns[f"weight.{modality}"] = _numbers(made.weights[modality])
    columns["missing"] = [
        "|".join(m for m in sorted(people.present) if not people.present[m][i]) for i in range(len(people.patients))
    ]
    return columns


def predict_site(
    folder: Path, settings: SiteSettings, model: TrainedModel, *, state: Path | None, out: Path
) -> Predicted:
    """Write the predictions for a folder's patients as a CSV file that its owner alone may read.

    Args:
        folder: with the patients' files.
        settings: of the folder.
        model: the trained one.
        state: with what was prepared of raw files.
        out: the table.

    Guarantees:
        - The table is there whole or not at all, and its owner's alone.
        - No label is read.

    Raises:
        DataError: files are malformed, or nobody has what the model needs.
        PolicyRefusal: nobody consented.
        StorageError: the table cannot be written.
    """
    people = read_newcomers(folder, settings, model.plan, existing_cache(state))
    if not people.patients:
        raise DataError(
            f"{folder}: no patient has what the model needs: {', '.join(sorted(model.plan.modalities))}; "
            "`oncofed-site check` says which columns are missing",
            code="no-patient",
        )
    columns = table_of(model, people)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_whole(out, text.getvalue().encode(), private=True)
    return Predicted(patients=len(people.patients), left_out=people.left_out, columns=tuple(columns))
