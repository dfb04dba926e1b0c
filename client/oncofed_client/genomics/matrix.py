"""A matrix of genes and samples, whichever way it lies, one row at a time."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed_client.genomics.genes import Unmapped
from oncofed_client.genomics.inputs import SiteFiles
from oncofed_client.genomics.lines import fault, text_rows

__all__ = ["Matrix", "read_matrix"]

_MISSING = {"", "NA", "NaN", "nan", "null", "."}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.ASCII | re.IGNORECASE)
_GENE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_NOT_SAMPLES = {
    *(
        "hugo_symbol",
        "gene_symbol",
        "symbol",
        "gene",
        "geneid",
        "gene_id",
        "gene_name",
        "gene_type",
        "name",
        "description",
    ),
    *(
        "entrez_gene_id",
        "entrez_id",
        "locus_id",
        "cytoband",
        "chr",
        "chrom",
        "chromosome",
        "start",
        "end",
        "strand",
        "length",
    ),
}
"""Columns beside the samples, in files of GDC, cBioPortal, GISTIC and featureCounts."""
_NOT_GENES = re.compile(r"__\w+|N_(unmapped|multimapping|noFeature|ambiguous)")
"""Rows beside the genes, in files of HTSeq and STAR."""
_MOST_CELLS = 200_000_000
_LARGEST = 1e15


def _strict(cell: str) -> float:
    """Take only what is a number in every language.

    Raises:
        ValueError: it is not.
    """
    if cell in _MISSING:
        return np.nan
    if _NUMBER.fullmatch(cell):
        return float(cell)
    raise ValueError


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class Matrix:
    """What a file holds.

    Attributes:
        patients: (n,) of the samples that belong to somebody.
        genes: (g,) approved symbols.
        values: (n, g), NaN = missing.
        totals: (n,) sum over the genes that were read: those that are wanted, or all that are known.
        negative, fractional: row and column number of the first such value, if there is one.
        problems: what a person should know.
    """

    patients: tuple[str, ...]
    genes: tuple[str, ...]
    values: NDArray[np.float64]
    totals: NDArray[np.float64]
    negative: tuple[int, int] | None
    fractional: tuple[int, int] | None
    problems: tuple[str, ...]


@dataclass(kw_only=True, slots=True, repr=False, eq=False)
class _Reading:
    """One file while it is read."""

    path: Path
    site: SiteFiles
    wanted: Collection[str] | None
    read_all: bool
    kept: dict[str, list[tuple[str, NDArray[np.float64]]]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    unmapped: Unmapped = field(default_factory=Unmapped)
    mapped: int = 0
    negative: tuple[int, int] | None = None
    fractional: tuple[int, int] | None = None

    def gene(self, label: str, row: int, column: int | None = None) -> str | None:
        """Approved symbol of a label; the empty text for one that is not wanted, None for one that is not mapped."""
        gene = self.site.names.resolve(label)
        if gene is None:
            if not _NOT_GENES.fullmatch(label):
                self.unmapped.add(label, self.site.names)
            return None
        self.mapped += 1
        if self.wanted is not None and gene not in self.wanted:
            return ""
        if not _GENE.fullmatch(gene):
            raise fault(
                self.path, "expected the name of a gene; does the file lie on its side?", row=row, column=column
            )
        if label in self.seen:
            what = "row" if column is None else "column number"
            raise fault(self.path, f"the gene of {what} {self.seen[label]} again; delete one", row=row, column=column)
        self.seen[label] = row if column is None else column
        return gene

    def numbers(self, cells: Sequence[str], row: int, columns: Sequence[int]) -> NDArray[np.float64]:
        """Cells to numbers; `columns` are their places in the file, from 0 on."""
        joined = "".join(cells)
        # float() also takes digits of other scripts and underscores.
        plain = joined.isascii() and "_" not in joined
        try:
            values = (
                np.array([_strict(c) for c in cells])
                if not plain
                else np.array(["nan" if c in _MISSING else c for c in cells], dtype=object).astype(np.float64)
            )
        except ValueError:
            bad = (
                i
                for i, c in enumerate(cells)
                if c not in _MISSING and not _NUMBER.fullmatch(c) and not _INFINITE.fullmatch(c)
            )
            place = columns[next(bad, 0)] + 1
            raise fault(
                self.path, "expected a number with a decimal point, found text", row=row, column=place
            ) from None
        beyond = np.abs(values) > _LARGEST
        if beyond.any():
            place = columns[int(np.flatnonzero(beyond)[0])] + 1
            raise fault(
                self.path, "expected a finite number, found an infinite or absurdly large one", row=row, column=place
            )
        if self.negative is None and (values < 0).any():
            self.negative = row, columns[int(np.flatnonzero(values < 0)[0])] + 1
        if self.fractional is None:
            broken = ~np.isnan(values) & (values != np.floor(values))
            if broken.any():
                self.fractional = row, columns[int(np.flatnonzero(broken)[0])] + 1
        return values

    def chosen(self) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
        """One set of values per gene, and the genes that stood there under two other names."""
        made: dict[str, NDArray[np.float64]] = {}
        dropped = []
        for gene, several in self.kept.items():
            own = [values for label, values in several if label == gene] or [values for _, values in several]
            if len(own) == 1:
                made[gene] = own[0]
            else:
                dropped.append(gene)
        return made, sorted(dropped)


def _rows(path: Path, site: SiteFiles) -> Iterator[tuple[int, list[str]]]:
    """Header and rows, all of one length. R leaves out the header's first cell."""
    rows = text_rows(path, site.settings.limits)
    line, header = next(rows, (1, []))
    first = next(rows, None)
    if first is None or len(first[1]) < 2:
        raise fault(
            path, "expected a header and rows with a name and numbers, separated by tabs (.csv: commas)", row=line
        )
    if len(header) + 1 == len(first[1]):
        header = ["", *header]
    yield line, header
    for row, cells in chain([first], rows):
        if len(cells) != len(header):
            raise fault(path, f"expected {len(header)} cells as in the header, found {len(cells)}", row=row)
        yield row, cells


def _lies(path: Path, site: SiteFiles, known: Collection[str]) -> str:
    """Whether genes are in `rows` or `columns`: where more known ones are."""
    rows = _rows(path, site)
    _, header = next(rows)
    across = sum(name in known or site.names.knows(name) for name in header[1:])
    down = sum(cells[0] in known or site.names.knows(cells[0]) for _, cells in rows)
    if across == down:
        message = (
            "cannot tell whether genes are in rows or columns, because no name of a gene is known; "
            "set genes_in under genomics in site.toml, or give genomics.aliases"
        )
        raise fault(path, message)
    return "rows" if down > across else "columns"


def read_matrix(
    path: Path,
    site: SiteFiles,
    *,
    genes_in: str | None,
    label: str | None,
    column: str | None = None,
    wanted: Collection[str] | None,
    known: Collection[str] = (),
    read_all: bool = False,
) -> Matrix:
    """Read a matrix of genes and samples.

    Args:
        path: the file.
        site: names of genes and whose samples are.
        genes_in: `rows` or `columns`; without it, where more known genes are.
        label: column of the genes' names, where they are in rows; without it the first.
        column: of a file of one sample, the column of its values; the sample is the file's name up to the first dot.
        wanted: approved symbols that are kept; None keeps all.
        known: names of genes by which the side is told, beside those of the site's table.
        read_all: also read genes that are not wanted, for `totals` and the first negative and fractional value.

    Guarantees:
        - A matrix and the same matrix on its other side give the same values.
        - Where a gene stands under its approved symbol and under others, the approved one counts; where it stands under two
          others, none does, and the gene is named.

    Raises:
        DataError: with file, row and column number; never a value, nor a name that may be a patient's.
    """
    reading = _Reading(path=path, site=site, wanted=wanted, read_all=read_all)
    side = genes_in or ("rows" if label or column else _lies(path, site, known))
    patients, totals, skipped = _down(reading, label, column) if side == "rows" else _across(reading)
    if len(patients) * len(reading.kept) > _MOST_CELLS:
        raise fault(path, f"holds more than {_MOST_CELLS} values; name the genes in the study, or split the file")
    hidden = {*patients, *(site.links.patients or ())}
    if hidden & set(reading.kept):
        # Names of columns go to the aggregator, so this one would carry ids over the boundary.
        raise fault(path, "expected names of genes, found patients; does the file lie on its side?")
    made, dropped = reading.chosen()
    genes = tuple(sorted(made))
    problems = list(reading.unmapped.lines(path, reading.mapped, hidden))
    if dropped:
        problems.append(f"{path}: left out, because each stands here under two names: {', '.join(dropped)}")
    if skipped:
        problems.append(f"{path}: {skipped} samples are not in genomics.samples and were not read")
    return Matrix(
        patients=patients,
        genes=genes,
        values=np.column_stack([made[g] for g in genes]) if genes else np.empty((len(patients), 0)),
        totals=totals,
        negative=reading.negative,
        fractional=reading.fractional,
        problems=tuple(problems),
    )


def _patient(reading: _Reading, sample: str, seen: Collection[str], *, row: int, column: int | None) -> str | None:
    if not sample:
        raise fault(reading.path, "expected the name of a sample, the cell is empty", row=row, column=column)
    patient = reading.site.links.patient_of(sample)
    if patient is not None and patient in seen:
        message = "a second sample of the same patient; list one of them in genomics.samples"
        raise fault(reading.path, message, row=row, column=column)
    return patient


def _samples(reading: _Reading, header: Sequence[str], place: int, column: str | None) -> dict[int, str]:
    """Names of samples by their places in a header."""
    if column is None:
        return {
            i: name
            for i, name in enumerate(header)
            if i != place and re.sub(r"[ .]+", "_", name).casefold() not in _NOT_SAMPLES
        }
    return {header.index(column): reading.path.name.split(".")[0]}


def _down(reading: _Reading, label: str | None, column: str | None) -> tuple[tuple[str, ...], NDArray[np.float64], int]:
    """Genes in rows. Returns patients, totals, and how many samples are nobody's."""
    rows = _rows(reading.path, reading.site)
    line, header = next(rows)
    for name, key in ((label, "label"), (column, "column")):
        if name is not None and name not in header:
            raise fault(reading.path, f"expected the column '{name}', named as {key} in site.toml", row=line)
    place = header.index(label) if label else 0
    patients: dict[str, int] = {}
    skipped = 0
    for i, name in _samples(reading, header, place, column).items():
        patient = _patient(reading, name, patients, row=line, column=i + 1)
        skipped += patient is None
        if patient is not None:
            patients[patient] = i
    columns = list(patients.values())
    totals = np.zeros(len(columns))
    for row, cells in rows:
        name = cells[place]
        gene = reading.gene(name, row)
        if gene is None or not (gene or reading.read_all) or _NOT_GENES.fullmatch(name):
            continue
        values = reading.numbers([cells[i] for i in columns], row, columns)
        totals += np.nan_to_num(values)
        if gene:
            reading.kept.setdefault(gene, []).append((name, values))
    return tuple(patients), totals, skipped


def _across(reading: _Reading) -> tuple[tuple[str, ...], NDArray[np.float64], int]:
    """Genes in columns. Returns patients, totals, and how many samples are nobody's."""
    rows = _rows(reading.path, reading.site)
    line, header = next(rows)
    genes: dict[int, str] = {}
    columns = []
    for i, name in enumerate(header[1:], 1):
        gene = reading.gene(name, line, i + 1)
        if gene is None or not (gene or reading.read_all) or _NOT_GENES.fullmatch(name):
            continue
        columns.append(i)
        if gene:
            genes[i] = gene
    patients: dict[str, None] = {}
    block: list[NDArray[np.float64]] = []
    totals: list[float] = []
    skipped = 0
    own = [place for place, i in enumerate(columns) if i in genes]
    for row, cells in rows:
        patient = _patient(reading, cells[0], patients, row=row, column=1)
        if patient is None:
            skipped += 1
            continue
        values = reading.numbers([cells[i] for i in columns], row, columns)
        patients[patient] = None
        totals.append(float(np.nansum(values)))
        block.append(values[own])
        if len(block) * len(own) > _MOST_CELLS:
            break
    matrix = np.array(block).reshape(len(block), len(own))
    for place, i in enumerate(columns[p] for p in own):
        reading.kept.setdefault(genes[i], []).append((header[i], matrix[:, place]))
    return tuple(patients), np.array(totals), skipped
