"""Losses that are sums over patients, and predictions from logits.

A sum over patients is what makes clipping per patient meaningful; the Cox partial likelihood is not one and is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's own name

from oncofed_shared.heads import incidence, shares_of_order
from oncofed_shared.plan import ClassificationTask, Plan, SurvivalTask

__all__ = ["Target", "patient_losses", "predict", "targets"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a task's loss compares the logits with.

    Attributes:
        goal: classification with two classes (n, 1) 0/1; more (n,) class; ordered (n, classes - 1), 1 where above that class;
            survival (n, intervals), 1 in the event's interval; of competing risks the number of the cause.
        weight: (n,) or (n, intervals); 0 takes no part (no label; not at risk any more).
    """

    goal: Tensor
    weight: Tensor


def _survival_target(task: SurvivalTask, labels: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """At-risk weights and event marks of discrete-time survival (Gensheimer & Narasimhan 2019, eq. 2).

    The mark is the number of the cause, which is 1 where there is only one.

    A patient with an event in an interval was at risk in it and in all before. A censored patient survived every interval
    whose middle he passed. An event at day 0 lies in the first interval; what happens after the last edge is not modelled.
    """
    edges = np.asarray(task.edges)
    days, cause = labels[:, 0:1], np.nan_to_num(labels[:, 1:2])
    event = cause > 0
    start, stop = edges[:-1], edges[1:]
    within = (days > start) & (days <= stop)
    within[:, 0] |= days[:, 0] == 0
    happened = within & event
    survived = np.where(event, days > stop, days >= (start + stop) / 2)
    at_risk = happened | survived
    known = ~np.isnan(days)
    return (at_risk & known).astype(np.float64), (happened & known) * cause


def targets(
    plan: Plan, labels: Mapping[str, NDArray[np.float64]], class_weights: Mapping[str, NDArray[np.float64]]
) -> dict[str, Target]:
    """Targets of every task from a cohort's labels, in the plan's dtype."""
    dtype = torch.float64 if plan.training.dtype == "float64" else torch.float32
    made: dict[str, Target] = {}
    for name, task in sorted(plan.tasks.items()):
        if isinstance(task, SurvivalTask):
            at_risk, happened = _survival_target(task, np.asarray(labels[name], dtype=np.float64))
            goal, weight = torch.from_numpy(happened), torch.from_numpy(at_risk)
            # A class has to be an integer, and a mark of cross-entropy for two a number.
            made[name] = Target(goal=goal.to(torch.int64 if task.causes else dtype), weight=weight.to(dtype))
            continue
        label = np.asarray(labels[name], dtype=np.int64)
        known = label >= 0
        safe = np.where(known, label, 0)
        weight = torch.from_numpy(np.where(known, class_weights[name][safe], 0.0)).to(dtype)
        goal = torch.from_numpy(safe)
        if len(task.classes) == 2:
            goal = goal.to(dtype)[:, None]
        elif task.ordered:
            goal = (goal[:, None] > torch.arange(len(task.classes) - 1)).to(dtype)
        made[name] = Target(goal=goal, weight=weight)
    return made


def _focal(plan: Plan, loss: Tensor) -> Tensor:
    """(1 - p)^gamma x the cross-entropy -log p of what is true (Lin et al. 2017, eq. 4); the cross-entropy without gamma."""
    gamma = plan.training.gamma
    if not gamma:
        return loss
    # 1 - p from -log p without cancellation, and never 0, at which a power below 1 has no gradient.
    return loss * (-torch.expm1(-loss)).clamp(min=torch.finfo(loss.dtype).tiny) ** gamma


def _competing(task: SurvivalTask, out: Tensor, target: Target) -> Tensor:
    """(n,) minus the log-likelihood: in each interval at risk, a softmax over "no event" and the causes."""
    each = out.reshape(len(out), task.number, task.intervals)
    losses = F.cross_entropy(F.pad(each, (0, 0, 1, 0)), target.goal, reduction="none")
    return (losses * target.weight).sum(dim=1)


def patient_losses(plan: Plan, logits: Mapping[str, Tensor], goals: Mapping[str, Target]) -> Tensor:
    """Loss of each patient, (n,): the plan's weighted sum over the tasks for which he has a label."""
    total: Tensor | None = None
    for name, task in sorted(plan.tasks.items()):
        out, target = logits[name], goals[name]
        if isinstance(task, SurvivalTask) and task.causes:
            loss = _competing(task, out, target)
        elif isinstance(task, ClassificationTask) and len(task.classes) > 2 and not task.ordered:
            loss = _focal(plan, F.cross_entropy(out, target.goal, reduction="none")) * target.weight
        else:
            each = F.binary_cross_entropy_with_logits(out, target.goal, reduction="none")
            if isinstance(task, ClassificationTask):
                each = _focal(plan, each)
            weight = target.weight if target.weight.dim() == 2 else target.weight[:, None]
            loss = (each * weight).sum(dim=1)
        total = task.weight * loss if total is None else total + task.weight * loss
    if total is None:
        message = "a plan has at least one task"
        raise AssertionError(message)
    return total


def predict(plan: Plan, logits: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    """Predictions per task: probabilities (n, classes), or survival at the end of each interval (n, intervals).

    Of competing risks the cumulative incidence of each cause there, (n, causes x intervals), cause by cause.
    """
    made: dict[str, NDArray[np.float64]] = {}
    for name, task in sorted(plan.tasks.items()):
        out = logits[name].detach().to(torch.float64)
        if isinstance(task, SurvivalTask) and task.causes:
            made[name] = incidence(task, out).numpy()
        elif isinstance(task, SurvivalTask):
            # log S(t_k) = sum of log(1 - h_j); logsigmoid of the negative logit is log(1 - h) without cancellation.
            made[name] = F.logsigmoid(-out).cumsum(dim=1).exp().numpy()
        elif task.ordered:
            made[name] = shares_of_order(out).numpy()
        elif len(task.classes) == 2:
            positive = torch.sigmoid(out)
            made[name] = torch.cat([1 - positive, positive], dim=1).numpy()
        else:
            made[name] = torch.softmax(out, dim=1).numpy()
    return made
