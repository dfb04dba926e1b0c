"""What is done at a time: one patient's images, or the sequencing files of one modality."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oncofed_client.genomics.copy_number import read_copy_number
from oncofed_client.genomics.expression import read_expression
from oncofed_client.genomics.impact import mutation_impact, read_mutations
from oncofed_client.genomics.inputs import open_files
from oncofed_client.genomics.settings import GenomicsSettings
from oncofed_client.imaging.regions import read_region
from oncofed_client.imaging.series import Inventory, Series
from oncofed_client.imaging.settings import ImagingSettings
from oncofed_client.imaging.volume import read_volume
from oncofed_client.prepare.cache import Entry
from oncofed_client.prepare.feature_table import FeatureTable
from oncofed_client.prepare.radiomics import Extraction, extract
from oncofed_shared.plan import CopyNumberFeatures, ExpressionFeatures, GenomicFeatures, RadiomicFeatures

__all__ = ["Case", "GenomicsCase", "image_cases", "measure", "perform", "sequence"]


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
        inputs: a keyed hash of the bytes of all its files.
    """

    patient: str
    modality: str
    images: dict[str, Series]
    regions: tuple[Series, ...]
    features: RadiomicFeatures
    extraction: Extraction
    settings: ImagingSettings
    inputs: str = ""

    def __repr__(self) -> str:
        return f"Case({self.modality!r}, {len(self.images)} images)"

    @property
    def series(self) -> tuple[Series, ...]:
        """All series that it takes, images first."""
        return (*self.images.values(), *self.regions)

    def files(self) -> tuple[Path, ...]:
        """All files that it takes."""
        return tuple(path for series in self.series for path in series.files)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class GenomicsCase:
    """One modality of all patients, still to be read from sequencing files.

    Attributes:
        modality: the study's name of it.
        folder: the site's.
        settings: which files, and whose samples.
        features: what the study asks.
        inputs: a keyed hash of the bytes of all its files.
    """

    modality: str
    folder: Path
    settings: GenomicsSettings
    features: GenomicFeatures
    inputs: str = ""

    def __repr__(self) -> str:
        return f"GenomicsCase({self.modality!r})"

    def files(self) -> tuple[Path, ...]:
        """All files that it takes.

        Raises:
            DataError: one is absent, or lies outside the folder.
        """
        return open_files(self.folder, _only(self.settings, self.features.kind)).everything()


def image_cases(
    modality: str,
    features: RadiomicFeatures,
    extraction: Extraction,
    *,
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


def _only(settings: GenomicsSettings, kind: str) -> GenomicsSettings:
    """A site's settings as far as one kind of features needs them."""
    others = {"expression", "copy_number", "mutations"} - {kind}
    return settings.model_copy(update=dict.fromkeys(others))


def sequence(case: GenomicsCase) -> FeatureTable:
    """Read a modality's sequencing files.

    Raises:
        DataError: a file is absent, or not what it is declared to be.
    """
    site = open_files(case.folder, _only(case.settings, case.features.kind))
    if isinstance(case.features, ExpressionFeatures):
        return read_expression(site, case.features)
    if isinstance(case.features, CopyNumberFeatures):
        return read_copy_number(site, case.features)
    return mutation_impact(read_mutations(site, case.features), case.features, site.names, site.panels)


def perform(case: Case | GenomicsCase) -> Entry | FeatureTable:
    """Do a case: what a process of the pool is given to do.

    Raises:
        DataError: its files are wrong.
    """
    return measure(case) if isinstance(case, Case) else sequence(case)
