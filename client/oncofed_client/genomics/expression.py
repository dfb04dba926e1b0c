"""Gene expression: counts, TPM or z-scores become one column per gene.

Size factors are medians of ratios to a reference sample (Anders & Huber 2010, Genome Biology 11:R106, equation 5; the
reference is the geometric mean over samples). With a reference in the plan a patient's factor depends on nobody else, so sites
agree and no patient changes another's values.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed_client.genomics.inputs import SiteFiles
from oncofed_client.genomics.lines import fault
from oncofed_client.genomics.matrix import Matrix, read_matrix
from oncofed_client.prepare.feature_table import FeatureTable
from oncofed_shared.errors import DataError
from oncofed_shared.plan import ExpressionFeatures

__all__ = ["as_features", "combined", "geometric_means", "looks_like", "read_expression", "size_factors"]


def geometric_means(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reference sample of a cohort: exp(mean(log count)) per gene, 0 where a sample has none.

    Args:
        counts: (n, g), 0 or more.

    Returns:
        (g,), NaN where a count is missing.
    """
    with np.errstate(divide="ignore"):
        # Sorted, so that the order of samples does not change the last bit.
        ordered = np.ascontiguousarray(np.sort(np.log(counts), axis=0))
        return np.asarray(np.exp(ordered.mean(axis=0)))


def size_factors(counts: NDArray[np.float64], reference: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Median over genes of count / reference, per sample.

    A count of 0 is a ratio of 0 and takes part in the median, as in PyDESeq2. (R's DESeq2 leaves it out when it is given a
    reference; on the samples that the reference was made from no such count exists.)

    Args:
        counts: (n, g), 0 or more, NaN = missing.
        reference: (g,) geometric means; a gene without a positive one takes no part. Without it, those of `counts`.

    Returns:
        (n,) factors; NaN for a sample for which at least half of the ratios are 0, or all are missing.

    Raises:
        DataError: no gene has a reference (code `no-reference`).

    Guarantees:
        - With a reference a sample's factor depends on its own counts alone.
    """
    usual = geometric_means(counts) if reference is None else reference
    usable = np.nan_to_num(usual) > 0
    if not usable.any():
        message = "no gene has a count above 0 in every sample, so there is no reference; give one in the study"
        raise DataError(message, code="no-reference")
    with np.errstate(divide="ignore"):
        ratios = np.log(counts[:, usable]) - np.log(usual[usable])
    factors = np.full(len(counts), np.nan)
    some = ~np.isnan(ratios).all(axis=1)
    factors[some] = np.exp(np.nanmedian(ratios[some], axis=1))
    return np.where(factors > 0, factors, np.nan)


def combined(matrices: Sequence[tuple[Path, Matrix]]) -> Matrix:
    """Put matrices below each other: all patients and all genes, NaN where a file lacks a gene.

    Raises:
        DataError: a patient stands in two files.
    """
    patients: dict[str, Path] = {}
    for path, matrix in matrices:
        for patient in matrix.patients:
            if patient in patients:
                raise fault(path, f"holds a patient who stands in {patients[patient]} too; remove him from one")
            patients[patient] = path
    genes = tuple(sorted({g for _, m in matrices for g in m.genes}))
    place = {g: i for i, g in enumerate(genes)}
    values = np.full((len(patients), len(genes)), np.nan)
    start = 0
    for _, matrix in matrices:
        end = start + len(matrix.patients)
        values[start:end, [place[g] for g in matrix.genes]] = matrix.values
        start = end
    return Matrix(
        patients=tuple(patients),
        genes=genes,
        values=values,
        totals=np.concatenate([m.totals for _, m in matrices]),
        negative=None,
        fractional=None,
        problems=tuple(p for _, m in matrices for p in m.problems),
    )


def looks_like(matrix: Matrix) -> str | None:
    """What a matrix seems to hold: counts are whole, TPM add up to a million, z-scores lie around 0; None for anything else."""
    if matrix.negative is not None:
        known = matrix.values[~np.isnan(matrix.values)]
        around = known.size > 0 and abs(known.mean()) < 0.5 and np.mean(np.abs(known) > 10) < 0.01
        return "zscores" if around else None
    if matrix.fractional is None:
        return "counts"
    # Names that could not be mapped, as of pseudogenes, take some of the million with them.
    return "tpm" if ((matrix.totals > 8e5) & (matrix.totals < 1.01e6)).all() else None


def _checked(path: Path, matrix: Matrix, declared: str | None, wanted: str) -> None:
    """See that a file holds what the study asks for."""
    found = declared or looks_like(matrix)
    if found is None:
        message = (
            "cannot tell whether these are counts (whole), TPM (adding up to a million) or z-scores (around 0); set values "
            "under genomics.expression in site.toml"
        )
        raise fault(path, message)
    if found != wanted:
        how = "as site.toml says" if declared else "by its numbers; set genomics.expression.values if it is not"
        raise fault(path, f"holds {found} ({how}), and the study asks for {wanted}; give the file with {wanted}")
    if found != "zscores" and matrix.negative is not None:
        row, column = matrix.negative
        raise fault(path, f"expected {found}, 0 or more, found a negative number", row=row, column=column)


def _factors(matrix: Matrix, features: ExpressionFeatures, site: SiteFiles) -> NDArray[np.float64]:
    """Size factors of all patients, (n,)."""
    if features.reference is None:
        return size_factors(matrix.values)
    place = {g: i for i, g in enumerate(matrix.genes)}
    wanted = site.names.wanted(features.reference.counts)
    here = {gene: name for gene, name in wanted.items() if gene in place}
    if 2 * len(here) < len(wanted):
        message = (
            f"only {len(here)} of the {len(wanted)} genes of the study's reference sample are in the files of "
            "genomics.expression; give the whole files, or genomics.aliases"
        )
        raise DataError(f"{site.folder}: {message}", code="no-reference")
    usual = np.zeros(len(matrix.genes))
    for gene, name in here.items():
        usual[place[gene]] = features.reference.counts[name]
    return size_factors(matrix.values, usual)


def _genes(features: ExpressionFeatures, site: SiteFiles) -> tuple[dict[str, str], Collection[str] | None]:
    """Genes of the study by approved symbol, and what must be read for them; None for everything."""
    wanted = site.names.wanted(features.genes)
    if not wanted or (features.normalisation == "size_factors" and features.reference is None):
        return wanted, None
    more = site.names.wanted(features.reference.counts) if features.reference else {}
    return wanted, {*wanted, *more}


def read_expression(site: SiteFiles, features: ExpressionFeatures) -> FeatureTable:
    """Read a site's expression files as a study asks for them.

    Args:
        site: has `settings.expression`.
        features: what the study asks for.

    Returns:
        One column per gene: of the study's `genes` all, NaN where the site lacks one; without such a list, of all genes.

    Raises:
        DataError: a file is wrong or holds something else; a patient stands in two files; the reference does not fit.
    """
    files = site.settings.expression
    if files is None:
        raise DataError(f"{site.folder}: site.toml has no genomics.expression")
    wanted, read = _genes(features, site)
    known = {*features.genes, *wanted, *(features.reference.counts if features.reference else ())}
    matrices = []
    for path in site.paths(files.files):
        matrix = read_matrix(
            path,
            site,
            genes_in=files.genes_in,
            label=files.label,
            column=files.column,
            wanted=read,
            known=known,
            read_all=files.values is None,
        )
        _checked(path, matrix, files.values, features.values)
        matrices.append((path, matrix))
    whole = combined(matrices)
    values, problems = whole.values, list(whole.problems)
    if features.normalisation == "size_factors":
        factors = _factors(whole, features, site)
        values = values / factors[:, None]
        lost = int(np.isnan(factors).sum())
        if lost:
            problems.append(
                f"{lost} patients have no size factor, because at least half of their reference genes count 0"
            )
    if features.logarithm:
        values = np.log2(1 + values)
    return as_features(whole, values, wanted, features.column, problems)


def as_features(
    matrix: Matrix, values: NDArray[np.float64], wanted: dict[str, str], column: str, problems: Sequence[str]
) -> FeatureTable:
    """Name the columns of a matrix as the study does.

    Args:
        matrix: patients and genes.
        values: (n, g).
        wanted: approved symbol -> the study's name; empty for all genes.
        column: name of a gene's column.
        problems: passed on, with the genes that are absent.
    """
    place = {g: i for i, g in enumerate(matrix.genes)}
    names = wanted or {g: g for g in matrix.genes}
    absent = sorted(name for gene, name in names.items() if gene not in place)
    lacking = (
        [f"{len(absent)} genes of the study are in no file and are missing: {', '.join(absent[:12])}"] if absent else []
    )
    made = np.full((len(matrix.patients), len(names)), np.nan)
    for i, gene in enumerate(names):
        if gene in place:
            made[:, i] = values[:, place[gene]]
    return FeatureTable(
        columns=tuple(column.replace("{gene}", name) for name in names.values()),
        patients=matrix.patients,
        values=made,
        problems=(*problems, *lacking),
    )
