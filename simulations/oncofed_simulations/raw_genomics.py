"""A site's sequencing output: counts, segments and variants, in the formats that its core happens to use.

By the site's place in the consortium: one VCF per patient from VEP, one MAF, or one VCF for all from SnpEff.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
_SAMPLES, _PANEL, _PANEL_NAME = "samples.csv", "panel_genes.txt", "core-panel"
_UNMEASURED = ("FAT1", "APC")
"""Genes that the panel of some sites does not cover."""
_VARIANTS = ("variants/*.vcf", "mutations.maf", "cohort.vcf.gz")


def _has_maf(site: RawSite) -> bool:
    return site.index % 3 == 1


def unmeasured(site: RawSite) -> tuple[str, ...]:
    """Genes whose mutations the site cannot see."""
    return _UNMEASURED if _has_maf(site) else ()


def genomics_settings(site: RawSite) -> dict[str, Any]:
    """Make the site's `[genomics]`."""
    settings: dict[str, Any] = {
        "aliases": f"{GENOMICS_FOLDER}/{_ALIASES}",
        "gene_table": f"{GENOMICS_FOLDER}/{_POSITIONS}",
        "expression": {"files": [f"{GENOMICS_FOLDER}/{_COUNTS}"]},
        "copy_number": {"files": [f"{GENOMICS_FOLDER}/{_SEGMENTS}"], "format": "segments", "values": "log2"},
        "mutations": {"files": [f"{GENOMICS_FOLDER}/{_VARIANTS[site.index % 3]}"], "panel": "exome"},
    }
    if site.index % 3 == 0:
        settings["mutations"] |= {"patient": "file", "tumour": "TUMOR"}
    if _has_maf(site):
        settings["mutations"]["panel"] = _PANEL_NAME
        settings["panels"] = {_PANEL_NAME: f"{GENOMICS_FOLDER}/{_PANEL}"}
        settings["samples"] = {"file": f"{GENOMICS_FOLDER}/{_SAMPLES}"}
    return settings


def _own_name(site: RawSite, gene: str) -> str:
    """How the site's core calls a gene: some still use older names."""
    return ALIASES.get(gene, gene) if _has_maf(site) else gene


def _present(site: RawSite, modality: str) -> tuple[list[str], NDArray[np.float64]]:
    """Samples of a modality, by the core's own numbers where it has some, and their values.

    In a MAF nobody tells a patient without a mutation from one without sequencing, so that there the table of samples
    holds the sequenced ones and no others.
    """
    keep = ~site.absent[modality]
    if _has_maf(site):
        keep &= ~site.absent["mutations"]
    people = [p for p, k in zip(site.people, keep.tolist(), strict=True) if k]
    return [p.at_laboratory() if _has_maf(site) else p.number for p in people], site.values[modality][keep]


def _write_mutations(folder: Path, site: RawSite) -> None:
    samples, carried = _present(site, "mutations")
    lacking = unmeasured(site)
    variants = [[v for v in own if v.gene not in lacking] for own in draw_variants(site.streams["mutations"], carried)]
    if site.index % 3 == 0:
        (folder / "variants").mkdir()
        for sample, own in zip(samples, variants, strict=True):
            write_vcf(folder / "variants" / f"{sample}.vcf", ["NORMAL", "TUMOR"], [[], own], annotator="vep")
    elif _has_maf(site):
        write_maf(folder / "mutations.maf", samples, variants, name=lambda gene: _own_name(site, gene))
        panel = [_own_name(site, g) for g in GENES["mutations"] if g not in lacking]
        (folder / _PANEL).write_text("\n".join([*panel, ""]), encoding="utf-8", newline="\n")
        links = sorted([p.at_laboratory(), p.number] for p in site.people if p.at_laboratory() in set(samples))
        write_table(folder / _SAMPLES, ["sample_id", "patient_id"], links)
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
