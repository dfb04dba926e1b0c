"""VCF files, line by line: which patient has which mutation in the genes of a study.

Written here and not taken from a library: htslib (pysam, cyvcf2) and vcfpy read a line whole before anybody can refuse it, and
leave the annotation, which is most of the work, to the caller. Tests compare with pysam.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oncofed_client.genomics.annotations import Annotation, AnnotationFormat, annotation_format
from oncofed_client.genomics.consequences import is_known_term, of_terms
from oncofed_client.genomics.genes import Unmapped
from oncofed_client.genomics.inputs import SiteFiles
from oncofed_client.genomics.lines import fault, text_lines
from oncofed_client.genomics.mutations import MOST_MUTATIONS, Mutation, shortest
from oncofed_client.genomics.segments import chromosome
from oncofed_client.genomics.settings import MutationFiles

__all__ = ["VcfReading", "read_vcf"]

_FIXED = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO"]
_POSITION = re.compile(r"\d{1,10}", re.ASCII)
_BASES = re.compile(r"[ACGTNRYSWKMBDHV]+", re.ASCII | re.IGNORECASE)
_OTHER_ALLELE = re.compile(r"<[^<>,\t]{1,200}>|[\[\]ACGTNacgtn.:*<>\w-]{1,10000}", re.ASCII)
_NO_ALLELE = {".", "*", "<*>", "<NON_REF>"}
_MOST_ALLELES, _MOST_ANNOTATIONS = 1000, 50_000
"""Of one record. More are no variant, and would cost time with the square of their number."""
_GENOTYPE = re.compile(r"/|\|")


@dataclass(kw_only=True, slots=True, repr=False, eq=False)
class VcfReading:
    """What one VCF held, and what was left out.

    Attributes:
        rows: mutations in the genes of the study.
        patients: all whose samples were read, also those without a mutation.
        filtered, unannotated, unknown_terms: records that FILTER excludes, alleles without an annotation, alleles of whose
            terms none is known.
        others: samples that are nobody's.
        unmapped: labels of genes.
        mapped: alleles whose gene is known.
    """

    rows: list[Mutation] = field(default_factory=list)
    patients: tuple[str, ...] = ()
    filtered: int = 0
    unannotated: int = 0
    unknown_terms: int = 0
    others: int = 0
    unmapped: Unmapped = field(default_factory=Unmapped)
    mapped: int = 0

    def problems(self, path: Path) -> tuple[str, ...]:
        """What a person should know, in counts."""
        said = (
            (self.others, "samples are not in genomics.samples and were not read"),
            (self.filtered, "records were left out, because FILTER is not in genomics.mutations.filters"),
            (self.unannotated, "alleles have no annotation and were left out"),
            (self.unknown_terms, "alleles have no consequence that is known and count as 'sequence_variant'"),
        )
        counted = tuple(f"{path}: {count} {text}" for count, text in said if count)
        return (*counted, *self.unmapped.lines(path, max(self.mapped, len(self.unmapped.labels)), self.patients))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """Of a file: how alleles are annotated, and which columns are whose."""

    format: AnnotationFormat
    width: int
    columns: tuple[tuple[int, str], ...]
    others: int


def _columns(
    path: Path, samples: Sequence[str], files: MutationFiles, site: SiteFiles, row: int
) -> list[tuple[int, str]]:
    """Places of samples (0 is the first) and their patients. Place -1 is a file without samples."""
    if len(set(samples)) != len(samples):
        raise fault(path, "expected samples with distinct names, found two alike", row=row)
    if files.patient == "sample":
        if not samples:
            raise fault(
                path, "has no samples; set genomics.mutations.patient = 'file', if its name is the patient", row=row
            )
        known = [(i, site.links.patient_of(s)) for i, s in enumerate(samples)]
        return [(i, p) for i, p in known if p is not None]
    patient = site.links.patient_of(path.name.split(".")[0])
    if files.tumour is not None:
        if files.tumour not in samples:
            raise fault(path, "expected the sample that genomics.mutations.tumour names, found others", row=row)
        place = list(samples).index(files.tumour)
    elif len(samples) > 1:
        message = (
            f"holds {len(samples)} samples, and its name one patient; say under genomics.mutations.tumour which is read"
        )
        raise fault(path, message, row=row)
    else:
        place = len(samples) - 1
    return [] if patient is None else [(place, patient)]


def _header(path: Path, lines: Iterator[tuple[int, str]], files: MutationFiles, site: SiteFiles) -> _Header:
    """Read up to the line `#CHROM`."""
    formats: dict[str, AnnotationFormat] = {}
    row, text = next(lines, (1, ""))
    if not text.startswith("##fileformat=VCFv4"):
        raise fault(path, "expected ##fileformat=VCFv4 in the first line; is this a VCF?", row=row)
    for row, text in lines:
        found = annotation_format(text) if text.startswith("##") else None
        if found is not None:
            formats.setdefault(found.key, found)
        if text.startswith("##"):
            continue
        cells = text.split("\t")
        if cells[: len(_FIXED)] != _FIXED or (len(cells) > len(_FIXED) and cells[len(_FIXED)] != "FORMAT"):
            raise fault(
                path, "expected the line #CHROM, POS, ID, REF, ALT, QUAL, FILTER, INFO, FORMAT and samples", row=row
            )
        if not formats:
            message = "has neither INFO/CSQ nor INFO/ANN with a gene and a consequence; annotate it with VEP (--symbol) or SnpEff"
            raise fault(path, message, row=row)
        samples = cells[len(_FIXED) + 1 :]
        columns = tuple(_columns(path, samples, files, site, row))
        others = len(samples) - len(columns) if files.patient == "sample" else 0
        best = formats.get("CSQ") or formats["ANN"]
        return _Header(format=best, width=len(cells), columns=columns, others=others)
    raise fault(path, "ends before the line #CHROM; it was not copied whole", row=row)


def _annotation_text(info: str, key: str) -> str | None:
    start = info.find(f"{key}=")
    if start > 0 and info[start - 1] != ";":
        start = info.find(f";{key}=") + 1 or -1
    if start < 0:
        return None
    end = info.find(";", start)
    return info[start + len(key) + 1 : end if end >= 0 else None]


def _carriers(path: Path, header: _Header, rest: str, alleles: int, row: int) -> dict[int, list[str]]:
    """Patients by allele (1 is the first alternative)."""
    carried: dict[int, list[str]] = {}
    if header.columns and header.columns[0][0] < 0:
        return {i: [header.columns[0][1]] for i in range(1, alleles + 1)}
    names, *samples = rest.split("\t")
    keys = names.split(":")
    if "GT" not in keys:
        if len(header.columns) == 1:
            return {i: [header.columns[0][1]] for i in range(1, alleles + 1)}
        raise fault(path, "has no genotype (GT) here, so it cannot say which sample has the variant", row=row)
    place = keys.index("GT")
    for column, patient in header.columns:
        values = samples[column].split(":")
        genotype = values[place] if place < len(values) else "."
        for called in set(_GENOTYPE.split(genotype)) - {".", "0"}:
            if not (called.isascii() and called.isdigit() and len(called) < 5 and int(called) <= alleles):
                message = f"expected a genotype of alleles 0 to {alleles}, such as 0/1"
                raise fault(path, message, row=row, column=len(_FIXED) + 2 + column)
            carried.setdefault(int(called), []).append(patient)
    return carried


def _alleles(path: Path, cells: Sequence[str], row: int) -> tuple[int, str, list[str]]:
    """Position, reference and alternative alleles of a record."""
    if cells[4].count(",") >= _MOST_ALLELES:
        raise fault(path, f"expected at most {_MOST_ALLELES} alleles", row=row, column="ALT")
    position, ref, alts = cells[1], cells[3], cells[4].split(",")
    if not _POSITION.fullmatch(position):
        raise fault(path, "expected a position, a whole number of 0 or more", row=row, column="POS")
    if not _BASES.fullmatch(ref):
        raise fault(path, "expected bases", row=row, column="REF")
    if not all(_BASES.fullmatch(a) or _OTHER_ALLELE.fullmatch(a) for a in alts):
        raise fault(path, "expected bases, a breakend or a name in <>, separated by commas", row=row, column="ALT")
    return int(position), ref, alts


def _record(
    reading: VcfReading,
    path: Path,
    cells: Sequence[str],
    *,
    row: int,
    header: _Header,
    site: SiteFiles,
    wanted: Collection[str],
) -> None:
    """Take one record's mutations. `cells` are the eight fixed ones and, as one, the rest."""
    position, ref, alts = _alleles(path, cells, row)
    written = _annotation_text(cells[7], header.format.key)
    if written is None:
        reading.unannotated += len(alts)
        return
    if written.count(",") >= _MOST_ANNOTATIONS:
        message = f"expected at most {_MOST_ANNOTATIONS} annotations"
        raise fault(path, message, row=row, column=f"INFO/{header.format.key}")
    annotations = header.format.of(written, ref, alts)
    if annotations is None:
        message = f"expected annotations with {header.format.width} fields, as the header says"
        raise fault(path, message, row=row, column=f"INFO/{header.format.key}")
    chosen = []
    for i, (alt, annotation) in enumerate(zip(alts, annotations, strict=True), 1):
        if alt in _NO_ALLELE:
            continue
        gene = _gene(reading, annotation, site)
        if gene is not None and gene in wanted and annotation is not None:
            chosen.append((i, alt, gene, annotation.terms))
    if not chosen:
        return
    carriers = _carriers(path, header, cells[8] if len(cells) > 8 else "", len(alts), row)
    for i, alt, gene, terms in chosen:
        reading.unknown_terms += not is_known_term(terms)
        start, short_ref, short_alt = shortest(position, ref.upper(), alt.upper())
        what = of_terms(terms, ref, alt)
        where = chromosome(cells[0])
        reading.rows += [Mutation(p, gene, where, start, short_ref, short_alt, what) for p in carriers.get(i, ())]
    if len(reading.rows) > MOST_MUTATIONS:
        raise fault(path, f"holds more than {MOST_MUTATIONS} mutations in the study's genes; is it filtered?", row=row)


def _gene(reading: VcfReading, annotation: Annotation | None, site: SiteFiles) -> str | None:
    """Approved symbol of an allele's gene; None where it has none, or no annotation."""
    if annotation is None:
        reading.unannotated += 1
        return None
    if not annotation.label:
        return None
    gene = site.names.resolve(annotation.label)
    if gene is None:
        reading.unmapped.add(annotation.label, site.names)
    else:
        reading.mapped += 1
    return gene


def read_vcf(path: Path, site: SiteFiles, files: MutationFiles, wanted: Collection[str]) -> VcfReading:
    """Read the mutations of a VCF in some genes.

    Args:
        path: `.vcf`, also packed with gzip or bgzip.
        site: names of genes and whose samples are.
        files: what `site.toml` says of it.
        wanted: approved symbols.

    Guarantees:
        - The order of records does not matter.
        - Memory grows with the mutations in the wanted genes and the longest line, not with the file.

    Raises:
        DataError: it is no annotated VCF, or a record is malformed: with file, row and column; never a value.
    """
    reading = VcfReading()
    lines = text_lines(path, site.settings.limits)
    header = _header(path, lines, files, site)
    reading.patients = tuple(dict.fromkeys(p for _, p in header.columns))
    reading.others = header.others
    allowed = set(files.filters)
    for row, text in lines:
        if not text:
            continue
        if text.count("\t") + 1 != header.width:
            message = f"expected {header.width} cells as in the line #CHROM, found {text.count(chr(9)) + 1}"
            raise fault(path, message, row=row)
        cells = text.split("\t", len(_FIXED))
        if not set(cells[6].split(";")) <= allowed:
            reading.filtered += 1
        elif header.columns:
            _record(reading, path, cells, row=row, header=header, site=site, wanted=wanted)
    return reading
