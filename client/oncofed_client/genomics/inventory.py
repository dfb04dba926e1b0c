"""What a site's sequencing files hold and what is wrong with them, without a study: for `check`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from oncofed_client.genomics.expression import looks_like
from oncofed_client.genomics.impact import read_mutation_file
from oncofed_client.genomics.inputs import SiteFiles, open_files
from oncofed_client.genomics.matrix import read_matrix
from oncofed_client.genomics.segments import read_segments
from oncofed_client.genomics.settings import CopyNumberFiles, ExpressionFiles, GenomicsSettings, MutationFiles
from oncofed_shared.errors import DataError

__all__ = ["FileSummary", "summarise"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSummary:
    """One file in counts.

    Attributes:
        file: its path.
        kind: `expression`, `copy_number` or `mutations`.
        holds: what, in words; empty when it cannot be read.
        patients: how many.
        genes: how many are known; None where the file does not list them.
        problems: what is wrong, or was left out.
    """

    file: str
    kind: str
    holds: str = ""
    patients: int = 0
    genes: int | None = None
    problems: tuple[str, ...] = ()


def _expression(path: Path, site: SiteFiles, files: ExpressionFiles) -> FileSummary:
    matrix = read_matrix(
        path, site, genes_in=files.genes_in, label=files.label, column=files.column, wanted=None, read_all=True
    )
    holds = files.values or looks_like(matrix) or "numbers of a kind that site.toml must name"
    return FileSummary(
        file=str(path),
        kind="expression",
        holds=holds,
        patients=len(matrix.patients),
        genes=len(matrix.genes),
        problems=matrix.problems,
    )


def _copy_number(path: Path, site: SiteFiles, files: CopyNumberFiles) -> FileSummary:
    if files.format == "segments":
        segments, problems = read_segments(path, site)
        return FileSummary(
            file=str(path), kind="copy_number", holds="segments", patients=len(segments), problems=problems
        )
    matrix = read_matrix(path, site, genes_in=files.genes_in, label=files.label, wanted=None)
    return FileSummary(
        file=str(path),
        kind="copy_number",
        holds=files.values,
        patients=len(matrix.patients),
        genes=len(matrix.genes),
        problems=matrix.problems,
    )


def _mutations(path: Path, site: SiteFiles, files: MutationFiles) -> FileSummary:
    reading = read_mutation_file(path, site, files, frozenset())
    return FileSummary(
        file=str(path),
        kind="mutations",
        holds=f"{reading.mapped} mutations in known genes",
        patients=len(reading.patients),
        problems=reading.problems(path),
    )


def _each(paths: tuple[Path, ...], kind: str, read: Callable[[Path], FileSummary]) -> Iterator[FileSummary]:
    for path in paths:
        try:
            yield read(path)
        except DataError as error:
            yield FileSummary(file=str(path), kind=kind, problems=error.problems)


def summarise(folder: Path, settings: GenomicsSettings) -> tuple[FileSummary, ...]:
    """Read every sequencing file of a site once and say what is in it.

    A file that is wrong is in the answer with its error, and the others are read all the same.

    Raises:
        DataError: the tables of gene names, samples or panels are wrong, or no file fits a pattern.
    """
    site = open_files(folder, settings)
    found: list[FileSummary] = []
    expression, copy_number, mutations = settings.expression, settings.copy_number, settings.mutations
    if expression is not None:
        found += _each(site.paths(expression.files), "expression", lambda p: _expression(p, site, expression))
    if copy_number is not None:
        found += _each(site.paths(copy_number.files), "copy_number", lambda p: _copy_number(p, site, copy_number))
    if mutations is not None:
        found += _each(site.paths(mutations.files), "mutations", lambda p: _mutations(p, site, mutations))
    return tuple(found)
