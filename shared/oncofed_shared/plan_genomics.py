"""How a study turns a site's sequencing files into numbers: the `genomics` table of a modality.

Everything that must be the same at every site stands here and so in the plan's hash: the genes, the reference sample of the
size factors, the weight of each consequence and of each gene. Each table says where it was taken from.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from oncofed_shared.strict import Frozen

__all__ = [
    "CONSEQUENCES",
    "CallThresholds",
    "Consequence",
    "CopyNumberFeatures",
    "Drivers",
    "ExpressionFeatures",
    "GenomicFeatures",
    "MutationFeatures",
    "ReferenceSample",
    "Severity",
]

Consequence = Literal[
    "splice_site_variant",
    "stop_gained",
    "frameshift_variant",
    "stop_lost",
    "start_lost",
    "inframe_indel",
    "missense_variant",
    "splice_region_variant",
    "synonymous_variant",
    "5_prime_UTR_variant",
    "3_prime_UTR_variant",
    "non_coding_transcript_variant",
    "intron_variant",
    "upstream_gene_variant",
    "downstream_gene_variant",
    "intergenic_variant",
    "sequence_variant",
]
"""What a variant does, in the terms that a MAF file can tell apart: names of the Sequence Ontology, the gravest first.

A VCF has finer terms. They are reduced to these, or sites with VCF and sites with MAF would score one mutation differently.
"""

CONSEQUENCES: tuple[Consequence, ...] = get_args(Consequence)
"""All of them, the gravest first."""

Gene = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
Source = Annotated[str, Field(min_length=10)]
MeanCount = Annotated[float, Field(ge=1e-6, le=1e12)]
Weight = Annotated[float, Field(ge=0, le=1000)]


def _distinct(genes: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(genes)) != len(genes):
        message = "must be distinct"
        raise ValueError(message)
    return genes


def _template(column: str) -> str:
    if column.count("{gene}") != 1 or "*" in column:
        message = "must contain {gene} once, and no *"
        raise ValueError(message)
    return column


Genes = Annotated[tuple[Gene, ...], AfterValidator(_distinct)]
Template = Annotated[str, AfterValidator(_template)]


class ReferenceSample(Frozen):
    """The sample that every site divides its counts by, so that sites agree on size factors (B-09).

    Attributes:
        source: the public cohort it was made from, and how.
        counts: per gene the geometric mean of its counts in that cohort.
    """

    source: Source
    counts: Annotated[dict[Gene, MeanCount], Field(min_length=1)]


class ExpressionFeatures(Frozen):
    """Gene expression.

    Attributes:
        genes: which; none means all that a site has.
        column: name of a gene's column.
        values: what a site's file must hold.
        normalisation: `size_factors` divides each patient's counts by his median ratio to a reference.
        reference: without it every site has a reference of its own, the geometric means over all samples in its file.
        logarithm: log2(1 + x), after the normalisation.
    """

    kind: Literal["expression"]
    genes: Genes = ()
    column: Template = "{gene}_rnaseq"
    values: Literal["counts", "tpm", "zscores"] = "counts"
    normalisation: Literal["size_factors", "none"] = "size_factors"
    reference: ReferenceSample | None = None
    logarithm: bool = True

    @field_validator("normalisation")
    @classmethod
    def _of_counts(cls, normalisation: str, info: ValidationInfo) -> str:
        if normalisation == "size_factors" and info.data.get("values", "counts") != "counts":
            message = f"'size_factors' needs counts; with {info.data['values']} use 'none'"
            raise ValueError(message)
        return normalisation

    @field_validator("reference")
    @classmethod
    def _used(cls, reference: ReferenceSample | None, info: ValidationInfo) -> ReferenceSample | None:
        if reference is not None and info.data.get("normalisation") == "none":
            message = "goes with normalisation = 'size_factors'; remove it"
            raise ValueError(message)
        return reference

    @field_validator("logarithm")
    @classmethod
    def _not_twice(cls, logarithm: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's way to call
        if logarithm and info.data.get("values") == "zscores":
            message = "z-scores have no logarithm; set it to false"
            raise ValueError(message)
        return logarithm


class CallThresholds(Frozen):
    """From log2 ratios to calls: -2, -1, 0, 1, 2 for a ratio up to the first, second, third, fourth number, and above it.

    Attributes:
        source: where the numbers were taken from.
        edges: four log2 ratios, ascending.
    """

    source: Source
    edges: tuple[float, float, float, float]

    @field_validator("edges")
    @classmethod
    def _ascending(cls, edges: tuple[float, ...]) -> tuple[float, ...]:
        if any(b <= a for a, b in pairwise(edges)):
            message = "must be strictly ascending"
            raise ValueError(message)
        return edges


class CopyNumberFeatures(Frozen):
    """Copy number per gene.

    Attributes:
        genes: which; none means all that a site has.
        column: name of a gene's column.
        values: `log2` ratios, or `calls` from -2 (deep deletion) to 2 (amplification).
        thresholds: make calls of a site's log2 ratios; without them a site must have calls itself.
    """

    kind: Literal["copy_number"]
    genes: Genes = ()
    column: Template = "{gene}_cnv"
    values: Literal["log2", "calls"] = "calls"
    thresholds: CallThresholds | None = None

    @field_validator("thresholds")
    @classmethod
    def _of_calls(cls, thresholds: CallThresholds | None, info: ValidationInfo) -> CallThresholds | None:
        if thresholds is not None and info.data.get("values") == "log2":
            message = "goes with values = 'calls'; remove it"
            raise ValueError(message)
        return thresholds


class Severity(Frozen):
    """f of MutationImpact: how much each consequence weighs (B-15).

    Attributes:
        source: where the weights were taken from.
        terms: weight per consequence; one that is not named weighs nothing.
    """

    source: Source
    terms: Annotated[dict[Consequence, Weight], Field(min_length=1)]


class Drivers(Frozen):
    """w of MutationImpact: how much a mutation in each gene weighs (B-16..B-20).

    Attributes:
        source: the list of driver genes.
        oncogenes, suppressors: weight per gene.
        other: weight of a gene of `genes` that is in neither.
    """

    source: Source
    oncogenes: dict[Gene, Weight] = Field(default_factory=dict)
    suppressors: dict[Gene, Weight] = Field(default_factory=dict)
    other: Weight = 0.0

    @field_validator("suppressors")
    @classmethod
    def _one_role(cls, suppressors: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        both = sorted(set(suppressors) & set(info.data.get("oncogenes", {})))
        if both:
            message = f"{', '.join(both)}: is an oncogene already; a gene has one weight"
            raise ValueError(message)
        return suppressors

    def weight(self, gene: str) -> float:
        """Weight of a gene."""
        return self.oncogenes.get(gene, self.suppressors.get(gene, self.other))


class MutationFeatures(Frozen):
    """MutationImpact(gene, patient) = sum over the gene's mutations of f(consequence) x w(gene) (B-15).

    Attributes:
        genes: beside the drivers, which.
        column: name of a gene's column.
        severity: f.
        drivers: w.
    """

    kind: Literal["mutations"]
    genes: Genes = ()
    column: Template = "{gene}_mut"
    severity: Severity
    drivers: Drivers

    @field_validator("drivers")
    @classmethod
    def _some_gene(cls, drivers: Drivers, info: ValidationInfo) -> Drivers:
        if not (info.data.get("genes", ("",)) or drivers.oncogenes or drivers.suppressors):
            message = "names no gene; name some here or under genes"
            raise ValueError(message)
        return drivers

    @property
    def all_genes(self) -> tuple[str, ...]:
        """Genes that get a column, sorted: the same at every site, whatever is mutated there."""
        return tuple(sorted({*self.genes, *self.drivers.oncogenes, *self.drivers.suppressors}))


GenomicFeatures = Annotated[ExpressionFeatures | CopyNumberFeatures | MutationFeatures, Field(discriminator="kind")]
