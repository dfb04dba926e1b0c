"""What was prepared, as tables of the site: from here on raw files and ready tables go the same way."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from oncofed_client.prepare.cache import Cache
from oncofed_client.prepare.feature_table import FeatureTable, joined
from oncofed_client.prepare.recipes import prepared_modalities, recipe, table_of
from oncofed_client.settings import SiteSettings, TableSettings
from oncofed_client.tables import Table
from oncofed_shared.errors import DataError
from oncofed_shared.plan import Plan

__all__ = ["as_table", "prepared_tables"]


def as_table(name: str, where: str, features: FeatureTable) -> Table:
    """A table of features as if it had been read from a file: numbers as the shortest text that gives them back."""
    cells = np.full(features.values.shape, "", dtype=object)
    for row, column in np.argwhere(~np.isnan(features.values)).tolist():
        cells[row, column] = repr(float(features.values[row, column]))
    return Table(
        name=name,
        file=where,
        ids=features.patients,
        columns=features.columns,
        cells=cells,
        lines=np.arange(1, len(features.patients) + 1, dtype=np.int64),
        settings=TableSettings(file=f"{name}.csv"),
    )


def _features(cache: Cache, recipe_hash: str, patients: Collection[str]) -> FeatureTable | None:
    """Entries of one modality, side by side; None when no patient has one.

    Raises:
        Damaged: an entry was changed.
    """
    found = {patient: entry for patient in sorted(patients) if (entry := cache.get(patient, recipe_hash)) is not None}
    if not found:
        return None
    columns = tuple(sorted({c for entry in found.values() for c in entry.columns}))
    place = {c: i for i, c in enumerate(columns)}
    values = np.full((len(found), len(columns)), np.nan)
    for row, entry in enumerate(found.values()):
        values[row, [place[c] for c in entry.columns]] = entry.values
    return FeatureTable(columns=columns, patients=tuple(found), values=values)


def prepared_tables(
    settings: SiteSettings, plan: Plan, cache: Cache | None, patients: Collection[str]
) -> dict[str, Table]:
    """Tables of the modalities that this site makes from raw files, for the given patients, by their logical names.

    A patient without an entry is not in the table; a modality that nobody has an entry of has no table, as if the site
    lacked it.

    Args:
        settings: the site's.
        plan: the study.
        cache: None for a site that keeps no state; it then has no such modality.
        patients: who may enter; nothing of others is read.

    Raises:
        Damaged: an entry was changed; preprocessing makes it anew.
        DataError: two modalities of one table have a column of the same name.
    """
    if cache is None:
        return {}
    by_table: dict[str, list[FeatureTable]] = {}
    for name, modality in prepared_modalities(plan, settings).items():
        features = _features(cache, recipe(modality, settings), patients)
        if features is not None:
            by_table.setdefault(table_of(name, modality), []).append(features)
    try:
        return {name: as_table(name, f"{name}, prepared", joined(parts)) for name, parts in by_table.items()}
    except ValueError:
        raise DataError(
            "two modalities of this study are prepared into one table with columns of the same name; "
            "give each its own `table` in the plan"
        ) from None
