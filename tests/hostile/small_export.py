"""A whole export of one patient, as small as it can be, for tests that then break it."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pydicom

from oncofed_simulations.raw_anatomy import Grid
from oncofed_simulations.raw_dicom import CT, PET, T1, Hospital, write_series
from oncofed_simulations.raw_identity import Person
from oncofed_simulations.raw_regions import write_contours, write_segments

GRID = Grid(shape=(3, 8, 8), spacing=(3.0, 2.0, 2.0))
PERSON = Person(
    number="MRN000000001",
    family="Zlotavibrunk",
    given="Thrimidelv",
    phone="+99 123456789",
    accession="ACC000000001",
    born=date(1950, 3, 1),
    diagnosed=date(2012, 5, 6),
    scanned=date(2012, 5, 9),
    last_seen=date(2014, 7, 8),
)
HOSPITAL = Hospital(institution="Drustegalv General Hospital", physician="Krobumix^Strapilondt")
SQUARE = np.array([[-5.0, -5.0], [5.0, -5.0], [5.0, 5.0], [-5.0, 5.0]])


def _paths(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}{k}" for k in range(GRID.shape[0])]


def write_export(folder: Path, *, segments: bool = False, pet: bool = False, mr: bool = False) -> Path:
    """Write CT slices `ct0`..`ct2` and `region`; on request the region as SEG, `pet0`.., `mr0`.. beside."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    write_series(PERSON, HOSPITAL, CT, rng.normal(40, 20, GRID.shape), grid=GRID, paths=_paths(folder, "ct"))
    if pet:
        write_series(PERSON, HOSPITAL, PET, rng.uniform(1, 5, GRID.shape), grid=GRID, paths=_paths(folder, "pet"))
    if mr:
        write_series(PERSON, HOSPITAL, T1, rng.uniform(1, 500, GRID.shape), grid=GRID, paths=_paths(folder, "mr"))
    if segments:
        mask = np.zeros(GRID.shape, dtype=bool)
        mask[1, 2:5, 2:6] = True
        write_segments(PERSON, HOSPITAL, {"Tumor": mask}, GRID, folder / "region")
    else:
        write_contours(PERSON, HOSPITAL, {"GTV-1": [[], [SQUARE], [SQUARE, 0.4 * SQUARE]]}, GRID, folder / "region")
    return folder


def change(path: Path, **tags: object) -> None:
    """Set tags of a DICOM file, without pydicom's checks of what is set."""
    before = pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        data = pydicom.dcmread(path)
        for keyword, value in tags.items():
            setattr(data, keyword, value)
        data.save_as(path)
    finally:
        pydicom.config.settings.writing_validation_mode = before
