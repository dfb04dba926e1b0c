"""A site's PACS export: CT with the lesion outlined, MR or PET beside it, in folders that say nothing.

By the site's place in the consortium: outlines as RTSTRUCT or as SEG; two MR sequences, PET, or both.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_simulations.folders import write_table
from oncofed_simulations.raw_anatomy import (
    CT_GRID,
    MR_GRID,
    PET_GRID,
    Lesion,
    body,
    hounsfield,
    resonance,
    uptake,
)
from oncofed_simulations.raw_dicom import CT, FLAIR, PET, T1, write_series
from oncofed_simulations.raw_draw import RawSite
from oncofed_simulations.raw_identity import Person
from oncofed_simulations.raw_regions import write_contours, write_segments

__all__ = ["IMAGING_FOLDER", "LINKS", "imaging_settings", "write_imaging"]

IMAGING_FOLDER = "imaging"
LINKS = "imaging_links.csv"
"""Table of a site whose PACS has numbers of its own."""

_TUMOUR = ("GTV-1", "Tumor", "gtv_primary")
_SCANNER_OFFSET, _SCANNER_NOISE = 4.0, 6.0
_FILES_MODE = 1_000_000


def _with_segments(site: RawSite) -> bool:
    return site.index % 3 == 1


def _with_resonance(site: RawSite) -> bool:
    return site.index % 3 != 1


def _with_pet(site: RawSite) -> bool:
    return site.index % 3 != 0 or site.index >= 3


def imaging_settings(site: RawSite) -> dict[str, Any]:
    """Make the site's `[imaging]`."""
    series: dict[str, Any] = {"ct": {"modality": "CT"}}
    if _with_resonance(site):
        series["t1"] = {"modality": "MR", "description": ["t1*"]}
        series["flair"] = {"modality": "MR", "description": ["*flair*"], "header": {"EchoTime": [80, 200]}}
    if _with_pet(site):
        series["pet"] = {"modality": "PT"}
    return {
        "folder": IMAGING_FOLDER,
        "patient": {"source": "PatientID"} | ({"link": LINKS} if _with_segments(site) else {}),
        "series": series,
        "regions": {"tumour": {"names": ["gtv*", "tumo*"]}},
    }


def _outlines(lesion: Lesion) -> list[list[NDArray[np.float64]]]:
    z = CT_GRID.origin[0] + np.arange(CT_GRID.shape[0]) * CT_GRID.spacing[0]
    return [lesion.outlines(float(height)) for height in z]


def _write_patient(site: RawSite, person: Person, lesion: Lesion, rng: np.random.Generator, folder: Path) -> None:
    """Write all of one patient's files into one folder, under names in no order."""
    folder.mkdir(parents=True)
    numbers = rng.choice(
        _FILES_MODE, size=CT_GRID.shape[0] + 2 * MR_GRID.shape[0] + PET_GRID.shape[0] + 1, replace=False
    )
    names = [f"IM{number:06d}{site.hospital.suffix}" for number in numbers.tolist()]
    offset = _SCANNER_OFFSET * ((site.index % 5) - 2) / 2
    volumes = [(CT, hounsfield(rng, lesion, CT_GRID, offset=offset, noise=_SCANNER_NOISE), CT_GRID)]
    if _with_resonance(site):
        volumes.append((T1, resonance(rng, lesion, MR_GRID, tissue=420.0, tumour=300.0), MR_GRID))
        volumes.append((FLAIR, resonance(rng, lesion, MR_GRID, tissue=300.0, tumour=640.0), MR_GRID))
    if _with_pet(site):
        volumes.append((PET, uptake(rng, lesion, PET_GRID), PET_GRID))
    taken = 1
    for kind, volume, grid in volumes:
        paths = [folder / name for name in names[taken : taken + len(volume)]]
        write_series(person, site.hospital, kind, volume, grid=grid, paths=paths)
        taken += len(volume)
    name = _TUMOUR[site.index % len(_TUMOUR)]
    if _with_segments(site):
        masks = {name: lesion.mask(CT_GRID), "Body": body(CT_GRID)}
        write_segments(person, site.hospital, masks, CT_GRID, folder / names[0])
    else:
        contours = {name: _outlines(lesion)}
        write_contours(person, site.hospital, contours, CT_GRID, folder / names[0])


def write_imaging(folder: Path, site: RawSite) -> None:
    """Write the export below `folder / IMAGING_FOLDER`, and the link table where the site has one."""
    export = folder / IMAGING_FOLDER
    export.mkdir()
    (export / "VIEWER.TXT").write_text("Open VIEWER.EXE to look at this export.\n", encoding="utf-8")
    links = []
    for i, person in enumerate(site.people):
        if site.absent["radiomics"][i]:
            continue
        shown = person.at_pacs() if _with_segments(site) else person
        links.append([shown.number, person.number])
        place = hashlib.sha256(shown.number.encode()).hexdigest()
        study = export / place[:2].upper() / place[2:10].upper() / "ST000"
        _write_patient(site, shown, site.lesions[i], site.image_streams[i], study)
    if _with_segments(site):
        write_table(folder / LINKS, ["source", "patient_id"], sorted(links))
