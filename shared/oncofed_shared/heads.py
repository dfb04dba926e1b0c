"""What a task's head gives, from the network's numbers to logits to predictions.

two classes          one logit
more classes         a logit each
ordered classes      one score and K - 1 thresholds: the logits of "above class k" (Cao, Mirjalili & Raschka 2020, CORAL)
survival             one score and a baseline for each interval, or a logit each: hazards (Gensheimer & Narasimhan 2019)
competing risks      the same for each cause, cause by cause; with no event they share a softmax in each interval
(Tutz & Schmid 2016, chapter 8; Lee et al. 2018 for the outputs)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's own name

from oncofed_shared.plan import SurvivalTask, Task

__all__ = ["FIRST_HAZARD", "baseline_width", "first_baseline", "incidence", "joined", "outputs", "shares_of_order"]

FIRST_HAZARD = -2.0
"""Logit of an interval's hazard before training, 12 %: nearer to what cohorts show than one half is."""


def outputs(task: Task, *, proportional: bool) -> int:
    """Numbers that the network gives a head for each patient; see the module."""
    if isinstance(task, SurvivalTask):
        return task.number * (1 if proportional else task.intervals)
    return 1 if len(task.classes) == 2 or task.ordered else len(task.classes)


def baseline_width(task: Task) -> int:
    """Numbers that are the same for everybody: a head's logits."""
    if isinstance(task, SurvivalTask):
        return task.number * task.intervals
    if task.ordered:
        return len(task.classes) - 1
    return 1 if len(task.classes) == 2 else len(task.classes)


def first_baseline(task: Task) -> Tensor:
    """Baselines before training, (width, 1): equal classes, and a low hazard of any cause."""
    width = baseline_width(task)
    if isinstance(task, SurvivalTask):
        return torch.full((width, 1), FIRST_HAZARD - math.log(task.number))
    if task.ordered:
        above = torch.arange(width, 0, -1, dtype=torch.float64) / (width + 1)
        return torch.logit(above)[:, None]
    return torch.zeros(width, 1)


def joined(task: Task, scores: Tensor, baseline: Tensor) -> Tensor:
    """A head's logits, (n, width), from (n, outputs) and (n, width): a cause's score counts in all its intervals."""
    if isinstance(task, SurvivalTask) and task.causes and scores.shape[1] == task.number:
        scores = scores.repeat_interleave(task.intervals, dim=1)
    return scores + baseline


def shares_of_order(logits: Tensor) -> Tensor:
    """Probabilities of ordered classes, (n, K), from the K - 1 logits of "above class k".

    Thresholds that noise or few patients have put out of order count as equal: nobody is likelier above a higher class.
    """
    above = torch.sigmoid(logits).cummin(dim=1).values
    one, none = above.new_ones(len(above), 1), above.new_zeros(len(above), 1)
    return torch.cat([one, above], dim=1) - torch.cat([above, none], dim=1)


def incidence(task: SurvivalTask, logits: Tensor) -> Tensor:
    """Cumulative incidence of each cause at the end of each interval, (n, causes x intervals), cause by cause.

    F_c(t_k) = sum over j <= k of S(t_(j-1)) h_cj, with h_cj the softmax over "no event" and the causes in interval j and S the
    product of "no event" so far. Over the causes they add up to 1 - S.
    """
    each = logits.reshape(len(logits), task.number, task.intervals)
    logs = F.log_softmax(F.pad(each, (0, 0, 1, 0)), dim=1)
    stayed = logs[:, :1].cumsum(dim=2)
    before = F.pad(stayed[:, :, :-1], (1, 0))
    return (before + logs[:, 1:]).exp().cumsum(dim=2).flatten(start_dim=1)
