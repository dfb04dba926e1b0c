"""Patients of whom nobody knows the outcome yet: read as a study reads its own, but without labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed_client.cohort import nobody_consented
from oncofed_client.columns import read_modality, reserved_columns
from oncofed_client.consent import allowed_patients
from oncofed_client.prepare.cache import Cache
from oncofed_client.prepare.tables import prepared_tables
from oncofed_client.settings import SiteSettings
from oncofed_client.tables import Problems, load_tables
from oncofed_shared.plan import Plan

__all__ = ["Newcomers", "read_newcomers"]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class Newcomers:
    """Patients whom a model can say something about.

    Attributes:
        patients: (n,) local ids, sorted.
        values: per modality (n, columns), in plan units; NaN = missing.
        columns: per modality the encoded column names.
        present: per modality (n,).
        left_out: patients who may be looked at and lack what the plan requires.
    """

    patients: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    columns: dict[str, tuple[str, ...]]
    present: dict[str, NDArray[np.bool_]]
    left_out: int

    def __repr__(self) -> str:
        return f"Newcomers({len(self.patients)} patients)"


def read_newcomers(folder: Path, settings: SiteSettings, plan: Plan, cache: Cache | None = None) -> Newcomers:
    """Read patients for a prediction: labels are neither needed nor looked at.

    Guarantees:
        - Only patients whom `[consent]` lets in, as everywhere.
        - Each has every modality that the plan requires, and at least one.

    Raises:
        DataError: files are malformed, all problems at once.
        PolicyRefusal: no consent is stated, or nobody gave it.
    """
    problems = Problems()
    tables = load_tables(folder, settings, problems)
    problems.raise_if_any()
    allowed = allowed_patients(tables, settings)
    if not allowed:
        raise nobody_consented(folder)
    tables |= prepared_tables(settings, plan, cache, allowed)
    order, reserved = tuple(sorted(allowed)), reserved_columns(plan, settings)
    blocks = {name: read_modality(tables, m, order, reserved, problems) for name, m in plan.modalities.items()}
    problems.raise_if_any()
    usable = np.logical_or.reduce([block.present for block in blocks.values()])
    for name, modality in plan.modalities.items():
        if modality.required:
            usable &= blocks[name].present
    return Newcomers(
        patients=tuple(p for p, keep in zip(order, usable, strict=True) if keep),
        values={m: b.values[usable] for m, b in blocks.items()},
        columns={m: b.columns for m, b in blocks.items()},
        present={m: b.present[usable] for m, b in blocks.items()},
        left_out=int(np.count_nonzero(~usable)),
    )
