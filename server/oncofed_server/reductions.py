"""The aggregator's part in a plan's reductions: what it asks, what it takes for an answer, and what it fixes at last."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.features import REDUCTION, Preparation, with_kept
from oncofed_shared.messages import Columns, Head, Reduce, Reduced
from oncofed_shared.plan import Plan
from oncofed_shared.reduction import Agreed, sums_size

__all__ = ["check_reduced", "reduce_request", "with_reduction"]


def reduce_request(head: Head, preparation: Preparation, agreed: Agreed) -> Reduce:
    """Ask for the sums of the next exchange."""
    arrays = preparation.arrays() | {f"{REDUCTION}{n}": a for n, a in agreed.arrays.items()}
    return Reduce(head=head, number=agreed.number, columns=preparation.columns, arrays=arrays)


def check_reduced(plan: Plan, columns: Columns, agreed: Agreed, reply: Reduced) -> None:
    """Compare an answer with what was asked.

    Raises:
        RemoteProtocolError: another length, or a number that is not finite.
    """
    if len(reply.sums) != sums_size(plan, columns, agreed.number) or not np.isfinite(reply.sums).all():
        raise RemoteProtocolError("its sums do not fit the plan's reductions")


def with_reduction(preparation: Preparation, agreed: Agreed) -> Preparation:
    """The preparation that training uses: with the columns that stay, and what the others are reduced by."""
    return replace(with_kept(preparation, agreed.kept), reduction=dict(agreed.arrays))
