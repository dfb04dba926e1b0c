"""Expression counts and copy-number segments as a genomics core leaves them, from what the population planted.

Positions are those of GRCh38, rounded to no more than they need: genes lie on the right chromosome in the right order.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed_simulations.population import COLUMNS

__all__ = [
    "ALIASES",
    "GENES",
    "HOUSEKEEPING",
    "POSITIONS",
    "base_counts",
    "draw_counts",
    "write_aliases",
    "write_counts",
    "write_positions",
    "write_segments",
]

Floats = NDArray[np.float64]

GENES = {m: tuple(c.rsplit("_", 1)[0] for c in COLUMNS[m]) for m in ("expression", "cnv", "mutations")}
"""Genes of each modality, in the order of the population's columns."""

HOUSEKEEPING = (
    *("ACTB", "B2M", "GAPDH", "GUSB", "HMBS", "HPRT1", "IPO8", "PGK1", "POLR2A", "PPIA"),
    *("PSMB4", "RAB7A", "RPL13A", "RPLP0", "SDHA", "TBP", "TFRC", "UBC", "VCP", "YWHAZ"),
)
"""Genes that hardly differ between patients, so that size factors have something to hold on to."""

ALIASES = {
    "ERBB2": "HER2",
    "CD274": "PDL1",
    "IDO1": "INDO",
    "NAPSA": "NAP1",
    "MKI67": "KIA",
    "KMT2D": "MLL2",
    "CDKN2A": "INK4A",
    "STK11": "LKB1",
}
"""Approved symbol -> an older or other name, which some sites' files have."""

POSITIONS = {
    "EGFR": ("7", 55019017, 55211628),
    "MYC": ("8", 127735434, 127742951),
    "CCND1": ("11", 69641156, 69654474),
    "CDK4": ("12", 57747727, 57756013),
    "MDM2": ("12", 68808176, 68850686),
    "ERBB2": ("17", 39687914, 39730426),
    "PTEN": ("10", 87863113, 87971930),
    "RB1": ("13", 48303747, 48481890),
    "CDKN2A": ("9", 21967752, 21995324),
    "TP53": ("17", 7661779, 7687550),
    "KRAS": ("12", 25205246, 25250929),
    "BRCA1": ("17", 43044295, 43170245),
    "MET": ("7", 116672196, 116798386),
    "FGFR1": ("8", 38411138, 38468834),
    "PDGFRA": ("4", 54229280, 54298245),
    "NF1": ("17", 31094927, 31377677),
    "STK11": ("19", 1205740, 1228431),
    "SMAD4": ("18", 51028394, 51085045),
    "TERT": ("5", 1253147, 1295069),
    "SOX2": ("3", 181711925, 181714436),
    "KEAP1": ("19", 10486125, 10503558),
    "BRAF": ("7", 140719327, 140924929),
    "PIK3CA": ("3", 179148114, 179240093),
    "ARID1A": ("1", 26693236, 26782104),
    "ATM": ("11", 108222804, 108369102),
    "POLE": ("12", 132623753, 132687376),
    "KMT2D": ("12", 49018978, 49060794),
    "CDH1": ("16", 68737292, 68835537),
    "NOTCH1": ("9", 136494433, 136546048),
    "APC": ("5", 112707498, 112846239),
    "FAT1": ("4", 186587794, 186726696),
}
"""Gene -> chromosome, start, end (1-based, both inside)."""

_LOG2_RATIO = {-2: -1.3, -1: -0.55, 0: 0.0, 1: 0.5, 2: 1.0}
"""Copy-number call -> the log2 ratio that an impure tumour shows."""
_RATIO_NOISE = 0.05
_DISPERSION = 0.03
_FOLD = 1.0
"""log2 of the change in counts per standard deviation of the population's expression."""


def base_counts() -> dict[str, float]:
    """Mean count of every measured gene in an average sample: a public constant, the same for every seed."""
    genes = (*GENES["expression"], *HOUSEKEEPING)
    means = np.round(np.exp(np.random.default_rng(0).uniform(np.log(200), np.log(4000), len(genes))))
    return dict(zip(genes, means.tolist(), strict=True))


def draw_counts(rng: np.random.Generator, values: Floats) -> NDArray[np.int64]:
    """Draw read counts, negative binomial around what the population says.

    Args:
        rng: the site's stream.
        values: (n, genes) expression as z-scores, in the order of `GENES`.

    Returns:
        (n, genes + housekeeping genes), in the order of `base_counts`; samples differ in depth.
    """
    mean = np.array(list(base_counts().values()))
    steady = 0.1 * rng.standard_normal((len(values), len(HOUSEKEEPING)))
    depth = np.exp(0.3 * rng.standard_normal((len(values), 1)))
    expected = mean * depth * 2.0 ** (_FOLD * np.hstack([values, steady]))
    return rng.poisson(expected * rng.gamma(1 / _DISPERSION, _DISPERSION, expected.shape)).astype(np.int64)


def _rows(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)


def write_counts(
    path: Path, samples: Sequence[str], genes: Sequence[str], counts: NDArray[np.int64], *, genes_in_rows: bool
) -> None:
    """Write counts (samples, genes) as a .tsv in either orientation."""
    if genes_in_rows:
        rows = [["gene", *samples], *([gene, *row] for gene, row in zip(genes, counts.T.tolist(), strict=True))]
    else:
        rows = [["sample", *genes], *([sample, *row] for sample, row in zip(samples, counts.tolist(), strict=True))]
    _rows(path, rows)


def _boundaries(chromosome: str) -> tuple[list[str], list[int]]:
    """Genes with copy number on a chromosome in order, and where one gene's segment ends and the next begins."""
    placed = sorted((POSITIONS[g][1], POSITIONS[g][2], g) for g in GENES["cnv"] if POSITIONS[g][0] == chromosome)
    middles = [(end + placed[i + 1][0]) // 2 for i, (_, end, _) in enumerate(placed[:-1])]
    return [g for *_, g in placed], [max(1, placed[0][0] - 900_000), *middles, placed[-1][1] + 900_000]


def write_segments(path: Path, rng: np.random.Generator, samples: Sequence[str], calls: Floats) -> None:
    """Write copy number as segments: ID, chrom, loc.start, loc.end, num.mark, seg.mean (log2 ratio).

    Args:
        path: the file, `.seg`.
        rng: of the noise of each segment.
        samples: (n,) ids.
        calls: (n, genes) -2..2, in the order of `GENES`.
    """
    rows: list[list[object]] = [["ID", "chrom", "loc.start", "loc.end", "num.mark", "seg.mean"]]
    chromosomes = sorted({POSITIONS[g][0] for g in GENES["cnv"]}, key=int)
    for sample, own in zip(samples, calls.astype(int).tolist(), strict=True):
        call = dict(zip(GENES["cnv"], own, strict=True))
        for chromosome in chromosomes:
            genes, edges = _boundaries(chromosome)
            starts = [0, *(i for i in range(1, len(genes)) if call[genes[i]] != call[genes[i - 1]]), len(genes)]
            for first, last in pairwise(starts):
                start, end = edges[first] + (first > 0), edges[last]
                mean = _LOG2_RATIO[call[genes[first]]] + _RATIO_NOISE * rng.standard_normal()
                rows.append([sample, chromosome, start, end, (end - start) // 20_000 + 1, f"{mean:.4f}"])
    _rows(path, rows)


def write_positions(path: Path) -> None:
    """Write the site's gene table: where each gene lies."""
    _rows(path, [["gene", "chrom", "start", "end"], *([g, *p] for g, p in sorted(POSITIONS.items()))])


def write_aliases(path: Path) -> None:
    """Write gene names as HGNC exports them: approved symbol, other symbols and earlier ones, joined by `|`."""
    every = sorted({g for genes in GENES.values() for g in genes} | set(HOUSEKEEPING))
    _rows(path, [["symbol", "alias_symbol", "prev_symbol"], *([g, ALIASES.get(g, ""), ""] for g in every)])
