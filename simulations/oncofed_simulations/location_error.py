"""What a private run's noised locations leave of what scanners do: how far hospitals lie apart, which nobody releases.

python -m oncofed_simulations.location_error simulations/studies/scanners_private.toml out/located out/located/cohort
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed_client.locations import harmony_of, kept_locations
from oncofed_client.predicting import read_model
from oncofed_client.source import keep_rows
from oncofed_shared.errors import ConfigError, OncofedError
from oncofed_shared.features import aligned
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan, load
from oncofed_simulations.consortium import open_site
from oncofed_simulations.folders import site_folders

__all__ = ["Apart", "apart", "main"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Apart:
    """A hospital's distance from the mean of all: root mean square over columns, in standard deviations within hospitals.

    Attributes:
        patients: training patients with a harmonised column.
        before, after: of its own values, and of harmonised ones.
    """

    hospital: str
    patients: int
    before: float
    after: float


def _means(tables: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(hospitals, columns) means less the mean of all patients, in standard deviations within hospitals."""
    means = np.array([np.nanmean(t, axis=0) for t in tables])
    within = np.concatenate([t - m for t, m in zip(tables, means, strict=True)])
    return np.asarray((means - np.nanmean(np.concatenate(tables), axis=0)) / np.nanstd(within, axis=0))


def apart(plan: Plan, out: Path, sites: Path) -> list[Apart]:
    """Every hospital that has a harmonised modality, over the training patients of seed 0.

    Raises:
        ConfigError: the run noised no locations.
    """
    preparation = read_model(out / "model.safetensors").preparation
    columns = preparation.columns
    marks = [plan.modalities[m].harmonise is not None for m in sorted(columns) for _ in columns[m]]
    found = []
    for folder in site_folders(sites):
        site = open_site(folder, plan, state=None, minimum=None)
        locations = kept_locations(out / "sites" / site.name, plan, preparation)
        if locations is None:
            raise ConfigError(f"{out}: this run noised no locations; its plan has no privacy.harmonise_epsilon")
        cohort = site.source.cohort(plan)
        train = keep_rows(cohort, site.source.split(plan, cohort, Trial(seed=0)) == 0)
        harmony = harmony_of(preparation.harmonisation, locations, train, slice(None))
        both = [aligned(plan, columns, train.values, train.columns, h)[:, marks] for h in (None, harmony)]
        has = ~np.isnan(both[0]).all(axis=1)
        if has.any():
            found.append((site.name, [table[has] for table in both]))
    before, after = (_means([tables[i] for _, tables in found]) for i in (0, 1))
    return [
        Apart(hospital=name, patients=len(tables[0]), before=_root(before[i]), after=_root(after[i]))
        for i, (name, tables) in enumerate(found)
    ]


def _root(values: NDArray[np.float64]) -> float:
    return float(np.sqrt((values**2).mean()))


def main(arguments: Sequence[str]) -> int:
    """Print the table; the exit code."""
    if len(arguments) != 3:
        print((__doc__ or "").strip().splitlines()[-1], file=sys.stderr)
        return 2
    study, out, sites = map(Path, arguments)
    try:
        rows = apart(load(study), out, sites)
    except OncofedError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    print(f"{'hospital':20} {'patients':>8} {'before':>8} {'after':>8}")
    for row in rows:
        print(f"{row.hospital:20} {row.patients:8} {row.before:8.2f} {row.after:8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
