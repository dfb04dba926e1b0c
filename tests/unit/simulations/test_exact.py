"""Scores from patients' own predictions: those of scikit-learn and scikit-survival."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, roc_auc_score
from sksurv.metrics import concordance_index_censored

from oncofed_client.session import training_set
from oncofed_client.site import Site
from oncofed_shared.losses import predict
from oncofed_shared.messages import Trial
from oncofed_shared.network import build
from oncofed_shared.plan import Plan
from oncofed_simulations.consortium import Consortium
from oncofed_simulations.exact import exact_numbers

MakePlan = Callable[..., Plan]
MakeConsortium = Callable[..., Consortium]
TRIAL = Trial(seed=2)


@pytest.fixture
def plan(make_plan: MakePlan) -> Plan:
    return make_plan(model__layers=0)


@pytest.fixture
def consortium(make_consortium: MakeConsortium, plan: Plan, tmp_path: Path) -> Consortium:
    return make_consortium(plan, tmp_path)


def raw(plan: Plan, sites: dict[str, Site], run: Any) -> dict[str, tuple[NDArray[np.float64], NDArray[Any]]]:
    """Predictions and labels of all test patients, worked out here."""
    preparation = run.state.preparation
    network = build(plan, preparation.columns, seed=0).eval()
    parameters = dict(network.named_parameters())
    start = 0
    with torch.no_grad():
        for name in sorted(parameters):
            size = parameters[name].numel()
            part = run.state.server.parameters[start : start + size].reshape(parameters[name].shape)
            parameters[name].copy_(torch.from_numpy(part))
            start += size
    found: dict[str, list[Any]] = {t: [] for t in plan.tasks}
    for site in sites.values():
        cohort = site.source.cohort(plan)
        rows = site.source.split(plan, cohort, TRIAL) == 2
        data = training_set(plan, preparation, cohort, rows)
        with torch.no_grad():
            predictions = predict(plan, network(data.values, data.seen))
        for task, prediction in predictions.items():
            found[task].append((prediction, cohort.labels[task][rows]))
    return {t: (np.concatenate([p for p, _ in v]), np.concatenate([y for _, y in v])) for t, v in found.items()}


def test_exact_numbers_are_scikit_learns_and_scikit_survivals(consortium: Consortium, plan: Plan) -> None:
    run = consortium.federated(TRIAL)
    exact = exact_numbers(plan, consortium.sites, [[run]])
    found = raw(plan, consortium.sites, run)
    curves, labels = found["survival"]
    known = ~np.isnan(labels[:, 0])
    days, event = labels[known].T
    last = 1461
    c_index = concordance_index_censored((event == 1) & (days <= last), np.minimum(days, last), 1 - curves[known, 1])[0]
    assert exact["survival"]["c_index"] == pytest.approx(c_index, abs=1e-9)
    p, y = found["response"]
    p, y = p[y >= 0], y[y >= 0]
    assert exact["response"]["auc"] == pytest.approx(roc_auc_score(y, p[:, 1]), abs=1e-9)
    assert exact["response"]["accuracy"] == pytest.approx(accuracy_score(y, p.argmax(axis=1)))


def test_exact_numbers_leave_out_whom_the_run_left_out(consortium: Consortium, plan: Plan) -> None:
    consortium.sites["site-2"].minimum_cohort = 10_000
    run = consortium.federated(TRIAL)
    assert run.state.excluded == {"site-2": "cohort-too-small"}
    others = {n: s for n, s in consortium.sites.items() if n != "site-2"}
    assert exact_numbers(plan, consortium.sites, [[run]]) == exact_numbers(plan, others, [[run]])
