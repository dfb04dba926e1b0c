"""What a site says of its images: `[imaging]` of `site.toml`.

    [imaging]
    folder = "imaging"

    [imaging.patient]
    source = "PatientID"          # or "folder": the first folder below [imaging] folder; or "file": the file's name
    link = "links.csv"            # optional: columns source, patient_id

    [imaging.series.ct]
    modality = "CT"

    [imaging.series.flair]
    modality = "MR"
    description = ["*flair*"]
    header = { EchoTime = [80, 200] }

    [imaging.series.t1]
    files = ["*_t1.nii.gz"]       # NIfTI or NRRD

    [imaging.regions.tumour]
    names = ["GTV*", "tumor*"]    # ROI of an RTSTRUCT, segment of a DICOM SEG
    files = ["*_seg.nii.gz"]      # or a mask file
    label = 1

Patterns are shell patterns without regard to upper and lower case.
"""

from __future__ import annotations

import fnmatch
import re
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from oncofed_shared.strict import Frozen

__all__ = ["ImagingSettings", "Limits", "PatientSource", "RegionRule", "SeriesRule", "matches"]

Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]
Pattern = Annotated[str, Field(max_length=200)]
Number = int | float
Span = Annotated[tuple[Number, Number], Field(strict=False)]


def matches(text: str, patterns: tuple[str, ...]) -> bool:
    """Whether a text fits one of some shell patterns, without regard to case."""
    return any(fnmatch.fnmatchcase(text.casefold().strip(), p.casefold()) for p in patterns)


class Limits(Frozen):
    """Bounds on what is read, so that a broken or hostile export cannot exhaust the machine.

    Attributes:
        depth: folders inside folders.
        files: files in the whole export.
        file_bytes: one file.
        voxels: one volume; it costs four bytes each, before it is decoded.
        points: contour points of one region.
        items: items of one DICOM sequence, frames of one file.
    """

    depth: Annotated[int, Field(ge=1, le=200)] = 24
    files: Annotated[int, Field(ge=1)] = 2_000_000
    file_bytes: Annotated[int, Field(ge=1)] = 4 * 2**30
    voxels: Annotated[int, Field(ge=1)] = 512 * 2**20
    points: Annotated[int, Field(ge=1)] = 20_000_000
    items: Annotated[int, Field(ge=1)] = 100_000


class PatientSource(Frozen):
    """Where the patient's id of the site's tables stands.

    Attributes:
        source: the header's PatientID (NIfTI and NRRD have none: then "folder" or "file"), the first folder below the
            imaging folder, or the file's name.
        pattern: a regular expression with a group `patient` that takes the id out of that text; the whole text without.
        link: a .csv in the site's folder with the columns `source` and `patient_id`, where the two differ.
    """

    source: Literal["PatientID", "folder", "file"] = "PatientID"
    pattern: Text | None = None
    link: Text | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        problems = []
        if self.pattern is not None:
            try:
                if "patient" not in re.compile(self.pattern).groupindex:
                    problems.append("pattern must have a group named patient: (?P<patient>...)")
            except re.error as error:
                problems.append(f"pattern is not a regular expression: {error}")
        if self.link is not None:
            path = PurePosixPath(self.link)
            if path.is_absolute() or ".." in path.parts or path.suffix.lower() != ".csv":
                problems.append("link must be a .csv in the site's folder, written relative to it")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class SeriesRule(Frozen):
    """Which files play one role; all that is stated must hold.

    Attributes:
        modality: DICOM Modality.
        description, protocol: patterns of SeriesDescription and ProtocolName.
        header: DICOM keyword -> a pattern of its text (the empty pattern: absent or empty), or [lowest, highest] of its number.
        files: patterns of NIfTI or NRRD files; a pattern with `/` is of the path below the imaging folder, others of
            the name. Excludes the rules above.
        kind: what a NIfTI or NRRD file holds, which decides how a patch is scaled.
        choose: what to do where a patient has several such series: refuse, or take the one with most files, or the earliest
            or latest by SeriesDate (else StudyDate) and SeriesTime.
    """

    modality: Literal["CT", "MR", "PT"] | None = None
    description: tuple[Text, ...] = ()
    protocol: tuple[Text, ...] = ()
    header: dict[str, Pattern | Span] = Field(default={})
    files: tuple[Text, ...] = ()
    kind: Literal["CT", "MR", "PT"] | None = None
    choose: Literal["only", "largest", "earliest", "latest"] = "only"

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, content: object) -> object:
        return _as_tuples(content, "description", "protocol", "files")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        problems = []
        dicom = self.modality is not None or self.description or self.protocol or self.header
        if bool(dicom) == bool(self.files):
            problems.append("give rules on the DICOM header, or `files` for NIfTI and NRRD, one of the two")
        if dicom and self.modality is None:
            problems.append("modality must say CT, MR or PT")
        if self.files and self.kind is None:
            problems.append("files also needs kind = CT, MR or PT")
        problems += [f"header.{k}: is no DICOM keyword" for k in self.header if not _is_keyword(k)]
        problems += [
            f"header.{k}: expected [lowest, highest]"
            for k, v in self.header.items()
            if isinstance(v, tuple) and not v[0] <= v[1]
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self


class RegionRule(Frozen):
    """Which outlines or masks are one region of interest.

    Attributes:
        names: patterns of ROI names and segment labels.
        files: patterns of NIfTI or NRRD mask files, as in a series' rule.
        label: the value in a mask file; without it everything above zero.
        fraction: the least part of a voxel, or probability, that counts as inside, for a fractional segmentation.
        roles: the series on which the mask files were drawn; without it, all of the patient's.
        several: what to do where several of a patient's outlines fit: refuse, or take all of them as one.
    """

    names: tuple[Text, ...] = ()
    files: tuple[Text, ...] = ()
    label: Annotated[int, Field(ge=1)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    roles: tuple[Name, ...] = ()
    several: Literal["refuse", "union"] = "refuse"

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, content: object) -> object:
        return _as_tuples(content, "names", "files", "roles")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.names and not self.files:
            message = "give names of outlines or segments, or files with masks"
            raise ValueError(message)
        return self


def _as_tuples(content: object, *keys: str) -> object:
    """Let one pattern stand for a list of one."""
    if not isinstance(content, dict):
        return content
    return {k: _as_tuple(v) if k in keys else v for k, v in content.items()}


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class ImagingSettings(Frozen):
    """All of `[imaging]`.

    Attributes:
        folder: below which the images are, relative to the site's folder.
        patient: where the patient's id stands.
        series: role -> its rule.
        regions: region -> its rule.
        limits: bounds.
    """

    folder: Text = "."
    patient: PatientSource = PatientSource()
    series: dict[Name, SeriesRule] = Field(default={})
    regions: dict[Name, RegionRule] = Field(default={})
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        problems = []
        path = PurePosixPath(self.folder)
        if path.is_absolute() or ".." in path.parts:
            problems.append("folder must lie in the site's folder and be written relative to it")
        for name, rule in self.regions.items():
            problems += [
                f"regions.{name}.roles: there is no imaging.series.{r}" for r in rule.roles if r not in self.series
            ]
        if self.patient.source == "PatientID":
            with_files = [f"series.{n}" for n, rule in self.series.items() if rule.files]
            if with_files:
                problems.append(
                    f"{', '.join(with_files)}: NIfTI and NRRD have no PatientID; set patient.source to folder or file"
                )
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _is_keyword(name: str) -> bool:
    # With it come decoders of pixels, 20 MiB, and only rules on headers need its table.
    from pydicom.datadict import tag_for_keyword  # noqa: PLC0415

    return tag_for_keyword(name) is not None
