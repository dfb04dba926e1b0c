"""The site's own readers find in a raw cohort what was planted: regions, uptake, expression, copy number, mutations."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from oncofed_client.cohort import read_cohort
from oncofed_client.genomics.copy_number import read_copy_number
from oncofed_client.genomics.expression import read_expression
from oncofed_client.genomics.impact import mutation_impact, read_mutations
from oncofed_client.genomics.inputs import SiteFiles, open_files
from oncofed_client.genomics.settings import GenomicsSettings
from oncofed_client.imaging.regions import read_region
from oncofed_client.imaging.series import Inventory, find_series
from oncofed_client.imaging.settings import ImagingSettings
from oncofed_client.imaging.volume import read_volume
from oncofed_client.prepare.feature_table import FeatureTable
from oncofed_client.settings import load_settings
from oncofed_shared.plan import Plan, load
from oncofed_shared.strict import validate
from oncofed_simulations.raw_anatomy import CT_GRID, MR_GRID, PET_GRID, body
from oncofed_simulations.raw_cohort import write_raw_cohort
from oncofed_simulations.raw_draw import RawSite, draw_sites
from oncofed_simulations.raw_genome import GENES
from oncofed_simulations.raw_genomics import unmeasured
from oncofed_simulations.synthetic import read_settings

STUDIES = Path(__file__).resolve().parents[3] / "simulations" / "studies"
SIZE = {"sites": 4, "patients": 24, "seed": 11}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw") / "sites"
    write_raw_cohort(out, **SIZE)
    return out


@pytest.fixture(scope="module")
def drawn() -> list[RawSite]:
    return draw_sites(read_settings(SIZE))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return load(STUDIES / "demo.toml")


def stated(folder: Path, part: str) -> dict:
    return tomllib.loads((folder / "site.toml").read_text(encoding="utf-8"))[part]


def inventory(folder: Path) -> tuple[Inventory, ImagingSettings]:
    settings = validate(ImagingSettings, stated(folder, "imaging"), "imaging")
    return find_series(folder, settings), settings


def core(folder: Path) -> SiteFiles:
    return open_files(folder, validate(GenomicsSettings, stated(folder, "genomics"), "genomics"))


@pytest.mark.parametrize("index", [0, 1, 3])
def test_every_patients_series_and_region_are_found(cohort: Path, drawn: list[RawSite], index: int) -> None:
    site = drawn[index]
    found, settings = inventory(cohort / site.name)
    assert found.problems == ()
    rows = {p.number: i for i, p in enumerate(site.people) if not site.absent["radiomics"][i]}
    roles = {0: {"ct", "t1", "flair"}, 1: {"ct", "pet"}, 3: {"ct", "t1", "flair", "pet"}}[index]
    grids = {"ct": CT_GRID, "t1": MR_GRID, "flair": MR_GRID, "pet": PET_GRID}
    assert {s.patient for s in found.series} == set(rows)
    for patient, row in rows.items():
        own = {s.role: s for s in found.series if s.patient == patient and s.role is not None}
        assert set(own) == roles
        for role, series in own.items():
            image = read_volume(series, settings)
            assert image.GetSize()[::-1] == grids[role].shape
            assert np.allclose(image.GetOrigin()[::-1], grids[role].origin)
            values = sitk.GetArrayViewFromImage(image)
            inside = site.lesions[row].mask(grids[role])
            if role == "pet":
                assert 0.8 < np.median(values[body(PET_GRID) & ~inside]) < 1.3
            if role == "ct":
                assert abs(values[inside].mean() - site.lesions[row].brightness) < 8
                mask = sitk.GetArrayFromImage(read_region("tumour", image, series, found, settings)) > 0
                allowed = 0 if index == 1 else 0.03 * inside.sum()
                assert (mask ^ inside).sum() <= allowed


def rows_of(site: RawSite, modality: str) -> dict[str, int]:
    """Patients who have a modality, by the number in the clinical table."""
    missing = site.absent[modality] | (site.absent["mutations"] if site.index % 3 == 1 else False)
    return {p.number: i for i, p in enumerate(site.people) if not missing[i]}


def values_of(table: FeatureTable, patient: str, columns: tuple[str, ...]) -> np.ndarray:
    return table.rows_of([patient])[0][[table.columns.index(c) for c in columns]]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_expression_follows_the_population(cohort: Path, drawn: list[RawSite], plan: Plan, index: int) -> None:
    site = drawn[index]
    table = read_expression(core(cohort / site.name), plan.modalities["expression"].genomics)
    rows = rows_of(site, "expression")
    assert set(table.patients) == set(rows)
    columns = tuple(f"{g}_rnaseq" for g in GENES["expression"])
    assert set(columns) == set(table.columns)
    made = np.array([values_of(table, p, columns) for p in rows])
    truth = site.values["expression"][list(rows.values())]
    levels = made - truth
    assert np.abs(levels - levels.mean(axis=0)).mean() < 0.35


@pytest.mark.parametrize("index", [0, 1, 2])
def test_copy_number_is_that_of_the_population(cohort: Path, drawn: list[RawSite], plan: Plan, index: int) -> None:
    site = drawn[index]
    table = read_copy_number(core(cohort / site.name), plan.modalities["cnv"].genomics)
    rows = rows_of(site, "cnv")
    assert set(table.patients) == set(rows)
    columns = tuple(f"{g}_cnv" for g in GENES["cnv"])
    for patient, row in rows.items():
        assert np.array_equal(values_of(table, patient, columns), site.values["cnv"][row])


@pytest.mark.parametrize("index", [0, 1, 2])
def test_mutations_are_those_of_the_population(cohort: Path, drawn: list[RawSite], plan: Plan, index: int) -> None:
    site, features = drawn[index], plan.modalities["mutations"].genomics
    files = core(cohort / site.name)
    table = mutation_impact(read_mutations(files, features), features, files.names, files.panels)
    rows = rows_of(site, "mutations")
    assert set(table.patients) == set(rows)
    columns = tuple(f"{g}_mut" for g in GENES["mutations"])
    unseen = np.isin(GENES["mutations"], unmeasured(site))
    for patient, row in rows.items():
        impact = values_of(table, patient, columns)
        assert np.array_equal(np.isnan(impact), unseen)
        assert np.array_equal(impact[~unseen] >= 0.8, site.values["mutations"][row][~unseen] == 1)
        assert np.all(impact[~unseen][site.values["mutations"][row][~unseen] == 0] == 0)


def test_dates_become_what_was_drawn(cohort: Path, drawn: list[RawSite], plan: Plan) -> None:
    for site in drawn:
        folder = cohort / site.name
        found = read_cohort(folder, load_settings(folder), plan)
        rows = {p.number: i for i, p in enumerate(site.people)}
        order = [rows[p] for p in found.patients]
        assert set(found.patients) == {p.number for p, yes in zip(site.people, site.consents, strict=True) if yes}
        assert np.array_equal(found.labels["survival"][:, 0], site.days[order])
        assert np.array_equal(found.labels["survival"][:, 1], site.died[order])
        age = found.values["clinical"][:, found.columns["clinical"].index("age")]
        dose = found.values["clinical"][:, found.columns["clinical"].index("dose_gy")]
        for made, truth, off in ((age, site.patients.age[order], 0.01), (dose, site.patients.dose[order], 1e-9)):
            there = ~np.isnan(made)
            assert there.any()
            assert np.allclose(made[there], truth[there], atol=off)
