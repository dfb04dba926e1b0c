"""What a site adds to a sum, as the plan wants it: its length, what it costs a patient, its largest number, how it is made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed_client.budget import Charge
from oncofed_client.cohort import Cohort
from oncofed_client.contributor import Share
from oncofed_client.integer_step import consortium_share, numbers_share, tables_share
from oncofed_client.plan_charges import Scored, tables_charge, tables_mechanism, training_charge
from oncofed_client.training import TrainingSet
from oncofed_shared.charged_statistics import patient_counts, statistics_mechanism
from oncofed_shared.consortium import ConsortiumMechanism
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.harmonise import Harmony
from oncofed_shared.layout import Layout
from oncofed_shared.messages import Arrays, Columns, Contribute
from oncofed_shared.network import FusionNetwork
from oncofed_shared.noised_tables import histogram_size
from oncofed_shared.plan import Plan

__all__ = ["PlannedShare", "check_histogram", "scores_share", "statistics_share", "training_share"]

LARGEST_COUNT = 2.0**53
"""Of a histogram: no number of patients, and no noise on one, comes near to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedShare:
    """A share before it is computed.

    Attributes:
        size: its length.
        charge: what it costs a patient.
        largest: magnitude of a coordinate, noise counted.
        share: makes it.
    """

    size: int
    charge: Charge
    largest: int
    share: Share


def check_histogram(plan: Plan, request: Contribute) -> None:
    """See that the histogram which came with a request is one that the plan's tables can be placed by.

    Raises:
        RemoteProtocolError: a length that its kind does not have, or a number that is none of patients (code `histogram`).
    """
    placed = request.kind == "scores" and bool(plan.evaluation.split.validation)
    size = histogram_size(plan) if placed else 0
    # Compared this way round, so that what is not a number is refused.
    if request.histogram.shape != (size,) or not bool((np.abs(request.histogram) <= LARGEST_COUNT).all()):
        raise RemoteProtocolError(
            f"a histogram of {size} counts was expected with a share of {request.kind}", code="histogram"
        )


def training_share(
    plan: Plan, network: FusionNetwork, layout: Layout, data: TrainingSet, parameters: Arrays
) -> PlannedShare:
    """A step's clipped, noised sum over the site's sampled patients."""
    mechanism = ConsortiumMechanism.for_plan(plan, parameters=layout.size)
    return PlannedShare(
        size=layout.size,
        charge=training_charge(mechanism, steps=1),
        largest=mechanism.room + mechanism.tail,
        share=lambda random: consortium_share(
            plan, network, layout, data, parameters, mechanism=mechanism, random=random
        ),
    )


def scores_share(plan: Plan, part: Scored, counts: NDArray[np.float64]) -> PlannedShare:
    """The noised counts of the site's patients of a part.

    Args:
        part: `validation` for the histogram of scores, `test` for the tables.
        counts: of `noised_tables`.
    """
    mechanism = tables_mechanism(plan, part)
    whole = np.rint(counts).astype(np.int64)
    return PlannedShare(
        size=mechanism.cells,
        charge=tables_charge(mechanism, part),
        largest=mechanism.room + mechanism.tail,
        share=lambda random: tables_share(whole, mechanism=mechanism, random=random),
    )


def statistics_share(plan: Plan, columns: Columns, train: Cohort, harmony: Harmony | None = None) -> PlannedShare:
    """The noised statistics of the site's training patients.

    Args:
        columns: that the sites agreed on.
        train: the training patients.
        harmony: what harmonises their values.
    """
    mechanism = statistics_mechanism(plan, columns)
    own = (train.values, train.columns, train.labels)
    total = patient_counts(plan, columns, *own, unit=mechanism.unit, harmony=harmony)
    return PlannedShare(
        size=mechanism.cells,
        charge=tables_charge(mechanism, "train"),
        largest=mechanism.room + mechanism.tail,
        share=lambda random: numbers_share(total, patients=len(train.patients), mechanism=mechanism, random=random),
    )
