"""Made-up people for a raw cohort: the names, numbers, dates and UIDs that a hospital's files are full of.

De-identification is tested with them: whatever `Person.identifying` lists must be in no byte that preprocessing
writes. Nobody is real: names are put together from syllables, and UIDs lie under the arc 2.999, which is kept for
examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta

import numpy as np

__all__ = ["DATE_FORMS", "Person", "draw_people", "make_name"]

DATE_FORMS = ("%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y")
"""How sites write a date, in turn; DICOM writes 20240131."""

_YEAR = 365.25
_ONSETS = "br dr kr str tv zl vr gl pl sk mr thr".split()  # noqa: SIM905 - shorter
_VOWELS = "a e i o u".split()  # noqa: SIM905
_CODAS = "nk lv rt zz mb x rg ndt sk vv".split()  # noqa: SIM905
_FIRST_DIAGNOSIS, _DIAGNOSES_DAYS = date(2008, 1, 1), 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """What a hospital knows of a patient and nobody else may learn.

    Attributes:
        number: the hospital's own number, by which its files are joined.
        family, given: names.
        phone, accession: a telephone number and the number of the imaging order.
        born, diagnosed, scanned, last_seen: dates.
    """

    number: str
    family: str
    given: str
    phone: str
    accession: str
    born: date
    diagnosed: date
    scanned: date
    last_seen: date

    @property
    def dicom_name(self) -> str:
        """The name as DICOM writes it."""
        return f"{self.family}^{self.given}"

    @property
    def uid_root(self) -> str:
        """Where all UIDs of this patient begin."""
        key = int.from_bytes(hashlib.sha256(self.number.encode()).digest()[:8], "big")
        return f"2.999.{key}"

    def uid(self, *parts: int) -> str:
        """One UID of this patient's files; equal parts give equal UIDs."""
        return ".".join([self.uid_root, *map(str, parts)])

    def at_pacs(self) -> Person:
        """The same person under the number of an archive that does not use the hospital's."""
        digits = int.from_bytes(hashlib.sha256(f"archive {self.number}".encode()).digest()[:6], "big")
        return replace(self, number=f"PACS{digits:015d}")

    def at_laboratory(self) -> str:
        """The number of this patient's samples at a genomics core that has numbers of its own."""
        digits = int.from_bytes(hashlib.sha256(f"laboratory {self.number}".encode()).digest()[:6], "big")
        return f"LAB{digits:015d}"

    def identifying(self) -> tuple[str, ...]:
        """Texts that tell who this is, in every form in which the site's files hold them."""
        dates = [
            day.strftime(form)
            for day in (self.born, self.diagnosed, self.scanned, self.last_seen)
            for form in (*DATE_FORMS, "%Y%m%d")
        ]
        archive = self.at_pacs()
        numbers = (self.number, self.at_laboratory(), archive.number, self.uid_root, archive.uid_root)
        return (*numbers, self.family, self.given, self.phone, self.accession, *dates)


def make_name(rng: np.random.Generator, syllables: int = 3) -> str:
    """Put a name together that no language has, so that finding it in a file is no accident."""
    parts = [
        str(rng.choice(_ONSETS)) + str(rng.choice(_VOWELS)) + (str(rng.choice(_CODAS)) if s == syllables - 1 else "")
        for s in range(syllables)
    ]
    return "".join(parts).capitalize()


def draw_people(
    rng: np.random.Generator, numbers: Sequence[str], age: Sequence[float], days: Sequence[float]
) -> tuple[Person, ...]:
    """Draw who the patients are, fitting what is known of them.

    Args:
        rng: a stream for names and dates alone.
        numbers: (n,) hospital numbers.
        age: (n,) years at diagnosis.
        days: (n,) whole days from diagnosis to the last time seen.
    """
    people = []
    for number, years, followed in zip(numbers, age, days, strict=True):
        diagnosed = _FIRST_DIAGNOSIS + timedelta(days=int(rng.integers(_DIAGNOSES_DAYS)))
        people.append(
            Person(
                number=number,
                family=make_name(rng),
                given=make_name(rng),
                phone=f"+99 {int(rng.integers(10**9)):09d}",
                accession=f"ACC{int(rng.integers(10**9)):09d}",
                born=diagnosed - timedelta(days=round(years * _YEAR)),
                diagnosed=diagnosed,
                scanned=diagnosed + timedelta(days=int(rng.integers(1, 30))),
                last_seen=diagnosed + timedelta(days=int(followed)),
            )
        )
    return tuple(people)
