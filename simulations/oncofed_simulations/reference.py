"""Simple models on a few features, fitted on all training patients: what the network is asked to beat."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from oncofed_client.cohort import Cohort
from oncofed_shared.errors import ConfigError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan, Reference, SurvivalTask
from oncofed_shared.scoring import tabulate
from oncofed_simulations.pooled import PooledSource

__all__ = ["reference_predictions", "reference_tables"]

Values = NDArray[np.float64]
Rows = NDArray[np.bool_]


def _features(plan: Plan, cohort: Cohort, reference: Reference, name: str) -> Values:
    """(n, features), NaN where missing. A categorical feature stands for its one-hot columns."""
    blocks = []
    missing = set(reference.features) - {"*"}
    for modality in sorted(plan.modalities):
        for i, column in enumerate(cohort.columns[modality]):
            base = column.split("=")[0]
            if "*" in reference.features or column in reference.features or base in reference.features:
                blocks.append(cohort.values[modality][:, i])
                missing -= {column, base}
    if missing:
        raise ConfigError(f"evaluation.reference.{name}: no modality of the plan has {', '.join(sorted(missing))}")
    return np.stack(blocks, axis=1)


def _scaled(table: Values, train: Rows) -> Values:
    """Z-scores by the training patients; a missing value becomes their mean, which is 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column that nobody has: all NaN
        mean, deviation = np.nanmean(table[train], axis=0), np.nanstd(table[train], axis=0)
    useful = np.isfinite(mean) & (deviation > 1e-9)
    return np.asarray(np.nan_to_num((table[:, useful] - mean[useful]) / deviation[useful]))


def _cox(task: SurvivalTask, table: Values, labels: Values, train: Rows, alpha: float) -> Values:
    """Survival at the end of each interval, (n, intervals)."""
    known = train & ~np.isnan(labels[:, 0])
    # sksurv wants no tie at day 0 with nobody before; half a day keeps the order and the day.
    y = Surv.from_arrays(labels[known, 1] == 1, np.maximum(labels[known, 0], 0.5))
    model = CoxPHSurvivalAnalysis(alpha=alpha * int(known.sum()), ties="efron").fit(table[known], y)
    curves = model.predict_survival_function(table)
    edges = np.asarray(task.edges[1:])
    low, high = curves[0].domain
    # Before the first time that anybody was followed, sksurv's function has the value after it; nobody had died.
    return np.stack([np.where(edges < c.x[0], 1.0, c(np.clip(edges, low, high))) for c in curves])


def _causes(task: SurvivalTask, table: Values, labels: Values, train: Rows, alpha: float) -> Values:
    """Incidences, (n, causes x intervals), from a Cox regression for each cause in which the others are censorings.

    In an interval the causes share what is lost in proportion to their hazards.
    """
    hazards = np.zeros((task.number, len(table), task.intervals))
    for index in range(task.number):
        own = np.where(np.isnan(labels), np.nan, np.column_stack([labels[:, 0], labels[:, 1] == index + 1]))
        if np.any(own[train, 1] == 1):
            survival = np.clip(_cox(task, table, own, train, alpha), 1e-12, 1.0)
            hazards[index] = np.maximum(np.diff(-np.log(survival), axis=1, prepend=0.0), 0.0)
    total = hazards.sum(axis=0)
    before = np.exp(-(np.cumsum(total, axis=1) - total))
    share = np.divide(hazards, total, out=np.zeros_like(hazards), where=total > 0)
    incidences = np.cumsum(share * before * -np.expm1(-total), axis=2)
    return np.asarray(incidences.transpose(1, 0, 2).reshape(len(table), -1))


def reference_predictions(plan: Plan, cohort: Cohort, train: Rows, name: str) -> dict[str, Values]:
    """Fit a reference on the training patients of the pooled cohort and predict everybody.

    Survival: Cox regression with a ridge penalty (alpha = penalty x patients); classification: logistic regression with the
    same. A task that cannot be fitted (no event, one class, no feature that varies) is left out.

    Returns:
        Per task predictions in the shape that `metrics.tally` takes.
    """
    reference = plan.evaluation.reference[name]
    table = _scaled(_features(plan, cohort, reference, name), train)
    made: dict[str, Values] = {}
    for task_name, task in plan.tasks.items() if table.shape[1] else ():
        labels = cohort.labels[task_name]
        if isinstance(task, SurvivalTask):
            if np.any(labels[train, 1] > 0):
                fitted = _causes if task.causes else _cox
                made[task_name] = fitted(task, table, labels, train, reference.penalty)
            continue
        known = train & (labels >= 0)
        classes = np.unique(labels[known])
        if len(classes) < 2:
            continue
        strength = 1.0 / max(reference.penalty * int(known.sum()), 1e-12)
        model = LogisticRegression(C=strength, max_iter=2000).fit(table[known], labels[known])
        probabilities = np.zeros((len(labels), len(task.classes)))
        probabilities[:, model.classes_.astype(int)] = model.predict_proba(table)
        made[task_name] = probabilities
    return made


def reference_tables(
    plan: Plan, pooled: PooledSource, trial: Trial, name: str, externals: Sequence[str]
) -> dict[str, Values]:
    """Test tables by site of a reference fitted on the training patients of all sites that are not external."""
    cohort = pooled.cohort(plan)
    part = pooled.split(plan, cohort, trial)
    owner = np.array([p.split("/", 1)[0] for p in cohort.patients])
    external = np.isin(owner, list(externals))
    predictions = reference_predictions(plan, cohort, (part == 0) & ~external, name)
    labels = dict(cohort.labels)
    for task_name, task in plan.tasks.items():
        if task_name not in predictions:
            # Nothing could be fitted: a table without patients says so.
            width = task.number * task.intervals if isinstance(task, SurvivalTask) else len(task.classes)
            predictions[task_name] = np.full((len(owner), width), 1 / width)
            missing = np.nan if isinstance(task, SurvivalTask) else -1
            labels[task_name] = np.full_like(labels[task_name], missing)
    tables = {}
    for source in pooled.sources:
        rows = (owner == source.name) & (external | (part == 2))
        tables[source.name] = tabulate(
            plan,
            {t: p[rows] for t, p in predictions.items()},
            {t: v[rows] for t, v in labels.items()},
            {s: v[rows] for s, v in cohort.subgroups.items()},
            subgroups=True,
        )
    return tables
