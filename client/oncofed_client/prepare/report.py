"""What preprocessing did, in counts and in words that say nothing about a patient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oncofed_client.imaging.headers import shown

__all__ = ["Failure", "Report", "without_names"]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Failure:
    """A case that could not be done.

    Attributes:
        modality: the study's name of it.
        pseudonym: the patient's in the cache; empty for a modality as a whole.
        problems: why, with the names of files, which may say who it is: for a person at the site who asks for them.
        safe: why, without them.
    """

    modality: str
    pseudonym: str
    problems: tuple[str, ...]
    safe: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a run did. Counts, and names of modalities, columns and genes.

    Attributes:
        made, found: cases that were done now, and that were in the cache already.
        failures: cases that could not be done; they were skipped.
        patients: patients with an entry, by modality.
        withdrawn: patients whose entries were removed.
        outside: patients with images who are in no table or did not consent; nothing of theirs was read but headers.
        notes: what a person should know.
    """

    made: int = 0
    found: int = 0
    failures: tuple[Failure, ...] = ()
    patients: dict[str, int] = field(default_factory=dict)
    withdrawn: int = 0
    outside: int = 0
    notes: tuple[str, ...] = ()


def without_names(
    lines: Iterable[str], folder: Path, files: Sequence[Path], patients: Iterable[str]
) -> tuple[str, ...]:
    """Replace the names of files, and ids, in lines about a case; a folder or a file may be named after a patient.

    Args:
        lines: messages of errors.
        folder: the site's.
        files: that the messages may be about.
        patients: ids that they may hold.

    Guarantees:
        - No path of `files`, no name of theirs or of a folder of theirs below `folder`, and no id of `patients` is left.
    """
    names: dict[str, str] = {}
    for place, path in enumerate(files, 1):
        own = f"file {place} of {len(files)}"
        for text in (str(path), shown(path), str(path.resolve()), shown(path.resolve())):
            names[text] = own
        inside = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
        names[str(inside)] = names[path.name] = own
        for part in inside.parts[:-1]:
            names.setdefault(part, "a folder")
    names |= dict.fromkeys((str(folder), shown(folder), str(folder.resolve())), "the site's folder")
    names |= {patient: "a patient" for patient in patients if patient}
    made = []
    for line in lines:
        text = line
        for name in sorted(names, key=len, reverse=True):
            text = text.replace(name, names[name])
        made.append(text)
    return tuple(dict.fromkeys(made))
