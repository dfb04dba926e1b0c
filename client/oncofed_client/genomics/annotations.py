"""What VEP (INFO/CSQ) and SnpEff (INFO/ANN) wrote beside a variant: one gene and consequence per allele.

A MAF has one row per variant, so one of the several annotations is chosen the same way as vcf2maf does it: the gene with the
gravest consequence, protein-coding ones first, and of this gene the transcript that VEP picked or calls canonical.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from oncofed_client.genomics.consequences import severity_rank

__all__ = ["Annotation", "AnnotationFormat", "annotation_format"]

_HEADER = re.compile(r"##INFO=<ID=(CSQ|ANN),.{0,2000}?(?:Format:|annotations:)\s*'?([^\"'>]+)", re.IGNORECASE)
_FIELDS = {
    "allele": ("Allele",),
    "number": ("ALLELE_NUM",),
    "terms": ("Consequence", "Annotation"),
    "symbol": ("SYMBOL", "Gene_Name"),
    "gene": ("Gene", "Gene_ID"),
    "biotype": ("BIOTYPE", "Transcript_BioType"),
    "picked": ("PICK",),
    "canonical": ("CANONICAL",),
    "mane": ("MANE_SELECT",),
}


@dataclass(frozen=True, slots=True)
class Annotation:
    """What one allele does: a label of a gene and terms joined by `&`."""

    label: str
    terms: str


@dataclass(frozen=True, slots=True)
class AnnotationFormat:
    """Where the fields of an annotation stand.

    Attributes:
        key: `CSQ` or `ANN`.
        width: number of fields.
        place: per field its place.
    """

    key: str
    width: int
    place: dict[str, int]

    def _get(self, cells: Sequence[str], name: str) -> str:
        return cells[self.place[name]] if name in self.place else ""

    def of(self, text: str, ref: str, alts: Sequence[str]) -> list[Annotation | None] | None:
        """The annotation of each alternative allele, None for one that has none.

        Args:
            text: the value of the INFO field.
            ref: reference allele.
            alts: alternative alleles.

        Returns:
            (len(alts),), or None when an entry has the wrong number of fields.
        """
        entries = [entry.split("|") for entry in text.split(",")]
        if any(len(e) != self.width for e in entries):
            return None
        return [self._best([e for e in entries if self._fits(e, i, ref, alts)]) for i in range(len(alts))]

    def _fits(self, cells: Sequence[str], index: int, ref: str, alts: Sequence[str]) -> bool:
        number = self._get(cells, "number")
        if number:
            return number == str(index + 1)
        if len(alts) == 1:
            return True
        written = self._get(cells, "allele")
        if self.key == "ANN":
            # In a cancer sample SnpEff writes "ALT-REFERENCE".
            return alts[index] in {written, written.split("-")[0]}
        return written == _as_vep(ref, alts)[index]

    def _best(self, entries: Sequence[Sequence[str]]) -> Annotation | None:
        if not entries:
            return None
        picked = [e for e in entries if self._get(e, "picked") == "1"]
        best = min(picked or entries, key=self._gravity)
        own = [e for e in entries if self._label(e) == self._label(best)]
        usual = [e for e in own if self._get(e, "canonical") == "YES"] or [e for e in own if self._get(e, "mane")]
        chosen = best if picked or not usual else usual[0]
        return Annotation(self._label(chosen), self._get(chosen, "terms"))

    def _gravity(self, cells: Sequence[str]) -> tuple[bool, int]:
        coding = self._get(cells, "biotype").casefold() in {"protein_coding", "coding"}
        return not coding, severity_rank(self._get(cells, "terms"))

    def _label(self, cells: Sequence[str]) -> str:
        return self._get(cells, "symbol") or self._get(cells, "gene")


def _as_vep(ref: str, alts: Sequence[str]) -> list[str]:
    """Alleles as VEP writes them: at an indel without the first base, where all share it; `-` for nothing."""
    real = [a for a in alts if a.isalpha()]
    indel = any(len(a) != len(ref) for a in real)
    shared = bool(real) and all(a[0] == ref[0] for a in real)
    return [(a[1:] or "-") if indel and shared and a.isalpha() else a for a in alts]


def annotation_format(line: str) -> AnnotationFormat | None:
    """Read a header line `##INFO=<ID=CSQ,...>` or `##INFO=<ID=ANN,...>`; None for any other line.

    >>> line = '##INFO=<ID=CSQ,Number=.,Type=String,Description="From VEP. Format: Allele|Consequence|SYMBOL">'
    >>> annotation_format(line).place
    {'allele': 0, 'terms': 1, 'symbol': 2}
    """
    match = _HEADER.match(line)
    if match is None:
        return None
    names = [n.strip() for n in match[2].split("|")]
    place = {key: names.index(n) for key, known in _FIELDS.items() for n in known if n in names}
    if "terms" not in place or not {"symbol", "gene"} & set(place):
        return None
    return AnnotationFormat(match[1].upper(), len(names), place)
