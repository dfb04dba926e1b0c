"""Who is in a raw cohort: every site's patients, drawn from the seed alone, before any file is written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from oncofed_simulations.population import MODALITIES, Patients, draw_features, draw_outcomes, draw_patients
from oncofed_simulations.raw_anatomy import Lesion, draw_lesion
from oncofed_simulations.raw_dicom import Hospital
from oncofed_simulations.raw_identity import Person, draw_people, make_name
from oncofed_simulations.synthetic import WITHHELD, CohortSettings, choose_part, lacking_modalities, site_sizes

__all__ = ["RawSite", "draw_sites", "identifying_values"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RawSite:
    """One site before it is written.

    Attributes:
        name: of its folder.
        index: counted from 0; decides which file formats the site has.
        hospital: what its headers say.
        people: (n,) who the patients are.
        patients: (n,) what they have.
        days, died, responded: (n,) what happens to them.
        values: per modality (n, columns) as the population draws them; a modality that the site lacks is not in it.
        absent: per modality (n,) who lacks it.
        consents: (n,).
        lesions: (n,) what the images show; none where the site has no images.
        image_streams: (n,) for what each patient's images add.
        streams: per modality, for what its other files add.
    """

    name: str
    index: int
    hospital: Hospital
    people: tuple[Person, ...]
    patients: Patients
    days: Floats
    died: NDArray[np.bool_]
    responded: NDArray[np.bool_]
    values: dict[str, Floats]
    absent: dict[str, NDArray[np.bool_]]
    consents: NDArray[np.bool_]
    lesions: tuple[Lesion, ...]
    image_streams: list[np.random.Generator]
    streams: dict[str, np.random.Generator]


def _numbers(rng: np.random.Generator, count: int, prefix: str) -> list[str]:
    """`count` distinct numbers of a hospital's own kind."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[f"{prefix}{int(rng.integers(10**9)):09d}"] = None
    return list(found)


def _draw_site(
    index: int, numbers: list[str], lacking: tuple[str, ...], settings: CohortSettings, rng: np.random.Generator
) -> RawSite:
    who, outcomes, names, *own = rng.spawn(3 + len(MODALITIES))
    count = len(numbers)
    patients = draw_patients(who, count, settings.site_effect)
    days, died, responded = draw_outcomes(outcomes, patients, settings.signal)
    streams = dict(zip(MODALITIES, own, strict=True))
    held = [m for m in MODALITIES[1:] if m not in lacking]
    place = MODALITIES.index("radiomics")
    drawing = streams["radiomics"].spawn(count if "radiomics" in held else 0)
    factors = zip(drawing, patients.u[:, place].tolist(), patients.v[:, place].tolist(), strict=False)
    return RawSite(
        name=f"site-{index + 1}",
        index=index,
        hospital=Hospital(
            institution=f"{make_name(names)} General Hospital",
            physician=f"{make_name(names)}^{make_name(names)}",
            syntax=(ExplicitVRLittleEndian, ImplicitVRLittleEndian)[index % 2],
            suffix=("", ".dcm")[index % 2],
        ),
        people=draw_people(names, numbers, patients.age.tolist(), days.tolist()),
        patients=patients,
        days=days,
        died=died,
        responded=responded,
        values={m: draw_features(streams[m], m, patients, settings.site_effect) for m in held},
        absent={m: choose_part(streams[m], 2 * settings.gaps, count) for m in held},
        consents=~choose_part(outcomes, WITHHELD, count),
        lesions=tuple(draw_lesion(rng, u, v) for rng, u, v in factors),
        image_streams=drawing,
        streams=streams,
    )


def draw_sites(settings: CohortSettings) -> list[RawSite]:
    """Draw every site of a raw cohort; sizes and missing modalities are those of `synthetic.write_cohort`."""
    streams = np.random.SeedSequence(settings.seed).spawn(settings.sites + 1)
    numbers = _numbers(np.random.default_rng(streams[0]), settings.patients, "MRN")
    sites = []
    for k, size in enumerate(site_sizes(settings.sites, settings.patients)):
        mine, numbers = numbers[:size], numbers[size:]
        rng = np.random.default_rng(streams[k + 1])
        sites.append(_draw_site(k, mine, lacking_modalities(k, settings.sites), settings, rng))
    return sites


def identifying_values(settings: CohortSettings) -> dict[str, dict[str, tuple[str, ...]]]:
    """List what identifies each patient in the files that the same settings write, for tests of de-identification.

    Returns:
        Site -> hospital number -> texts that stand in the site's files and may stand in nothing that is made from them;
        under the empty number what identifies the hospital and its staff.
    """
    return {
        site.name: {
            "": (site.hospital.institution, *site.hospital.physician.split("^")),
            **{person.number: person.identifying() for person in site.people},
        }
        for site in draw_sites(settings)
    }
