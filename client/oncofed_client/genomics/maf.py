"""MAF files: one row per mutation and sample."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oncofed_client.genomics.consequences import of_class
from oncofed_client.genomics.genes import Unmapped
from oncofed_client.genomics.inputs import SiteFiles
from oncofed_client.genomics.lines import fault, text_rows
from oncofed_client.genomics.mutations import MOST_MUTATIONS, Mutation, shortest
from oncofed_client.genomics.segments import chromosome
from oncofed_client.genomics.settings import MutationFiles

__all__ = ["MafReading", "read_maf"]

_NEEDED = {
    "gene": "Hugo_Symbol",
    "chromosome": "Chromosome",
    "position": "Start_Position",
    "class": "Variant_Classification",
    "ref": "Reference_Allele",
    "alt": "Tumor_Seq_Allele2",
    "sample": "Tumor_Sample_Barcode",
}
_OPTIONAL = {"first": "Tumor_Seq_Allele1", "filter": "FILTER", "status": "Mutation_Status"}
_NOT_SOMATIC = {"germline", "wildtype", "none", "loh"}
_POSITION = re.compile(r"\d{1,10}", re.ASCII)
_ALLELE = re.compile(r"-|[ACGTNRYSWKMBDHV]+|<[^<>]{1,200}>", re.ASCII | re.IGNORECASE)


@dataclass(kw_only=True, slots=True, repr=False, eq=False)
class MafReading:
    """What one MAF held, and what was left out.

    Attributes:
        rows: mutations in the genes of the study.
        patients: all who stand in it.
        filtered, not_somatic: rows that FILTER or Mutation_Status excludes.
        others: rows of samples that are nobody's.
        unmapped: labels of genes.
        mapped: rows whose gene is known.
    """

    rows: list[Mutation] = field(default_factory=list)
    patients: dict[str, None] = field(default_factory=dict)
    filtered: int = 0
    not_somatic: int = 0
    others: int = 0
    unmapped: Unmapped = field(default_factory=Unmapped)
    mapped: int = 0

    def problems(self, path: Path) -> tuple[str, ...]:
        """What a person should know, in counts."""
        said = (
            (self.others, "rows are of samples that are not in genomics.samples and were not read"),
            (self.filtered, "rows were left out, because FILTER is not in genomics.mutations.filters"),
            (self.not_somatic, "rows were left out, because Mutation_Status says that they are not somatic"),
        )
        counted = tuple(f"{path}: {count} {text}" for count, text in said if count)
        return (*counted, *self.unmapped.lines(path, max(self.mapped, len(self.unmapped.labels)), self.patients))


def _places(path: Path, header: Sequence[str], row: int) -> dict[str, int]:
    names = {name.casefold(): i for i, name in reversed(list(enumerate(header)))}
    absent = [name for name in _NEEDED.values() if name.casefold() not in names]
    if absent:
        raise fault(path, f"expected the header of a MAF, separated by tabs; it lacks {', '.join(absent)}", row=row)
    every = {**_NEEDED, **_OPTIONAL}
    return {key: names[name.casefold()] for key, name in every.items() if name.casefold() in names}


def _alleles(path: Path, row: int, cell: Mapping[str, str]) -> tuple[int, str, str]:
    """Position and alleles, as in a VCF with everything taken away that they share."""
    if not _POSITION.fullmatch(cell["position"]):
        raise fault(path, "expected a position, a whole number of 0 or more", row=row, column=_NEEDED["position"])
    # Of a homozygous one both alleles are the new one; of others the first is the reference. Some tools do it the other way.
    new = cell["alt"] if cell["alt"] != cell["ref"] else cell.get("first", cell["alt"])
    for name, allele in ((_NEEDED["ref"], cell["ref"]), (_NEEDED["alt"], new)):
        if not _ALLELE.fullmatch(allele):
            raise fault(path, "expected bases, or - for none", row=row, column=name)
    if new.upper() == cell["ref"].upper():
        raise fault(path, "expected an allele that differs from the reference", row=row, column=_NEEDED["alt"])
    ref, alt = (a.upper().replace("-", "") if a == "-" else a.upper() for a in (cell["ref"], new))
    # An insertion stands between Start_Position and the base after it.
    return shortest(int(cell["position"]) + (not ref), ref, alt)


def read_maf(path: Path, site: SiteFiles, files: MutationFiles, wanted: Collection[str]) -> MafReading:
    """Read the mutations of a MAF in some genes.

    Args:
        path: tab-separated with the columns of the GDC's MAF format, also packed with gzip.
        site: names of genes and whose samples are.
        files: what `site.toml` says of it.
        wanted: approved symbols.

    Guarantees:
        - The order of rows does not matter.

    Raises:
        DataError: it is no MAF, or a row is malformed: with file, row and column; never a value.
    """
    reading = MafReading()
    rows = text_rows(path, site.settings.limits)
    row, header = next(rows, (1, []))
    places = _places(path, header, row)
    for row, cells in rows:
        if len(cells) != len(header):
            raise fault(path, f"expected {len(header)} cells as in the header, found {len(cells)}", row=row)
        cell = {key: cells[i] for key, i in places.items()}
        if not cell["sample"]:
            raise fault(path, "expected the name of a sample, the cell is empty", row=row, column=_NEEDED["sample"])
        patient = site.links.patient_of(cell["sample"])
        if patient is None:
            reading.others += 1
            continue
        reading.patients[patient] = None
        if not set(cell.get("filter", "").split(";")) <= set(files.filters):
            reading.filtered += 1
        elif cell.get("status", "").casefold() in _NOT_SOMATIC:
            reading.not_somatic += 1
        else:
            _take(reading, path, cell, row=row, patient=patient, site=site, wanted=wanted)
    return reading


def _take(
    reading: MafReading,
    path: Path,
    cell: Mapping[str, str],
    *,
    row: int,
    patient: str,
    site: SiteFiles,
    wanted: Collection[str],
) -> None:
    """Take one row's mutation."""
    what = of_class(cell["class"])
    if what is None:
        message = "expected a class of the MAF format, such as Missense_Mutation, Nonsense_Mutation or Silent"
        raise fault(path, message, row=row, column=_NEEDED["class"])
    position, ref, alt = _alleles(path, row, cell)
    gene = site.names.resolve(cell["gene"])
    if gene is None:
        reading.unmapped.add(cell["gene"], site.names)
        return
    reading.mapped += 1
    if gene in wanted:
        reading.rows.append(Mutation(patient, gene, chromosome(cell["chromosome"]), position, ref, alt, what))
    if len(reading.rows) > MOST_MUTATIONS:
        raise fault(path, f"holds more than {MOST_MUTATIONS} mutations in the study's genes", row=row)
