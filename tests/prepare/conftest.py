"""A small consortium of raw files, written once; whoever changes a site works on a copy of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from oncofed_client.prepare.cache import Cache, open_cache
from oncofed_client.prepare.preprocess import preprocess
from oncofed_client.prepare.report import Report
from oncofed_client.settings import load_settings
from oncofed_shared.plan import Plan, load
from oncofed_simulations.raw_cohort import write_raw_cohort

STUDIES = Path(__file__).resolve().parents[2] / "simulations" / "studies"
COHORT = {"sites": 2, "patients": 12, "seed": 5}


@dataclass(frozen=True)
class Hospital:
    """A site's folder and state in a test."""

    folder: Path
    state: Path
    plan: Plan

    @property
    def cache(self) -> Cache:
        return open_cache(self.state)

    def preprocess(self, **more: object) -> Report:
        settings = load_settings(self.folder)
        return preprocess(self.folder, settings, self.plan, study=STUDIES, state=self.state, **more)

    def entries(self) -> dict[str, bytes]:
        """Every entry of the cache, by its place."""
        return {
            str(path.relative_to(self.cache.folder)): path.read_bytes()
            for path in sorted(self.cache.folder.rglob("*"))
            if path.is_file() and path.name != "index"
        }


@pytest.fixture(scope="session")
def raw_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """site-1 (RTSTRUCT, VCF per patient) and site-2 (SEG, link table, MAF with a panel)."""
    root = tmp_path_factory.mktemp("raw") / "sites"
    write_raw_cohort(root, **COHORT)
    return root


@pytest.fixture(scope="session")
def demo_plan() -> Plan:
    return load(STUDIES / "demo.toml")


@pytest.fixture(scope="session")
def prepared(raw_sites: Path, demo_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both sites, preprocessed once: NAME and NAME.state beside each other. Not to be changed."""
    root = tmp_path_factory.mktemp("prepared")
    for name in ("site-1", "site-2"):
        shutil.copytree(raw_sites / name, root / name)
        report = Hospital(root / name, root / f"{name}.state", demo_plan).preprocess(jobs=2)
        assert report.failures == ()
    return root


@pytest.fixture
def copy_of(prepared: Path, demo_plan: Plan, tmp_path: Path) -> Callable[[str], Hospital]:
    """A maker of preprocessed hospitals that a test may change: `copy_of("site-1")`."""

    def make(name: str) -> Hospital:
        for part in (name, f"{name}.state"):
            shutil.copytree(prepared / part, tmp_path / part)
        return Hospital(tmp_path / name, tmp_path / f"{name}.state", demo_plan)

    return make
