"""What every reader of raw files gives: one number per patient and feature, and what a person should know about it.

Patients are the site's own ids. They never leave the site, and the cache replaces them by keyed pseudonyms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FeatureTable", "joined"]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class FeatureTable:
    """Features of some patients.

    Attributes:
        columns: (c,) names in the study's words, unique: `TP53_rnaseq`, `shape_VoxelVolume`.
        patients: (n,) local ids, unique.
        values: (n, c) float64 in the study's units; NaN is missing. No infinite value.
        problems: what a person should know and what did not stop the reading: names of files, columns and genes and
            counts, never a patient's value or id.

    Raises:
        ValueError: shapes, names or values contradict this: a defect of the reader, not of its files.
    """

    columns: tuple[str, ...]
    patients: tuple[str, ...]
    values: NDArray[np.float64]
    problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.patients), len(self.columns)) or self.values.dtype != np.float64:
            expected = f"float64 {(len(self.patients), len(self.columns))}"
            raise ValueError(f"values are {self.values.dtype} {self.values.shape}, expected {expected}")
        if len(set(self.columns)) != len(self.columns) or len(set(self.patients)) != len(self.patients):
            raise ValueError("columns and patients must be unique")
        if np.isinf(self.values).any():
            raise ValueError("values must be finite, or NaN where missing")

    def __repr__(self) -> str:
        return f"FeatureTable({len(self.patients)} patients, {len(self.columns)} columns)"

    def rows_of(self, patients: Sequence[str]) -> NDArray[np.float64]:
        """Values of the given patients, (len(patients), c); a patient who is not in this table has NaN throughout."""
        place = {p: i for i, p in enumerate(self.patients)}
        made = np.full((len(patients), len(self.columns)), np.nan)
        for row, patient in enumerate(patients):
            if patient in place:
                made[row] = self.values[place[patient]]
        return made


def joined(tables: Sequence[FeatureTable]) -> FeatureTable:
    """Put tables side by side over all their patients, sorted by id; what a table lacks is NaN.

    Raises:
        ValueError: two tables have a column of the same name.
    """
    patients = tuple(sorted({p for table in tables for p in table.patients}))
    blocks = [table.rows_of(patients) for table in tables]
    return FeatureTable(
        columns=tuple(c for table in tables for c in table.columns),
        patients=patients,
        values=np.hstack(blocks) if blocks else np.empty((len(patients), 0)),
        problems=tuple(dict.fromkeys(p for table in tables for p in table.problems)),
    )
