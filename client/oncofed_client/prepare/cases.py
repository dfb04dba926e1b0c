"""The radiomics of a site as cases: one patient and one modality, with the files that they take."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from oncofed_client.imaging.regions import read_region
from oncofed_client.imaging.series import Inventory, Series
from oncofed_client.imaging.settings import ImagingSettings
from oncofed_client.imaging.volume import read_volume
from oncofed_client.prepare.cache import Entry
from oncofed_client.prepare.radiomics import Extraction, extract
from oncofed_shared.plan import RadiomicFeatures

__all__ = ["Case", "image_cases", "measure"]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Case:
    """One patient's features of one modality, still to be made from files.

    Attributes:
        patient: the site's own id.
        modality: the study's name of it.
        images: role -> series of this patient.
        regions: outlines, segments and masks of these series.
        features: what the study asks.
        extraction: how pyradiomics is set.
        settings: how the site's files are read.
    """

    patient: str
    modality: str
    images: dict[str, Series]
    regions: tuple[Series, ...]
    features: RadiomicFeatures
    extraction: Extraction
    settings: ImagingSettings

    def __repr__(self) -> str:
        return f"Case({self.modality!r}, {len(self.images)} images)"

    @property
    def series(self) -> tuple[Series, ...]:
        """All series that it takes, images first."""
        return (*self.images.values(), *self.regions)


def image_cases(
    modality: str,
    features: RadiomicFeatures,
    extraction: Extraction,
    inventory: Inventory,
    patients: Collection[str],
    settings: ImagingSettings,
) -> Iterator[Case]:
    """Cases of the given patients who have an image that the study asks for, sorted by patient."""
    for patient in sorted(set(patients) & set(inventory.patients())):
        roles = inventory.images(patient)
        images = {role: roles[role] for role in features.images if role in roles}
        if not images:
            continue
        regions = {id(r): r for image in images.values() for r in inventory.regions_of(image)}
        yield Case(
            patient=patient,
            modality=modality,
            images=images,
            regions=tuple(regions.values()),
            features=features,
            extraction=extraction,
            settings=settings,
        )


def measure(case: Case) -> Entry:
    """Read a case's files and measure its regions (B-03, B-04).

    Raises:
        DataError: a series cannot be read, a region is missing or does not lie on its image.
    """
    own = Inventory(series=case.series, problems=(), identifying={}, burned_in=0, others=0)
    values: dict[str, float] = {}
    for role, series in case.images.items():
        image = read_volume(series, case.settings)
        for region in case.features.regions:
            mask = read_region(region, image, series, own, case.settings)
            found = extract(image, mask, case.extraction)
            prefix = case.features.prefix(role, region)
            values |= {f"{prefix}{name}": value for name, value in found.items()}
    columns = tuple(sorted(values))
    return Entry(columns=columns, values=np.array([values[c] for c in columns], dtype=np.float64))
