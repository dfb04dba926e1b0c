"""A synthetic consortium in a hospital's own formats: a PACS export, a genomics core's output, a clinical export.

What is planted is what `population` plants; here it shows in the lesions of images, in counts, segments and variants.
The headers and tables are full of made-up people, whom `raw_draw.identifying_values` lists for tests.
"""

from __future__ import annotations

from pathlib import Path

import tomli_w

from oncofed_simulations.folders import new_folder
from oncofed_simulations.raw_clinical import clinical_settings, write_clinical
from oncofed_simulations.raw_draw import RawSite, draw_sites
from oncofed_simulations.raw_genomics import genomics_settings, write_genomics
from oncofed_simulations.raw_imaging import imaging_settings, write_imaging
from oncofed_simulations.synthetic import read_settings

__all__ = ["write_raw_cohort"]


def write_raw_cohort(
    out: Path,
    *,
    sites: int,
    patients: int,
    seed: int,
    signal: float = 1.0,
    site_effect: float = 1.0,
    gaps: float = 0.03,
) -> None:
    """Write a synthetic consortium of raw files: `out/site-1` to `out/site-K`.

    Sizes, missing modalities and arguments are those of `synthetic.write_cohort`; a site without radiomics has no
    images.

    Args:
        out: a new folder, or an empty one.
        sites: K.
        patients: of all sites together.
        seed: of everything that is drawn.
        signal: strength of the planted effects.
        site_effect: strength of the differences between sites.
        gaps: part of the clinical values that are missing; twice this part of the patients lack a modality.

    Guarantees:
        - Same arguments, same bytes.
        - `out` is there whole or not at all, and nothing is overwritten.

    Raises:
        ConfigError: an argument is out of range, or `out` exists and is not empty.
        StorageError: the folder cannot be written.
    """
    required = {"sites": sites, "patients": patients, "seed": seed}
    options = {"signal": signal, "site_effect": site_effect, "gaps": gaps}
    settings = read_settings({**required, **options}, "cohort")
    drawn = draw_sites(settings)
    with new_folder(out) as partial:
        for site in drawn:
            folder = partial / site.name
            folder.mkdir()
            write_clinical(folder, site, settings.gaps)
            if "radiomics" in site.values:
                write_imaging(folder, site)
            if "expression" in site.values:
                write_genomics(folder, site)
            _write_settings(folder, site)


def _write_settings(folder: Path, site: RawSite) -> None:
    content = {
        "site": {"name": site.name},
        "tables": clinical_settings(site),
        "consent": {"table": "clinical", "column": "consent", "value": "yes"},
        # A tiny synthetic site takes part as well; a real one keeps 10.
        "policy": {"minimum_cohort": max(1, min(10, len(site.people) // 2))},
    }
    if "radiomics" in site.values:
        content["imaging"] = imaging_settings(site)
    if "expression" in site.values:
        content["genomics"] = genomics_settings(site)
    (folder / "site.toml").write_text(tomli_w.dumps(content), encoding="utf-8", newline="\n")
