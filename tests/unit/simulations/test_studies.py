"""What our studies promise: they load, hash alike everywhere, and read no outcome as a feature."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path
from typing import Any

import pytest

from oncofed_client.cohort import read_cohort
from oncofed_client.settings import load_settings, settings_from_study
from oncofed_shared.network_tokens import token_columns
from oncofed_shared.plan import ConsortiumPrivacy, Plan, SplitColumn, SurvivalTask, compile_pattern, load, parse
from oncofed_shared.rules import RULES
from oncofed_simulations.flamby import import_flamby
from oncofed_simulations.folders import site_folders
from oncofed_simulations.synthetic import read_settings, write_cohort

ROOT = Path(__file__).resolve().parents[3]
STUDIES = sorted((ROOT / "simulations" / "studies").rglob("*.toml"))
REAL = ROOT / ".." / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the real hospitals' tables are absent: ../shared/data")

NEVER = {
    "patient_id", "os_event", "os_days", "pfi_event", "pfi_days", "dss_event", "dss_days", "E",
    "T", "fold", "response", "consent", "histology", "grade", "cohort", "kps", "IDH_STATUS",
}  # fmt: skip


def study(name: str) -> Plan:
    return load(ROOT / "simulations" / "studies" / f"{name}.toml")


def headers(sites: Path, folder_tables: dict[str, str]) -> dict[str, set[str]]:
    """Columns of each logical table, united over the sites."""
    found: dict[str, set[str]] = {name: set() for name in folder_tables}
    for folder in site_folders(sites):
        for name, file in folder_tables.items():
            if (folder / file).exists():
                with (folder / file).open(encoding="utf-8", newline="") as lines:
                    found[name] |= set(next(csv.reader(lines)))
    return found


def features(plan: Plan, tables: dict[str, set[str]]) -> dict[str, tuple[str, ...]]:
    """Columns that each modality reads; every pattern and every named column must be there."""
    read = {}
    for name, modality in plan.modalities.items():
        there = tables[modality.table or ""]
        if modality.columns is not None:
            assert set(modality.columns) <= there
            read[name] = tuple(modality.columns)
            continue
        matched: set[str] = set()
        for pattern in modality.patterns or ():
            hits = {c for c in there if compile_pattern(pattern).fullmatch(c)}
            assert hits, f"{name}: {pattern} matches nothing"
            matched |= hits
        read[name] = tuple(sorted(matched))
    return read


def judge(plan: Plan, tables: dict[str, set[str]]) -> dict[str, tuple[str, ...]]:
    """Check a plan against the columns that the sites have."""
    read = features(plan, tables)
    every = {c for columns in read.values() for c in columns}
    assert not every & NEVER
    tokens = token_columns(read, plan.modalities)
    assert not [t for t in tokens if t.endswith(".other")]
    named = {f"{m}.{t}" for m, x in plan.modalities.items() if isinstance(x.tokens, dict) for t in x.tokens}
    assert named <= set(tokens)
    for task in plan.tasks.values():
        labels = {task.time, task.event} if isinstance(task, SurvivalTask) else {task.label}
        assert labels <= tables[task.table or ""]
    for subgroup in plan.evaluation.subgroups.values():
        assert subgroup.column in tables[subgroup.table or ""]
    for reference in plan.evaluation.reference.values():
        assert set(reference.features) <= every | {"*"}
    return read


def reordered(content: Any) -> Any:
    """Turn round the order of every table's keys."""
    if isinstance(content, dict):
        return {key: reordered(content[key]) for key in reversed(content)}
    if isinstance(content, list):
        return [reordered(item) for item in content]
    return content


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_study_loads_and_its_hash_does_not_depend_on_key_order(path: Path) -> None:
    plan = load(path)
    content = {"main_task": plan.main_task, **tomllib.loads(path.read_text(encoding="utf-8"))}
    content["evaluation"] |= {"main_reference": plan.evaluation.main_reference}
    assert parse(reordered(content)).hash == plan.hash
    assert parse({**content, "simulation": {}}).hash == plan.hash
    rounds = {**content["training"], "rounds": content["training"]["rounds"] + 1}
    assert parse({**content, "training": rounds}).hash != plan.hash
    assert plan.study.name == path.stem


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_study_is_judged_against_age_first(path: Path) -> None:
    names = list(load(path).evaluation.reference)
    # First as written and first by name, so that it is the first in the canonical form as well.
    assert names[0] == min(names) == "age"


def test_there_are_the_three_studies_of_the_first_release() -> None:
    assert {p.stem for p in STUDIES} >= {"demo", "fed_tcga_brca", "glioma_survival"}


def test_demo_reads_its_own_cohort(tmp_path: Path) -> None:
    plan = study("demo")
    settings = read_settings(plan.simulation.cohort or {})
    assert (settings.sites, settings.patients) == (6, 420)
    write_cohort(tmp_path / "sites", **settings.model_dump())
    names = [p.stem for p in (tmp_path / "sites/site-1").glob("*.csv")]
    read = judge(plan, headers(tmp_path / "sites", {n: f"{n}.csv" for n in names}))
    assert set(read) == {"clinical", "radiomics", "expression", "cnv", "mutations"}
    sites = [read_cohort(f, load_settings(f), plan) for f in site_folders(tmp_path / "sites")]
    assert 395 < sum(len(site.patients) for site in sites) < 420
    assert plan.main_task == "survival"
    assert set(plan.tasks) == {"survival", "response"}


def test_the_comparison_of_rules_differs_in_nothing_but_the_rule_and_its_steps() -> None:
    whole = study("fed_tcga_brca").model_dump(exclude={"study": {"name"}, "training": True, "strategy": True})
    rules = {p.stem.removeprefix("fed_tcga_brca_"): load(p) for p in STUDIES if p.parent.name == "strategies"}
    assert set(rules) == set(RULES)
    for name, plan in rules.items():
        assert plan.strategy.name == name
        assert plan.model_dump(exclude={"study": {"name"}, "training": True, "strategy": True}) == whole
        # As many gradients of a site in each: rounds x local steps, or half of it.
        assert plan.training.rounds * plan.training.local_steps in {150, 300}


@needs_real_data
def test_fed_tcga_brca_reads_the_39_clinical_columns_and_the_published_split(
    tmp_path: Path,
) -> None:
    plan = study("fed_tcga_brca")
    import_flamby(REAL / "fed_tcga_brca", tmp_path / "sites")
    tables = headers(tmp_path / "sites", {"clinical": "clinical.csv", "split": "split.csv"})
    read = judge(plan, tables)
    columns = [c for names in read.values() for c in names]
    assert len(columns) == 39
    assert set(columns) == tables["clinical"] - {"patient_id", "E", "T"}
    split = plan.evaluation.split
    assert isinstance(split, SplitColumn)
    assert split.column in tables[split.table or ""]
    assert plan.evaluation.resplits == 20


@needs_real_data
def test_glioma_survival_reads_the_hospitals_as_they_lie() -> None:
    plan = study("glioma_survival")
    root = REAL / "glioma"
    site = settings_from_study(plan.simulation.site or {}, root / "henry-ford")
    assert site.consent.given
    tables = headers(root, {name: table.file for name, table in site.tables.items()})
    read = judge(plan, tables)
    counts = {name: len(columns) for name, columns in read.items()}
    assert counts == {
        "clinical": 2,
        "cnv_arms": 39,
        "cnv_genes": 30,
        "mutations": 103,
        "expression": 1544,
        "radiomics": 724,
    }
    assert plan.evaluation.subgroups["cohort"].groups == ("GBM", "LGG")


@needs_real_data
def test_the_private_study_of_breast_cancer_reads_the_39_columns_and_learns_no_constant(tmp_path: Path) -> None:
    plan = study("fed_tcga_brca_private")
    import_flamby(REAL / "fed_tcga_brca", tmp_path / "sites")
    tables = headers(tmp_path / "sites", {"clinical": "clinical.csv"})
    columns = [c for names in judge(plan, tables).values() for c in names]
    assert len(columns) == 39
    assert set(columns) == tables["clinical"] - {"patient_id", "E", "T"}
    assert isinstance(plan.privacy, ConsortiumPrivacy)
    patients = {
        f.name: len((f / "clinical.csv").read_text().splitlines()) - 1 for f in site_folders(tmp_path / "sites")
    }
    assert plan.privacy.delta <= 1 / (9 * sum(patients.values()))
    # What every site publishes, four fifths of it, as a round number.
    assert set(plan.privacy.patients) == set(patients)
    assert all(abs(plan.privacy.patients[n] - 0.8 * count) <= 6 for n, count in patients.items())


@needs_real_data
def test_the_private_study_of_genes_reads_all_expression_and_the_named_few_of_the_rest() -> None:
    plan = study("glioma_genomics_private")
    root = REAL / "glioma"
    site = settings_from_study(plan.simulation.site or {}, root / "henry-ford")
    read = judge(plan, headers(root, {name: table.file for name, table in site.tables.items()}))
    counts = {name: len(columns) for name, columns in read.items()}
    assert counts == {"clinical": 2, "cnv_arms": 6, "cnv_genes": 3, "mutations": 8, "expression": 1544}
    assert isinstance(plan.privacy, ConsortiumPrivacy)
    with_expression = {f.name: f / "expression.csv" for f in site_folders(root) if (f / "expression.csv").exists()}
    patients = {n: len(p.read_text().splitlines()) - 1 for n, p in with_expression.items()}
    assert sum(patients.values()) == 494
    assert plan.privacy.delta <= 1 / (10 * 494)
    assert set(plan.privacy.patients) == set(patients)
    assert all(abs(plan.privacy.patients[n] - 0.8 * count) <= 2 for n, count in patients.items())
