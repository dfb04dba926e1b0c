"""ReliefF from sums: the definition written out, planted columns found, and sites adding up to all patients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.relieff import (
    class_size,
    class_sums,
    class_weights,
    response_size,
    response_sums,
    response_weights,
)

Values = NDArray[np.float64]


def drawn(patients: int, columns: int = 6, seed: int = 0) -> tuple[Values, NDArray[np.int64], Values]:
    """Column 2 makes the class and the response; the others do not."""
    rng = np.random.default_rng(seed)
    values = rng.random((patients, columns)) / 2
    classes = np.digitize(values[:, 2], [1 / 6, 1 / 3])
    values[:, 2] += rng.normal(size=patients) / 50
    return np.clip(values, 0, 1), classes.astype(np.int64), values[:, 2:3] * 1.5


def by_definition(values: Values, classes: list[int], neighbours: int, hospital: list[int]) -> Values:
    """Kononenko's loop, patient by patient, each against his own hospital: W -= hits, W += misses by their class's share."""
    n, size = values.shape
    weights = np.zeros(size)
    share = {c: classes.count(c) / n for c in set(classes)}
    counted: dict[tuple[int, int], list[Values]] = {}
    for i in range(n):
        for c in share:
            others = [j for j in range(n) if j != i and classes[j] == c and hospital[j] == hospital[i]]
            others.sort(key=lambda j: sum(abs(values[i, a] - values[j, a]) for a in range(size)))
            near = others[:neighbours]
            if near:
                counted.setdefault((classes[i], c), []).append(
                    np.array([sum(abs(values[i, a] - values[j, a]) for j in near) / len(near) for a in range(size)])
                )
    for (own, other), found in counted.items():
        mean = sum(found) / len(found)
        weights += share[own] * (-mean if own == other else share[other] / (1 - share[own]) * mean)
    return weights


@pytest.mark.parametrize("neighbours", [1, 4, 50])
def test_weights_from_sites_are_those_of_all_patients_each_against_his_own_hospital(neighbours: int) -> None:
    values, classes, _ = drawn(40)
    cuts = (0, 5, 22, 40)
    parts = [class_sums(values[a:b], classes[a:b], 3, neighbours) for a, b in itertools.pairwise(cuts)]
    hospital = [sum(i >= c for c in cuts[1:]) for i in range(40)]
    found = class_weights(np.sum(parts, axis=0), np.bincount(classes, minlength=3).astype(float))
    np.testing.assert_allclose(found, by_definition(values, classes.tolist(), neighbours, hospital), atol=1e-12)


def test_the_column_that_makes_the_classes_is_found() -> None:
    values, classes, responses = drawn(150)
    weights = class_weights(class_sums(values, classes, 3, 10), np.bincount(classes).astype(float))
    assert weights.argmax() == 2
    assert weights[2] > 3 * np.abs(np.delete(weights, 2)).max()
    against = response_weights(response_sums(values, responses, 10))
    assert against.argmax() == 2
    assert against[2] > 3 * np.abs(np.delete(against, 2)).max()


def test_columns_that_say_nothing_have_no_weight_on_average() -> None:
    rng = np.random.default_rng(3)
    weights = []
    for seed in range(20):
        values, _, _ = drawn(60, seed=seed)
        weights.append(class_weights(class_sums(values, rng.integers(0, 2, 60), 2, 5), np.array([30.0, 30.0])))
    mean, error = np.mean(weights, axis=0), np.std(weights, axis=0) / 20**0.5
    assert (np.abs(mean) < 4 * error).all()


def test_against_a_response_sites_add_up_and_follow_the_definition() -> None:
    values, _, responses = drawn(20)
    sums = response_sums(values[:8], responses[:8], 3) + response_sums(values[8:], responses[8:], 3)
    wanted, differs, both, patients = 0.0, np.zeros(6), np.zeros(6), 0
    for part in (range(8), range(8, 20)):
        for i in part:
            others = sorted((j for j in part if j != i), key=lambda j: float(np.abs(values[i] - values[j]).sum()))[:3]
            patients += 1
            for j in others:
                gap, apart = abs(responses[i, 0] - responses[j, 0]), np.abs(values[i] - values[j])
                wanted, differs, both = wanted + gap / 3, differs + apart / 3, both + gap * apart / 3
    np.testing.assert_allclose(sums, [patients, wanted, *differs, *both], atol=1e-12)
    # Robnik-Sikonja & Kononenko, eq. 9.
    np.testing.assert_allclose(
        response_weights(sums), both / wanted - (differs - both) / (patients - wanted), atol=1e-12
    )


def test_sites_without_anybody_or_with_one_patient_add_nothing() -> None:
    values, classes, responses = drawn(1)
    assert not class_sums(values, classes, 3, 5).any()
    assert not response_sums(values, responses, 5).any()
    assert len(class_sums(values[:0], classes[:0], 3, 5)) == class_size(6, 3)
    assert len(response_sums(values[:0], responses[:0], 5)) == response_size(6)
    assert not response_weights(np.zeros(response_size(6))).any()
    assert not class_weights(np.zeros(class_size(6, 3)), np.zeros(3)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_sums_that_cannot_be_are_refused(bad: float) -> None:
    with pytest.raises(RemoteProtocolError, match="negative or not finite"):
        response_weights(np.full(response_size(2), bad))
    with pytest.raises(RemoteProtocolError, match="negative or not finite"):
        class_weights(np.full(class_size(2, 2), bad), np.ones(2))


@pytest.mark.parametrize("patients", [20, 40, 80])
def test_one_patient_moves_the_sums_by_as_much_as_there_are_patients(patients: int) -> None:
    """Why a private plan has no ReliefF: there is no bound below the number of patients, whatever bounds their values.

    Patients stand at the corners of a simplex, each as far from all others; one in the middle is the nearest of everybody.
    """
    values, middle = np.eye(patients), np.full((1, patients), 1 / patients)
    classes, answers = np.zeros(patients, dtype=np.int64), np.ones((patients, 1))
    answers[0] = 0.0
    with_him = class_sums(np.vstack([values, middle]), np.append(classes, 0), 1, 1)
    assert np.linalg.norm(with_him - class_sums(values, classes, 1, 1)) > 0.9 * (patients - 2)
    with_him = response_sums(np.vstack([values, middle]), np.vstack([answers, [[1.0]]]), 1)
    assert np.linalg.norm(with_him - response_sums(values, answers, 1)) > 0.9 * (patients - 2)
