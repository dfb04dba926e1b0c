"""Curves of a report, from tables of counts; JSON-ready lists."""

from __future__ import annotations

import numpy as np

from oncofed_shared.count_tables import Floats, quantile_groups, ratio

__all__ = [
    "CALIBRATION_GROUPS",
    "class_calibration",
    "kaplan_meier",
    "kaplan_meier_steps",
    "roc",
]

CALIBRATION_GROUPS = 5
_ROC_POINTS = 201


def roc(scores: Floats) -> list[list[float]]:
    """Draw the ROC curve.

    Args:
        scores: (scored classes, bins, 2) patients by score and by whether they are of the class.
            At least one class has patients inside and outside.

    Returns:
        Points (false positive rate, true positive rate), ascending. More than one such class:
        their mean true positive rate on a grid.
    """
    curves = []
    for table in scores:
        if not table.sum(axis=0).all():
            continue
        occupied = table[::-1][table[::-1].sum(axis=1) > 0]
        rates = np.cumsum(occupied, axis=0) / occupied.sum(axis=0)
        curves.append(np.concatenate([np.zeros((1, 2)), rates]))
    if len(curves) == 1:
        return [[float(x), float(y)] for x, y in curves[0]]
    grid = np.linspace(0, 1, _ROC_POINTS)
    mean = np.mean([np.interp(grid, curve[:, 0], curve[:, 1]) for curve in curves], axis=0)
    return [[0.0, 0.0], *([float(x), float(y)] for x, y in zip(grid, mean, strict=True))]


def class_calibration(scores: Floats, centre: Floats, minimum: int) -> list[list[float]]:
    """Compare predicted and observed shares in groups of about equal size.

    Args:
        scores: (scored classes, bins, 2) as for `roc`. With more than one class, pairs of a
            patient and a class are pooled.
        centre: (bins,) the probability that stands for a bin.
        minimum: fewest patients in a group.

    Returns:
        Per group: mean predicted, observed share, patients (more than one class: pairs / classes,
        a lower bound).
    """
    scored = len(scores)
    table = scores.sum(axis=0)
    number = table.sum(axis=1)
    return [
        [
            float(np.average(centre[members], weights=number[members])),
            float(table[members, 1].sum() / number[members].sum()),
            int(number[members].sum()) // scored,
        ]
        for members in quantile_groups(number, CALIBRATION_GROUPS, minimum * scored)
    ]


def kaplan_meier(events: Floats, censored: Floats) -> Floats:
    """Survival at the end of each bin: (times,) counts to (times,); events before censorings."""
    everyone = events + censored
    at_risk = np.flip(np.cumsum(np.flip(everyone)))
    hazard = np.nan_to_num(ratio(events, at_risk), nan=0.0)
    return np.asarray(np.cumprod(1 - hazard), dtype=np.float64)


def kaplan_meier_steps(days: Floats, events: Floats, censored: Floats) -> list[list[float]]:
    """Steps (days, survival), from (0, 1) to the last bin in which somebody's follow-up ends.

    Args:
        days: (times,) upper ends of the bins, the last infinite. It is open and has no events, so
            a curve ends one bin earlier at the latest.
        events: (times,) patients with an event.
        censored: (times,) patients without. There is at least one patient.
    """
    shown = min(int(np.flatnonzero(events + censored)[-1]) + 1, len(days) - 1)
    steps = zip(days[:shown], kaplan_meier(events, censored)[:shown], strict=True)
    return [[0.0, 1.0], *([float(day), float(value)] for day, value in steps)]
