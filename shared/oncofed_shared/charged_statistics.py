"""Statistics of training patients under a privacy budget: what scaling and class weights need, as one bounded vector per patient.

    every patient -> integers of bounded length -> sum over a site -> noise, secure sum -> `agreed_preparation`

A value is brought to -1..1 by the range that the plan declares of its column, so that nothing learned from patients bounds it. A
patient counts one, and his value and its square, in each column with a mean; one in one bin of each column with quantiles; one in
one class of each task with balanced weights; and what `charged_products` says in each modality that is reduced. docs/statistics.md
says what it costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.charged_products import FINEST, patient_products, products_entries, products_size
from oncofed_shared.charged_reductions import with_reductions
from oncofed_shared.consortium import TablesMechanism
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.features import (
    Preparation,
    aligned,
    column_ranges,
    histogram_counts,
    moment_columns,
    prepare,
    robust_columns,
)
from oncofed_shared.harmonise import Harmony
from oncofed_shared.messages import Columns
from oncofed_shared.plan import ClassificationTask, ConsortiumPrivacy, Plan
from oncofed_shared.robust import BINS

__all__ = [
    "agreed_preparation",
    "charges_statistics",
    "noised_sums",
    "patient_counts",
    "statistics_mechanism",
    "statistics_size",
]

Values = NDArray[np.float64]
NOISES = 3.0
"""Standard deviations of the noise below which a noised number of patients is nobody's."""
SMALLEST_VARIANCE = 1e-4
"""Of values in -1..1: a column that varies less is taken as one that varies so much."""


def charges_statistics(plan: Plan) -> bool:
    """Whether a plan has statistics of training patients that are noised and charged."""
    return isinstance(plan.privacy, ConsortiumPrivacy) and plan.privacy.statistics_epsilon is not None


def _balanced(plan: Plan) -> list[tuple[str, int]]:
    """Tasks whose classes are counted, with how many classes they have."""
    if plan.training.class_weights != "balanced":
        return []
    return [(n, len(t.classes)) for n, t in sorted(plan.tasks.items()) if isinstance(t, ClassificationTask)]


def statistics_size(plan: Plan, columns: Columns) -> int:
    """Length of a site's vector."""
    classes = sum(k for _, k in _balanced(plan))
    scaled = 3 * len(moment_columns(plan, columns)) + BINS * len(robust_columns(plan, columns)) + classes
    return scaled + products_size(plan, columns)


def statistics_mechanism(plan: Plan, columns: Columns) -> TablesMechanism:
    """The release of a plan's statistics.

    Raises:
        ConfigError: the plan charges none, or they do not fit the ring.
    """
    entries = 3 * len(moment_columns(plan, columns)) + len(robust_columns(plan, columns)) + len(_balanced(plan))
    return TablesMechanism.for_statistics(
        plan,
        # A preview knows no columns, and an error of nothing cannot be compared with anything.
        cells=max(statistics_size(plan, columns), 1),
        entries=max(entries + products_entries(plan, columns), 1.0),
        finest=FINEST,
    )


def patient_counts(
    plan: Plan,
    columns: Columns,
    values: Mapping[str, Values],
    own: Columns,
    labels: Mapping[str, NDArray[np.float64]],
    *,
    unit: int,
    harmony: Harmony | None = None,
) -> NDArray[np.int64]:
    """Sum over patients of what each of them adds, (statistics_size,), in integer steps of `unit` per patient.

    Args:
        values: per modality (n, own columns).
        own: this site's column names.
        labels: per task, as in a cohort.
        harmony: what harmonises the values; it was noised before, and is a constant here.

    Guarantees:
        - One patient more or less changes it by a vector of length unit x sqrt(entries) at most, whatever his values are.
    """
    table = aligned(plan, columns, values, own, harmony)
    middle, half = column_ranges(plan, columns)
    means = moment_columns(plan, columns)
    bounded = np.clip((table[:, means] - middle[means]) / half[means], -1, 1)
    seen = ~np.isnan(bounded)
    filled = np.where(seen, bounded, 0.0)
    # Each number of a patient is rounded by itself, and none is then larger than `unit`.
    parts = [
        seen.sum(axis=0, dtype=np.int64) * unit,
        np.rint(filled * unit).astype(np.int64).sum(axis=0),
        np.rint(filled**2 * unit).astype(np.int64).sum(axis=0),
        np.rint(histogram_counts(plan, columns, table)).astype(np.int64).ravel() * unit,
    ]
    for name, classes in _balanced(plan):
        label = np.asarray(labels[name], dtype=np.int64)
        parts.append(np.bincount(label[label >= 0], minlength=classes).astype(np.int64) * unit)
    whole = np.clip((table - middle) / half, -1, 1)
    parts.append(patient_products(plan, columns, whole, labels, unit=unit))
    return np.concatenate(parts)


def _least(plan: Plan, mechanism: TablesMechanism) -> tuple[float, float]:
    """Standard deviation of the noise on a number, and the noised number of patients below which they are nobody's."""
    noise = mechanism.noise_std(mechanism.sites)
    return noise, max(float(plan.evaluation.minimum_shown), NOISES * noise)


def agreed_preparation(plan: Plan, columns: Columns, released: Values) -> Preparation:
    """What follows from the released numbers, and from the plan's constants for the rest: a preparation with its reductions.

    Args:
        columns: all that were asked for.
        released: (statistics_size,) decoded, in patients.

    Raises:
        RemoteProtocolError: another length, what is no number, or too few patients for a reduction.
    """
    preparation = prepare(plan, columns, noised_sums(plan, columns, released))
    size = products_size(plan, columns)
    if size:
        noise, least = _least(plan, statistics_mechanism(plan, columns))
        preparation = with_reductions(plan, preparation, released[-size:], noise=noise, least=least)
    return replace(preparation, statistics=released)


def noised_sums(plan: Plan, columns: Columns, released: Values) -> Values:
    """What `features.column_sums` would have been, as far as the released numbers say; the rest is the plan's constants.

    A number of patients that is small after noise is nobody's: its column then has the middle and the width of its range, its
    quantiles those of equal bins, and no class counts less.

    Args:
        released: (statistics_size,) decoded, in patients.

    Raises:
        RemoteProtocolError: another length, or what is no number.
    """
    if released.shape != (statistics_size(plan, columns),) or not np.isfinite(released).all():
        raise RemoteProtocolError("the released statistics do not fit the plan's columns")
    noise, least = _least(plan, statistics_mechanism(plan, columns))
    released = released[: len(released) - products_size(plan, columns)]
    means, robust = moment_columns(plan, columns), robust_columns(plan, columns)
    width = sum(len(c) for c in columns.values())
    middle, half = column_ranges(plan, columns)
    cut = np.cumsum([len(means), len(means), len(means), BINS * len(robust)])
    count, total, squares, bins, classes = np.split(released, cut)
    enough, patients = count >= least, np.maximum(count, 1.0)
    mean = np.where(enough, np.clip(total / patients, -1, 1), 0.0)
    smallest = np.maximum(noise / patients, SMALLEST_VARIANCE)
    variance = np.where(enough, np.clip(squares / patients - mean**2, smallest, 1), 1 / 3)
    patients = np.where(enough, count, 1.0)
    made = np.zeros((3, width))
    own = middle[means] + half[means] * mean
    made[:, means] = patients, patients * own, patients * (half[means] ** 2 * variance + own**2)
    histogram = np.maximum(bins.reshape(len(robust), BINS), 0.0)
    histogram[histogram.sum(axis=1) < least] = 1.0
    return np.concatenate([made.ravel(), histogram.ravel(), _all_classes(plan, np.maximum(classes, least))])


def _all_classes(plan: Plan, counted: Values) -> Values:
    """Class counts of all classification tasks; 0 for those that were not counted."""
    if _balanced(plan):
        return counted
    return np.zeros(sum(len(t.classes) for t in plan.tasks.values() if isinstance(t, ClassificationTask)))
