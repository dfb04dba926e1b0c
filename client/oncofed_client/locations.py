"""A hospital's own location and scale in a plan's harmonised modalities: found here, kept here, sent nowhere.

They are found once per run, from who trains in it, and kept in the state folder for predictions with the model of that run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_shared.combat import Location
from oncofed_shared.errors import DataError
from oncofed_shared.features import Preparation, aligned
from oncofed_shared.harmonise import Harmony, Locations, harmonise_sums, locations_of
from oncofed_shared.messages import Columns
from oncofed_shared.plan import Plan
from oncofed_shared.storage import read_arrays, write_arrays

__all__ = ["LOCATIONS", "harmony_of", "keep_locations", "kept_locations", "own_locations", "own_sums"]

FINE = 1 << 40
"""Steps of one patient where sums are not noised."""
Fixed = Mapping[str, NDArray[np.float64]]
LOCATIONS = "harmonisation"
"""Folder in a site's state."""


def _hospital(cohort: Cohort) -> NDArray[np.int64]:
    return np.zeros(len(cohort.patients), dtype=np.int64) if cohort.hospital is None else cohort.hospital


def own_sums(plan: Plan, columns: Columns, cohort: Cohort, train: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The sums by which a harmonisation is agreed on, over a cohort's training patients.

    Guarantees:
        - Sums over training patients, never a row.
    """
    table = aligned(plan, columns, cohort.values, cohort.columns)
    return harmonise_sums(plan, columns, table[train], _hospital(cohort)[train])


def own_locations(
    plan: Plan, columns: Columns, fixed: Fixed, cohort: Cohort, train: NDArray[np.bool_]
) -> Locations | None:
    """Where a hospital's values lie, from who trains in it; None where nothing is harmonised.

    Args:
        fixed: what was agreed, by `<modality>.<what>`.
        train: (n,); where nobody of a hospital trains, all of its patients say it, without their labels.

    Raises:
        PolicyRefusal: a hospital has too few patients with a modality (code `too-few-to-harmonise`).
    """
    if not fixed:
        return None
    table = aligned(plan, columns, cohort.values, cohort.columns)
    found = locations_of(plan, columns, fixed, table, _hospital(cohort), train=train)
    if plan.privacy.noise == "none":
        return found
    # A model of a private run was trained on locations alone, each from bounded rows. Here nothing leaves, and there is no noise.
    from oncofed_shared.charged_location import location_sums, noised_locations  # noqa: PLC0415 - accountants take seconds to import

    rows = table[train] if bool(train.any()) else table
    return noised_locations(plan, columns, location_sums(plan, columns, rows, unit=FINE) / FINE, noise=0.0)


def harmony_of(
    fixed: Fixed, locations: Locations | None, cohort: Cohort, rows: NDArray[np.bool_] | slice
) -> Harmony | None:
    """What harmonises the chosen patients of a cohort; None where nothing is harmonised."""
    if locations is None:
        return None
    return Harmony(fixed=fixed, locations=locations, hospital=_hospital(cohort)[rows])


def _place(state: Path, plan: Plan, preparation: Preparation) -> Path:
    """The file of a run's locations: named by what was agreed in that run, which its model has in it."""
    digest = hashlib.sha256(plan.hash.encode())
    for name in sorted(preparation.harmonisation):
        digest.update(name.encode() + preparation.harmonisation[name].astype("<f8").tobytes())
    return state / LOCATIONS / f"{digest.hexdigest()[:32]}.safetensors"


def keep_locations(state: Path, plan: Plan, preparation: Preparation, locations: Locations) -> None:
    """Write a run's locations down, for predictions with its model.

    Raises:
        StorageError: they cannot be written.
    """
    arrays = {
        f"{name}.{i}.{what}": array
        for name, own in locations.items()
        for i, location in enumerate(own)
        for what, array in (("shift", location.shift), ("scale", location.scale))
    }
    facts = {"plan_hash": plan.hash, "hospitals": {name: len(own) for name, own in locations.items()}}
    write_arrays(_place(state, plan, preparation), arrays, facts, private=True)


def kept_locations(state: Path | None, plan: Plan, preparation: Preparation) -> Locations | None:
    """The locations that this site found in the run of a model; None where it took no part in it.

    Raises:
        DataError: the file is damaged.
    """
    if state is None or not preparation.harmonisation:
        return None
    path = _place(state, plan, preparation)
    if not path.exists():
        return None
    arrays, facts = read_arrays(path)
    try:
        made = {
            str(name): tuple(
                Location(shift=arrays[f"{name}.{i}.shift"], scale=arrays[f"{name}.{i}.scale"])
                for i in range(int(count))
            )
            for name, count in facts["hospitals"].items()
        }
        sound = all(
            len(location.shift) == len(preparation.columns[name]) == len(location.scale)
            for name, own in made.items()
            for location in own
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise DataError(
            f"{path}: is damaged; delete it, and the location is found anew from the patients that are given"
        )
    return made
