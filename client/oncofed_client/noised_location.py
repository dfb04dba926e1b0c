"""A private run's location at one hospital: summed over its training patients, noised, charged, stored, and sent nowhere."""

from __future__ import annotations

import numpy as np

from oncofed_client.cohort import Cohort
from oncofed_client.contributor import Contributor
from oncofed_client.integer_step import numbers_share
from oncofed_client.plan_charges import tables_charge
from oncofed_shared.charged_location import location_mechanism, location_size, location_sums, noised_locations
from oncofed_shared.consortium import server_counts
from oncofed_shared.errors import LocalProtocolError
from oncofed_shared.features import aligned
from oncofed_shared.harmonise import Locations
from oncofed_shared.messages import Columns, Head
from oncofed_shared.plan import Plan

__all__ = ["noised_location"]


def noised_location(contributor: Contributor, plan: Plan, head: Head, columns: Columns, train: Cohort) -> Locations:
    """Where this hospital's values lie, by a release that its ledger charges once per run.

    Args:
        columns: of the preparation.
        train: its training patients.

    Guarantees:
        - Nothing of a patient is in it but by sums of bounded numbers, noised with all that one hospital needs.
        - However often it is asked for, by whatever process: one draw, one charge.

    Raises:
        PolicyRefusal: the run is not reserved, or was without it.
        LocalProtocolError: what is stored is of other columns.
    """
    mechanism = location_mechanism(plan, columns)
    table = aligned(plan, columns, train.values, train.columns)
    total = contributor.own_release(
        plan,
        head,
        what="location",
        charge=tables_charge(mechanism, "train"),
        compute=lambda random: numbers_share(
            location_sums(plan, columns, table, unit=mechanism.unit),
            patients=len(train.patients),
            mechanism=mechanism,
            random=random,
        ),
    )
    if len(total) != location_size(plan, columns):
        raise LocalProtocolError("the location of this run was found over other columns", code="location")
    released = server_counts(np.asarray(total), mechanism)
    return noised_locations(plan, columns, released, noise=mechanism.noise_std(1))
