"""Whether a file fits a rule of `[imaging]`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from oncofed_client.imaging.headers import Header, shown
from oncofed_client.imaging.settings import SeriesRule, matches
from oncofed_shared.errors import DataError

__all__ = ["fits_file", "fits_header", "role_of", "source_text"]

_FORMATS = (".nii", ".nii.gz", ".nrrd")


def fits_header(header: Header, rule: SeriesRule) -> bool:
    """Whether a DICOM header fits all that a rule states. An absent tag is an empty text."""
    if rule.modality is None or header.text("Modality") != rule.modality:
        return False
    if rule.description and not matches(header.text("SeriesDescription"), rule.description):
        return False
    if rule.protocol and not matches(header.text("ProtocolName"), rule.protocol):
        return False
    for keyword, wanted in rule.header.items():
        if isinstance(wanted, tuple):
            number = header.number(keyword)
            if number is None or not wanted[0] <= number <= wanted[1]:
                return False
        elif not matches(header.text(keyword), (wanted,)):
            return False
    return True


def role_of(header: Header, rules: Mapping[str, SeriesRule]) -> list[str]:
    """Names of all rules that a DICOM header fits."""
    return [name for name, rule in rules.items() if fits_header(header, rule)]


def fits_file(inside: Path, patterns: tuple[str, ...]) -> bool:
    """Whether a NIfTI or NRRD file fits a pattern.

    Args:
        inside: path below the imaging folder.
        patterns: of the path where they have a `/`, else of the name.
    """
    if not inside.name.lower().endswith(_FORMATS):
        return False
    return any(matches(inside.as_posix() if "/" in p else inside.name, (p,)) for p in patterns)


def source_text(source: str, path: Path, inside: Path, header: Header | None) -> str:
    """Return the text in which the patient's id stands.

    Raises:
        DataError: there is none.
    """
    if source == "folder":
        if len(inside.parts) < 2:
            raise DataError(f"{shown(path)}: lies in no patient's folder; imaging.patient.source is folder")
        return inside.parts[0]
    if source == "file":
        return path.name
    if header is None:
        raise DataError(f"{shown(path)}: has no PatientID; set imaging.patient.source to folder or file")
    text = header.text("PatientID")
    if not text:
        raise header.missing("PatientID")
    return text
