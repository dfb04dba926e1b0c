"""Header tags that can say who a patient is, and pixels that may have it written into them.

The list is the part of the Basic Application Level Confidentiality Profile (DICOM PS3.15, table E.1-1) that names a
person, a place, a date or an object of one patient. Only which tags are filled is ever told, never with what.
"""

from __future__ import annotations

from collections.abc import Iterator

from oncofed_client.imaging.headers import Header

__all__ = ["IDENTIFYING", "burned_in", "identifying_tags"]

IDENTIFYING = (
    "AccessionNumber", "AcquisitionDate", "AcquisitionDateTime", "AdditionalPatientHistory", "AdmissionID",
    "AdmittingDate", "AdmittingDiagnosesDescription", "ContentDate", "CountryOfResidence", "CurrentPatientLocation",
    "DeviceSerialNumber", "EthnicGroup", "FrameOfReferenceUID", "ImageComments", "InstitutionAddress",
    "InstitutionName", "InstitutionalDepartmentName", "InsurancePlanIdentification", "IssuerOfPatientID",
    "LastMenstrualDate", "MedicalAlerts", "MedicalRecordLocator", "MilitaryRank", "NameOfPhysiciansReadingStudy",
    "Occupation", "OperatorsName", "OtherPatientIDs", "OtherPatientIDsSequence", "OtherPatientNames",
    "PatientAddress", "PatientBirthDate", "PatientBirthName", "PatientBirthTime", "PatientComments", "PatientID",
    "PatientMotherBirthName", "PatientName", "PatientReligiousPreference", "PatientTelephoneNumbers",
    "PerformedProcedureStepStartDate", "PerformingPhysicianName", "PhysiciansOfRecord", "ReferringPhysicianAddress",
    "ReferringPhysicianName", "ReferringPhysicianTelephoneNumbers", "RegionOfResidence", "RequestingPhysician",
    "ResponsiblePerson", "ReviewerName", "SOPInstanceUID", "SeriesDate", "SeriesDescription", "SeriesInstanceUID",
    "StationName", "StructureSetDate", "StudyDate", "StudyDescription", "StudyID", "StudyInstanceUID",
)  # fmt: skip

_PRIVATE = "private tags"


def identifying_tags(header: Header) -> Iterator[str]:
    """Yield the keyword of every identifying tag that is filled, and `private tags` where there are any."""
    for keyword in IDENTIFYING:
        if keyword in header.dataset and header.has(keyword):
            yield keyword
    if any(tag.is_private for tag in header.dataset.keys()):  # noqa: SIM118 - iterating a dataset converts every value
        yield _PRIVATE


def burned_in(header: Header) -> bool:
    """Whether the header says that a name or number may be written into the pixels."""
    return header.text("BurnedInAnnotation").upper() == "YES"
