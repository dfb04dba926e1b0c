"""A `result.json` as the report reads it: every part may be missing, every text may be hostile.

What is not a finite number becomes `None`, control characters in names become visible, and
everything after this module works with frozen values.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "ARMS",
    "Arm",
    "Score",
    "Spread",
    "Study",
    "TaskView",
    "clean",
    "listing",
    "mapping",
    "number",
    "plain",
    "read_study",
    "reference_label",
]

ARMS = ("federated", "pooled", "alone", "site_noise", "without_privacy", "reference")
_MAIN_METRIC = {"survival": "c_index", "classification": "auc"}
MOST_FEATURES = 4
_FORMATTING = {"\u200c", "\u200d"}  # joiners that ordinary names in some scripts need


def plain(text: object) -> str:
    r"""Text of a stranger, with control, direction-changing and broken characters made visible.

    >>> plain("a\x1b[2Jb")
    'a�[2Jb'
    """
    return "".join(
        "\ufffd" if unicodedata.category(c) in {"Cc", "Cf", "Cs"} and c not in _FORMATTING else c for c in str(text)
    )


def number(raw: object) -> float | None:
    """A finite number, or None for everything else."""
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    return float(raw) if math.isfinite(raw) else None


def mapping(raw: object) -> Mapping[str, Any]:
    """A JSON object, or an empty one."""
    return raw if isinstance(raw, Mapping) else {}


def listing(raw: object) -> list[Any]:
    """A JSON array, or an empty one."""
    return list(raw) if isinstance(raw, list | tuple) else []


def clean(tree: Any) -> Any:
    """A JSON tree in which every text, keys too, is `plain`."""
    if isinstance(tree, Mapping):
        return {plain(key): clean(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [clean(value) for value in tree]
    return plain(tree) if isinstance(tree, str) else tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One number with its interval; `why` says what is behind a missing one."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    why: str | None = None
    patients: float | None = None

    @property
    def has_interval(self) -> bool:
        """Both ends of the interval are known."""
        return self.low is not None and self.high is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """All scores of one arm (federated, pooled, alone, a reference) in one metric."""

    overall: Score = Score()
    per_site: dict[str, Score] = field(default_factory=dict)
    per_seed: tuple[float, ...] = ()
    subgroups: dict[str, dict[str, Score]] = field(default_factory=dict)
    external: Score = Score()
    external_sites: dict[str, Score] = field(default_factory=dict)
    exact: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Scores of one arm over folds or random re-splits."""

    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    parts: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """One task: what it is, and every score of it."""

    name: str
    kind: str
    plan: Mapping[str, Any]
    main_metric: str
    metrics: dict[str, dict[str, Arm]]
    references: dict[str, dict[str, Arm]]
    binning_error: dict[str, float | None]
    figures: Mapping[str, Any]
    resplits: dict[str, Spread]
    folds: dict[str, Spread]

    def arm(self, name: str, metric: str | None = None) -> Arm:
        """An arm's scores; an empty one where the run had no such arm."""
        missing = Arm(overall=Score(why="not part of this run"))
        return self.metrics.get(metric or self.main_metric, {}).get(name, missing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """The whole result. `raw` keeps what is shown as it is."""

    name: str
    purpose: str
    tasks: tuple[TaskView, ...]
    reference_name: str
    reference_label: str
    plan: Mapping[str, Any]
    raw: Mapping[str, Any]

    @property
    def main(self) -> TaskView | None:
        """The main task."""
        return self.tasks[0] if self.tasks else None


def _interval(raw: object) -> tuple[float | None, float | None]:
    ends = [number(v) for v in listing(raw)]
    return (ends[0], ends[1]) if len(ends) == 2 else (None, None)


def _score(raw: object, interval: object = None, why: object = None) -> Score:
    """A score from a number, or from an object with `overall`, `ci`, `patients` and `why`."""
    if isinstance(raw, Mapping):
        reason = raw.get("why", why)
        reason = reason.get("overall") if isinstance(reason, Mapping) else reason
        low, high = _interval(raw.get("ci"))
        return Score(
            value=number(raw.get("overall")),
            low=low,
            high=high,
            why=None if reason is None else str(reason),
            patients=number(raw.get("patients")),
        )
    low, high = _interval(interval)
    return Score(value=number(raw), low=low, high=high, why=None if why is None else str(why))


def _sites(raw: Mapping[str, Any], why: Mapping[str, Any]) -> dict[str, Score]:
    intervals = mapping(raw.get("per_site_ci"))
    own = mapping(raw.get("why"))
    scores = mapping(raw.get("per_site"))
    names = [*scores, *(s for s in intervals if s not in scores)]
    return {s: _score(scores.get(s), intervals.get(s), own.get(s, why.get(s))) for s in names}


def _arm(raw: object) -> Arm:
    arm = mapping(raw)
    why = mapping(arm.get("why"))
    external = mapping(arm.get("external"))
    return Arm(
        overall=_score(arm),
        per_site=_sites(arm, why),
        per_seed=tuple(v for v in map(number, listing(arm.get("per_seed"))) if v is not None),
        subgroups={
            name: {group: _score(score) for group, score in mapping(groups).items()}
            for name, groups in mapping(arm.get("subgroups")).items()
        },
        external=_score(external),
        external_sites=_sites(external, why),
        exact=number(arm.get("exact")),
    )


def _arms(raw: object) -> dict[str, dict[str, Arm]]:
    return {
        metric: {name: _arm(arm) for name, arm in mapping(arms).items() if arm} for metric, arms in mapping(raw).items()
    }


def _spreads(raw: object, parts: str) -> dict[str, Spread]:
    spreads = {}
    for name, arm in mapping(raw).items():
        low, high = _interval(mapping(arm).get("ci"))
        spreads[name] = Spread(
            mean=number(mapping(arm).get("overall")),
            sd=number(mapping(arm).get("sd")),
            low=low,
            high=high,
            parts=tuple(number(v) for v in listing(mapping(arm).get(parts))),
        )
    return spreads


def _task(name: str, result: Mapping[str, Any], plan: Mapping[str, Any]) -> TaskView:
    metrics = _arms(mapping(result.get("tasks")).get(name))
    settings = mapping(mapping(plan.get("tasks")).get(name))
    guess = "survival" if "c_index" in metrics else "classification"
    kind = str(settings.get("kind", guess))
    main = _MAIN_METRIC.get(kind, "")
    if main not in metrics:
        main = next(iter(metrics), main)
    references = {
        reference: {m: _arm(arm) for m, arm in mapping(mapping(tasks).get(name)).items()}
        for reference, tasks in mapping(result.get("references")).items()
    }
    spread = {key: mapping(mapping(mapping(result.get(key)).get(name)).get(main)) for key in ("resplits", "folds")}
    binning = mapping(mapping(result.get("binning_error")).get(name))
    return TaskView(
        name=name,
        kind=kind,
        plan=settings,
        main_metric=main,
        metrics=metrics,
        references=references,
        binning_error={m: number(v) for m, v in binning.items()},
        figures=mapping(mapping(result.get("figures")).get(name)),
        resplits=_spreads(spread["resplits"], "per_split"),
        folds=_spreads(spread["folds"], "per_fold"),
    )


def reference_label(name: str, plan: Mapping[str, Any]) -> str:
    """What a reference model knows, in words: its features, or else its name."""
    models = mapping(mapping(plan.get("evaluation")).get("reference"))
    features = listing(mapping(models.get(name)).get("features"))
    if not features:
        return name
    if "*" in features:
        return "all columns, linear"
    shown = " + ".join(str(f) for f in features[:MOST_FEATURES])
    more = len(features) - MOST_FEATURES
    return f"{shown} + {more} more" if more > 0 else shown


def read_study(result: Mapping[str, Any]) -> Study:
    """Read a result; the main task comes first, whatever order the file has.

    Args:
        result: the content of `result.json`.
    """
    result = clean(result)
    plan = mapping(result.get("plan"))
    names = list(mapping(result.get("tasks")))
    if plan.get("main_task") in names:
        names.sort(key=lambda name: name != plan["main_task"])
    planned = mapping(mapping(plan.get("evaluation")).get("reference"))
    models = mapping(result.get("references")) or planned
    reference = mapping(plan.get("evaluation")).get("main_reference")
    if reference not in models:
        reference = next(iter(models), "reference")
    return Study(
        name=str(result.get("study", "unnamed study")),
        purpose=str(result.get("purpose", mapping(plan.get("study")).get("purpose", ""))),
        tasks=tuple(_task(name, result, plan) for name in names),
        reference_name=str(reference),
        reference_label=reference_label(str(reference), plan),
        plan=plan,
        raw=result,
    )
