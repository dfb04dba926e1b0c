"""Classification metrics from two tables of counts and one sum.

Per patient a site adds: for every scored class k, 1 to `scores[k, bin of p_k, true class is k]`;
1 to `confusion[true, argmax p]`; his Brier score to `brier`. With two classes only the second, the
positive one, is scored.

Conventions:
    auc: Mann-Whitney, a tie counts one half (Hanley & McNeil 1982, Radiology 143:29); more than
        two classes: unweighted mean of one-vs-rest over the classes that are present.
    sensitivity, specificity, precision, f1: of the positive class; more than two classes:
        unweighted mean over the classes present (scikit-learn's macro with labels = the classes
        present), where the precision of a class that was never predicted counts as 0.
    brier: mean of (p_1 - y)^2 for two classes, of sum_k (p_k - y_k)^2 for more (Brier 1950, Mon
        Weather Rev 78:1). It is a sum of patients' scores rounded to 2^-20, so that sums are exact
        in any order and there is no binning.
    kappa: of ordered classes, agreement beyond chance with quadratic weights (Cohen 1968, Psychol Bull 70:213); not defined
        where truth and prediction each have one class only, the same.
    class_distance: of ordered classes, mean number of classes between the true and the predicted one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.count_tables import (
    Cells,
    Floats,
    Integers,
    ScoreGrid,
    check_length,
    check_limit,
    check_probabilities,
    check_rows,
    ratio,
    scatter,
    score_grid,
)
from oncofed_shared.curves import class_calibration, roc
from oncofed_shared.errors import LocalProtocolError, RemoteProtocolError
from oncofed_shared.plan import ClassificationTask, Evaluation

__all__ = ["BRIER_STEP", "ORDERED_METRICS", "ClassificationTables"]

BRIER_STEP = 2.0**-20
"""Patients' Brier scores are rounded to multiples of this."""
_BINARY = 2
ORDERED_METRICS = ("kappa", "class_distance")
_METRICS = ("auc", "accuracy", "sensitivity", "specificity", "precision", "f1", "brier")


def _scored(classes: int) -> tuple[int, ...]:
    return (1,) if classes == _BINARY else tuple(range(classes))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationTables:
    """Tables of one classification task; all arrays may have the same leading batch axes.

    Attributes:
        classes: names.
        grid: the public score grid.
        scores: (..., scored classes, bins, 2) patients by score and whether of the class.
        confusion: (..., classes, classes) patients by true and predicted class.
        brier: (...) sum of the patients' Brier scores.
        ordered: whether the classes are steps of one scale.
    """

    classes: tuple[str, ...]
    grid: ScoreGrid
    scores: Floats
    confusion: Floats
    brier: Floats
    ordered: bool = False

    @classmethod
    def size(cls, task: ClassificationTask, evaluation: Evaluation) -> int:
        """Length of the flat vector: scores, then confusion, then brier."""
        number = len(task.classes)
        return check_limit(len(_scored(number)) * evaluation.score_bins * 2 + number**2 + 1)

    @classmethod
    def tally(
        cls,
        task: ClassificationTask,
        evaluation: Evaluation,
        prediction: Floats,
        labels: NDArray[Any],
    ) -> Floats:
        """Count patients with a label into a flat vector; see `metrics.tally`."""
        number = len(task.classes)
        check_rows(prediction, labels, number, ())
        known = labels >= 0
        truth = labels[known].astype(np.int64)
        if truth.size and truth.max() >= number:
            raise LocalProtocolError(f"tally: a class index is beyond the task's {number} classes")
        probabilities = check_probabilities(prediction[known])
        confusion = np.zeros((number, number))
        np.add.at(confusion, (truth, probabilities.argmax(axis=1)), 1)
        squares = (probabilities - np.eye(number)[truth]) ** 2
        scored = list(_scored(number))
        brier = squares[:, scored].sum(axis=1)
        bins = score_grid(evaluation.score_bins).bins(probabilities)
        scores = np.zeros((len(scored), evaluation.score_bins, 2))
        for index, k in enumerate(scored):
            np.add.at(scores[index], (bins[:, k], (truth == k).astype(np.int64)), 1)
        total = np.rint(brier / BRIER_STEP).sum() * BRIER_STEP
        return np.concatenate([scores.ravel(), confusion.ravel(), [total]])

    @classmethod
    def parse(cls, task: ClassificationTask, evaluation: Evaluation, vector: Floats) -> Self:
        """Read a sum of tallies; see `count_tables.check_length` for what is refused."""
        number = len(task.classes)
        scored = list(_scored(number))
        vector = check_length(vector, cls.size(task, evaluation))
        confusion = vector[-1 - number**2 : -1].reshape(number, number)
        scores = vector[: -1 - number**2].reshape(len(scored), evaluation.score_bins, 2)
        true = confusion.sum(axis=1)[scored]
        if not np.array_equal(scores.sum(axis=1), np.stack([confusion.sum() - true, true], 1)):
            raise RemoteProtocolError(
                "a score table and its confusion matrix count different patients; reject the sender's metrics",
                code="bad-table",
            )
        return cls(
            classes=task.classes,
            grid=score_grid(evaluation.score_bins),
            scores=scores,
            confusion=confusion,
            brier=vector[-1],
            ordered=task.ordered,
        )

    @property
    def patients(self) -> int:
        """Patients counted."""
        return int(self.confusion.sum())

    @property
    def rarest(self) -> int:
        """Patients of the rarest class that is present; 0 if there are not two such classes."""
        true = self.confusion.sum(axis=1)
        present = true[true > 0]
        return int(present.min()) if present.size > 1 else 0

    def metrics(self) -> dict[str, Floats]:
        """Every metric with the batch's shape; NaN where it is not defined."""
        hit = np.diagonal(self.confusion, axis1=-2, axis2=-1)
        true = self.confusion.sum(axis=-1)
        predicted = self.confusion.sum(axis=-2)
        total = true.sum(axis=-1)
        rest = total[..., None] - true
        per_class = {
            "auc": self._auc(),
            "sensitivity": ratio(hit, true),
            "specificity": ratio(rest - predicted + hit, rest),
            "precision": ratio(hit, predicted),
            "f1": ratio(2 * hit, true + predicted),
        }
        if len(self.classes) > _BINARY:
            never = (predicted == 0) & (true > 0)
            per_class["precision"] = np.where(never, 0.0, per_class["precision"])
            value = {name: _macro(values, true > 0) for name, values in per_class.items()}
        else:
            value = {name: values[..., -1] for name, values in per_class.items()}
        value["accuracy"] = ratio(hit.sum(axis=-1), total)
        value["brier"] = ratio(self.brier, total)
        if self.ordered:
            value |= self._order(true, predicted, total)
        return {name: value[name] for name in (*_METRICS, *(ORDERED_METRICS if self.ordered else ()))}

    def _order(self, true: Floats, predicted: Floats, total: Floats) -> dict[str, Floats]:
        """How far off predictions are on the scale, from (..., classes) numbers and (...) all patients."""
        steps = np.arange(len(self.classes), dtype=np.float64)
        apart = np.abs(steps[:, None] - steps)
        seen = (self.confusion * apart**2).sum(axis=(-1, -2))
        chance = ratio((true[..., :, None] * predicted[..., None, :] * apart**2).sum(axis=(-1, -2)), total)
        distance = ratio((self.confusion * apart).sum(axis=(-1, -2)), total)
        return {"kappa": 1 - ratio(seen, chance), "class_distance": distance}

    def _auc(self) -> Floats:
        """Area under the ROC curve of each scored class, (..., scored)."""
        rest, own = self.scores[..., 0], self.scores[..., 1]
        below = np.cumsum(rest, axis=-1) - rest
        wins = (own * (below + 0.5 * rest)).sum(axis=-1)
        return ratio(wins, own.sum(axis=-1) * rest.sum(axis=-1))

    def binning_error(self) -> dict[str, float]:
        """Bounds: see `metrics.binning_error`."""
        if self.rarest == 0:
            return {"brier": BRIER_STEP / 2} if self.patients else {}
        rest, own = self.scores[..., 0], self.scores[..., 1]
        tied = ratio((own * rest).sum(axis=-1), own.sum(axis=-1) * rest.sum(axis=-1))
        return {"auc": float(0.5 * np.nanmean(tied)), "brier": BRIER_STEP / 2}

    def figures(self, minimum: int) -> dict[str, Any]:
        """ROC, calibration and confusion matrix; see `metrics.figures`."""
        figures: dict[str, Any] = {
            "confusion": self.confusion.astype(int).tolist(),
            "classes": list(self.classes),
        }
        if self.rarest:
            figures["roc"] = roc(self.scores)
            figures["auc"] = float(self.metrics()["auc"])
        calibration = class_calibration(self.scores, self.grid.centre, minimum)
        if calibration:
            figures["calibration"] = calibration
        return figures

    def cells(self) -> Cells:
        """Patients rebuilt from the tables: (true, predicted, bin of every scored class).

        The tables say how many patients a cell of *one* table has, not which cells of two tables
        belong to one patient. Two classes: what is predicted increases with the score, so the
        patients are rebuilt exactly. More classes: patients are ranked from badly to well
        predicted, and in every table the worst score of a group goes to the worst patient. Every
        single table is then resampled exactly as the patients would be; across tables the scores
        are as positively dependent as the tables allow, which makes the intervals of means over
        classes (auc, brier) too wide rather than too narrow.
        """
        number = len(self.classes)
        counts = self.confusion.astype(np.int64).ravel()
        block = np.repeat(np.arange(number**2), counts)
        true, predicted = block // number, block % number
        first = np.repeat(np.cumsum(counts) - counts, counts)
        goodness = (np.arange(block.size) - first + 0.5) / np.repeat(counts, counts)
        columns = [true, predicted]
        for table, k in zip(self.scores.astype(np.int64), _scored(number), strict=True):
            bins = np.empty(block.size, dtype=np.int64)
            for own in (False, True):
                group = np.flatnonzero((true == k) == own)
                rank = goodness[group] if own else -goodness[group]
                order = np.lexsort((rank, predicted[group] == k))
                bins[group[order]] = np.repeat(np.arange(len(table)), table[:, int(own)])
            columns.append(bins)
        patients, weights = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
        return Cells(
            counts=weights,
            size=self.scores.size + weights.size * (len(columns) - 1),
            build=_Builder(tables=self, patients=patients, counts=weights),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Builder:
    """Turns resampled counts of rebuilt patients into tables.

    Attributes:
        tables: what was observed.
        patients: (cells, 2 + scored) true class, predicted class, bins.
        counts: (cells,) observed.
    """

    tables: ClassificationTables
    patients: Integers
    counts: Integers

    def __call__(self, weights: Integers) -> ClassificationTables:
        """Tables of (draws, cells) weights; brier from bin centres, shifted by their error."""
        tables = self.tables
        number, size = len(tables.classes), len(tables.grid.centre)
        true, predicted, *bins = self.patients.T
        scores = np.empty((len(weights), len(bins), size, 2))
        brier = np.zeros(len(self.patients))
        for index, (column, k) in enumerate(zip(bins, _scored(number), strict=True)):
            own = (true == k).astype(np.int64)
            brier += (tables.grid.centre[column] - own) ** 2
            scores[:, index] = scatter(weights, column * 2 + own, size * 2).reshape(-1, size, 2)
        return ClassificationTables(
            classes=tables.classes,
            grid=tables.grid,
            scores=scores,
            confusion=scatter(weights, true * number + predicted, number**2).reshape(-1, number, number),
            brier=weights @ brier + (tables.brier - self.counts @ brier),
            ordered=tables.ordered,
        )


def _macro(values: Floats, present: NDArray[np.bool_]) -> Floats:
    """Mean over the classes present, (..., classes) to (...)."""
    return ratio(np.where(present, values, 0.0).sum(axis=-1), present.sum(axis=-1).astype(float))
