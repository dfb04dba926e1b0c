"""All patients in one place: a concatenation, in which everybody keeps his part and his gaps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oncofed_client.cohort import Cohort
from oncofed_client.settings import load_settings
from oncofed_client.source import FolderSource
from oncofed_shared.features import column_sums, unite
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan
from oncofed_simulations.pooled import PooledSource, merge

MakePlan = Callable[..., Plan]
TRIAL = Trial(seed=4)


def sources_of(root: Path) -> list[FolderSource]:
    return [FolderSource(f, load_settings(f)) for f in sorted(root.iterdir())]


@pytest.fixture(scope="module")
def plan(make_plan: MakePlan) -> Plan:
    return make_plan()


@pytest.fixture(scope="module")
def sources(hospitals: Path) -> list[FolderSource]:
    return sources_of(hospitals)


def test_pooling_is_concatenation(plan: Plan, sources: list[FolderSource]) -> None:
    cohorts = [s.cohort(plan) for s in sources]
    whole = PooledSource(sources).cohort(plan)
    assert whole.patients == tuple(f"{s.name}/{p}" for s, c in zip(sources, cohorts, strict=True) for p in c.patients)
    assert len(set(whole.patients)) == len(whole.patients)
    for task in plan.tasks:
        np.testing.assert_array_equal(whole.labels[task], np.concatenate([c.labels[task] for c in cohorts]))
    for name in plan.evaluation.subgroups:
        np.testing.assert_array_equal(whole.subgroups[name], np.concatenate([c.subgroups[name] for c in cohorts]))
    assert whole.columns == unite(plan, [c.columns for c in cohorts])
    start = 0
    for cohort in cohorts:
        rows = slice(start, start + len(cohort.patients))
        start = rows.stop
        for modality, names in whole.columns.items():
            for j, column in enumerate(names):
                mine = whole.values[modality][rows, j]
                if column in cohort.columns[modality]:
                    i = cohort.columns[modality].index(column)
                    np.testing.assert_array_equal(mine, cohort.values[modality][:, i])
                else:
                    assert np.isnan(mine).all()
    assert start == len(whole.patients)


def test_everybody_keeps_the_part_that_his_own_site_gave_him(plan: Plan, sources: list[FolderSource]) -> None:
    pooled = PooledSource(sources, "together")
    assert pooled.name == "together"
    parts = pooled.split(plan, pooled.cohort(plan), TRIAL)
    own = [s.split(plan, s.cohort(plan), TRIAL) for s in sources]
    np.testing.assert_array_equal(parts, np.concatenate(own))


def test_sums_of_the_sites_are_the_sums_of_the_pool(plan: Plan, sources: list[FolderSource]) -> None:
    cohorts: list[Cohort] = [s.cohort(plan) for s in sources]
    columns = unite(plan, [c.columns for c in cohorts])
    apart = [column_sums(plan, columns, c.values, c.columns, c.labels) for c in cohorts]
    whole = PooledSource(sources).cohort(plan)
    together = column_sums(plan, columns, whole.values, whole.columns, whole.labels)
    np.testing.assert_allclose(np.sum(apart, axis=0), together, rtol=1e-12)


def test_a_named_column_that_some_sites_lack_is_missing_there(plan: Plan, hospitals: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(hospitals, tmp_path / "sites"))
    for name, column in (("site-1", "stage"), ("site-2", "age")):
        path = root / name / "clinical.csv"
        header, *rows = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([header.replace(column, f"not_{column}"), *rows]) + "\n", encoding="utf-8")
    sources = sources_of(root)
    whole = merge(plan, [s.cohort(plan) for s in sources], [s.name for s in sources])
    assert whole.columns["clinical"] == ("age", "sex=female", "sex=male", "stage")
    for i, name in ((3, "site-1"), (0, "site-2")):
        rows = np.array([p.startswith(name) for p in whole.patients])
        assert np.isnan(whole.values["clinical"][rows, i]).all()
        assert not np.isnan(whole.values["clinical"][~rows, i]).all()


def test_a_withdrawal_at_one_site_makes_the_pool_anew(plan: Plan, hospitals: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(hospitals, tmp_path / "sites"))
    pooled = PooledSource(sources_of(root))
    before = pooled.cohort(plan)
    parts = dict(zip(before.patients, pooled.split(plan, before, TRIAL).tolist(), strict=True))
    assert pooled.cohort(plan) is before
    gone = before.patients[0]
    path = root / "site-1" / "clinical.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines = [x.replace(",yes,", ",no,") if x.startswith(gone.split("/")[1]) else x for x in lines]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    after = pooled.cohort(plan)
    assert set(before.patients) - set(after.patients) == {gone}
    del parts[gone]
    assert dict(zip(after.patients, pooled.split(plan, after, TRIAL).tolist(), strict=True)) == parts
