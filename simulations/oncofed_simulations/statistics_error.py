"""What noise has made of a private run's statistics: beside the released means and spreads the exact ones, which nobody releases.

python -m oncofed_simulations.statistics_error simulations/studies/statistics_private.toml out/statistics out/statistics/cohort
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oncofed_client.predicting import read_model
from oncofed_client.source import keep_rows
from oncofed_shared.errors import ConfigError, OncofedError
from oncofed_shared.features import Preparation, column_sums, prepare
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan, load
from oncofed_simulations.consortium import open_site
from oncofed_simulations.folders import site_folders

__all__ = ["Beside", "compared", "main"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """A column's centre and spread as they were released, and as they are."""

    column: str
    center: tuple[float, float]
    spread: tuple[float, float]


def _exact(plan: Plan, released: Preparation, folders: Sequence[Path]) -> Preparation:
    total = np.zeros(1)
    for folder in folders:
        site = open_site(folder, plan, state=None, minimum=None)
        cohort = site.source.cohort(plan)
        train = keep_rows(cohort, site.source.split(plan, cohort, Trial(seed=0)) == 0)
        sums = column_sums(plan, released.columns, train.values, train.columns, train.labels)
        total = total + sums
    return prepare(plan, released.columns, total)


def compared(plan: Plan, out: Path, sites: Path) -> list[Beside]:
    """Every column of a run's preparation, released and exact, over the training patients of seed 0.

    Raises:
        ConfigError: the run released no statistics.
    """
    released = read_model(out / "model.safetensors").preparation
    if not len(released.statistics):
        raise ConfigError(f"{out}: this run released no statistics; its plan has no privacy.statistics_epsilon")
    exact = _exact(plan, released, site_folders(sites))
    names = [f"{m}.{c}" for m, own in released.columns.items() for c in own]
    rows = zip(names, released.center, exact.center, released.spread, exact.spread, strict=True)
    return [Beside(column=name, center=(float(a), float(b)), spread=(float(c), float(d))) for name, a, b, c, d in rows]


def main(arguments: Sequence[str]) -> int:
    """Print the table; the exit code."""
    if len(arguments) != 3:
        print((__doc__ or "").strip().splitlines()[-1], file=sys.stderr)
        return 2
    study, out, sites = map(Path, arguments)
    try:
        rows = compared(load(study), out, sites)
    except OncofedError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    print(f"{'column':40} {'mean':>10} {'exact':>10} {'spread':>10} {'exact':>10}")
    for row in rows:
        print(
            f"{row.column:40} {row.center[0]:10.3f} {row.center[1]:10.3f} {row.spread[0]:10.3f} {row.spread[1]:10.3f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
