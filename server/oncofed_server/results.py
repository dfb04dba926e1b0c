"""From tables of counts to the numbers of `result.json`.

A *replicate* is one seed: its test tables by site, summed over folds where there are folds. Every number is a mean over
replicates; every interval is the mean of the replicates' bootstrap bounds, so it says how far chance in the choice of test patients
reaches, not how far seeds differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.metrics import binning_error, compute, counts, figures, interval, metric_names
from oncofed_shared.plan import Plan, SurvivalTask
from oncofed_shared.scoring import WHOLE, blocks, split_vector

__all__ = ["alone_numbers", "arm_numbers", "binning_errors", "drawn", "shown", "spread"]

Vector = NDArray[np.float64]
Tables = Mapping[str, Vector]
Numbers = dict[str, dict[str, dict[str, Any]]]
LEVEL = 0.95


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _mean_bounds(bounds: Sequence[tuple[float, float] | None]) -> list[float] | None:
    known = [b for b in bounds if b is not None]
    return [float(v) for v in np.mean(known, axis=0)] if known else None


def _hidden(plan: Plan, task: str, vector: Vector) -> str | None:
    """Why too few patients stand behind a table for its numbers to be shown."""
    spec, rule = plan.tasks[task], plan.evaluation
    patients, rarest = counts(spec, rule, vector)
    if patients < rule.minimum_shown:
        return f"fewer than {rule.minimum_shown} test patients"
    if rarest < rule.minimum_events:
        rare = "events" if isinstance(spec, SurvivalTask) else "patients of the rarest class"
        rare = "events of the rarest cause" if isinstance(spec, SurvivalTask) and spec.causes else rare
        return f"fewer than {rule.minimum_events} {rare} among the test patients"
    return None


def shown(plan: Plan, task: str, vector: Vector) -> dict[str, float | None]:
    """A table's numbers, None where they are not defined or too few patients stand behind them."""
    if _hidden(plan, task, vector) is None:
        return compute(plan.tasks[task], plan.evaluation, vector)
    return dict.fromkeys(metric_names(plan.tasks[task]))


class _Cell:
    """One table, or none: its numbers, its intervals, or why there are none."""

    def __init__(self, plan: Plan, task: str, vector: Vector | None) -> None:
        spec, rule = plan.tasks[task], plan.evaluation
        self.values: dict[str, float | None] = {}
        self.bounds: dict[str, tuple[float, float] | None] = {}
        self.why = "no table was sent" if vector is None else _hidden(plan, task, vector) or ""
        if vector is not None and not self.why:
            self.why = "not defined for these patients"
            self.values = compute(spec, rule, vector)
            self.bounds = interval(spec, rule, vector, draws=rule.bootstrap, seed=0, level=LEVEL)


def _total(tables: Tables, sites: Sequence[str]) -> Vector | None:
    chosen = [tables[s] for s in sites if s in tables]
    return np.sum(chosen, axis=0) if chosen else None


def _summary(cells: Sequence[_Cell], metric: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "overall": _mean([c.values.get(metric) for c in cells]),
        "ci": _mean_bounds([c.bounds.get(metric) for c in cells]),
    }
    if entry["overall"] is None:
        entry["why"] = {"overall": cells[0].why if cells else "there was no run"}
    return entry


def _block(plan: Plan, vector: Vector | None, block: tuple[str, str], task: str) -> Vector | None:
    return None if vector is None else split_vector(plan, vector, subgroups=True)[block][task]


def _with_sites(overall: Sequence[_Cell], by_site: Mapping[str, Sequence[_Cell]], metric: str) -> dict[str, Any]:
    """The number over all sites and each site's own, with one `why` for what is not there of either."""
    entry = _summary(overall, metric)
    made = {site: _summary(c, metric) for site, c in by_site.items()}
    return entry | {
        "per_site": {s: e["overall"] for s, e in made.items()},
        "per_site_ci": {s: e["ci"] for s, e in made.items() if e["ci"] is not None},
        "why": entry.get("why", {}) | {s: e["why"]["overall"] for s, e in made.items() if "why" in e},
    }


def arm_numbers(
    plan: Plan, replicates: Sequence[Tables], sites: Sequence[str], externals: Sequence[str] = ()
) -> Numbers:
    """Numbers of one arm: {task: {metric: {overall, ci, per_site, per_seed, subgroups, external, why}}}.

    Args:
        replicates: test tables by site, one mapping per seed.
        sites, externals: whose tables count as the study's own, and whose as external.
    """
    totals = [_total(r, sites) for r in replicates]
    outside = [_total(r, externals) for r in replicates]
    numbers: Numbers = {}
    for task in plan.task_names:

        def cells(vectors: Sequence[Vector | None], block: tuple[str, str] = WHOLE) -> list[_Cell]:
            return [_Cell(plan, task, _block(plan, v, block, task)) for v in vectors]  # noqa: B023 - used at once

        overall = cells(totals)
        by_site = {s: cells([r.get(s) for r in replicates]) for s in sites}
        groups = {b: cells(totals, b) for b in blocks(plan, subgroups=True) if b != WHOLE}
        external = cells(outside)
        by_external = {s: cells([r.get(s) for r in replicates]) for s in externals}
        numbers[task] = {}
        for metric in metric_names(plan.tasks[task]):
            numbers[task][metric] = _with_sites(overall, by_site, metric) | {
                "per_seed": [c.values.get(metric) for c in overall],
                "subgroups": _subgroup_part(plan, groups, totals, task, metric),
                "external": _with_sites(external, by_external, metric)
                if externals
                else {"overall": None, "per_site": {}, "why": {"overall": "no external site"}},
            }
    return numbers


def _subgroup_part(
    plan: Plan,
    groups: Mapping[tuple[str, str], Sequence[_Cell]],
    totals: Sequence[Vector | None],
    task: str,
    metric: str,
) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for (name, group), cells in groups.items():
        vectors = [_block(plan, t, (name, group), task) for t in totals]
        patients = [counts(plan.tasks[task], plan.evaluation, v)[0] for v in vectors if v is not None]
        mean = float(np.mean(patients)) if patients else 0.0
        made.setdefault(name, {})[group] = _summary(cells, metric) | {
            "patients": round(mean) if mean >= plan.evaluation.minimum_shown else None
        }
    return made


def alone_numbers(plan: Plan, replicates: Mapping[str, Sequence[Tables]], sites: Sequence[str]) -> Numbers:
    """Numbers of the sites' own models.

    Args:
        replicates: per trained site, per seed, its model's test tables at every site.

    Returns:
        `per_site[s]` is the model of s on its own test patients; `overall` the unweighted mean, over the sites that could
        train one, of their score on all test patients. A site without a model has null and why.
    """
    each = {s: arm_numbers(plan, r, sites) for s, r in replicates.items()}
    numbers: Numbers = {}
    for task in plan.task_names:
        numbers[task] = {}
        for metric in metric_names(plan.tasks[task]):
            entries = {s: n[task][metric] for s, n in each.items()}
            overall = _mean([e["overall"] for e in entries.values()])
            why = {s: e["why"][s] for s, e in entries.items() if e["per_site"][s] is None} | {
                s: "could not train a model of its own" for s in sites if s not in entries
            }
            if overall is None:
                why["overall"] = "no site could train a model that can be scored"
            seeds = max((len(e["per_seed"]) for e in entries.values()), default=0)
            numbers[task][metric] = {
                "overall": overall,
                "ci": _mean_bounds([e["ci"] and tuple(e["ci"]) for e in entries.values()]),
                "per_site": {s: entries[s]["per_site"][s] if s in entries else None for s in sites},
                "per_site_ci": {s: e["per_site_ci"][s] for s, e in entries.items() if s in e["per_site_ci"]},
                "per_site_on_all": {s: e["overall"] for s, e in entries.items()},
                "per_seed": [
                    _mean([e["per_seed"][i] for e in entries.values() if i < len(e["per_seed"])]) for i in range(seeds)
                ],
                "subgroups": _mean_subgroups(entries),
                "external": {"overall": None, "per_site": {}, "why": {"overall": "not scored"}},
                "why": why,
            }
    return numbers


def _mean_subgroups(entries: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for entry in entries.values():
        for name, groups in entry["subgroups"].items():
            for group, part in groups.items():
                made.setdefault(name, {}).setdefault(group, []).append(part)
    return {
        name: {
            group: {
                "overall": _mean([p["overall"] for p in parts]),
                "ci": None,
                "patients": parts[0]["patients"],
            }
            for group, parts in groups.items()
        }
        for name, groups in made.items()
    }


def drawn(plan: Plan, replicates: Sequence[Tables], sites: Sequence[str]) -> dict[str, Any]:
    """Figures per task from the tables of all seeds together; none where a seed's numbers are not shown."""
    totals = [t for t in (_total(r, sites) for r in replicates) if t is not None]
    if not totals:
        return {}
    summed = np.sum(totals, axis=0)
    whole = split_vector(plan, summed, subgroups=True)[WHOLE]
    # Every seed tests nearly the same patients: their tables together are not more patients.
    each = [split_vector(plan, t, subgroups=True)[WHOLE] for t in totals]
    return {
        t: figures(plan.tasks[t], plan.evaluation, whole[t])
        for t in plan.task_names
        if all(_hidden(plan, t, own[t]) is None for own in each)
    }


def binning_errors(plan: Plan, tables: Tables, sites: Sequence[str]) -> dict[str, Any]:
    """Bounds on |number from the table - number from the scores|, per task and metric."""
    total = _total(tables, sites)
    if total is None:
        return {}
    whole = split_vector(plan, total, subgroups=True)[WHOLE]
    return {t: binning_error(plan.tasks[t], plan.evaluation, whole[t]) for t in plan.task_names}


def spread(plan: Plan, splits: Sequence[Tables], sites: Sequence[str], name: str) -> dict[str, Any]:
    """Mean, standard deviation and every value over re-splits or folds: {task: {metric: {overall, sd, name: [..]}}}."""
    made: dict[str, Any] = {}
    for task in plan.task_names:
        values = [
            shown(plan, task, split_vector(plan, total, subgroups=True)[WHOLE][task])
            for total in (_total(t, sites) for t in splits)
            if total is not None
        ]
        made[task] = {}
        for metric in metric_names(plan.tasks[task]):
            own = [v[metric] for v in values]
            known = [v for v in own if v is not None]
            made[task][metric] = {
                "overall": _mean(own),
                "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
                "ci": [float(q) for q in np.quantile(known, [0.025, 0.975])] if len(known) > 1 else None,
                name: own,
            }
    return made
