"""Scores from patients' own predictions, by scikit-learn and scikit-survival: beside the released numbers, never released."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, roc_auc_score
from sksurv.metrics import concordance_index_censored

from oncofed_client.locations import kept_locations, own_locations
from oncofed_client.session import training_set
from oncofed_client.site import Site
from oncofed_server.aggregator import Aggregator
from oncofed_server.run_state import Roster
from oncofed_shared.features import network_columns
from oncofed_shared.layers import load_parameters
from oncofed_shared.losses import predict
from oncofed_shared.messages import Head
from oncofed_shared.metrics import truncate
from oncofed_shared.network import build
from oncofed_shared.plan import Plan, SurvivalTask
from oncofed_simulations.consortium import Run

__all__ = ["Scored", "exact_numbers", "metric_of", "numbers_of", "score_patients"]

Values = NDArray[np.float64]
Scored = dict[str, tuple[list[Values], list[Values]]]


def score_patients(sites: Mapping[str, Site], run: Run, scored: Scored) -> None:
    """Append predictions and labels of a run's test patients, per task; a site with layers of its own is scored with them."""
    plan, preparation = run.plan, run.state.preparation
    if preparation is None:
        return
    head = Head(session=run.session, step=0, attempt=0, plan_hash=plan.hash, trial=run.trial)
    network = build(plan, network_columns(plan, preparation), seed=0)
    aggregator = Aggregator(plan, Roster(trainers=(), evaluators=()), run.trial, session="", state=run.state)
    parameters = aggregator.parameters()
    network.eval()
    for site in (s for n, s in sites.items() if n not in run.state.excluded):
        kept = site.memories.of(head).after if plan.strategy.local else {}
        load_parameters(network, parameters | {n: a for n, a in kept.items() if n in parameters})
        cohort = site.source.cohort(plan)
        parts = site.source.split(plan, cohort, run.trial)
        rows = parts == 2
        locations = kept_locations(site.state, plan, preparation)
        if locations is None:
            locations = own_locations(plan, preparation.columns, preparation.harmonisation, cohort, parts == 0)
        data = training_set(plan, preparation, cohort, rows, locations)
        with torch.no_grad():
            predictions = predict(plan, network(data.values, data.seen))
        for task, prediction in predictions.items():
            both = scored.setdefault(task, ([], []))
            both[0].append(prediction)
            both[1].append(cohort.labels[task][rows])


def metric_of(plan: Plan, task_name: str) -> str:
    """Name of the metric by which models of a task are compared."""
    return "c_index" if isinstance(plan.tasks[task_name], SurvivalTask) else "auc"


def numbers_of(plan: Plan, task_name: str, predictions: Values, labels: Values) -> dict[str, float]:
    """Exact metrics of a task from (n, ...) predictions and labels; empty where there is one class or no event."""
    task = plan.tasks[task_name]
    if isinstance(task, SurvivalTask):
        if task.causes:
            # scikit-survival has no concordance of competing risks.
            return {}
        known = ~np.isnan(labels[:, 0])
        risk = 1 - predictions[known, task.edges.index(task.horizon) - 1]
        # Follow-up beyond the last edge is not modelled, in the tables neither.
        days, events = truncate(task, labels[known]).T
        event = events == 1
        if not event.any():
            return {}
        return {"c_index": float(concordance_index_censored(event, days, risk)[0])}
    known = labels >= 0
    truth, shown = labels[known], predictions[known]
    present = np.unique(truth).astype(int)
    if len(present) < 2:
        return {}
    areas = [roc_auc_score(truth == k, shown[:, k]) for k in present]
    auc = areas[-1] if len(task.classes) == 2 else float(np.mean(areas))
    return {
        "auc": float(auc),
        "accuracy": float(accuracy_score(truth, shown.argmax(axis=1))),
    }


def exact_numbers(plan: Plan, sites: Mapping[str, Site], runs: Sequence[Sequence[Run]]) -> dict[str, dict[str, float]]:
    """Mean over seeds of the exact scores: {task: {metric: number}}; folds of a seed are scored together.

    Only a simulation can compute them, because only there one process sees every patient.
    """
    collected: dict[str, dict[str, list[float]]] = {}
    for per_seed in runs:
        scored: Scored = {}
        for run in per_seed:
            score_patients(sites, run, scored)
        for task, (predictions, labels) in scored.items():
            found = numbers_of(plan, task, np.concatenate(predictions), np.concatenate(labels))
            for metric, value in found.items():
                collected.setdefault(task, {}).setdefault(metric, []).append(value)
    return {t: {m: float(np.mean(v)) for m, v in ms.items()} for t, ms in collected.items()}
