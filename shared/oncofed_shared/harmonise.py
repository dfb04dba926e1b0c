"""A plan's harmonisation over its modalities: what a site sends, what is agreed, and what a site makes of its own patients.

    site's training patients -> harmonise_sums -> sum over sites -> agree_on -> every site: locations_of -> harmonised

Tables are (n, all columns), modalities by name, after the transform and before scaling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.combat import (
    Location,
    Pooled,
    combat_size,
    combat_sums,
    located,
    location_of,
    pooled_of,
    standardised,
)
from oncofed_shared.errors import PolicyRefusal, RemoteProtocolError
from oncofed_shared.messages import Columns
from oncofed_shared.plan import Plan
from oncofed_shared.plan_harmonise import Combat

__all__ = [
    "TOO_FEW",
    "Harmony",
    "Locations",
    "agree_on",
    "check_harmonisation",
    "constant_harmonisation",
    "harmonise_size",
    "harmonise_sums",
    "harmonised",
    "harmonises",
    "locations_of",
]

Values = NDArray[np.float64]
Hospital = NDArray[np.int64]
Locations = Mapping[str, tuple[Location, ...]]
"""Per harmonised modality a location for each hospital: one at a site, several where a simulation has pooled patients."""
TOO_FEW = "too-few-to-harmonise"
"""Code of a site that cannot find its own location."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Harmony:
    """What harmonises the patients of a table.

    Attributes:
        fixed: what was agreed, flat, by `<modality>.<what>`.
        locations: of each hospital.
        hospital: (n,) whose patient each row is.
    """

    fixed: Mapping[str, Values]
    locations: Locations
    hospital: Hospital


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """One harmonised modality: its settings, its columns in a table, and those of its covariates."""

    name: str
    settings: Combat
    part: slice
    covariates: list[int]

    @property
    def columns(self) -> int:
        return int(self.part.stop - self.part.start)


def _asked(plan: Plan, columns: Columns) -> Iterator[_Asked]:
    starts, start = {}, 0
    for name in sorted(columns):
        starts[name], start = start, start + len(columns[name])
    for name in sorted(columns):
        settings = plan.modalities[name].harmonise
        if settings is None or not columns[name]:
            continue
        places: list[int] = []
        for covariate in settings.covariates:
            where, _, column = covariate.partition(".")
            own = columns.get(where, ())
            # Of a category's columns the first says nothing that the others do not.
            marks = [i for i, c in enumerate(own) if c.startswith(f"{column}=")][1:]
            places += [starts[where] + i for i in marks or [i for i, c in enumerate(own) if c == column]]
        part = slice(starts[name], starts[name] + len(columns[name]))
        yield _Asked(name=name, settings=settings, part=part, covariates=places)


def harmonises(plan: Plan, columns: Columns) -> bool:
    """Whether any of these columns is harmonised."""
    return any(True for _ in _asked(plan, columns))


def harmonise_size(plan: Plan, columns: Columns) -> int:
    """Length of a site's sums."""
    return sum(combat_size(a.columns, len(a.covariates)) for a in _asked(plan, columns))


def harmonise_sums(plan: Plan, columns: Columns, table: Values, hospital: Hospital) -> Values:
    """A site's sums over its patients, modality after modality.

    Args:
        table: (n, columns), NaN where missing.
        hospital: (n,) whose patient each row is.

    Returns:
        (harmonise_size,) floats, additive over sites.

    Guarantees:
        - Sums over patients, never a row.
    """
    parts = []
    for a in _asked(plan, columns):
        total = np.zeros(combat_size(a.columns, len(a.covariates)))
        for own in np.unique(hospital):
            rows = table[hospital == own]
            total += combat_sums(rows[:, a.part], rows[:, a.covariates])
        parts.append(total)
    return np.concatenate(parts)


def agree_on(plan: Plan, columns: Columns, sums: Values) -> dict[str, Values]:
    """What follows from the sums of all sites, by `<modality>.<what>`.

    Raises:
        RemoteProtocolError: they cannot be those of patients.
    """
    fixed: dict[str, Values] = {}
    start = 0
    if len(sums) != harmonise_size(plan, columns):
        raise RemoteProtocolError("sums do not fit the columns that are harmonised")
    for a in _asked(plan, columns):
        size = combat_size(a.columns, len(a.covariates))
        pooled = pooled_of(sums[start : start + size], columns=a.columns, covariates=len(a.covariates))
        fixed |= {f"{a.name}.{what}": array for what, array in pooled.flat().items()}
        start += size
    return fixed


def constant_harmonisation(plan: Plan, columns: Columns, middle: Values, half: Values) -> dict[str, Values]:
    """What a private plan harmonises by, in place of `agree_on`; nothing without privacy, and where nothing is harmonised.

    Args:
        middle, half: of the declared range of each column, transformed.
    """
    fixed: dict[str, Values] = {}
    for a in _asked(plan, columns) if plan.privacy.noise != "none" else ():
        nothing = np.zeros(0)
        pooled = Pooled(mean=middle[a.part], spread=half[a.part], effects=nothing.reshape(0, a.columns), middle=nothing)
        fixed |= {f"{a.name}.{what}": array for what, array in pooled.flat().items()}
    return fixed


def _pooled(asked: _Asked, fixed: Mapping[str, Values]) -> Pooled:
    own = {n.removeprefix(f"{asked.name}."): v for n, v in fixed.items() if n.startswith(f"{asked.name}.")}
    return Pooled.parse(own, columns=asked.columns, covariates=len(asked.covariates))


def check_harmonisation(plan: Plan, columns: Columns, fixed: Mapping[str, Values]) -> None:
    """Compare what was agreed with the plan.

    Raises:
        RemoteProtocolError: an array is too many or too few, has a wrong length, or holds what cannot be.
    """
    asked = list(_asked(plan, columns))
    wanted = {f"{a.name}.{what}" for a in asked for what in ("mean", "spread", "effects", "middle")}
    if set(fixed) != wanted:
        raise RemoteProtocolError("what is agreed of a harmonisation does not fit the plan")
    for a in asked:
        _pooled(a, fixed)


def locations_of(
    plan: Plan,
    columns: Columns,
    fixed: Mapping[str, Values],
    table: Values,
    hospital: Hospital,
    *,
    train: NDArray[np.bool_],
) -> Locations:
    """Each hospital's own location in each harmonised modality, which stays where it is found.

    It is found from the training patients who have the modality; a hospital of which nobody trains finds it from all of its
    patients. No label is looked at.

    Args:
        table: (n, columns) all patients, NaN where missing.
        train: (n,) who trains.

    Raises:
        PolicyRefusal: a hospital has some patients with the modality, and fewer than the plan's `minimum` (code TOO_FEW).
    """
    made: dict[str, tuple[Location, ...]] = {}
    for a in _asked(plan, columns):
        pooled, own = _pooled(a, fixed), []
        has = ~np.isnan(table[:, a.part]).all(axis=1)
        for number in range(int(hospital.max(initial=0)) + 1):
            here = has & (hospital == number)
            rows = here & train if bool((here & train).any()) else here
            count = int(rows.sum())
            if 0 < count < a.settings.minimum:
                raise PolicyRefusal(
                    f"modality {a.name}: {count} patients are too few to find this hospital's own location and scale; the plan "
                    f"asks for {a.settings.minimum} (modalities.{a.name}.harmonise.minimum)",
                    code=TOO_FEW,
                )
            own.append(location_of(standardised(pooled, table[rows][:, a.part], table[rows][:, a.covariates])))
        made[a.name] = tuple(own)
    return made


def harmonised(plan: Plan, columns: Columns, table: Values, harmony: Harmony) -> Values:
    """(n, columns) the table with harmonised values in place of the hospitals' own; NaN where missing.

    Raises:
        RemoteProtocolError: what was agreed does not fit the plan.
    """
    made = table.copy()
    for a in _asked(plan, columns):
        pooled = _pooled(a, harmony.fixed)
        for number, location in enumerate(harmony.locations[a.name]):
            rows = np.flatnonzero(harmony.hospital == number)
            made[rows, a.part] = located(pooled, location, table[rows, a.part], table[rows][:, a.covariates])
    return made
