"""Regions of interest as DICOM carries them: contours (RTSTRUCT) or packed masks (SEG)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage, SegmentationStorage

from oncofed_simulations.raw_anatomy import Grid
from oncofed_simulations.raw_dicom import AXIAL, CT, FRAME_OF_REFERENCE, Hospital, SeriesKind, header, save, slice_uid
from oncofed_simulations.raw_identity import Person

__all__ = ["RTSTRUCT", "SEG", "write_contours", "write_segments"]

RTSTRUCT = SeriesKind(number=6, modality="RTSTRUCT", storage=RTStructureSetStorage, description="Delineation")
SEG = SeriesKind(number=7, modality="SEG", storage=SegmentationStorage, description="Segmentation")

_COLOURS = [[255, 0, 0], [0, 160, 255], [0, 200, 0]]
_DIMENSIONS = 8
"""Number of the dimension organisation among a patient's UIDs."""


def _referenced(storage: str, uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = storage
    item.ReferencedSOPInstanceUID = uid
    return item


def _code(value: str, scheme: str, meaning: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return [item]


def _frame_of_reference(person: Person, slices: int) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = person.uid(1, CT.number)
    series.ContourImageSequence = [_referenced(CT.storage, slice_uid(person, CT, k)) for k in range(slices)]
    study = Dataset()
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
    study.ReferencedSOPInstanceUID = person.uid(1)
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = person.uid(FRAME_OF_REFERENCE)
    frame.RTReferencedStudySequence = [study]
    return frame


def _contour(person: Person, points: NDArray[np.float64], z: float, index: int, number: int) -> Dataset:
    item = Dataset()
    item.ContourImageSequence = [_referenced(CT.storage, slice_uid(person, CT, index))]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.ContourNumber = number
    item.NumberOfContourPoints = len(points)
    xyz = np.column_stack([points, np.full(len(points), z)])
    item.ContourData = [f"{c:.3f}" for c in xyz.ravel().tolist()]
    return item


def write_contours(
    person: Person,
    hospital: Hospital,
    regions: Mapping[str, list[list[NDArray[np.float64]]]],
    grid: Grid,
    path: Path,
) -> None:
    """Write an RTSTRUCT on the patient's CT.

    Args:
        person: the patient.
        hospital: where.
        regions: by name, for each slice its outlines (points, 2) of x and y in mm; an outline inside another one is a
            hole.
        grid: of the CT.
        path: the file.
    """
    data = header(person, hospital, RTSTRUCT)
    data.SOPInstanceUID = slice_uid(person, RTSTRUCT, 0)
    data.StructureSetLabel = "Approved"
    data.StructureSetDate, data.StructureSetTime = data.StudyDate, data.StudyTime
    data.ReferencedFrameOfReferenceSequence = [_frame_of_reference(person, grid.shape[0])]
    data.StructureSetROISequence, data.ROIContourSequence, data.RTROIObservationsSequence = [], [], []
    for number, (name, slices) in enumerate(regions.items(), start=1):
        roi = Dataset()
        roi.ROINumber = number
        roi.ReferencedFrameOfReferenceUID = person.uid(FRAME_OF_REFERENCE)
        roi.ROIName = name
        roi.ROIGenerationAlgorithm = "MANUAL"
        data.StructureSetROISequence.append(roi)
        drawn = Dataset()
        drawn.ROIDisplayColor = _COLOURS[number % len(_COLOURS)]
        drawn.ReferencedROINumber = number
        drawn.ContourSequence = []
        for index, outlines in enumerate(slices):
            z = round(grid.origin[0] + index * grid.spacing[0], 6)
            for points in outlines:
                place = len(drawn.ContourSequence) + 1
                drawn.ContourSequence.append(_contour(person, points, z, index, place))
        data.ROIContourSequence.append(drawn)
        seen = Dataset()
        seen.ObservationNumber = seen.ReferencedROINumber = number
        seen.RTROIInterpretedType = "GTV" if number == 1 else "ORGAN"
        seen.ROIInterpreter = hospital.physician
        data.RTROIObservationsSequence.append(seen)
    data.ApprovalStatus = "APPROVED"
    save(data, path, hospital.syntax)


def _segment(number: int, name: str) -> Dataset:
    item = Dataset()
    item.SegmentNumber, item.SegmentLabel = number, name
    item.SegmentAlgorithmType = "MANUAL"
    item.SegmentedPropertyCategoryCodeSequence = _code("49755003", "SCT", "Morphologically Abnormal Structure")
    item.SegmentedPropertyTypeCodeSequence = _code("4147007", "SCT", "Mass")
    return item


def _shared(grid: Grid) -> Dataset:
    plane, measures, groups = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = AXIAL
    measures.SliceThickness = measures.SpacingBetweenSlices = grid.spacing[0]
    measures.PixelSpacing = list(grid.spacing[1:])
    groups.PlaneOrientationSequence, groups.PixelMeasuresSequence = [plane], [measures]
    return groups


def _frame(person: Person, grid: Grid, number: int, index: int) -> Dataset:
    content, plane, segment, source, groups = Dataset(), Dataset(), Dataset(), Dataset(), Dataset()
    content.DimensionIndexValues = [number, index + 1]
    z0, y0, x0 = grid.origin
    plane.ImagePositionPatient = [x0, y0, round(z0 + index * grid.spacing[0], 6)]
    segment.ReferencedSegmentNumber = number
    image = _referenced(CT.storage, slice_uid(person, CT, index))
    image.PurposeOfReferenceCodeSequence = _code("121322", "DCM", "Source image for image processing operation")
    image.SpatialLocationsPreserved = "YES"
    source.SourceImageSequence = [image]
    source.DerivationCodeSequence = _code("113076", "DCM", "Segmentation")
    groups.FrameContentSequence, groups.PlanePositionSequence = [content], [plane]
    groups.SegmentIdentificationSequence, groups.DerivationImageSequence = [segment], [source]
    return groups


def _dimensions(data: Dataset, person: Person) -> None:
    organisation = Dataset()
    organisation.DimensionOrganizationUID = person.uid(_DIMENSIONS)
    data.DimensionOrganizationSequence = [organisation]
    data.DimensionIndexSequence = []
    for pointer, group in ((0x0062000B, 0x0062000A), (0x00200032, 0x00209113)):
        index = Dataset()
        index.DimensionOrganizationUID = person.uid(_DIMENSIONS)
        index.DimensionIndexPointer, index.FunctionalGroupPointer = pointer, group
        data.DimensionIndexSequence.append(index)


def write_segments(
    person: Person, hospital: Hospital, masks: Mapping[str, NDArray[np.bool_]], grid: Grid, path: Path
) -> None:
    """Write a binary SEG on the patient's CT; segments may overlap, and a frame without a voxel is left out.

    Args:
        person: the patient.
        hospital: where.
        masks: by name, (z, y, x).
        grid: of the CT.
        path: the file.
    """
    data = header(person, hospital, SEG)
    data.SOPInstanceUID = slice_uid(person, SEG, 0)
    data.InstanceNumber = 1
    data.ImageType = ["DERIVED", "PRIMARY"]
    data.ContentLabel, data.ContentCreatorName = "SEGMENTATION", hospital.physician
    data.ContentDescription = "Lesion"
    data.Manufacturer, data.ManufacturerModelName = "Example", "Example"
    data.DeviceSerialNumber, data.SoftwareVersions = "1", "1"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = grid.shape[1:]
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 1, 1, 0, 0
    data.LossyImageCompression = "00"
    data.SegmentationType = "BINARY"
    series = Dataset()
    series.SeriesInstanceUID = person.uid(1, CT.number)
    series.ReferencedInstanceSequence = [
        _referenced(CT.storage, slice_uid(person, CT, k)) for k in range(grid.shape[0])
    ]
    data.ReferencedSeriesSequence = [series]
    data.SegmentSequence = [_segment(number, name) for number, name in enumerate(masks, start=1)]
    _dimensions(data, person)
    data.SharedFunctionalGroupsSequence = [_shared(grid)]
    frames = [
        (number, index, mask[index])
        for number, mask in enumerate(masks.values(), start=1)
        for index in range(grid.shape[0])
        if mask[index].any()
    ]
    data.NumberOfFrames = len(frames)
    data.PerFrameFunctionalGroupsSequence = [_frame(person, grid, number, index) for number, index, _ in frames]
    packed = np.packbits(np.stack([plane for *_, plane in frames]).ravel(), bitorder="little").tobytes()
    data.PixelData = packed + b"\0" * (len(packed) % 2)
    data["PixelData"].VR = "OB"
    save(data, path, hospital.syntax)
