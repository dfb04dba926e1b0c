"""What a plan charges a site's patients: read off the mechanism that the trainer uses, so that the two cannot differ."""

from __future__ import annotations

import math
from typing import Literal

from oncofed_client.budget import Charge
from oncofed_shared.charged_location import charges_location, location_mechanism
from oncofed_shared.charged_statistics import charges_statistics, statistics_mechanism
from oncofed_shared.consortium import ConsortiumMechanism, TablesMechanism
from oncofed_shared.messages import Columns
from oncofed_shared.noised_tables import coarse_entries, coarse_size, histogram_size, placed_grid
from oncofed_shared.plan import ConsortiumPrivacy, Plan, SitePrivacy
from oncofed_shared.privacy import Mechanism, in_roster

__all__ = [
    "Scored",
    "plan_charges",
    "promised",
    "tables_charge",
    "tables_mechanism",
    "training_charge",
]

Scored = Literal["validation", "test"]
"""Patients of whom tables are released: of the first where their scores lie, of the second how they did."""


def promised(plan: Plan) -> tuple[float, float]:
    """Epsilon and delta that a private plan promises to a patient, who trains or tests and never both."""
    privacy = plan.privacy
    if isinstance(privacy, ConsortiumPrivacy):
        return max(privacy.training_epsilon, privacy.score_epsilon or 0.0), privacy.delta
    if isinstance(privacy, SitePrivacy):
        return privacy.epsilon, privacy.delta
    return math.inf, 0.0


def training_charge(mechanism: ConsortiumMechanism | Mechanism, *, steps: int) -> Charge:
    """What `steps` steps of training cost a training patient."""
    if isinstance(mechanism, Mechanism):
        # All the noise is the site's own: it does not matter who colludes.
        noise = mechanism.noise_multiplier
        return Charge(
            sampling_rate=mechanism.sampling_rate, noise_multiplier=noise, own_noise_multiplier=noise, steps=steps
        )
    return Charge(
        sampling_rate=mechanism.sampling_rate,
        noise_multiplier=mechanism.noise_multiplier,
        own_noise_multiplier=mechanism.own_noise_multiplier,
        steps=steps,
        slack=mechanism.error(1),
    )


def tables_charge(mechanism: TablesMechanism, part: Literal["train", "validation", "test"] = "test") -> Charge:
    """What noised tables cost a patient of the part that is tabulated, and noised statistics a training patient."""
    return Charge(
        sampling_rate=1.0,
        noise_multiplier=mechanism.noise_multiplier,
        own_noise_multiplier=mechanism.own_noise_multiplier,
        part=part,
        slack=mechanism.error(),
    )


def tables_mechanism(plan: Plan, part: Scored) -> TablesMechanism:
    """Of the histogram of scores over validation patients, or of the tables over test patients.

    Raises:
        ConfigError: the plan charges no tables.
    """
    size = histogram_size(plan) if part == "validation" else coarse_size(plan, placed_grid(plan))
    return TablesMechanism.for_plan(plan, cells=size, entries=coarse_entries(plan))


def plan_charges(plan: Plan, site: str, *, parameters: int = 1, columns: Columns | None = None) -> tuple[Charge, ...]:
    """Everything that a plan may ever charge a patient of a site, spare steps counted; nothing for a plan without noise.

    A patient trains, validates or tests: charges of different parts are of different patients.

    Args:
        parameters: of the network. Noise does not depend on it, but for roundings in the ninth digit; a preview may leave it out.
        columns: that the sites agreed on, by whose number statistics are rounded; likewise.

    Raises:
        ConfigError: the site is not in the roster, or no sensible noise reaches the plan's epsilon.
    """
    if isinstance(plan.privacy, SitePrivacy):
        mechanism = Mechanism.for_plan(plan, site)
        return (training_charge(mechanism, steps=mechanism.steps),)
    if not isinstance(plan.privacy, ConsortiumPrivacy):
        return ()
    in_roster(plan.privacy, site)
    pooled = ConsortiumMechanism.for_plan(plan, parameters=parameters)
    charges: tuple[Charge, ...] = (training_charge(pooled, steps=pooled.steps),)
    nobody: Columns = {}
    known = nobody | dict.fromkeys(plan.modalities, ()) if columns is None else columns
    if charges_statistics(plan):
        charges += (tables_charge(statistics_mechanism(plan, known), "train"),)
    if charges_location(plan):
        charges += (tables_charge(location_mechanism(plan, known), "train"),)
    if plan.privacy.score_epsilon is None:
        return charges
    parts: tuple[Scored, ...] = ("validation", "test") if plan.evaluation.split.validation else ("test",)
    return charges + tuple(tables_charge(tables_mechanism(plan, part), part) for part in parts)
