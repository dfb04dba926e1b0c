"""A hospital's own location under a privacy budget: what harmonises its patients, noised by itself, and kept there.

A patient is one of those from whom his hospital's location follows, and so he moves the input of all others. With the location as
it is, clipping each patient's gradient bounds nothing. Here the location is a release of its own, with all the noise that one
hospital needs, charged, and drawn once per run; given its value, each patient's input depends on himself alone, and the steps bound
what he does (adaptive composition, Dwork et al. 2010). That nobody but the hospital sees the value changes nothing in that.

Only the location is found. A patient's row, each value in -1..1 by its declared range, is shortened as in `charged_products`; he
adds one, and the row. A scale would need squares as well, and with a hundred patients more noise than what scanners do.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.charged_products import FINEST
from oncofed_shared.combat import Location
from oncofed_shared.consortium import TablesMechanism
from oncofed_shared.features import column_ranges
from oncofed_shared.harmonise import Locations
from oncofed_shared.messages import Columns
from oncofed_shared.plan import ConsortiumPrivacy, Plan
from oncofed_shared.plan_harmonise import Combat

__all__ = ["charges_location", "location_mechanism", "location_size", "location_sums", "noised_locations"]

Values = NDArray[np.float64]
NOISES = 3.0
"""Standard deviations of the noise below which a noised number of patients is nobody's."""
WITHIN = 1 - 1e-12


def charges_location(plan: Plan) -> bool:
    """Whether hospitals noise and charge their own location."""
    return isinstance(plan.privacy, ConsortiumPrivacy) and plan.privacy.harmonise_epsilon is not None


def _asked(plan: Plan, columns: Columns) -> list[tuple[str, Combat, slice]]:
    """Harmonised modalities with their columns in a table of all."""
    found, start = [], 0
    for name in sorted(columns):
        settings, part = plan.modalities[name].harmonise, slice(start, start + len(columns[name]))
        start = part.stop
        if settings is not None and columns[name]:
            found.append((name, settings, part))
    return found


def location_size(plan: Plan, columns: Columns) -> int:
    """Length of what `location_sums` gives."""
    return sum(1 + part.stop - part.start for _, _, part in _asked(plan, columns))


def location_mechanism(plan: Plan, columns: Columns) -> TablesMechanism:
    """The release of a hospital's location: all the noise is its own.

    Raises:
        ConfigError: the plan charges none, or it does not fit an integer.
    """
    entries = 0.0
    for _, settings, part in _asked(plan, columns):
        count = part.stop - part.start
        exact = math.sqrt(1 + settings.bound**2 * count)
        entries += (exact + math.sqrt(1 + count) / (2 * FINEST)) ** 2
    cells = max(location_size(plan, columns), 1)
    return TablesMechanism.for_location(plan, cells=cells, entries=max(entries, 1.0), finest=FINEST)


def location_sums(plan: Plan, columns: Columns, table: Values, *, unit: int) -> NDArray[np.int64]:
    """Sum over patients of what each of them adds, (location_size,): per modality one, and his row, in integer steps of `unit`.

    Args:
        table: (n, columns) transformed, NaN where missing; a gap counts as the middle of its range.
        unit: FINEST at least.

    Guarantees:
        - One patient more or less changes it by a vector of length unit x sqrt(entries) at most, whatever his values are, and each
          number by `unit` at most. What he adds does not depend on who else is there.
    """
    middle, half = column_ranges(plan, columns)
    bounded = np.clip((table - middle) / half, -1, 1)
    parts = []
    for _, settings, part in _asked(plan, columns):
        own = bounded[:, part]
        seen = ~np.isnan(own)
        length = settings.bound * math.sqrt(own.shape[1]) * WITHIN
        total = np.zeros(1 + own.shape[1], dtype=np.int64)
        for row in np.where(seen, own, 0.0)[seen.any(axis=1)]:
            shortened = row * min(1.0, length / max(math.sqrt(float(row @ row)), length))
            total += np.rint(np.concatenate([[1.0], shortened]) * unit).astype(np.int64)
        parts.append(total)
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def noised_locations(plan: Plan, columns: Columns, released: Values, *, noise: float) -> Locations:
    """A hospital's location from its noised sums, shrunken towards the mean over its columns; its scale is 1.

    A column's shift is taken as normal over the columns of its modality. Noise has a variance that is known, so that the columns'
    own is what is left of theirs (Efron & Morris 1973). A hospital whose number of patients is small after noise is as if it were
    in the middle.

    Args:
        released: (location_size,) decoded, in patients.
        noise: standard deviation of the noise on each number; 0 for a hospital that finds its location for itself alone.
    """
    made: dict[str, tuple[Location, ...]] = {}
    start = 0
    for name, settings, part in _asked(plan, columns):
        count = part.stop - part.start
        patients, total = float(released[start]), released[start + 1 : start + 1 + count]
        start += 1 + count
        shift = np.zeros(count)
        if patients >= max(float(settings.minimum), NOISES * noise):
            found, error = total / patients, (noise / patients) ** 2
            spread = float(found.var(ddof=1)) if count > 1 else 0.0
            own = max(spread - error, 0.0) / spread if spread > 0 else 1.0
            shift = found.mean() + own * (found - found.mean())
        made[name] = (Location(shift=shift, scale=np.ones(count)),)
    return made
