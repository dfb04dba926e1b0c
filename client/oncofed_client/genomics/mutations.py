"""One table of mutations, whether it came from VCF or from MAF files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from oncofed_shared.plan_genomics import CONSEQUENCES, Consequence

__all__ = ["MOST_MUTATIONS", "Mutation", "Mutations", "shortest"]

MOST_MUTATIONS = 5_000_000
"""In the genes of a study, in one file."""
_LONG = 64


@dataclass(frozen=True, slots=True, order=True)
class Mutation:
    """One allele of one patient that differs from the reference.

    Attributes:
        patient: local id.
        gene: approved symbol.
        chromosome: without `chr`.
        position: of the first base that changes, from 1 on; of an insertion the base after it.
        ref, alt: alleles without what they share; the empty text for none, a hash for a very long one.
        consequence: the plan's word for what it does.
    """

    patient: str
    gene: str
    chromosome: str
    position: int
    ref: str
    alt: str
    consequence: Consequence


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class Mutations:
    """All mutations of a site in the genes of a study.

    Attributes:
        rows: sorted, each once.
        covered: per patient who was sequenced the names of his panels; a patient may have no mutation.
        problems: what a person should know.
    """

    rows: tuple[Mutation, ...]
    covered: Mapping[str, frozenset[str]]
    problems: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Mutations({len(self.covered)} patients, {len(self.rows)} mutations)"

    @classmethod
    def of(cls, rows: Iterable[Mutation], covered: Mapping[str, frozenset[str]], problems: Iterable[str]) -> Mutations:
        """Sort, and count a mutation once that two files or two samples of a patient have; the gravest consequence holds."""
        chosen: dict[tuple[str, str, str, int, str, str], Mutation] = {}
        for row in sorted(set(rows), key=lambda m: CONSEQUENCES.index(m.consequence)):
            chosen.setdefault((row.patient, row.gene, row.chromosome, row.position, row.ref, row.alt), row)
        return cls(rows=tuple(sorted(chosen.values())), covered=covered, problems=tuple(problems))


def shortest(position: int, ref: str, alt: str) -> tuple[int, str, str]:
    """Take away what two alleles share, first in front, then behind, so that VCF and MAF write an indel alike.

    Alleles that are no bases, as `<DEL>`, stay as they are. One of more than 64 bases is told by its length and hash.

    >>> shortest(100, "CTG", "CG"), shortest(100, "A", "AT"), shortest(7, "A", "<DEL>")
    ((101, 'T', ''), (101, '', 'T'), (7, 'A', '<DEL>'))
    """
    if not (ref.isalpha() and alt.isalpha()) or ref == alt:
        return position, _brief(ref), _brief(alt)
    front = 0
    while front < min(len(ref), len(alt)) and ref[front] == alt[front]:
        front += 1
    ref, alt = ref[front:], alt[front:]
    behind = 0
    while behind < min(len(ref), len(alt)) and ref[-1 - behind] == alt[-1 - behind]:
        behind += 1
    return position + front, _brief(ref[: len(ref) - behind]), _brief(alt[: len(alt) - behind])


def _brief(allele: str) -> str:
    if len(allele) <= _LONG:
        return allele
    return f"<{len(allele)}:{hashlib.blake2b(allele.encode(), digest_size=12).hexdigest()}>"
