"""A hospital's score in a federation beside its own model's, from pairs of its patients; and what many of them come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from oncofed_shared.count_tables import ratio
from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import ClassificationTask, SurvivalTask

__all__ = ["Gain", "Pairs", "gain", "pairs_of", "table"]

Values = NDArray[np.float64]
DRAWS, LEVEL = 1000, 0.95


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of a hospital's test patients, each pair of one fold: scores of two folds' models are not comparable.

    Attributes:
        comparable: (n, n), 1 where the first of the pair should have the higher score.
        won: (n, n), 1 where he has, 1/2 where both have the same.
    """

    comparable: Values
    won: Values

    def score(self, weights: Values) -> Values:
        """Share of the pairs that are won, for (draws, n) numbers of times that each patient counts; NaN without a pair."""
        every = np.einsum("di,ij,dj->d", weights, self.comparable, weights, optimize=True)
        won = np.einsum("di,ij,dj->d", weights, self.won, weights, optimize=True)
        return ratio(won, every)


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A hospital's score in the federation, beside its own model's.

    Attributes:
        low, high: percentile bootstrap of the difference, over patients.
    """

    federated: float
    alone: float
    low: float
    high: float
    patients: int

    @property
    def difference(self) -> float:
        """What the federation adds."""
        return self.federated - self.alone


def _compared(task: ClassificationTask | SurvivalTask, prediction: Values, labels: Values) -> tuple[Values, Values]:
    """Who should be above whom, (n, n), by Harrell's rule or between classes; and the scores, (n,)."""
    if isinstance(task, SurvivalTask):
        days, event = labels.T
        later = (days[:, None] < days) | ((days[:, None] == days) & (event == 0))
        return np.nan_to_num((event[:, None] == 1) & later), 1 - prediction[:, task.edges.index(task.horizon) - 1]
    if len(task.classes) > 2:
        raise ConfigError("missing modalities: a task with more than two classes has no single order of patients")
    return ((labels[:, None] == 1) & (labels == 0)).astype(float), prediction[:, 1]


def pairs_of(task: ClassificationTask | SurvivalTask, folds: Sequence[tuple[Values, Values]]) -> Pairs:
    """Pairs from the (n, ..) predictions and labels of each fold."""
    sizes = [len(labels) for _, labels in folds]
    comparable, won = np.zeros((sum(sizes), sum(sizes))), np.zeros((sum(sizes), sum(sizes)))
    for stop, (prediction, labels) in zip(np.cumsum(sizes), folds, strict=True):
        own = slice(stop - len(labels), stop)
        above, score = _compared(task, prediction, labels)
        ahead = (score[:, None] > score) + 0.5 * (score[:, None] == score)
        comparable[own, own], won[own, own] = above, above * ahead
    return Pairs(comparable=comparable, won=won)


def gain(federated: Pairs, alone: Pairs, *, resample: bool = True) -> Gain:
    """Both scores and the interval of their difference, over the same resampled patients; NaN bounds without resampling."""
    patients = len(federated.comparable)
    once = np.ones((1, patients))
    low = high = float("nan")
    if resample:
        drawn = np.random.default_rng(0).multinomial(patients, np.full(patients, 1 / patients), DRAWS).astype(float)
        apart = federated.score(drawn) - alone.score(drawn)
        low, high = np.nanquantile(apart, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Gain(
        federated=float(federated.score(once)[0]),
        alone=float(alone.score(once)[0]),
        low=float(low),
        high=float(high),
        patients=patients,
    )


def _mean(values: Sequence[float]) -> tuple[float, float, float]:
    """A mean and its 95 % interval by Student's distribution; NaN bounds for fewer than two values."""
    middle, count = float(np.mean(values)), len(values)
    if count < 2:
        return middle, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return middle, middle - half, middle + half


def _by(rows: Sequence[Mapping[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    made: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        made.setdefault(tuple(row[k] for k in keys), []).append(row)
    return made


def _scores(rows: Sequence[Mapping[str, Any]], *, draws: int) -> list[tuple[str, float, float, float]]:
    """Each hospital's difference in each setting with its interval: over patients of the one draw, or over draws."""
    made = []
    for (_, site), each in _by(rows, "setting", "site").items():
        found = (each[0]["difference"], *each[0]["ci"]) if draws == 1 else _mean([r["difference"] for r in each])
        made.append((site, *found))
    return made


def table(result: Mapping[str, Any]) -> str:
    """What the rows come to, in Markdown.

    The interval of a mean difference is over hospitals for one draw, and over draws for several. Beyond noise is a hospital's own
    interval that does not reach 0: over its patients for one draw, and over draws for several.
    """
    lines = [
        "| hospitals | task | federated | alone | mean difference | below alone | beyond noise | lowest difference |",
        "|---" * 8 + "|",
    ]
    draws = result.get("draws", 1)
    for (part, task), rows in _by(result["rows"], "part", "task").items():
        means = [float(np.mean([r[key] for r in rows])) for key in ("federated", "alone")]
        groups = _by(rows, "draw" if draws > 1 else "site").values()
        middle, low, high = _mean([float(np.mean([r["difference"] for r in g])) for g in groups])
        scores = _scores(rows, draws=draws)
        below, beyond = sum(s[1] < 0 for s in scores), sum(s[3] < 0 for s in scores)
        site, least, *bounds = min(scores, key=lambda s: s[1])
        lines.append(
            f"| {part} | {task} | {means[0]:.3f} | {means[1]:.3f} | {middle:+.3f} ({low:.3f} to {high:.3f}) "
            f"| {below} of {len(scores)} | {beyond} | {least:+.3f} ({bounds[0]:+.3f} to {bounds[1]:+.3f}), {site} |"
        )
    return "\n".join(lines)
