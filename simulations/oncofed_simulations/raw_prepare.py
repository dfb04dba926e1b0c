"""Preprocessing of simulated sites that have raw files, before their study runs; their caches outlive a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from oncofed_client.prepare.cache import CACHE_FOLDER
from oncofed_client.prepare.keys import KEY_FILE
from oncofed_client.prepare.preprocess import preprocess
from oncofed_client.prepare.recipes import prepared_modalities, prepared_patches
from oncofed_client.prepare.report import Report
from oncofed_client.site import Site
from oncofed_client.source import FolderSource
from oncofed_shared.errors import ConfigError, PolicyRefusal
from oncofed_shared.plan import Plan

__all__ = ["clear_states", "prepare_sites"]


def clear_states(states: Path) -> None:
    """Remove what earlier runs left in the sites' states, but for what they prepared of raw files: that holds for any run."""
    for state in states.iterdir() if states.is_dir() else ():
        for path in state.iterdir() if state.is_dir() else [state]:
            if path.name in {CACHE_FOLDER, KEY_FILE}:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def prepare_sites(
    plan: Plan,
    sites: Iterable[Site],
    *,
    study: Path | None,
    jobs: int,
    watch: Callable[[str, int, int], None],
    tell: Callable[[str, Report], None],
) -> None:
    """Preprocess the sites that make modalities, or cut patches, from raw files.

    Args:
        study: folder of the study's file, where its radiomics settings lie.
        jobs: processes.
        watch: called with a site, the number of cases that are done, and of all.
        tell: called with a site and what was done.

    Raises:
        ConfigError: nobody said where the study's settings lie.
        OncofedError: as `preprocess`; a site that refuses is left to refuse when the study asks it.
    """
    for site in sites:
        source = site.source
        if not isinstance(source, FolderSource) or site.state is None:
            continue
        if not prepared_modalities(plan, source.settings) and not prepared_patches(plan, source.settings):
            continue
        if study is None:
            raise ConfigError(f"{source.folder}: has raw files, and the folder of the study is not known")

        def progress(done: int, total: int, name: str = site.name) -> None:
            watch(name, done, total)

        try:
            report = preprocess(
                source.folder, source.settings, plan, study=study, state=site.state, jobs=jobs, watch=progress
            )
        except PolicyRefusal:
            continue
        tell(site.name, report)
