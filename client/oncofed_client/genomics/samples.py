"""Whose a sample is, and what was sequenced of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from oncofed_client.genomics.lines import fault, text_rows
from oncofed_client.genomics.settings import Limits, Samples

__all__ = ["SampleLinks", "read_samples"]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class SampleLinks:
    """From samples to patients.

    Attributes:
        patients: sample -> patient, for those in the table of samples; None where there is no table.
        panels: patient -> names of the panels of his samples.
        characters: without a table, how many characters of a sample are the patient; None means all.
    """

    patients: Mapping[str, str] | None = None
    panels: Mapping[str, frozenset[str]] = field(default_factory=dict)
    characters: int | None = None

    def patient_of(self, sample: str) -> str | None:
        """The patient of a sample, or None for a sample that is not in the table."""
        if self.patients is not None:
            return self.patients.get(sample)
        return sample[: self.characters] or None


def read_samples(folder: Path, settings: Samples | None, limits: Limits) -> SampleLinks:
    """Read the table of samples, where there is one.

    Raises:
        DataError: a column is absent, a cell empty, a sample stands twice.
    """
    if settings is None or settings.file is None:
        return SampleLinks(characters=settings.characters if settings else None)
    path = folder / settings.file
    rows = text_rows(path, limits)
    row, header = next(rows, (1, []))
    wanted = [settings.sample, settings.patient, *([settings.panel] if settings.panel else [])]
    for column in wanted:
        if column not in header:
            raise fault(path, f"expected the column '{column}'; name the right one under genomics.samples", row=row)
    places = [header.index(column) for column in wanted]
    patients: dict[str, str] = {}
    panels: dict[str, set[str]] = {}
    for row, cells in rows:
        if len(cells) != len(header):
            raise fault(path, f"expected {len(header)} cells as in the header, found {len(cells)}", row=row)
        sample, patient, *panel = (cells[i] for i in places)
        if not (sample and patient):
            raise fault(path, "expected a sample and a patient, a cell is empty", row=row)
        if sample in patients:
            raise fault(path, "this sample stands in an earlier row too; expected one row per sample", row=row)
        patients[sample] = patient
        panels.setdefault(patient, set()).update(p for p in panel if p)
    return SampleLinks(patients=patients, panels={p: frozenset(names) for p, names in panels.items()})
