"""SEG files: copy-number segments, mapped to genes by their length (B-24)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed_client.genomics.genes import GeneNames, Unmapped
from oncofed_client.genomics.inputs import SiteFiles
from oncofed_client.genomics.lines import fault, plain_suffix, text_rows
from oncofed_client.genomics.settings import Limits

__all__ = ["GenePlace", "Segment", "chromosome", "gene_means", "read_gene_table", "read_segments"]

_INTEGER = re.compile(r"\d{1,10}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_MISSING = {"", "NA", "NaN", "nan", "null", "."}
_ALSO = {"23": "X", "24": "Y", "25": "MT", "M": "MT"}
_COLUMNS = {
    "sample": {"id", "sample", "sampleid", "sample_id", "gdc_aliquot", "tumor_sample_barcode"},
    "chromosome": {"chrom", "chromosome", "chr"},
    "start": {"loc.start", "start", "start_position", "startposition"},
    "end": {"loc.end", "end", "end_position", "stop", "endposition"},
    "mean": {"seg.mean", "segment_mean", "segmean", "log2", "log2_ratio", "mean"},
}
_GENE_COLUMNS = {
    "gene": {"gene", "symbol", "gene_name", "hugo_symbol", "gene_id", "name"},
    "chromosome": _COLUMNS["chromosome"],
    "start": _COLUMNS["start"],
    "end": _COLUMNS["end"],
}
_LARGEST = 1000.0
_MOST_SEGMENTS = 5_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class GenePlace:
    """Where a gene lies. Positions count from 1, both ends are in it."""

    chromosome: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One segment of one patient. Positions count from 1, both ends are in it.

    Attributes:
        mean: log2 ratio.
        row: its line in the file.
    """

    chromosome: str
    start: int
    end: int
    mean: float
    row: int = 0


def chromosome(text: str) -> str:
    """One name for a chromosome.

    >>> chromosome("chr7"), chromosome("23"), chromosome("chrM")
    ('7', 'X', 'MT')
    """
    plain = text.removeprefix("chr").removeprefix("Chr").removeprefix("CHR")
    return _ALSO.get(plain.upper(), plain.upper() if len(plain) < 3 else plain)


def _places(path: Path, header: Sequence[str], row: int, known: Mapping[str, set[str]], what: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, names in known.items():
        fitting = [i for i, name in enumerate(header) if name.strip("'").casefold() in names]
        if not fitting:
            expected = " or ".join(sorted(names))
            raise fault(path, f"expected the header of {what}, with a column {expected}, separated by tabs", row=row)
        found[key] = fitting[0]
    return found


def _integer(path: Path, text: str, row: int, column: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise fault(path, "expected a position, a whole number of 0 or more", row=row, column=column)
    return int(text)


def read_gene_table(path: Path, names: GeneNames, limits: Limits) -> tuple[dict[str, GenePlace], tuple[str, ...]]:
    """Read where genes lie: a table with gene, chromosome, start and end (from 1, both ends in), or a `.bed` (from 0, end out).

    Returns:
        Places by approved symbol, and what could not be mapped.

    Raises:
        DataError: it is no such table, or has a gene twice on chromosomes that differ.
    """
    bed = plain_suffix(path) == ".bed"
    rows = text_rows(path, limits)
    place, width = {"chromosome": 0, "start": 1, "end": 2, "gene": 3}, 4
    if not bed:
        row, header = next(rows, (1, []))
        place, width = _places(path, header, row, _GENE_COLUMNS, "a gene table"), len(header)
    unmapped = Unmapped()
    genes: dict[str, GenePlace] = {}
    first: dict[str, tuple[str, int]] = {}
    for row, cells in rows:
        if len(cells) < width:
            raise fault(path, f"expected {width} cells, found {len(cells)}", row=row)
        label = cells[place["gene"]]
        start = _integer(path, cells[place["start"]], row, "start") + bed
        end = _integer(path, cells[place["end"]], row, "end")
        if end < start:
            raise fault(path, "expected an end that is not before the start", row=row, column="end")
        gene = names.resolve(label)
        if gene is None:
            unmapped.add(label, names)
            continue
        if gene in genes and first[gene][0] == label:
            raise fault(path, f"the gene of row {first[gene][1]} again; delete one", row=row)
        if gene not in genes or label == gene:
            genes[gene] = GenePlace(chromosome=chromosome(cells[place["chromosome"]]), start=start, end=end)
            first[gene] = label, row
    if not genes:
        raise fault(path, "expected genes and where they lie, found none that is known")
    return genes, unmapped.lines(path, len(genes))


def _segment(path: Path, cells: Sequence[str], place: Mapping[str, int], row: int) -> Segment | None:
    """One row's segment; None where it has no ratio."""
    start = _integer(path, cells[place["start"]], row, "start")
    end = _integer(path, cells[place["end"]], row, "end")
    if end < start:
        raise fault(path, "expected an end that is not before the start", row=row, column="end")
    text = cells[place["mean"]]
    if text in _MISSING:
        return None
    if not _NUMBER.fullmatch(text) or abs(float(text)) > _LARGEST:
        raise fault(
            path, "expected a log2 ratio, a number from -1000 to 1000 with a decimal point", row=row, column="seg.mean"
        )
    where = chromosome(cells[place["chromosome"]])
    return Segment(chromosome=where, start=start, end=end, mean=float(text), row=row)


def _disjoint(path: Path, segments: Sequence[Segment]) -> None:
    """Refuse two segments that both cover a base: it cannot have two ratios."""
    ordered = sorted(segments, key=lambda s: (s.chromosome, s.start, s.end))
    for before, after in pairwise(ordered):
        if before.chromosome == after.chromosome and after.start <= before.end:
            rows = sorted((before.row, after.row))
            message = f"this segment and that of row {rows[0]} overlap; expected segments of a sample side by side"
            raise fault(path, message, row=rows[1])


def _patient(path: Path, site: SiteFiles, sample: str, sample_of: dict[str, str], row: int) -> str | None:
    if not sample:
        raise fault(path, "expected the name of a sample, the cell is empty", row=row)
    patient = site.links.patient_of(sample)
    if patient is not None and sample_of.setdefault(patient, sample) != sample:
        raise fault(path, "a second sample of the same patient; list one of them in genomics.samples", row=row)
    return patient


def read_segments(path: Path, site: SiteFiles) -> tuple[dict[str, list[Segment]], tuple[str, ...]]:
    """Read a SEG file.

    Returns:
        Segments by patient, and what a person should know.

    Raises:
        DataError: it is no SEG file, segments of a patient overlap, or two samples of one patient are in it.
    """
    rows = text_rows(path, site.settings.limits)
    row, header = next(rows, (1, []))
    place = _places(path, header, row, _COLUMNS, "a SEG file")
    found: dict[str, list[Segment]] = {}
    sample_of: dict[str, str] = {}
    skipped, missing = set(), 0
    for count, (row, cells) in enumerate(rows):
        if len(cells) != len(header):
            raise fault(path, f"expected {len(header)} cells as in the header, found {len(cells)}", row=row)
        if count >= _MOST_SEGMENTS:
            raise fault(path, f"holds more than {_MOST_SEGMENTS} segments; split it", row=row)
        sample = cells[place["sample"]]
        patient = _patient(path, site, sample, sample_of, row)
        if patient is None:
            skipped.add(sample)
            continue
        segment = _segment(path, cells, place, row)
        found.setdefault(patient, []).extend([segment] if segment else [])
        missing += segment is None
    for segments in found.values():
        _disjoint(path, segments)
    problems = []
    if skipped:
        problems.append(f"{path}: {len(skipped)} samples are not in genomics.samples and were not read")
    if missing:
        problems.append(f"{path}: {missing} segments have no ratio and count as not measured")
    return found, tuple(problems)


def gene_means(segments: Sequence[Segment], genes: Sequence[GenePlace]) -> NDArray[np.float64]:
    """Mean log2 ratio over each gene's measured bases, in which a segment counts by how much of the gene it covers.

    Args:
        segments: of one patient, without overlap.
        genes: any.

    Returns:
        (len(genes),), NaN for a gene of which nothing was measured.
    """
    made = np.full(len(genes), np.nan)
    for where in {g.chromosome for g in genes}:
        own = sorted((s for s in segments if s.chromosome == where), key=lambda s: s.start)
        if not own:
            continue
        starts, ends = np.array([s.start for s in own]), np.array([s.end for s in own])
        means = np.array([s.mean for s in own])
        here = np.array([i for i, g in enumerate(genes) if g.chromosome == where])
        first, last = np.array([genes[i].start for i in here]), np.array([genes[i].end for i in here])
        # Segments lie side by side, so those that touch a gene are neighbours.
        low, high = np.searchsorted(ends, first), np.searchsorted(starts, last, side="right")
        single = high - low == 1
        made[here[single]] = means[low[single]]
        for i in np.flatnonzero(high - low > 1).tolist():
            touching = slice(low[i], high[i])
            shared = np.minimum(ends[touching], last[i]) - np.maximum(starts[touching], first[i]) + 1
            made[here[i]] = np.average(means[touching], weights=shared)
    return made
