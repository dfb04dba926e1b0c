"""The files of one site, opened once: where they lie, whose their samples are, what their genes are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from oncofed_client.genomics.genes import GeneNames, read_gene_names, read_panel
from oncofed_client.genomics.lines import fault
from oncofed_client.genomics.samples import SampleLinks, read_samples
from oncofed_client.genomics.settings import GenomicsSettings
from oncofed_shared.errors import DataError

__all__ = ["SiteFiles", "open_files"]

_MOST_FILES = 100_000


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class SiteFiles:
    """What every reader of a site's sequencing files needs.

    Attributes:
        folder: the site's.
        settings: its `[genomics]`.
        names: of genes.
        links: of samples.
        panels: per panel its genes, as approved symbols.
        problems: what could not be mapped in the panels.
    """

    folder: Path
    settings: GenomicsSettings
    names: GeneNames
    links: SampleLinks
    panels: Mapping[str, frozenset[str]]
    problems: tuple[str, ...]

    def paths(self, patterns: Iterable[str]) -> tuple[Path, ...]:
        """Files by their patterns, sorted, each once.

        Guarantees:
            - No file outside the site's folder is given, whatever a link says.

        Raises:
            DataError: nothing fits a pattern, a file lies outside, or there are absurdly many.
        """
        root = self.folder.resolve()
        found: set[Path] = set()
        for pattern in patterns:
            fitting = sorted(self.folder.glob(pattern)) if "*" in pattern else [self.folder / pattern]
            if not fitting:
                raise fault(self.folder, f"no file fits '{pattern}'; correct it in site.toml, or remove it there")
            for path in fitting:
                if not path.resolve().is_relative_to(root):
                    raise fault(path, "leads out of the site's folder; copy the file itself here")
            found.update(fitting)
            if len(found) > _MOST_FILES:
                raise fault(self.folder, f"more than {_MOST_FILES} files fit '{pattern}'; name them more exactly")
        return tuple(sorted(found))

    def column(self, template: str, gene: str) -> str:
        """Name of a gene's column."""
        return template.replace("{gene}", gene)

    def everything(self) -> tuple[Path, ...]:
        """All files that decide about the features, for a cache that must notice when one changes.

        Raises:
            DataError: as `paths`.
        """
        chosen = self.settings
        single = [chosen.aliases, chosen.gene_table, *chosen.panels.values()]
        if chosen.samples is not None:
            single.append(chosen.samples.file)
        lists = [part.files for part in (chosen.expression, chosen.copy_number, chosen.mutations) if part is not None]
        return self.paths([s for s in single if s is not None] + [p for files in lists for p in files])


def open_files(folder: Path, settings: GenomicsSettings) -> SiteFiles:
    """Read the tables that the others are read by: gene names, samples, panels.

    Raises:
        DataError: one of them is absent or wrong.
    """
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        message = f"{folder}: cannot be read as a folder ({error.strerror}); check its name and rights"
        raise DataError(message, code="folder") from None
    limits = settings.limits
    bare = SiteFiles(folder=folder, settings=settings, names=GeneNames(), links=SampleLinks(), panels={}, problems=())
    single = [settings.aliases, settings.gene_table, *settings.panels.values()]
    single.append(settings.samples.file if settings.samples else None)
    bare.paths([s for s in single if s is not None])
    names = GeneNames() if settings.aliases is None else read_gene_names(folder / settings.aliases, limits)
    panels = {}
    problems: tuple[str, ...] = ()
    for name, file in settings.panels.items():
        panels[name], unmapped = read_panel(folder / file, names, limits)
        problems += unmapped
    return SiteFiles(
        folder=folder,
        settings=settings,
        names=names,
        links=read_samples(folder, settings.samples, limits),
        panels=panels,
        problems=problems,
    )
