"""DICOM as a PACS export leaves it: one file per slice, headers full of the patient, in no order.

A header is made once per series and then changed from slice to slice, because most of the time of writing thousands of
small files goes into building headers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from oncofed_simulations.raw_anatomy import Grid
from oncofed_simulations.raw_identity import Person

__all__ = [
    "AXIAL",
    "CT",
    "FLAIR",
    "FRAME_OF_REFERENCE",
    "PET",
    "T1",
    "Hospital",
    "SeriesKind",
    "header",
    "save",
    "slice_uid",
    "write_series",
]

AXIAL = [1, 0, 0, 0, 1, 0]
FRAME_OF_REFERENCE = 9
"""Number of the frame of reference among a patient's UIDs; all series of a patient share it."""

_STUDY = 1
_DOSE, _WEIGHT, _HALF_LIFE, _DELAY = 3.5e8, 74.0, 6586.2, 3600
"""Bq injected, kg, s of fluorine 18, s from the injection to the scan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hospital:
    """What a site writes into each of its headers.

    Attributes:
        institution, physician: names that identify the place.
        syntax: transfer syntax of its files.
        suffix: how its file names end; a PACS often leaves none.
    """

    institution: str
    physician: str
    syntax: UID = ExplicitVRLittleEndian
    suffix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesKind:
    """One kind of series.

    Attributes:
        number: its place in the study, and in its UIDs.
        modality, storage, description: as in the header.
    """

    number: int
    modality: str
    storage: UID
    description: str


CT = SeriesKind(number=2, modality="CT", storage=CTImageStorage, description="Thorax 3.0 B30f")
T1 = SeriesKind(number=3, modality="MR", storage=MRImageStorage, description="t1_mprage_tra_post")
FLAIR = SeriesKind(number=4, modality="MR", storage=MRImageStorage, description="t2_FLAIR_tra")
PET = SeriesKind(
    number=5, modality="PT", storage=PositronEmissionTomographyImageStorage, description="PET AC whole body"
)


def slice_uid(person: Person, kind: SeriesKind, index: int) -> str:
    """SOP instance UID of the slice at `index` from the feet."""
    return person.uid(_STUDY, kind.number, index + 1)


def header(person: Person, hospital: Hospital, kind: SeriesKind) -> Dataset:
    """Make the part of the header that every file of a series shares."""
    day = person.scanned.strftime("%Y%m%d")
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = kind.storage
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = day
    data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = "101500"
    data.AccessionNumber = person.accession
    data.Modality = kind.modality
    data.Manufacturer = "Example"
    data.InstitutionName = hospital.institution
    data.ReferringPhysicianName = hospital.physician
    data.StudyDescription = f"Staging of {person.family}"
    data.SeriesDescription = kind.description
    data.PatientName = person.dicom_name
    data.PatientID = person.number
    data.PatientBirthDate = person.born.strftime("%Y%m%d")
    data.PatientTelephoneNumbers = person.phone
    data.PatientComments = f"{person.given} {person.family} prefers mornings"
    data.PatientWeight = _WEIGHT
    data.PatientSize = 1.72
    data.PatientPosition = "HFS"
    data.StudyInstanceUID = person.uid(_STUDY)
    data.SeriesInstanceUID = person.uid(_STUDY, kind.number)
    data.StudyID = "1"
    data.SeriesNumber = kind.number
    data.FrameOfReferenceUID = person.uid(FRAME_OF_REFERENCE)
    block = data.private_block(0x0019, "EXAMPLE LOCAL", create=True)
    block.add_new(0x01, "LO", f"{person.given} {person.family}")
    return data


def save(data: Dataset, path: Path, syntax: UID) -> None:
    """Write one file with its preamble and file meta."""
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.save_as(path, enforce_file_format=True)


def _ct(data: Dataset, volume: NDArray[np.float64]) -> NDArray[np.uint16]:
    data.KVP = 120
    data.ConvolutionKernel = "B30f"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = 1, -1024, "HU"
    return np.clip(np.rint(volume + 1024), 0, 4095).astype(np.uint16)


def _mr(data: Dataset, volume: NDArray[np.float64]) -> NDArray[np.uint16]:
    flair = "FLAIR" in data.SeriesDescription
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    data.ScanningSequence = ["SE", "IR"] if flair else "GR"
    data.SequenceVariant = "SK"
    data.ScanOptions = ""
    data.MRAcquisitionType = "3D"
    data.RepetitionTime, data.EchoTime = (9000, 120) if flair else (2300, 2.9)
    data.InversionTime = 2500 if flair else 900
    data.MagneticFieldStrength = 3
    data.EchoTrainLength = 1
    return np.clip(np.rint(volume), 0, 4095).astype(np.uint16)


def _pet(data: Dataset, volume: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Turn uptake into becquerel per millilitre at the time of the scan, and write down how to turn it back."""
    data.ImageType = ["ORIGINAL", "PRIMARY"]
    data.SeriesType = ["WHOLE BODY", "IMAGE"]
    data.Units, data.CountsSource, data.DecayCorrection = "BQML", "EMISSION", "START"
    data.CorrectedImage = ["NORM", "DTIM", "ATTN", "SCAT", "DECY", "RAN"]
    data.NumberOfSlices = len(volume)
    data.ActualFrameDuration, data.FrameReferenceTime = 120_000, 0
    drug = Dataset()
    drug.Radiopharmaceutical = "Fluorodeoxyglucose"
    hour, minute = divmod(10 * 60 + 15 - _DELAY // 60, 60)
    drug.RadiopharmaceuticalStartTime = f"{hour:02d}{minute:02d}00"
    drug.RadionuclideTotalDose = _DOSE
    drug.RadionuclideHalfLife = _HALF_LIFE
    drug.RadionuclidePositronFraction = 0.97
    data.RadiopharmaceuticalInformationSequence = [drug]
    per_suv = _DOSE * 2 ** (-_DELAY / _HALF_LIFE) / (1000 * _WEIGHT)
    activity = volume * per_suv
    slope = float(f"{activity.max() / 32767:.6g}")
    data.RescaleSlope, data.RescaleIntercept = slope, 0
    return np.clip(np.rint(activity / slope), 0, 65535).astype(np.uint16)


_STORED: dict[str, Callable[[Dataset, NDArray[np.float64]], NDArray[np.uint16]]] = {"CT": _ct, "MR": _mr, "PT": _pet}


def write_series(
    person: Person,
    hospital: Hospital,
    kind: SeriesKind,
    volume: NDArray[np.float64],
    *,
    grid: Grid,
    paths: list[Path],
) -> None:
    """Write a series, one file per slice.

    Args:
        person: the patient.
        hospital: where.
        kind: CT, MR or PET.
        volume: (z, y, x) in Hounsfield units, arbitrary units or standardised uptake by body weight.
        grid: of the volume.
        paths: (z,) file of each slice, from the feet up.
    """
    data = header(person, hospital, kind)
    stored = _STORED[kind.modality](data, volume)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = grid.shape[1:]
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelSpacing = list(grid.spacing[1:])
    data.SliceThickness = grid.spacing[0]
    data.ImageOrientationPatient = AXIAL
    z0, y0, x0 = grid.origin
    for index, path in enumerate(paths):
        z = round(z0 + index * grid.spacing[0], 6)
        data.SOPInstanceUID = slice_uid(person, kind, index)
        data.InstanceNumber = len(paths) - index
        data.ImagePositionPatient = [x0, y0, z]
        data.SliceLocation = z
        if kind.modality == "PT":
            data.ImageIndex = index + 1
        data.PixelData = stored[index].astype("<u2").tobytes()
        save(data, path, hospital.syntax)
