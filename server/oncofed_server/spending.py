"""What a plan spends at each site, for the report: the same numbers that the site's ledger is charged."""

from __future__ import annotations

import math
from dataclasses import dataclass

from oncofed_shared.charged_location import charges_location, location_mechanism
from oncofed_shared.charged_statistics import charges_statistics, statistics_mechanism
from oncofed_shared.consortium import ConsortiumMechanism
from oncofed_shared.plan import ConsortiumPrivacy, Plan
from oncofed_shared.privacy import Mechanism

__all__ = ["Spending", "spending"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spending:
    """Of one site in one run.

    Attributes:
        patients: public number of its training patients.
        epsilon, delta: for a training patient, against at most the plan's colluders, statistics before training counted.
        epsilon_alone: by the site's own noise alone, if all others collude; None where that is no bound at all.
    """

    patients: int
    epsilon: float
    delta: float
    epsilon_alone: float | None


def spending(plan: Plan, site: str) -> Spending:
    """What a private plan spends at a site of its roster.

    Raises:
        ConfigError: it is not in the roster, or no noise reaches the plan's epsilon.
    """
    privacy = plan.privacy
    if not isinstance(privacy, ConsortiumPrivacy):
        own = Mechanism.for_plan(plan, site)
        return Spending(patients=own.patients, epsilon=own.epsilon(), delta=own.delta, epsilon_alone=own.epsilon())
    # Noise does not depend on the number of parameters but for roundings in the ninth digit.
    mechanism = ConsortiumMechanism.for_plan(plan, parameters=1)
    found, alone = mechanism.epsilon(), mechanism.epsilon_alone()
    if charges_statistics(plan):
        # Each holds with its part of delta, and their sum with all of it.
        statistics = statistics_mechanism(plan, dict.fromkeys(plan.modalities, ()))
        found, alone = found + statistics.epsilon(), alone + statistics.epsilon_alone()
    if charges_location(plan):
        location = location_mechanism(plan, dict.fromkeys(plan.modalities, ()))
        found, alone = found + location.epsilon(), alone + location.epsilon_alone()
    return Spending(
        patients=privacy.patients[site],
        epsilon=found,
        delta=privacy.delta,
        epsilon_alone=alone if math.isfinite(alone) else None,
    )
