"""What a variant does: terms of VEP and SnpEff, and the classes of MAF files, in the plan's words.

A MAF has 18 classes where VEP has 41 terms. Both are reduced to `CONSEQUENCES`, by the correspondence and in the order of
severity that vcf2maf uses (mskcc/vcf2maf, GetVariantClassification and GetEffectPriority, after Ensembl's table of calculated
consequences), so that a VCF and the MAF made from it mean the same.
"""

from __future__ import annotations

from oncofed_shared.plan_genomics import CONSEQUENCES, Consequence

__all__ = ["UNKNOWN", "is_known_term", "of_class", "of_terms", "severity_rank"]

UNKNOWN: Consequence = "sequence_variant"

_BY_RANK: tuple[tuple[tuple[str, ...], Consequence], ...] = (
    (("transcript_ablation", "exon_loss_variant", "exon_loss"), "splice_site_variant"),
    (("splice_donor_variant", "splice_acceptor_variant"), "splice_site_variant"),
    (("stop_gained",), "stop_gained"),
    (("frameshift_variant",), "frameshift_variant"),
    (("stop_lost",), "stop_lost"),
    (("start_lost", "initiator_codon_variant"), "start_lost"),
    (
        (
            "inframe_insertion",
            "inframe_deletion",
            "disruptive_inframe_insertion",
            "disruptive_inframe_deletion",
            "conservative_inframe_insertion",
            "conservative_inframe_deletion",
            "protein_altering_variant",
        ),
        "inframe_indel",
    ),
    (("missense_variant", "conservative_missense_variant", "rare_amino_acid_variant"), "missense_variant"),
    (("transcript_amplification",), "intron_variant"),
    (
        (
            "splice_region_variant",
            "splice_donor_5th_base_variant",
            "splice_donor_region_variant",
            "splice_polypyrimidine_tract_variant",
        ),
        "splice_region_variant",
    ),
    (
        ("start_retained_variant", "stop_retained_variant", "synonymous_variant", "incomplete_terminal_codon_variant"),
        "synonymous_variant",
    ),
    (("coding_sequence_variant",), "missense_variant"),
    (("mature_miRNA_variant", "exon_variant"), "non_coding_transcript_variant"),
    (("5_prime_UTR_variant", "5_prime_UTR_premature_start_codon_gain_variant"), "5_prime_UTR_variant"),
    (("3_prime_UTR_variant",), "3_prime_UTR_variant"),
    (
        (
            "non_coding_exon_variant",
            "non_coding_transcript_exon_variant",
            "non_coding_transcript_variant",
            "nc_transcript_variant",
        ),
        "non_coding_transcript_variant",
    ),
    (("intron_variant", "intragenic_variant", "INTRAGENIC", "conserved_intron_variant"), "intron_variant"),
    (("NMD_transcript_variant",), "synonymous_variant"),
    (("upstream_gene_variant",), "upstream_gene_variant"),
    (("downstream_gene_variant",), "downstream_gene_variant"),
    (
        (
            "TFBS_ablation",
            "TFBS_amplification",
            "TF_binding_site_variant",
            "regulatory_region_ablation",
            "regulatory_region_amplification",
            "regulatory_region_variant",
            "regulatory_region",
            "intergenic_variant",
            "intergenic_region",
            "conserved_intergenic_variant",
        ),
        "intergenic_variant",
    ),
    (("sequence_variant", "feature_elongation", "feature_truncation", "coding_transcript_variant"), UNKNOWN),
)
_TERMS = {term: (rank, meaning) for rank, (terms, meaning) in enumerate(_BY_RANK) for term in terms}
_LAST = len(_BY_RANK)

_CLASSES: dict[str, Consequence] = {
    "Splice_Site": "splice_site_variant",
    "Nonsense_Mutation": "stop_gained",
    "Frame_Shift_Del": "frameshift_variant",
    "Frame_Shift_Ins": "frameshift_variant",
    "Nonstop_Mutation": "stop_lost",
    "Translation_Start_Site": "start_lost",
    "In_Frame_Del": "inframe_indel",
    "In_Frame_Ins": "inframe_indel",
    "Missense_Mutation": "missense_variant",
    "Splice_Region": "splice_region_variant",
    "Silent": "synonymous_variant",
    "5'UTR": "5_prime_UTR_variant",
    "3'UTR": "3_prime_UTR_variant",
    "RNA": "non_coding_transcript_variant",
    "Intron": "intron_variant",
    "5'Flank": "upstream_gene_variant",
    "3'Flank": "downstream_gene_variant",
    "IGR": "intergenic_variant",
    "Targeted_Region": UNKNOWN,
    "De_novo_Start_InFrame": "5_prime_UTR_variant",
    "De_novo_Start_OutOfFrame": "5_prime_UTR_variant",
}


def severity_rank(terms: str) -> int:
    """Rank of the gravest of some terms joined by `&`; 0 is the gravest."""
    return min((_TERMS.get(t, (_LAST, UNKNOWN))[0] for t in terms.split("&")), default=_LAST)


def is_known_term(terms: str) -> bool:
    """Whether one of some terms joined by `&` is known."""
    return any(t in _TERMS for t in terms.split("&"))


def of_terms(terms: str, ref: str, alt: str) -> Consequence:
    """The plan's word for the gravest of some terms joined by `&`.

    Args:
        terms: of VEP or SnpEff.
        ref, alt: the alleles, which say whether a variant that is only "protein altering" keeps the frame.

    >>> of_terms("splice_region_variant&synonymous_variant", "C", "T")
    'splice_region_variant'
    >>> of_terms("protein_altering_variant", "ACGT", "AC")
    'frameshift_variant'
    """
    gravest = min(terms.split("&"), key=lambda t: _TERMS.get(t, (_LAST, UNKNOWN))[0])
    if gravest == "protein_altering_variant" and (len(ref.strip("-")) - len(alt.strip("-"))) % 3:
        return "frameshift_variant"
    return _TERMS.get(gravest, (_LAST, UNKNOWN))[1]


def of_class(name: str) -> Consequence | None:
    """The plan's word for a MAF's Variant_Classification, or for a term of the plan itself; None for any other text.

    >>> of_class("Nonsense_Mutation"), of_class("stop_gained"), of_class("Missense")
    ('stop_gained', 'stop_gained', None)
    """
    for known in CONSEQUENCES:
        if name == known:
            return known
    return _CLASSES.get(name)
