"""What lies in a site's folder as raw files, for its own people: series, regions, sequencing files, and what is wrong.

Headers are looked at, pixels are not. The names of regions are shown as they stand, because a person has to write patterns for
them; of all other header fields only the keyword is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from oncofed_client.genomics.inputs import open_files
from oncofed_client.imaging.regions import region_names
from oncofed_client.imaging.series import Inventory, find_series
from oncofed_client.imaging.settings import ImagingSettings
from oncofed_client.settings import SiteSettings
from oncofed_shared.errors import DataError

__all__ = ["RawReport", "SeriesReport", "raw_report"]

_SHOWN = 20
"""Problems and names of regions that are listed; the rest are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesReport:
    """Series of one kind and role.

    Attributes:
        kind: CT, MR, PT, RTSTRUCT, SEG or file.
        role: of `[imaging.series.ROLE]`; empty for those that no rule fits.
        patients, series, files: how many.
        broken: series with a problem.
    """

    kind: str
    role: str
    patients: int
    series: int
    files: int
    broken: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RawReport:
    """Raw files of a site.

    Attributes:
        series: by kind and role.
        patients: with images, outlines or segments.
        regions: name of an outline or segment, as it stands -> patients.
        sequencing: what -> number of files.
        identifying: header keyword -> files in which it is filled.
        burned_in: files that may have a name in their pixels; their series are refused.
        others: files that are neither images, outlines nor segments.
        problems: places in files and what is wrong there.
        notes: what a person should do next.
    """

    series: tuple[SeriesReport, ...] = ()
    patients: frozenset[str] = frozenset()
    regions: dict[str, int] = field(default_factory=dict)
    sequencing: dict[str, int] = field(default_factory=dict)
    identifying: dict[str, int] = field(default_factory=dict)
    burned_in: int = 0
    others: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _series(found: Inventory) -> tuple[SeriesReport, ...]:
    groups: dict[tuple[str, str], list[int]] = {}
    for place, one in enumerate(found.series):
        groups.setdefault((one.kind, one.role or ""), []).append(place)
    return tuple(
        SeriesReport(
            kind=kind,
            role=role,
            patients=len({found.series[i].patient for i in places}),
            series=len(places),
            files=sum(len(found.series[i].files) for i in places),
            broken=sum(bool(found.series[i].problems) for i in places),
        )
        for (kind, role), places in sorted(groups.items())
    )


def _regions(found: Inventory, settings: ImagingSettings) -> tuple[dict[str, int], list[str]]:
    """Names of regions and how many patients have each, and what could not be read."""
    who: dict[str, set[str]] = {}
    problems: list[str] = []
    for one in found.series:
        if one.kind not in {"RTSTRUCT", "SEG"} or one.problems:
            continue
        try:
            for name in region_names(one, settings):
                who.setdefault(name, set()).add(one.patient)
        except DataError as error:
            problems.extend(error.problems)
    return {name: len(patients) for name, patients in sorted(who.items())}, problems


def _short(lines: list[str]) -> tuple[str, ...]:
    unique = list(dict.fromkeys(lines))
    rest = [f"and {len(unique) - _SHOWN} more problems"] if len(unique) > _SHOWN else []
    return (*unique[:_SHOWN], *rest)


def _sequencing(folder: Path, settings: SiteSettings) -> tuple[dict[str, int], list[str]]:
    """Number of sequencing files by what they are, and what is wrong with finding them."""
    files = settings.genomics
    if files is None:
        return {}, []
    counts: dict[str, int] = {}
    absent: list[str] = []
    try:
        site = open_files(folder, files)
        for kind in ("expression", "copy_number", "mutations"):
            part = getattr(files, kind)
            if part is not None:
                paths = site.paths(part.files)
                counts[kind.replace("_", " ")] = sum(path.is_file() for path in paths)
                absent += [
                    f"{path}: is not there; correct genomics.{kind}.files" for path in paths if not path.is_file()
                ]
    except DataError as error:
        return counts, [*absent, *error.problems]
    return counts, [*absent, *site.problems]


def raw_report(folder: Path, settings: SiteSettings) -> RawReport | None:
    """Say what raw files a site has; None where `site.toml` names none.

    Raises:
        DataError: the folder of images cannot be read, or a limit is passed. What is wrong inside is in the report.
    """
    if settings.imaging is None and settings.genomics is None:
        return None
    counts, wrong = _sequencing(folder, settings)
    if settings.imaging is None:
        return RawReport(sequencing=counts, problems=_short(wrong))
    found = find_series(folder, settings.imaging)
    regions, unread = _regions(found, settings.imaging)
    notes = []
    if any(one.role is None and one.kind in {"CT", "MR", "PT"} for one in found.series):
        notes.append("series without a role are not used; [imaging.series] in site.toml gives roles")
    if found.burned_in:
        notes.append(f"{found.burned_in} files say that a name may stand in their pixels; their series are refused")
    return RawReport(
        series=_series(found),
        patients=frozenset(found.patients()),
        regions=regions,
        sequencing=counts,
        identifying=found.identifying,
        burned_in=found.burned_in,
        others=found.others,
        problems=_short([*wrong, *found.problems, *unread]),
        notes=tuple(notes),
    )
