"""A site's sequencing output: counts, segments and variants, in the formats that its core happens to use.

By the site's place in the consortium: one VCF per patient from VEP, one MAF, or one VCF for all from SnpEff.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from oncofed_simulations.folders import write_table
from oncofed_simulations.raw_draw import RawSite
from oncofed_simulations.raw_genome import (
    ALIASES,
    GENES,
    base_counts,
    draw_counts,
    write_aliases,
    write_counts,
    write_positions,
    write_segments,
)
from oncofed_simulations.raw_variants import draw_variants, write_maf, write_vcf

__all__ = ["GENOMICS_FOLDER", "genomics_settings", "unmeasured", "write_genomics"]

GENOMICS_FOLDER = "genomics"

_COUNTS, _SEGMENTS, _POSITIONS, _ALIASES = "counts.tsv", "segments.seg", "gene_positions.tsv", "gene_names.tsv"
_SAMPLES = "sequenced_samples.csv"
_PANEL = "panel_genes.tsv"
_UNMEASURED = ("FAT1", "POLE")
"""Genes that the panel of some sites does not cover."""


def unmeasured(site: RawSite) -> tuple[str, ...]:
    """Genes whose mutations the site cannot see."""
    return _UNMEASURED if site.index % 3 == 1 else ()


def genomics_settings(site: RawSite) -> dict[str, Any]:
    """Make the site's `[genomics]`."""
    return {}


def _own_name(site: RawSite, gene: str) -> str:
    """How the site's core calls a gene: some still use older names."""
    return ALIASES.get(gene, gene) if site.index % 3 == 1 else gene


def _present(site: RawSite, modality: str) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float64]]]:
    keep = ~site.absent[modality]
    return [p.number for p, k in zip(site.people, keep.tolist(), strict=True) if k], site.values[modality][keep]


def _write_mutations(folder: Path, site: RawSite) -> None:
    samples, carried = _present(site, "mutations")
    variants = draw_variants(site.streams["mutations"], carried)
    lacking = unmeasured(site)
    variants = [[v for v in own if v.gene not in lacking] for own in variants]
    panel = [[_own_name(site, g)] for g in GENES["mutations"] if g not in lacking]
    write_table(folder / _PANEL, ["gene"], panel)
    write_table(folder / _SAMPLES, ["patient_id"], sorted([s] for s in samples))
    if site.index % 3 == 0:
        (folder / "variants").mkdir()
        for sample, own in zip(samples, variants, strict=True):
            write_vcf(folder / "variants" / f"{sample}.vcf", [sample], [own], annotator="vep")
    elif site.index % 3 == 1:
        write_maf(folder / "mutations.maf", samples, variants, name=lambda gene: _own_name(site, gene))
    else:
        write_vcf(folder / "cohort.vcf.gz", samples, variants, annotator="snpeff")


def write_genomics(folder: Path, site: RawSite) -> None:
    """Write the core's output below `folder / GENOMICS_FOLDER`."""
    core = folder / GENOMICS_FOLDER
    core.mkdir()
    samples, values = _present(site, "expression")
    counts = draw_counts(site.streams["expression"], values)
    genes = [_own_name(site, g) for g in base_counts()]
    write_counts(core / _COUNTS, samples, genes, counts, genes_in_rows=site.index % 2 == 0)
    samples, calls = _present(site, "cnv")
    write_segments(core / _SEGMENTS, site.streams["cnv"], samples, calls)
    write_positions(core / _POSITIONS)
    write_aliases(core / _ALIASES)
    _write_mutations(core, site)
