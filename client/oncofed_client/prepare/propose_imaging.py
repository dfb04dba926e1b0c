"""What `init` proposes for images: `[imaging]` from what lies in a folder.

A proposal names files, kinds of series and patterns, and is read by a person before it is used. It holds no value of a header.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from oncofed_client.imaging.headers import read_header
from oncofed_client.imaging.regions import region_names
from oncofed_client.imaging.series import Inventory, find_series
from oncofed_client.imaging.settings import ImagingSettings, SeriesRule, matches
from oncofed_client.imaging.walk import files_below
from oncofed_client.tables import Problems, read_records
from oncofed_shared.errors import DataError

__all__ = ["as_toml", "propose_imaging"]

_SEQUENCES = {
    "flair": ("*flair*",),
    "adc": ("*adc*",),
    "dwi": ("*dwi*", "*diff*"),
    "dce": ("*dce*", "*dynamic*"),
    "t1gd": ("*t1*gd*", "*t1*ce*", "*t1*post*", "*t1*+c*"),
    "t1": ("*t1*", "*mprage*"),
    "t2": ("*t2*",),
}
"""Usual descriptions of MR sequences, the more telling first."""
_TUMOURS = ("gtv*", "*tumo*", "*lesion*", "*nodule*", "*neoplasm*", "*mass*")
"""Usual names of the region of interest."""
_VOLUMES = (".nii", ".nii.gz", ".nrrd")
_MASKS = ("seg", "mask", "label", "labels", "roi", "tumor", "tumour")
_FILE_KINDS = {"ct": "CT", "pet": "PT", "pt": "PT", "suv": "PT"} | dict.fromkeys(_SEQUENCES, "MR") | {"t1ce": "MR"}


def as_toml(name: str, content: Mapping[str, Any], comments: Iterable[str]) -> str:
    """A table of settings as text, with comments before it."""
    notes = "".join(f"# {comment}\n" for comment in comments)
    return f"\n{notes}{tomli_w.dumps({name: content})}"


def _below(folder: Path, files: Iterable[Path]) -> str:
    """The subfolder that all files lie in, or the folder itself."""
    tops = {path.relative_to(folder).parts[0] if len(path.relative_to(folder).parts) > 1 else "." for path in files}
    return tops.pop() if len(tops) == 1 else "."


def _links(folder: Path) -> list[str]:
    """Tables that map an archive's numbers to the site's: columns source and patient_id."""
    found = []
    for path in sorted(folder.glob("*.csv")):
        records = read_records(path, Problems())
        if records is not None and set(records.header) == {"source", "patient_id"}:
            found.append(path.name)
    return found


def _sequences(found: Inventory, settings: ImagingSettings) -> tuple[dict[str, Any], list[str]]:
    """Rules for MR, by the words that descriptions usually have."""
    descriptions = []
    for one in found.series:
        if one.kind == "MR":
            header = read_header(one.files[0], settings.limits)
            descriptions.append(header.text("SeriesDescription"))
    rules: dict[str, Any] = {}
    unnamed = 0
    for text in descriptions:
        role = next((r for r, patterns in _SEQUENCES.items() if matches(text, patterns)), None)
        if role is None:
            unnamed += 1
        else:
            rules[role] = {"modality": "MR", "description": [p for p in _SEQUENCES[role] if _used(p, descriptions)]}
    notes = [f"{unnamed} MR series have no usual description; give them a rule, or leave them out"] if unnamed else []
    for text in descriptions:
        fitting = [r for r, rule in rules.items() if matches(text, tuple(rule["description"]))]
        if len(fitting) > 1:
            notes.append(f"some series fit both {' and '.join(fitting)}: make one of the two narrower")
            break
    return rules, notes


def _used(pattern: str, descriptions: Sequence[str]) -> bool:
    return any(matches(text, (pattern,)) for text in descriptions)


def _regions(found: Inventory, settings: ImagingSettings) -> list[str]:
    """Patterns of the usual names of a tumour that fit a region here."""
    names: set[str] = set()
    for one in found.series:
        if one.kind in {"RTSTRUCT", "SEG"} and not one.problems:
            try:
                names |= set(region_names(one, settings))
            except DataError:
                continue
    return [p for p in _TUMOURS if any(matches(name, (p,)) for name in names)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Proposal:
    series: dict[str, Any]
    regions: dict[str, Any]
    patient: dict[str, Any]
    notes: list[str]


def _of_dicom(folder: Path, found: Inventory, people: Collection[str]) -> _Proposal:
    settings = ImagingSettings()
    series: dict[str, Any] = {}
    notes: list[str] = []
    kinds = {one.kind for one in found.series}
    for kind, role in (("CT", "ct"), ("PT", "pet")):
        if kind in kinds:
            series[role] = {"modality": kind}
            several = len({one.patient for one in found.series if one.kind == kind}) < sum(
                one.kind == kind for one in found.series
            )
            if several:
                series[role]["choose"] = "largest"
                notes.append(
                    f"some patients have several {kind} series: the one with most files is taken; or narrow the rule"
                )
    more, remarks = _sequences(found, settings)
    series |= more
    notes += remarks
    patterns = _regions(found, settings)
    regions: dict[str, Any] = {"tumour": {"names": patterns}} if patterns else {}
    if not regions:
        notes.append("no region has a usual name; `oncofed-site check` lists the names: add [imaging.regions.tumour]")
    patient: dict[str, Any] = {"source": "PatientID"}
    links = _links(folder)
    own = {one.patient for one in found.series}
    if people and not own & set(people):
        if len(links) == 1:
            patient["link"] = links[0]
        else:
            notes.append("no PatientID is in the tables: give a table with the columns source and patient_id as link")
    return _Proposal(series=series, regions=regions, patient=patient, notes=notes)


def _of_files(paths: Sequence[Path], root: Path) -> _Proposal:
    """Rules for NIfTI and NRRD files, by the last word of their names."""
    deep = all(len(path.relative_to(root).parts) > 1 for path in paths)
    series: dict[str, Any] = {}
    masks: set[str] = set()
    for path in paths:
        suffix = next(s for s in _VOLUMES[::-1] if path.name.lower().endswith(s))
        suffix = ".nii.gz" if path.name.lower().endswith(".nii.gz") else suffix
        stem = path.name[: -len(suffix)]
        word = stem.replace("-", "_").split("_")[-1].lower()
        pattern = f"*{stem[-len(word) :]}{suffix}"
        if word in _MASKS:
            masks.add(pattern)
        elif word in _FILE_KINDS:
            rule = series.setdefault(word, {"files": [], "kind": _FILE_KINDS[word]})
            rule["files"] = sorted({*rule["files"], pattern})
    patient = {"source": "folder"} if deep else {"source": "file", "pattern": "(?P<patient>.+)[_-][^_-]+"}
    notes = [] if series else ["no file ends in a usual word (ct, pet, t1, t2, flair, ...): add [imaging.series.ROLE]"]
    regions: dict[str, Any] = {"tumour": {"files": sorted(masks)}} if masks else {}
    if not regions:
        notes.append("no mask was recognised: add [imaging.regions.tumour] with names or files")
    return _Proposal(series=series, regions=regions, patient=patient, notes=notes)


def propose_imaging(folder: Path, people: Collection[str]) -> str:
    """`[imaging]` for what lies in a folder, as text; empty where there are no images.

    Args:
        people: ids in the site's tables, to see whether headers have the same.

    Raises:
        DataError: the folder cannot be read.
    """
    settings = ImagingSettings()
    found = find_series(folder, settings)
    images = [one for one in found.series if one.kind in {"CT", "MR", "PT"}]
    if images:
        files = [path for one in found.series for path in one.files]
        made = _of_dicom(folder, found, people)
    else:
        files = [p for p in files_below(folder, settings.limits).files if p.name.lower().endswith(_VOLUMES)]
        if not files:
            return ""
        made = _of_files(files, folder / _below(folder, files))
    root = _below(folder.resolve(), [p.resolve() for p in files])
    content = {"folder": root, "patient": made.patient, "series": made.series, "regions": made.regions}
    for rule in made.series.values():
        SeriesRule.model_validate(rule, strict=False)
    head = [
        "Images: which series play which role, which outlines are the region of interest, where the patient's id stands."
    ]
    return as_toml("imaging", {k: v for k, v in content.items() if v}, [*head, *(f"NOTE: {n}" for n in made.notes)])
