"""MutationImpact(gene, patient) = sum_i f(x_i) w_i over the patient's mutations x_i in the gene (B-15).

f is the plan's weight of the consequence, w its weight of the gene. A gene that was sequenced and not mutated is 0, a gene
that the patient's panels do not cover is missing (B-24).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from oncofed_client.genomics.genes import GeneNames
from oncofed_client.genomics.inputs import SiteFiles
from oncofed_client.genomics.lines import fault, plain_suffix
from oncofed_client.genomics.maf import MafReading, read_maf
from oncofed_client.genomics.mutations import Mutation, Mutations
from oncofed_client.genomics.settings import EXOME, MutationFiles
from oncofed_client.genomics.vcf import VcfReading, read_vcf
from oncofed_client.prepare.feature_table import FeatureTable
from oncofed_shared.errors import DataError
from oncofed_shared.plan import MutationFeatures

__all__ = ["mutation_impact", "read_mutation_file", "read_mutations"]


def read_mutation_file(
    path: Path, site: SiteFiles, files: MutationFiles, wanted: Collection[str]
) -> VcfReading | MafReading:
    """Read one VCF or MAF.

    Raises:
        DataError: it is neither, or is malformed.
    """
    kind = files.format or plain_suffix(path).removeprefix(".")
    if kind not in {"vcf", "maf"}:
        raise fault(path, "expected a .vcf or a .maf; say under genomics.mutations.format which it is")
    return (read_vcf if kind == "vcf" else read_maf)(path, site, files, wanted)


def read_mutations(site: SiteFiles, features: MutationFeatures) -> Mutations:
    """Read a site's VCF and MAF files: the mutations in the genes of a study.

    A patient was sequenced who stands in a VCF's header, in a row of a MAF, or in the table of samples.

    Args:
        site: has `settings.mutations`.
        features: its genes are read, all others are not.

    Raises:
        DataError: a file is wrong; a panel of the table of samples is not declared.
    """
    files = site.settings.mutations
    if files is None:
        raise DataError(f"{site.folder}: site.toml has no genomics.mutations")
    wanted = frozenset(site.names.wanted(features.all_genes))
    rows: list[Mutation] = []
    patients: dict[str, None] = dict.fromkeys((site.links.patients or {}).values())
    problems = list(site.problems)
    for path in site.paths(files.files):
        reading = read_mutation_file(path, site, files, wanted)
        rows += reading.rows
        patients |= dict.fromkeys(reading.patients)
        problems += reading.problems(path)
    covered = {p: site.links.panels.get(p) or frozenset({files.panel}) for p in patients}
    unknown = {name for names in covered.values() for name in names} - {EXOME, *site.panels}
    if unknown:
        raise DataError(
            f"{site.folder}: the table of samples names {len(unknown)} panels that are not under genomics.panels; "
            f"there are {', '.join((EXOME, *site.panels))}"
        )
    return Mutations.of(rows, covered, problems)


def mutation_impact(
    mutations: Mutations, features: MutationFeatures, names: GeneNames, panels: Mapping[str, frozenset[str]]
) -> FeatureTable:
    """Score every patient and gene.

    Args:
        mutations: of a site.
        features: f, w and the genes.
        names: of genes, by which the plan's are found.
        panels: per panel its genes, as approved symbols; the exome covers all.

    Returns:
        One column per gene of the plan, the same at every site: the score, 0 without a mutation, NaN where not sequenced.

    Guarantees:
        - A patient's scores depend on his own mutations and panels alone.
    """
    genes = {approved: (i, name) for i, (approved, name) in enumerate(names.wanted(features.all_genes).items())}
    patients = tuple(sorted(mutations.covered))
    place = {p: i for i, p in enumerate(patients)}
    values = np.zeros((len(patients), len(genes)))
    severity = features.severity.terms
    for mutation in mutations.rows:
        column, name = genes[mutation.gene]
        weight = features.drivers.weight(name)
        values[place[mutation.patient], column] += severity.get(mutation.consequence, 0.0) * weight
    outside = 0
    for patient, covering in mutations.covered.items():
        if EXOME in covering:
            continue
        covered = frozenset().union(*(panels[name] for name in covering))
        absent = [column for gene, (column, _) in genes.items() if gene not in covered]
        outside += int(np.count_nonzero(values[place[patient], absent]))
        values[place[patient], absent] = np.nan
    problems = mutations.problems
    if outside:
        problems += (f"{outside} scores were left out, because the gene is not in the panel that the patient had",)
    return FeatureTable(
        columns=tuple(features.column.replace("{gene}", name) for _, name in genes.values()),
        patients=patients,
        values=values,
        problems=problems,
    )
