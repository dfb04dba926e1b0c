"""What a site adds to a sum, as the plan wants it: its length, what it costs a patient, its largest number, how it is made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed_client.budget import Charge
from oncofed_client.contributor import Share
from oncofed_client.integer_step import consortium_share, tables_share
from oncofed_client.plan_charges import tables_charge, training_charge
from oncofed_client.training import TrainingSet
from oncofed_shared.consortium import ConsortiumMechanism, TablesMechanism
from oncofed_shared.layout import Layout
from oncofed_shared.messages import Arrays
from oncofed_shared.network import FusionNetwork
from oncofed_shared.noised_tables import coarse_size
from oncofed_shared.plan import Plan

__all__ = ["PlannedShare", "run_charges", "scores_share", "training_share"]


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


def _tables(plan: Plan) -> TablesMechanism:
    return TablesMechanism.for_plan(plan, cells=coarse_size(plan), entries=len(plan.tasks))


def run_charges(plan: Plan, layout: Layout) -> tuple[Charge, ...]:
    """Everything that a run may charge a patient: all steps with the spare ones, and the tables if they are released."""
    mechanism = ConsortiumMechanism.for_plan(plan, parameters=layout.size)
    charges: tuple[Charge, ...] = (training_charge(mechanism, steps=mechanism.steps),)
    if getattr(plan.privacy, "score_epsilon", None) is not None:
        charges += (tables_charge(_tables(plan)),)
    return charges


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


def scores_share(plan: Plan, counts: NDArray[np.float64]) -> PlannedShare:
    """The noised tables of the site's test patients.

    Args:
        counts: of `noised_tables.coarse_counts`.
    """
    mechanism = _tables(plan)
    whole = np.rint(counts).astype(np.int64)
    return PlannedShare(
        size=mechanism.cells,
        charge=tables_charge(mechanism),
        largest=mechanism.room + mechanism.tail,
        share=lambda random: tables_share(whole, mechanism=mechanism, random=random),
    )
