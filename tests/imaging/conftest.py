"""Small DICOM series, written by pydicom, whose every value a test may change."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydicom import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}


def real(*parts: str) -> Path:
    """A folder of real data, or a skip with the reason."""
    path = REAL.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the real data are not here: shared/data/{'/'.join(parts)}")
    return path


def slice_of(modality: str = "CT", *, position=(0.0, 0.0, 0.0), pixels=None, **tags) -> FileDataset:
    """One slice; `tags` are DICOM keywords, None takes one away."""
    pixels = np.zeros((6, 5), dtype=np.int16) if pixels is None else pixels
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CLASSES[modality]
    dataset = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CLASSES[modality]
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality = modality
    dataset.PatientID = "HOSPITAL-4711"
    dataset.PatientName = "Secret^Name"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    dataset.ImagePositionPatient = [float(p) for p in position]
    dataset.ImageOrientationPatient = list(AXIAL)
    dataset.PixelSpacing = [2.0, 1.5]
    dataset.SliceThickness = 3.0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    return changed(dataset, **tags)


def changed(dataset: Dataset, **tags) -> Dataset:
    for keyword, value in tags.items():
        if value is None:
            if keyword in dataset:
                delattr(dataset, keyword)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some are wrong on purpose
                setattr(dataset, keyword, value)
    return dataset


def series_of(count: int = 4, *, modality: str = "CT", step: float = 3.0, shape=(6, 5), seed: int = 0, **tags):
    """Slices from z = 0 upwards, and their stored values (z, y, x)."""
    values = np.random.default_rng(seed).integers(-1000, 1000, (count, *shape)).astype(np.int16)
    return [slice_of(modality, position=(0, 0, step * i), pixels=v, **tags) for i, v in enumerate(values)], values


def pet_of(count: int = 3, **tags):
    """A PET series with all that SUV needs; tags of the drug are given by their keyword too."""
    drug = Dataset()
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = 3.7e8, 6586.2
    drug.RadiopharmaceuticalStartTime = "101500.00"
    inside = {
        k: tags.pop(k) for k in list(tags) if k.startswith("Radio") and k != "RadiopharmaceuticalInformationSequence"
    }
    changed(drug, **inside)
    slices, values = series_of(count, modality="PT", RescaleSlope=2.5)
    for one in slices:
        one.Units, one.DecayCorrection, one.CorrectedImage = "BQML", "START", ["NORM", "DTIM", "ATTN", "SCAT", "DECY"]
        one.SeriesDate = one.AcquisitionDate = "20240102"
        one.SeriesTime, one.AcquisitionTime, one.PatientWeight = "111500", "111500", 72.5
        one.RadiopharmaceuticalInformationSequence = [copy.deepcopy(drug)]
        changed(one, **tags)
    return slices, values


def outlines_of(regions: dict[str, list[np.ndarray]], **tags) -> FileDataset:
    """An RTSTRUCT: name -> contours (n, 3) in mm, on the series of `series_of`."""
    dataset = slice_of(position=(0, 0, 0), ImagePositionPatient=None, PixelData=None, Rows=None, Columns=None)
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", "1.2.3.9"
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = "1.2.3.4"
    study.RTReferencedSeriesSequence = [series]
    frame.RTReferencedStudySequence = [study]
    frame.FrameOfReferenceUID = "1.2.3.5"
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    names, contours = [], []
    for number, (name, lines) in enumerate(regions.items(), 1):
        entry, region = Dataset(), Dataset()
        entry.ROINumber, entry.ROIName = number, name
        region.ReferencedROINumber = number
        items = []
        for line in lines:
            item = Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(line)
            item.ContourData = [f"{v:.6f}" for v in np.ravel(line)]
            items.append(item)
        region.ContourSequence = items
        names.append(entry)
        contours.append(region)
    dataset.StructureSetROISequence, dataset.ROIContourSequence = names, contours
    return changed(dataset, **tags)


def save(folder: Path, *datasets: Dataset, names=None) -> list[Path]:
    """Write files, `0.dcm` and so on, or under the given names."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / (f"{i}.dcm" if names is None else names[i]) for i in range(len(datasets))]
    for path, dataset in zip(paths, datasets, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
    return paths


@pytest.fixture(scope="session")
def dicom() -> SimpleNamespace:
    """The writers of this file."""
    return SimpleNamespace(
        real=real,
        slice_of=slice_of,
        series_of=series_of,
        pet_of=pet_of,
        outlines_of=outlines_of,
        save=save,
        changed=changed,
    )
