"""What decides a patient's features beside his files: the study's settings, the site's rules, and the code that reads them."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from oncofed_client.settings import SiteSettings
from oncofed_shared.plan import Modality, Plan

__all__ = [
    "code_version",
    "from_images",
    "from_sequencing",
    "prepared_modalities",
    "recipe",
    "table_of",
    "undefined_names",
]

_PACKAGE = Path(__file__).resolve().parents[1]
_READERS = {
    "extraction": (
        ("imaging", "prepare/radiomics.py"),
        ("numpy", "pydicom", "pyradiomics", "PyWavelets", "scipy", "SimpleITK"),
    ),
    "genomics": (("genomics", "prepare/feature_table.py"), ("numpy",)),
}


@lru_cache
def code_version(kind: str) -> str:
    """SHA-256 over the source that makes features of one kind, and the versions of the libraries that it calls."""
    sources, libraries = _READERS[kind]
    made = hashlib.sha256()
    for source in sources:
        path = _PACKAGE / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            made.update(file.relative_to(_PACKAGE).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    for library in libraries:
        made.update(f"{library}=={version(library)}\n".encode())
    return made.hexdigest()


def from_images(modality: Modality, settings: SiteSettings) -> bool:
    """Whether this site makes the modality from its images."""
    return modality.extraction is not None and settings.imaging is not None


def from_sequencing(modality: Modality, settings: SiteSettings) -> bool:
    """Whether this site makes the modality from its sequencing files."""
    files, wanted = settings.genomics, modality.genomics
    return wanted is not None and files is not None and getattr(files, wanted.kind) is not None


def table_of(name: str, modality: Modality) -> str:
    """The logical table in which a modality's prepared columns stand."""
    return modality.table or name


def prepared_modalities(plan: Plan, settings: SiteSettings) -> dict[str, Modality]:
    """Modalities that this site makes from raw files. A table of that name in `site.toml` goes before the raw files."""
    return {
        name: modality
        for name, modality in plan.modalities.items()
        if table_of(name, modality) not in settings.tables
        and (from_images(modality, settings) or from_sequencing(modality, settings))
    }


def undefined_names(modality: Modality, settings: SiteSettings) -> tuple[str, ...]:
    """Tables of `site.toml` that a study's radiomics ask for and the site does not have."""
    wanted, rules = modality.extraction, settings.imaging
    if wanted is None or rules is None:
        return ()
    series = tuple(f"imaging.series.{role}" for role in wanted.images if role not in rules.series)
    return (*series, *(f"imaging.regions.{region}" for region in wanted.regions if region not in rules.regions))


def recipe(modality: Modality, settings: SiteSettings) -> str:
    """A hash of all that decides a modality's features beside the patients' files; 32 hex digits.

    Where the files lie, how patients are named and how much may be read is not part of it.
    """
    if modality.extraction is not None and settings.imaging is not None:
        wanted, rules = modality.extraction, settings.imaging
        facts = {
            "code": code_version("extraction"),
            "study": wanted.model_dump(mode="json", exclude={"file"}),
            "series": {n: rules.series[n].model_dump(mode="json") for n in wanted.images if n in rules.series},
            "regions": {n: rules.regions[n].model_dump(mode="json") for n in wanted.regions if n in rules.regions},
        }
    elif modality.genomics is not None and settings.genomics is not None:
        facts = {
            "code": code_version("genomics"),
            "study": modality.genomics.model_dump(mode="json"),
            "site": settings.genomics.model_dump(mode="json", exclude={"limits"}),
        }
    else:
        message = "a modality without raw files has no recipe"
        raise AssertionError(message)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
