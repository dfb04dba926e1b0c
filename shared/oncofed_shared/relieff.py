"""ReliefF and RReliefF as sums over patients: which columns differ between near patients with another outcome.

Near patients are looked for within a site, because nothing of one patient may meet another site's. Sums over sites are then those
of all patients, each compared with the nearest of his own hospital.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.errors import RemoteProtocolError

__all__ = ["class_size", "class_sums", "class_weights", "response_size", "response_sums", "response_weights"]

Values = NDArray[np.float64]


def class_size(columns: int, classes: int) -> int:
    """Length of what `class_sums` gives."""
    return classes**2 * (columns + 1)


def response_size(columns: int) -> int:
    """Length of what `response_sums` gives."""
    return 2 + 2 * columns


def class_sums(values: Values, classes: NDArray[np.int64], count: int, neighbours: int) -> Values:
    """Mean difference of each patient from his nearest ones of each class, added up (Kononenko 1994, ReliefF).

    Args:
        values: (n, columns); the difference of two patients in a column is that of their values, the distance its sum.
        classes: (n,) class of each patient.
        count: number of classes.
        neighbours: of each class, how many; fewer where there are fewer.

    Returns:
        (count, count, 1 + columns) flat: by a patient's class and that of his neighbours, patients who have such neighbours, and
        their mean differences by column.
    """
    total = np.zeros((count, count, 1 + values.shape[1]))
    for i, own in enumerate(classes.tolist()):
        apart = np.abs(values - values[i])
        distance = apart.sum(axis=1)
        for other in range(count):
            members = np.flatnonzero(classes == other)
            members = members[members != i]
            near = members[np.argsort(distance[members], kind="stable")[:neighbours]]
            if len(near):
                total[own, other, 0] += 1
                total[own, other, 1:] += apart[near].mean(axis=0)
    return total.ravel()


def class_weights(sums: Values, patients: Values) -> Values:
    """Weight of each column: how much more it differs from near patients of other classes than from those of the same.

    Args:
        sums: summed `class_sums`.
        patients: (classes,) how many of each class.

    Returns:
        (columns,); another class counts by its share among the patients of other classes.

    Raises:
        RemoteProtocolError: the sums are not finite or negative.
    """
    count = len(patients)
    table = _sound(sums).reshape(count, count, -1)
    mean = table[:, :, 1:] / np.maximum(table[:, :, :1], 1)
    shares = patients / max(patients.sum(), 1)
    weights: Values = np.zeros(mean.shape[2])
    for own in range(count):
        others = 1 - shares[own]
        for other in range(count):
            sign = -1.0 if own == other else shares[other] / others if others > 0 else 0.0
            weights += shares[own] * sign * mean[own, other]
    return weights


def response_sums(values: Values, responses: Values, neighbours: int) -> Values:
    """The sums of RReliefF (Robnik-Sikonja & Kononenko 1997, eqs. 12-14), each neighbour with the same weight.

    Args:
        values: (n, columns), differences from 0 to 1.
        responses: (n, responses); the difference of two patients is the mean over them, from 0 to 1.

    Returns:
        (2 + 2 x columns,): patients, sum of response differences, per column sum of differences, and of their products.
    """
    total = np.zeros(response_size(values.shape[1]))
    size = values.shape[1]
    for i in range(len(values)):
        apart = np.abs(values - values[i])
        others = np.delete(np.arange(len(values)), i)
        near = others[np.argsort(apart.sum(axis=1)[others], kind="stable")[:neighbours]]
        if not len(near):
            continue
        wanted = np.abs(responses[near] - responses[i]).mean(axis=1)
        total[0] += 1
        total[1] += wanted.mean()
        total[2 : 2 + size] += apart[near].mean(axis=0)
        total[2 + size :] += (apart[near] * wanted[:, None]).mean(axis=0)
    return total


def response_weights(sums: Values) -> Values:
    """Weight of each column, (columns,), from summed `response_sums` (eq. 9).

    Raises:
        RemoteProtocolError: the sums are not finite or negative.
    """
    patients, wanted = _sound(sums)[:2]
    differs, both = np.split(sums[2:], 2)
    if wanted <= 0 or patients - wanted <= 0:
        return np.zeros(len(differs))
    weights: Values = both / wanted - (differs - both) / (patients - wanted)
    return weights


def _sound(sums: Values) -> Values:
    if not np.isfinite(sums).all() or (sums < 0).any():
        raise RemoteProtocolError("sums of differences are negative or not finite")
    return sums
