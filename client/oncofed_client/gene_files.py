"""Where a site finds the gene graphs and gene sets that a study names by their hash."""

from __future__ import annotations

from pathlib import Path

from oncofed_client.settings import SiteSettings
from oncofed_shared.gene_graph import with_files
from oncofed_shared.plan import Plan

__all__ = ["gene_folder", "with_gene_files"]


def gene_folder(settings: SiteSettings, folder: Path) -> Path:
    """The folder that `site.toml` names, or the site's own.

    Args:
        settings: of the site.
        folder: with the site's data.
    """
    return folder / (settings.site.files or ".")


def with_gene_files(plan: Plan, settings: SiteSettings, folder: Path) -> Plan:
    """The plan as this site reads it: with the place of its files about genes, which is no part of its hash.

    A study that is no signed one may say itself where they are; `site.files` goes before it.
    """
    if plan.simulation.files is not None and settings.site.files is None:
        return plan
    return with_files(plan, gene_folder(settings, folder))
