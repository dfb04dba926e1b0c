"""What sites agree on before training, exchange after exchange: how values are harmonised, scaled, and reduced.

    phase      asks        what follows from the sums of all trainers
    HARMONISE  Summarise   effects of covariates, means and spreads; only where the plan harmonises
    SUMMARISE  Summarise   scaling and class weights, over values as they are harmonised
    REDUCE     Reduce      the plan's reductions, as often as they ask; see `reductions`

Each function takes what is known and gives what the next exchange begins with. Who leaves takes his sums with him: what he had a
share in is agreed anew.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.features import Preparation, check_sums, no_sums, prepare
from oncofed_shared.harmonise import agree_on, harmonise_size, harmonises
from oncofed_shared.messages import PARTS, Columns, Description, Summary
from oncofed_shared.plan import Plan

__all__ = ["added", "check_description", "check_summary", "common", "scaled"]

Values = NDArray[np.float64]


def added(sums: Mapping[str, Values], sites: tuple[str, ...]) -> Values:
    """The sum of some sites' sums. Floats add up differently in another order; by name it is one order whoever answers first."""
    return np.asarray(np.sum([sums[s] for s in sorted(sites)], axis=0))


def check_description(plan: Plan, reply: Description) -> None:
    """Compare what a site says of itself with the plan.

    Raises:
        RemoteProtocolError: other modalities, or numbers of patients where there are none to be.
    """
    if set(reply.columns) != set(plan.modalities):
        raise RemoteProtocolError("its modalities are not those of the plan")
    wanted = set() if plan.privacy.noise != "none" else set(PARTS)
    if set(reply.parts) != wanted or min(reply.parts.values(), default=0) < 0:
        raise RemoteProtocolError("its numbers of patients are not those of the parts")


def check_summary(plan: Plan, columns: Columns, reply: Summary, *, harmonising: bool) -> None:
    """Compare an answer with what was asked.

    Args:
        harmonising: whether the sums of a harmonisation were.

    Raises:
        RemoteProtocolError: another length, or numbers that cannot be sums over patients.
    """
    if not harmonising:
        check_sums(plan, columns, reply.sums)
    elif len(reply.sums) != harmonise_size(plan, columns) or not np.isfinite(reply.sums).all():
        raise RemoteProtocolError("its sums do not fit the columns that are harmonised")
    else:
        agree_on(plan, columns, reply.sums)


def common(plan: Plan, columns: Columns, sums: Values) -> dict[str, Values]:
    """What is agreed of the plan's harmonisations from all sites' sums; empty where it has none."""
    return agree_on(plan, columns, sums) if harmonises(plan, columns) else {}


def scaled(plan: Plan, columns: Columns, sums: Values | None, harmonisation: Mapping[str, Values]) -> Preparation:
    """The preparation before reductions.

    Args:
        sums: of all sites; None under a private plan, whose constants say everything.
    """
    return prepare(plan, columns, no_sums(plan, columns) if sums is None else sums, harmonisation)
