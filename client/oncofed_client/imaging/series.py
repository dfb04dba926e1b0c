"""Series among the files of an export: grouped by UID, never by folder or name, and told apart by the site's rules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from oncofed_client.imaging.headers import Header, looks_like_dicom, open_regular, read_header, shown, tag_name
from oncofed_client.imaging.identifying import burned_in, identifying_tags
from oncofed_client.imaging.rules import fits_file, role_of, source_text
from oncofed_client.imaging.settings import ImagingSettings, PatientSource, SeriesRule
from oncofed_client.imaging.walk import files_below
from oncofed_client.tables import Problems, read_records
from oncofed_shared.errors import DataError

__all__ = ["Inventory", "Kind", "Series", "find_series"]

Kind = Literal["CT", "MR", "PT", "RTSTRUCT", "SEG", "file"]
_KINDS: Mapping[str, Kind] = {"CT": "CT", "MR": "MR", "PT": "PT", "RTSTRUCT": "RTSTRUCT", "SEG": "SEG"}
_IMAGES = ("CT", "MR", "PT", "file")
_MEDICAL = (".dcm", ".ima")
_SHOWN = 20


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Series:
    """Files that belong together.

    Attributes:
        patient: the site's own id.
        role: the name of the rule in `[imaging.series]` that it fits; None for others, outlines and masks.
        kind: its modality; "file" for NIfTI and NRRD.
        holds: CT, MR or PT, also of a NIfTI or NRRD file; None for outlines and masks.
        files: sorted.
        regions: of a mask file, the names of the rules in `[imaging.regions]` that it fits.
        uid, frame: SeriesInstanceUID and FrameOfReferenceUID, empty for files without a DICOM header.
        moment: date and time of the series, only to choose between series.
        references: SeriesInstanceUIDs of the images that outlines or segments were drawn on.
        problems: why it cannot be read.
    """

    patient: str
    role: str | None = None
    kind: Kind
    holds: Literal["CT", "MR", "PT"] | None = None
    files: tuple[Path, ...]
    regions: tuple[str, ...] = ()
    uid: str = ""
    frame: str = ""
    moment: str = ""
    references: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Series({self.role!r}, {self.kind}, {len(self.files)} files, {len(self.problems)} problems)"

    def refuse_problems(self) -> None:
        """Raise what is wrong with it.

        Raises:
            DataError: there is something.
        """
        if self.problems:
            raise DataError(*self.problems)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Inventory:
    """What is in an export.

    Attributes:
        series: sorted by patient, kind, role.
        problems: files and folders that could not be read or placed, and series with a problem.
        identifying: header keyword -> number of files in which it is filled.
        burned_in: number of files that may have a name written into their pixels.
        others: number of files that are neither images, outlines nor segments.
    """

    series: tuple[Series, ...]
    problems: tuple[str, ...]
    identifying: dict[str, int]
    burned_in: int
    others: int

    def __repr__(self) -> str:
        return f"Inventory({len(self.series)} series, {len(self.problems)} problems)"

    def patients(self) -> tuple[str, ...]:
        """Ids, sorted."""
        return tuple(sorted({s.patient for s in self.series}))

    def images(self, patient: str) -> dict[str, Series]:
        """Role -> series of one patient."""
        return {s.role: s for s in self.series if s.patient == patient and s.role is not None}

    def regions_of(self, image: Series) -> tuple[Series, ...]:
        """Outlines, segments and masks that are of one image.

        Those of the same patient that name the image's series; those that name no series but have its frame of
        reference; and mask files, which name nothing (whether they lie on the image is checked when they are read).
        """
        return tuple(s for s in self.series if s.patient == image.patient and _is_of(s, image))


def _is_of(regions: Series, image: Series) -> bool:
    if regions.regions:
        return True
    if regions.kind not in {"RTSTRUCT", "SEG"}:
        return False
    if regions.references:
        return image.uid in regions.references
    return bool(regions.frame) and regions.frame == image.frame


@dataclass(kw_only=True, slots=True)
class _Gathering:
    """What is known while files are read one by one."""

    groups: dict[tuple[str, str, str, str], Series] = field(default_factory=dict)
    files: dict[tuple[str, str, str, str], list[Path]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    identifying: Counter[str] = field(default_factory=Counter)
    burned_in: int = 0
    others: int = 0

    def add(self, series: Series) -> None:
        """Add one file to its series; what differs between files of a series is a problem of it."""
        key = (series.patient, series.kind, series.uid, series.role or "")
        if series.kind in {"RTSTRUCT", "SEG", "file"}:
            key = (*key[:3], str(series.files[0]))  # every such file stands for itself
        known = self.groups.get(key)
        self.files.setdefault(key, []).extend(series.files)
        if known is None:
            self.groups[key] = series
        elif set(series.problems) - set(known.problems) and len(known.problems) < _SHOWN:
            self.groups[key] = replace(known, problems=(*known.problems, *series.problems))

    def series(self) -> list[Series]:
        """All series with all their files."""
        return [replace(s, files=tuple(sorted(self.files[k]))) for k, s in self.groups.items()]


def _references(header: Header, kind: str, settings: ImagingSettings) -> tuple[str, ...]:
    """SeriesInstanceUIDs of the images on which outlines or segments were drawn."""
    limits = settings.limits
    found: list[Header] = []
    if kind == "SEG":
        found += header.items("ReferencedSeriesSequence", limits)
    elif kind == "RTSTRUCT":
        for frame in header.items("ReferencedFrameOfReferenceSequence", limits):
            for study in frame.items("RTReferencedStudySequence", limits):
                found += study.items("RTReferencedSeriesSequence", limits)
    return tuple(sorted({uid for item in found if (uid := item.text("SeriesInstanceUID"))}))


def _moment(header: Header) -> str:
    """Date and time of a series, in the order of time; empty where no date is written."""
    date = header.text("SeriesDate") or header.text("StudyDate")
    return date and f"{date} {header.text('SeriesTime')}"


def _frame(header: Header, kind: str, settings: ImagingSettings) -> str:
    """FrameOfReferenceUID, which an RTSTRUCT keeps in a sequence."""
    item = header.item("ReferencedFrameOfReferenceSequence", settings.limits) if kind == "RTSTRUCT" else None
    return (item or header).text("FrameOfReferenceUID")


def _of_header(header: Header, text: str, settings: ImagingSettings) -> Series | None:
    """Build the series of one DICOM file; None for what is neither image, outline nor segment."""
    kind = _KINDS.get(header.text("Modality"))
    if kind is None:
        return None
    uid = header.text("SeriesInstanceUID")
    if not uid:
        raise header.missing("SeriesInstanceUID")
    role, problems = None, []
    if kind in _IMAGES:
        roles = role_of(header, settings.series)
        role = roles[0] if roles else None
        if len(roles) > 1:
            problems.append(
                f"{shown(header.path)}: fits the rules of {' and '.join(roles)}; make the rules under "
                "imaging.series exclude each other"
            )
        if burned_in(header):
            tag = tag_name("BurnedInAnnotation")
            problems.append(
                f"{shown(header.path)}: {tag} is YES: a name may stand in its pixels; the series is refused"
            )
    return Series(
        patient=text,
        role=role,
        kind=kind,
        holds=kind if kind in {"CT", "MR", "PT"} else None,
        files=(header.path,),
        uid=uid,
        frame=_frame(header, kind, settings),
        moment=_moment(header),
        references=_references(header, kind, settings),
        problems=tuple(problems),
    )


class _Patients:
    """The site's id of the patient whom a file is of."""

    def __init__(self, folder: Path, source: PatientSource) -> None:
        self._pattern = None if source.pattern is None else re.compile(source.pattern)
        self._source = source
        self._links = None if source.link is None else _links(folder / source.link)

    def find(self, path: Path, inside: Path, header: Header | None) -> str:
        """Return the id.

        Raises:
            DataError: there is none; the message names the place, not the text.
        """
        text = source_text(self._source.source, path, inside, header)
        if self._pattern is not None:
            match = self._pattern.search(text)
            if match is None or not match["patient"]:
                raise DataError(
                    f"{shown(path)}: what should hold the patient's id does not fit imaging.patient.pattern"
                )
            text = match["patient"]
        if self._links is None:
            return text
        if text not in self._links:
            raise DataError(f"{shown(path)}: its patient is not in {self._source.link}; add a row or remove the file")
        return self._links[text]


def _links(path: Path) -> dict[str, str]:
    """Read the table that maps ids of the archive to ids of the site's tables."""
    problems = Problems()
    try:
        records = read_records(path, problems)
    except FileNotFoundError:
        raise DataError(f"{shown(path)}: does not exist; imaging.patient.link names it") from None
    problems.raise_if_any()
    if records is None or not {"source", "patient_id"} <= set(records.header):
        raise DataError(f"{shown(path)}: needs the columns source and patient_id")
    source, patient = records.header.index("source"), records.header.index("patient_id")
    links: dict[str, str] = {}
    for row, line in zip(records.rows, records.lines, strict=True):
        if links.setdefault(row[source].strip(), row[patient].strip()) != row[patient].strip():
            problems.add(shown(path), "names a second patient for the same source", row=line, column="source")
    problems.raise_if_any()
    return links


def _read_one(path: Path, root: Path, settings: ImagingSettings, patients: _Patients, gathering: _Gathering) -> None:
    """Place one file."""
    inside = path.relative_to(root)
    with open_regular(path, settings.limits) as file:
        start = file.read(132)
    if looks_like_dicom(start):
        header = read_header(path, settings.limits)
        series = _of_header(header, "", settings)
        if series is None:
            if not header.text("Modality") and not header.has("DirectoryRecordSequence"):
                raise header.missing("Modality")
            gathering.others += 1
            return
        gathering.identifying.update(identifying_tags(header))
        gathering.burned_in += burned_in(header)
        gathering.add(replace(series, patient=patients.find(path, inside, header)))
        return
    roles = [n for n, rule in settings.series.items() if fits_file(inside, rule.files)]
    regions = tuple(n for n, rule in settings.regions.items() if fits_file(inside, rule.files))
    if len(roles) + bool(regions) > 1:
        names = " and ".join([*roles, *regions])
        raise DataError(f"{shown(path)}: fits the rules of {names}; make the rules under [imaging] exclude each other")
    if roles or regions:
        holds = settings.series[roles[0]].kind if roles else None
        patient = patients.find(path, inside, None)
        role = roles[0] if roles else None
        gathering.add(Series(patient=patient, role=role, kind="file", holds=holds, files=(path,), regions=regions))
    elif path.suffix.lower() in _MEDICAL:
        raise DataError(f"{shown(path)}: is not a DICOM file; remove it or export it again")
    else:
        gathering.others += 1


def _shared_uids(series: Iterable[Series]) -> set[str]:
    """UIDs that are used for two patients."""
    owners: dict[str, set[str]] = {}
    for one in series:
        if one.uid:
            owners.setdefault(one.uid, set()).add(one.patient)
    return {uid for uid, patients in owners.items() if len(patients) > 1}


def _winner(series: list[Series], places: list[int], rule: SeriesRule) -> int | None:
    """Place of the one series that a rule prefers; None where it prefers none, or two alike."""
    if rule.choose == "only" or (rule.choose != "largest" and not all(series[i].moment for i in places)):
        return None
    key = {i: len(series[i].files) if rule.choose == "largest" else series[i].moment for i in places}
    best = min(key.values()) if rule.choose == "earliest" else max(key.values())
    first = [i for i in places if key[i] == best]
    return first[0] if len(first) == 1 else None


def _choose(series: list[Series], settings: ImagingSettings) -> list[Series]:
    """Leave one series per patient and role, or say why there is not one."""
    rivals: dict[tuple[str, str], list[int]] = {}
    for i, one in enumerate(series):
        if one.role is not None:
            rivals.setdefault((one.patient, one.role), []).append(i)
    chosen = list(series)
    for (_, role), places in rivals.items():
        winner = _winner(series, places, settings.series[role]) if len(places) > 1 else places[0]
        for i in places:
            if winner is None:
                problem = (
                    f"{shown(series[i].files[0])}: {len(places)} series of this patient fit imaging.series.{role}; make the "
                    "rule narrower, or set choose = 'largest', 'earliest' or 'latest' (which must tell them apart)"
                )
                chosen[i] = replace(series[i], problems=(*series[i].problems, problem))
            elif i != winner:
                chosen[i] = replace(series[i], role=None)
    return chosen


def find_series(folder: Path, settings: ImagingSettings) -> Inventory:
    """Find the series of all patients among mixed files in nested folders.

    Args:
        folder: the site's folder.
        settings: `[imaging]` of its `site.toml`; the defaults list what is there without giving it roles.

    Raises:
        DataError: the folder or the link table cannot be read, or a limit is passed. What is wrong with one file or one
            series stands in the inventory.

    Guarantees:
        - Nothing outside the folder is read.
        - Names of files and folders, and their order, change nothing but the order of `Series.files`.
        - No problem quotes a header value.
    """
    root = (folder / settings.folder).resolve()
    if not root.is_relative_to(folder.resolve()):
        raise DataError(f"{shown(root)}: imaging.folder leads out of the site's folder; copy the images into it")
    found = files_below(root, settings.limits)
    patients = _Patients(folder, settings.patient)
    gathering = _Gathering(problems=list(found.problems))
    for path in found.files:
        try:
            _read_one(path, root, settings, patients, gathering)
        except DataError as error:
            gathering.problems.extend(error.problems)
    series = gathering.series()
    shared = _shared_uids(series)
    message = f"{tag_name('SeriesInstanceUID')} is the same for two patients; export them again"
    series = [
        replace(s, problems=(*s.problems, f"{shown(s.files[0])}: {message}")) if s.uid in shared else s for s in series
    ]
    series = sorted(_choose(series, settings), key=lambda s: (s.patient, s.kind, s.role or "", s.uid, s.files))
    return Inventory(
        series=tuple(series),
        problems=(*gathering.problems, *(p for s in series for p in s.problems)),
        identifying=dict(sorted(gathering.identifying.items())),
        burned_in=gathering.burned_in,
        others=gathering.others,
    )
