"""All genomic modalities of a study from a site's files."""

from __future__ import annotations

from pathlib import Path

from oncofed_client.genomics.copy_number import read_copy_number
from oncofed_client.genomics.expression import read_expression
from oncofed_client.genomics.impact import mutation_impact, read_mutations
from oncofed_client.genomics.inputs import SiteFiles, open_files
from oncofed_client.genomics.settings import GenomicsSettings
from oncofed_client.prepare.feature_table import FeatureTable
from oncofed_shared.plan import CopyNumberFeatures, ExpressionFeatures, GenomicFeatures, Plan

__all__ = ["genomic_files", "read_genomics"]


def _read(site: SiteFiles, features: GenomicFeatures) -> FeatureTable | None:
    """One modality; None where the site has no such files."""
    if isinstance(features, ExpressionFeatures):
        return None if site.settings.expression is None else read_expression(site, features)
    if isinstance(features, CopyNumberFeatures):
        return None if site.settings.copy_number is None else read_copy_number(site, features)
    if site.settings.mutations is None:
        return None
    return mutation_impact(read_mutations(site, features), features, site.names, site.panels)


def read_genomics(folder: Path, settings: GenomicsSettings, plan: Plan) -> dict[str, FeatureTable]:
    """Read what a study asks for of a site's sequencing files.

    Args:
        folder: the site's.
        settings: its `[genomics]`.
        plan: the study; modalities without a `genomics` table are not read here.

    Returns:
        By modality, for those of which the site has files.

    Raises:
        DataError: a file is absent or wrong.
        ConfigError: the site's files cannot be what the study asks for.
    """
    site = open_files(folder, settings)
    made = {name: _read(site, m.genomics) for name, m in plan.modalities.items() if m.genomics is not None}
    return {name: table for name, table in made.items() if table is not None}


def genomic_files(folder: Path, settings: GenomicsSettings) -> tuple[Path, ...]:
    """All files that `read_genomics` may read, sorted, for a cache that must notice when one changes.

    Raises:
        DataError: one is absent or lies outside the folder.
    """
    return open_files(folder, settings).everything()
