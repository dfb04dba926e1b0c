"""Copy number per gene, from a matrix of genes and samples or from segments, as log2 ratios or as calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed_client.genomics.expression import as_features, combined
from oncofed_client.genomics.inputs import SiteFiles
from oncofed_client.genomics.lines import fault
from oncofed_client.genomics.matrix import Matrix, read_matrix
from oncofed_client.genomics.segments import GenePlace, gene_means, read_gene_table, read_segments
from oncofed_client.genomics.settings import CopyNumberFiles
from oncofed_client.prepare.feature_table import FeatureTable
from oncofed_shared.errors import ConfigError, DataError
from oncofed_shared.plan import CopyNumberFeatures

__all__ = ["as_calls", "read_copy_number"]


def as_calls(ratios: NDArray[np.float64], edges: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """Log2 ratios to calls: -2 up to the first edge, then -1, 0, 1, and 2 above the last. NaN stays.

    >>> as_calls(np.array([-2.0, -0.4, 0.0, 0.5, 0.8, np.nan]), (-1.1, -0.25, 0.2, 0.7)).tolist()
    [-2.0, -1.0, 0.0, 1.0, 2.0, nan]
    """
    return np.where(np.isnan(ratios), np.nan, np.digitize(ratios, edges, right=True) - 2.0)


def _of_segments(path: Path, site: SiteFiles, places: dict[str, GenePlace]) -> Matrix:
    """Map a SEG file to genes."""
    genes = tuple(sorted(places))
    segments, problems = read_segments(path, site)
    patients = tuple(segments)
    values = np.full((len(patients), len(genes)), np.nan)
    for row, patient in enumerate(patients):
        values[row] = gene_means(segments[patient], [places[g] for g in genes])
    return Matrix(
        patients=patients,
        genes=genes,
        values=values,
        totals=np.zeros(len(patients)),
        negative=None,
        fractional=None,
        problems=problems,
    )


def _of_matrix(path: Path, site: SiteFiles, files: CopyNumberFiles, features: CopyNumberFeatures) -> Matrix:
    wanted = site.names.wanted(features.genes)
    matrix = read_matrix(
        path,
        site,
        genes_in=files.genes_in,
        label=files.label,
        wanted=wanted or None,
        known={*features.genes, *wanted},
    )
    beyond = np.abs(np.nan_to_num(matrix.values)) > 2
    if files.values == "calls" and beyond.any():
        gene = matrix.genes[int(np.flatnonzero(beyond.any(axis=0))[0])]
        message = f"expected calls from -2 to 2, found others at the gene {gene}; are these ratios, genomics.copy_number.values?"
        raise fault(path, message)
    return matrix


def read_copy_number(site: SiteFiles, features: CopyNumberFeatures) -> FeatureTable:
    """Read a site's copy-number files as a study asks for them.

    Args:
        site: has `settings.copy_number`.
        features: what the study asks for.

    Returns:
        One column per gene: of the study's `genes` all, NaN where the site lacks one; without such a list, of all genes.

    Raises:
        ConfigError: the site has calls and the study asks for ratios, or the reverse without thresholds.
        DataError: a file is wrong; a patient stands in two files.
    """
    files = site.settings.copy_number
    if files is None:
        raise DataError(f"{site.folder}: site.toml has no genomics.copy_number")
    if files.values != features.values and features.thresholds is None:
        raise ConfigError(
            f"{site.folder}: genomics.copy_number has {files.values}, and the study asks for {features.values}"
            + ("; the study could give thresholds" if files.values == "log2" else "")
        )
    wanted = site.names.wanted(features.genes)
    paths = site.paths(files.files)
    problems: tuple[str, ...] = ()
    if files.format == "genes":
        matrices = [(path, _of_matrix(path, site, files, features)) for path in paths]
    else:
        table = site.folder / (site.settings.gene_table or "")
        places, problems = read_gene_table(table, site.names, site.settings.limits)
        chosen = {g: p for g, p in places.items() if not wanted or g in wanted}
        matrices = [(path, _of_segments(path, site, chosen)) for path in paths]
    whole = combined(matrices)
    values = whole.values
    if files.values == "log2" and features.thresholds is not None:
        values = as_calls(values, features.thresholds.edges)
    return as_features(whole, values, wanted, features.column, (*problems, *whole.problems))
