"""A folder as a source of patients, and how a cohort is narrowed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_client.cohort import Cohort
from oncofed_client.settings import load_settings
from oncofed_client.source import FolderSource, keep_rows, parts_of
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan

MakePlan = Callable[..., Plan]


@pytest.fixture(scope="module")
def cohort(hospitals: Path, make_plan: MakePlan) -> Cohort:
    folder = hospitals / "site-1"
    return FolderSource(folder, load_settings(folder)).cohort(make_plan())


def test_files_are_read_once_and_the_same_cohort_is_given_again(hospitals: Path, make_plan: MakePlan) -> None:
    folder = hospitals / "site-1"
    source = FolderSource(folder, load_settings(folder))
    assert source.name == "site-1"
    assert source.cohort(make_plan()) is source.cohort(make_plan())
    assert source.cohort(make_plan(training__rounds=9)) is not source.cohort(make_plan())


def test_rows_are_kept_in_every_part_of_a_cohort(cohort: Cohort) -> None:
    @given(st.lists(st.booleans(), min_size=len(cohort.patients), max_size=len(cohort.patients)))
    @settings(max_examples=20)
    def check(chosen: list[bool]) -> None:
        rows = np.array(chosen)
        kept = keep_rows(cohort, rows)
        index = np.flatnonzero(rows)
        assert kept.patients == tuple(cohort.patients[i] for i in index)
        assert kept.columns == cohort.columns
        assert kept.site == cohort.site
        for name in ("values", "labels", "subgroups"):
            for key, value in getattr(cohort, name).items():
                np.testing.assert_array_equal(getattr(kept, name)[key], value[index])

    check()


@given(st.integers(0, 2**31), st.booleans())
@settings(max_examples=20)
def test_a_trials_parts_are_the_same_in_every_process(
    hospitals: Path, make_plan: MakePlan, seed: int, again: bool
) -> None:
    folder, plan, trial = hospitals / "site-2", make_plan(), Trial(seed=seed, resplit=again)
    one, two = (FolderSource(folder, load_settings(folder)) for _ in range(2))
    parts = one.split(plan, one.cohort(plan), trial)
    np.testing.assert_array_equal(parts, two.split(plan, two.cohort(plan), trial))
    np.testing.assert_array_equal(parts, parts_of(plan, one.cohort(plan), trial))
    assert set(parts.tolist()) <= {0, 1, 2}


def test_folds_of_a_seed_test_everybody_once(hospitals: Path, make_plan: MakePlan) -> None:
    folder, plan = hospitals / "site-1", make_plan(evaluation__folds=4)
    source = FolderSource(folder, load_settings(folder))
    cohort = source.cohort(plan)
    parts = np.array([source.split(plan, cohort, Trial(seed=3, fold=k)) for k in range(4)])
    np.testing.assert_array_equal((parts == 2).sum(axis=0), 1)
    np.testing.assert_array_equal((parts == 0).sum(axis=0), 3)


def test_the_fold_after_the_last_holds_nobody_out(hospitals: Path, make_plan: MakePlan) -> None:
    """The released model of a cross-validated study learns from everybody."""
    folder, plan = hospitals / "site-1", make_plan(evaluation__folds=4)
    source = FolderSource(folder, load_settings(folder))
    parts = source.split(plan, source.cohort(plan), Trial(seed=3, fold=4))
    assert set(parts.tolist()) == {0}


def test_a_trial_that_was_begun_keeps_its_parts_when_files_change(
    hospitals: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(hospitals / "site-1", tmp_path / "site-1"))
    plan, trial, state = make_plan(), Trial(seed=1), tmp_path / "state"
    first = FolderSource(folder, load_settings(folder), state=state)
    before = dict(zip(first.cohort(plan).patients, first.split(plan, first.cohort(plan), trial).tolist(), strict=True))
    rows = (folder / "clinical.csv").read_text(encoding="utf-8").splitlines()
    (folder / "clinical.csv").write_text("\n".join([rows[0], *rows[:0:-1]]) + "\n", encoding="utf-8")
    later = FolderSource(folder, load_settings(folder), state=state)
    after = dict(zip(later.cohort(plan).patients, later.split(plan, later.cohort(plan), trial).tolist(), strict=True))
    assert after == before
