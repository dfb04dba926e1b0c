"""From the predictions of a variant's points to its scores, and from two variants' scores to a p-value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.plan import Plan
from oncofed_simulations.compare_statistics import Estimate, holm, jackknife, over_folds
from oncofed_simulations.compare_variants import Variant
from oncofed_simulations.exact import metric_of, numbers_of

__all__ = ["Scores", "judged", "scores_of", "within"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One variant in one task.

    Attributes:
        folds: the metric per fold or held-out hospital; None where it does not exist there.
        sizes: test patients of each.
        ratio: of test to training patients, mean.
        whole: the metric of all held-out patients together; without it the folds' mean is the score.
        without: that metric without each hospital.
        accuracy: of a classification, of all tested patients together.
    """

    metric_name: str
    folds: tuple[float | None, ...]
    sizes: tuple[int, ...]
    ratio: float
    parameters: tuple[int, ...]
    whole: float | None = None
    without: tuple[float | None, ...] | None = None
    accuracy: float | None = None

    @property
    def metric(self) -> float | None:
        """The pooled score of held-out hospitals, or the mean over the folds that have one."""
        if self.without is not None:
            return self.whole
        known = [f for f in self.folds if f is not None]
        return float(np.mean(known)) if known else None

    def estimate(self, other: Scores | None = None) -> Estimate | None:
        """The score, or how much it is above another's, with its spread; None where there is too little to tell."""
        if self.without is not None:
            return self._pooled(other)
        rest: Sequence[float | None] = other.folds if other else [0.0] * len(self.folds)
        return over_folds(
            [a - b for a, b in zip(self.folds, rest, strict=True) if a is not None and b is not None], self.ratio
        )

    def _pooled(self, other: Scores | None) -> Estimate | None:
        rest: Sequence[float | None] = (other.without or ()) if other else [0.0] * len(self.sizes)
        base = other.whole if other else 0.0
        pairs = [(a, b) for a, b in zip(self.without or (), rest, strict=True)]
        left = [a - b for a, b in pairs if a is not None and b is not None]
        if self.whole is None or base is None or len(left) < len(pairs):
            return None
        # A hospital without a labelled patient adds nothing, and its share would be infinite.
        known = [(v, n) for v, n in zip(left, self.sizes, strict=True) if n]
        return jackknife(self.whole - base, [v for v, _ in known], [n for _, n in known], self.ratio)

    def entry(self) -> dict[str, Any]:
        """As it stands in `compare.json`."""
        known, found = [f for f in self.folds if f is not None], self.estimate()
        return {
            "metric": self.metric,
            "metric_name": self.metric_name,
            "ci": None if found is None else list(found.interval()),
            "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
            "folds": list(self.folds),
            "accuracy": self.accuracy,
            "parameters": max(self.parameters),
        }


def scores_of(
    plan: Plan, points: Sequence[Mapping[str, Any]], *, pooled: bool, group: tuple[str, int] | None = None
) -> dict[str, Scores]:
    """Score a variant's points, per task.

    Args:
        plan: the variant's.
        points: as `read_point` gives them, one per fold or hospital.
        pooled: score all held-out patients together.
        group: a subgroup and the number of its group, where only that one's patients count.
    """
    made = {}
    for task in plan.task_names:
        name = metric_of(plan, task)
        rows = [slice(None) if group is None else p["groups"][group[0]] == group[1] for p in points]
        found = [p["tasks"][task] for p in points]
        parts = [(f["predictions"][r], f["labels"][r]) for f, r in zip(found, rows, strict=True)]

        def score(chosen: Sequence[tuple[Numbers, Numbers]], task: str = task, name: str = name) -> float | None:
            shown, labels = (np.concatenate([c[i] for c in chosen]) for i in (0, 1))
            return numbers_of(plan, task, shown, labels).get(name)

        together = numbers_of(
            plan, task, np.concatenate([p for p, _ in parts]), np.concatenate([truth for _, truth in parts])
        )
        made[task] = Scores(
            metric_name=name,
            folds=tuple(score([part]) for part in parts),
            sizes=tuple(_labelled(labels) for _, labels in parts),
            ratio=float(np.mean([p["test"] / max(p["train"], 1) for p in points])),
            parameters=tuple(p["parameters"] for p in points),
            whole=together.get(name) if pooled else None,
            without=tuple(score(parts[:i] + parts[i + 1 :]) for i in range(len(parts))) if pooled else None,
            accuracy=together.get("accuracy"),
        )
    return made


def _labelled(labels: Numbers) -> int:
    known = ~np.isnan(labels[:, 0]) if labels.ndim > 1 else labels >= 0
    return int(known.sum())


def within(plan: Plan, points: Sequence[Mapping[str, Any]], *, pooled: bool) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores among the patients of each group of each subgroup, by task: {task: {subgroup: {group: entry}}}."""
    made: dict[str, dict[str, dict[str, Any]]] = {t: {} for t in plan.task_names}
    for name, subgroup in plan.evaluation.subgroups.items():
        for number, group in enumerate(subgroup.groups):
            for task, scores in scores_of(plan, points, pooled=pooled, group=(name, number)).items():
                entry = {k: v for k, v in scores.entry().items() if k in {"metric", "metric_name", "ci"}}
                made[task].setdefault(name, {})[group] = entry | {"patients": sum(scores.sizes)}
    return made


def judged(variants: Sequence[Variant], scores: Mapping[str, Mapping[str, Scores]]) -> dict[str, dict[str, Any]]:
    """Every variant's scores, those of joined modalities tested one-tailed against the best single modality.

    The best single modality is chosen by the same scores, which makes the test harder for the others. Holm's correction is
    over the joined variants of a task.
    """
    made: dict[str, dict[str, Any]] = {v.name: {t: s.entry() for t, s in scores[v.name].items()} for v in variants}
    tasks = list(made[variants[0].name])
    for task in tasks:
        single = {v.name: scores[v.name][task].metric for v in variants if v.kind == "single"}
        ranked = {n: m for n, m in single.items() if m is not None}
        best = max(ranked, key=lambda n: ranked[n]) if ranked else None
        tested: dict[str, float] = {}
        for variant in variants:
            entry = made[variant.name][task]
            entry |= {
                "against": None,
                "difference": None,
                "difference_ci": None,
                "detectable": None,
                "p_ttest": None,
                "p_corrected": None,
                "p_holm": None,
            }
            if best is None or variant.kind == "single":
                continue
            found = scores[variant.name][task].estimate(scores[best][task])
            if found is None:
                continue
            tested[variant.name] = found.p(corrected=True)
            entry |= {
                "against": best,
                "difference": found.value,
                "difference_ci": list(found.interval()),
                "detectable": found.detectable(),
                "p_ttest": found.p(corrected=False),
                "p_corrected": tested[variant.name],
            }
        for name, value in holm(tested).items():
            made[name][task]["p_holm"] = value
    return made
