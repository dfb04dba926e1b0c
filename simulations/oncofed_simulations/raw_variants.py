"""Variants as VCF (annotated by VEP or SnpEff) and as MAF, made from who carries which mutation.

A carrier has a variant that changes the protein, sometimes two; others now and then have one that changes nothing.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed_simulations.raw_genome import GENES, POSITIONS

__all__ = ["Variant", "draw_variants", "write_maf", "write_vcf"]

_HARMFUL = {  # consequence of the Sequence Ontology: how often, and its name in a MAF
    "missense_variant": (0.55, "Missense_Mutation"),
    "stop_gained": (0.2, "Nonsense_Mutation"),
    "frameshift_variant": (0.15, "Frame_Shift_Del"),
    "splice_donor_variant": (0.1, "Splice_Site"),
}
_HARMLESS = {"synonymous_variant": (0.8, "Silent"), "intron_variant": (0.2, "Intron")}
_CLASSES = {c: name for table in (_HARMFUL, _HARMLESS) for c, (_, name) in table.items()}
_IMPACT = {
    "missense_variant": "MODERATE",
    "stop_gained": "HIGH",
    "frameshift_variant": "HIGH",
    "splice_donor_variant": "HIGH",
    "synonymous_variant": "LOW",
    "intron_variant": "MODIFIER",
}
_SECOND, _PASSENGER = 0.1, 0.12
_BASES = "ACGT"
_CSQ = "Allele|Consequence|IMPACT|SYMBOL|Gene|Feature_type|Feature|BIOTYPE"
_ANN = (
    "Allele | Annotation | Annotation_Impact | Gene_Name | Gene_ID | Feature_Type | Feature_ID | Transcript_BioType | "
    "Rank | HGVS.c | HGVS.p | cDNA.pos / cDNA.length | CDS.pos / CDS.length | AA.pos / AA.length | Distance | "
    "ERRORS / WARNINGS / INFO"
)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Variant:
    """One variant of one sample; `reference` and `alternative` as a VCF writes them."""

    chromosome: str
    position: int
    reference: str
    alternative: str
    gene: str
    consequence: str


def _draw(rng: np.random.Generator, gene: str, table: dict[str, tuple[float, str]]) -> Variant:
    chromosome, start, end = POSITIONS[gene]
    consequence = str(rng.choice(list(table), p=[share for share, _ in table.values()]))
    reference, alternative = rng.permutation(list(_BASES))[:2].tolist()
    if consequence == "frameshift_variant":
        reference, alternative = reference + alternative, reference
    return Variant(
        chromosome=chromosome,
        position=int(rng.integers(start, end)),
        reference=reference,
        alternative=alternative,
        gene=gene,
        consequence=consequence,
    )


def draw_variants(rng: np.random.Generator, carried: NDArray[np.float64]) -> list[list[Variant]]:
    """Draw variants from (n, genes) 0/1 in the order of `GENES`; per sample, by chromosome and position."""
    drawn = []
    for row in carried.astype(bool).tolist():
        own = []
        for gene, carrier in zip(GENES["mutations"], row, strict=True):
            if carrier:
                own += [_draw(rng, gene, _HARMFUL) for _ in range(1 + int(rng.random() < _SECOND))]
            elif rng.random() < _PASSENGER:
                own.append(_draw(rng, gene, _HARMLESS))
        drawn.append(sorted(own, key=lambda v: (int(v.chromosome), v)))
    return drawn


def _vep(variant: Variant) -> str:
    allele = "-" if len(variant.reference) > 1 else variant.alternative
    own = (allele, variant.consequence, _IMPACT[variant.consequence], variant.gene)
    other = (allele, "downstream_gene_variant", "MODIFIER", "LINC00000")
    made = ["|".join([*fields, "", "Transcript", "", "protein_coding"]) for fields in (other, own)]
    return "CSQ=" + ",".join(made)


def _snpeff(variant: Variant) -> str:
    fields = (variant.alternative, variant.consequence, _IMPACT[variant.consequence], variant.gene, variant.gene)
    return "ANN=" + "|".join(
        [*fields, "transcript", "NM_000000.1", "protein_coding", "1/1", "c.1", "", "", "", "", "", ""]
    )


_ANNOTATION: dict[str, tuple[Callable[[Variant], str], str]] = {
    "vep": (_vep, f'##INFO=<ID=CSQ,Number=.,Type=String,Description="Annotations from Ensembl VEP. Format: {_CSQ}">'),
    "snpeff": (_snpeff, f"##INFO=<ID=ANN,Number=.,Type=String,Description=\"Functional annotations: '{_ANN}'\">"),
}


def write_vcf(path: Path, samples: Sequence[str], variants: Sequence[Sequence[Variant]], *, annotator: str) -> None:
    """Write samples into one VCF, compressed where the name ends in `.gz`.

    Args:
        path: the file.
        samples: (n,) ids, one column each.
        variants: (n,) of each sample.
        annotator: `vep` or `snpeff`.
    """
    annotate, described = _ANNOTATION[annotator]
    chromosomes = sorted({place[0] for place in POSITIONS.values()}, key=int)
    lines = [
        "##fileformat=VCFv4.2",
        "##reference=GRCh38",
        '##FILTER=<ID=PASS,Description="All filters passed">',
        described,
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
        '##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Read depth">',
        *(f"##contig=<ID=chr{c}>" for c in chromosomes),
        "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples]),
    ]
    owners: dict[Variant, set[int]] = {}
    for index, own in enumerate(variants):
        for variant in own:
            owners.setdefault(variant, set()).add(index)
    for variant in sorted(owners, key=lambda v: (int(v.chromosome), v)):
        calls = ["0/1:60" if i in owners[variant] else "0/0:55" for i in range(len(samples))]
        place = [f"chr{variant.chromosome}", str(variant.position), ".", variant.reference, variant.alternative]
        lines.append("\t".join([*place, "100", "PASS", annotate(variant), "GT:DP", *calls]))
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


_MAF = (
    *("Hugo_Symbol", "NCBI_Build", "Chromosome", "Start_Position", "End_Position", "Variant_Classification"),
    *("Variant_Type", "Reference_Allele", "Tumor_Seq_Allele1", "Tumor_Seq_Allele2", "Tumor_Sample_Barcode"),
)


def write_maf(
    path: Path, samples: Sequence[str], variants: Sequence[Sequence[Variant]], *, name: Callable[[str], str]
) -> None:
    """Write the variants of (n,) samples as one MAF; a sample without any is not in it.

    Args:
        path: the file.
        samples: (n,) ids.
        variants: (n,) of each sample.
        name: how the file calls a gene.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("#version 2.4\n")
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(_MAF)
        for sample, own in zip(samples, variants, strict=True):
            for v in own:
                deletion = len(v.reference) > 1
                start = v.position + deletion
                alleles = (
                    [v.reference[1:], v.reference[1:], "-"] if deletion else [v.reference, v.reference, v.alternative]
                )
                kind = "DEL" if deletion else "SNP"
                place = [name(v.gene), "GRCh38", f"chr{v.chromosome}", start, start]
                writer.writerow([*place, _CLASSES[v.consequence], kind, *alleles, sample])
