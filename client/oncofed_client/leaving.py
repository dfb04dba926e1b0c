"""What would leave a site under a plan: kinds of messages, how often, how large, and whether the ledger charges them."""

from __future__ import annotations

from dataclasses import dataclass

from oncofed_shared.features import encoded_columns
from oncofed_shared.noised_tables import coarse_size, histogram_size, placed_grid
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan, SitePrivacy
from oncofed_shared.plan_harmonise import uncharged_harmonisations
from oncofed_shared.plan_reduction import Statistical
from oncofed_shared.reduction import length
from oncofed_shared.reduction_rules import uncharged_reductions
from oncofed_shared.releases import charged_statistics

__all__ = ["Leaving", "exchanges", "leaving"]

RING_BYTES = 8
"""Of one coordinate of an update, an integer modulo 2**64."""
SETUP_EXCHANGES = {"none": 3, "site": 2, "consortium": 2}
"""Describe, Summarise (without privacy alone) and Open."""


_NOBODY = "no patient in it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaving:
    """One kind of message.

    Attributes:
        what: in plain words.
        times: at most.
        bytes: of one, at most; None where it depends on the site's columns or patients and is small.
        guarded: what keeps a patient from being seen in it: `noise and mask`, `noise`, `sum`, `keys` or `none`.
    """

    what: str
    times: int
    bytes: int | None
    guarded: str


def _looks(plan: Plan) -> int:
    """Rounds after which validation patients are scored: every few, and the last."""
    rounds, every = plan.training.rounds, plan.training.validate_every
    return rounds // every + bool(rounds % every)


def _reductions(plan: Plan) -> list[int]:
    """Messages that each of the plan's reductions takes, in the order of its modalities."""
    return [length(plan, m.reduction) for m in plan.modalities.values() if isinstance(m.reduction, Statistical)]


def leaving(plan: Plan, parameters: int) -> tuple[Leaving, ...]:
    """Everything, in the order in which it is asked for.

    Args:
        plan: the study.
        parameters: that the sites share.
    """
    privacy, rounds = plan.privacy, plan.training.rounds
    plain = isinstance(privacy, NoPrivacy)
    described = "names of columns" + (", and numbers of patients: per part, modality, class and event" if plain else "")
    if not plain and all(encoded_columns(m) is not None for m in plan.modalities.values()):
        described = "names of columns, as the plan has them"
    found = [
        Leaving(what=described, times=1, bytes=None, guarded="none" if plain else _NOBODY),
        Leaving(
            what="that this site is ready, or refuses, by a code", times=exchanges(plan), bytes=None, guarded=_NOBODY
        ),
    ]
    if isinstance(privacy, ConsortiumPrivacy):
        size = privacy.ring_bits // 8
        steps = rounds + privacy.spare_steps
        if privacy.statistics_epsilon is not None:
            found.append(Leaving(what=charged_statistics(plan), times=1, bytes=None, guarded="noise and mask"))
        found.append(Leaving(what="public keys and encrypted shares of masks", times=steps, bytes=None, guarded="keys"))
        what = "sum of clipped gradients of a random sample of patients"
        found.append(Leaving(what=what, times=steps, bytes=size * parameters, guarded="noise and mask"))
        if privacy.score_epsilon is not None:
            if plan.evaluation.split.validation:
                what = "histogram of predicted risks of validation patients"
                found.append(Leaving(what=what, times=1, bytes=size * histogram_size(plan), guarded="noise and mask"))
            cells = coarse_size(plan, placed_grid(plan))
            what = "tables of predicted risk by outcome of test patients"
            found.append(Leaving(what=what, times=1, bytes=size * cells, guarded="noise and mask"))
        return tuple(found)
    if plain:
        what = "sums over training patients: per column number, sum and squares; patients per class"
        found.append(Leaving(what=what, times=1, bytes=None, guarded="sum"))
        harmonised = uncharged_harmonisations(plan.modalities)
        found += [Leaving(what=what, times=1, bytes=None, guarded="sum") for what in harmonised]
        sums = zip(uncharged_reductions(plan.modalities), _reductions(plan), strict=True)
        found += [Leaving(what=what, times=times, bytes=None, guarded="sum") for what, times in sums]
    holders = plain and plan.strategy.average == "holders"
    what = "change of the model from training here" + (", number of patients, sum of losses" if plain else "")
    what += ", number of patients for each modality" if holders else ""
    size = RING_BYTES * (parameters + 2 + holders * len(plan.modalities))
    found.append(Leaving(what=what, times=rounds, bytes=size, guarded="sum" if plain else "noise"))
    if plain or (isinstance(privacy, SitePrivacy) and privacy.release_tables):
        if plan.evaluation.split.validation:
            what = "table of predicted risk by outcome of validation patients"
            found.append(Leaving(what=what, times=_looks(plan), bytes=None, guarded="none"))
        what = "table of predicted risk by outcome and subgroup of test patients"
        found.append(Leaving(what=what, times=1, bytes=None, guarded="none"))
    return tuple(found)


def exchanges(plan: Plan) -> int:
    """Messages to and fro between aggregator and a site if everybody answers at once: set-up, steps, scores."""
    privacy = plan.privacy
    count = SETUP_EXCHANGES[privacy.noise]
    if isinstance(privacy, ConsortiumPrivacy):
        scores = 0 if privacy.score_epsilon is None else 1 + bool(plan.evaluation.split.validation)
        # Keys are dealt in three exchanges per block; a sum is an upload and an opening.
        # Statistics are one more sum.
        scores += privacy.statistics_epsilon is not None
        return count + 3 * (1 + (plan.training.rounds + scores) // 128) + 2 * (plan.training.rounds + scores)
    scored = isinstance(privacy, NoPrivacy) or privacy.release_tables
    count += any(m.harmonise is not None for m in plan.modalities.values()) + max(_reductions(plan), default=0)
    return count + plan.training.rounds + ((_looks(plan) + 1) if scored else 0)
