"""Sites in one process: who is asked in which run, runs that are kept, and a person who stops one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from oncofed_shared.errors import ConfigError, Interrupted, RemoteProtocolError
from oncofed_shared.messages import Trial, from_bytes
from oncofed_shared.plan import Plan
from oncofed_simulations.consortium import POOLED, Consortium, SparseTables, could_train, folder_settings, open_site

MakePlan = Callable[..., Plan]
MakeConsortium = Callable[..., Consortium]
TRIAL = Trial(seed=2)
Seen = list[tuple[str, str, bytes]]


@pytest.fixture(scope="module")
def plan(make_plan: MakePlan) -> Plan:
    return make_plan(training__rounds=4, model__layers=0)


@pytest.fixture
def consortium(make_consortium: MakeConsortium, plan: Plan, tmp_path: Path) -> Consortium:
    return make_consortium(plan, tmp_path / "store")


def asked(seen: Seen) -> dict[str, set[str]]:
    """Per site, the kinds of requests that it was sent."""
    made: dict[str, set[str]] = {}
    for direction, site, content in seen:
        if direction == "down":
            made.setdefault(site, set()).add(type(from_bytes(content)).__name__)
    return made


ALL = {"Describe", "Summarise", "Open", "Train", "Evaluate"}


# -- the runs ---------------------------------------------------------------------------------------------------------------


def test_a_federated_run_trains_everybody_but_externals(
    make_consortium: MakeConsortium, plan: Plan, tmp_path: Path
) -> None:
    seen: Seen = []
    consortium = make_consortium(plan, tmp_path, externals=("site-3",), tap=lambda *message: seen.append(message))
    run = consortium.federated(TRIAL)
    assert asked(seen) == {
        "site-1": ALL,
        "site-2": ALL,
        "site-4": ALL,
        "site-3": {"Describe", "Open", "Evaluate"},
    }
    assert sorted(run.tables) == sorted(["site-1", "site-2", "site-3", "site-4"])
    assert run.state.cost.bytes_up == sum(len(c) for d, _, c in seen if d == "up")
    assert run.state.cost.bytes_down == sum(len(c) for d, _, c in seen if d == "down")
    assert len(run.state.costs) == len(run.state.losses) == 4


def test_a_pooled_run_trains_one_site_of_all_and_tests_every_site(consortium: Consortium) -> None:
    seen: Seen = []
    consortium.tap = lambda *message: seen.append(message)
    run = consortium.pooled(TRIAL)
    kinds = asked(seen)
    assert kinds.pop(POOLED) == ALL - {"Evaluate"}
    assert set(kinds) == set(consortium.sites)
    assert all(k == {"Describe", "Open", "Evaluate"} for k in kinds.values())
    assert sorted(run.tables) == sorted(consortium.sites)
    parts = [d.parts["train"] for n, d in run.state.descriptions.items() if n != POOLED]
    assert run.state.descriptions[POOLED].parts["train"] == sum(parts)


def test_a_site_alone_trains_by_itself_and_is_tested_everywhere(consortium: Consortium) -> None:
    seen: Seen = []
    consortium.tap = lambda *message: seen.append(message)
    run = consortium.alone("site-2", TRIAL)
    kinds = asked(seen)
    assert {n for n, k in kinds.items() if "Train" in k} == {"site-2"}
    assert sorted(run.tables) == sorted(consortium.sites)


def test_with_one_step_of_sgd_federated_and_pooled_models_are_the_same(
    make_consortium: MakeConsortium, make_plan: MakePlan, tmp_path: Path
) -> None:
    plan = make_plan(training__dtype="float64", training__rounds=5)
    consortium = make_consortium(plan, tmp_path)
    one, two = consortium.federated(TRIAL).state.server, consortium.pooled(TRIAL).state.server
    assert one is not None
    assert two is not None
    np.testing.assert_allclose(one.parameters, two.parameters, rtol=0, atol=1e-9)


# -- runs that are kept -----------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_repeated(consortium: Consortium) -> None:
    first = consortium.federated(TRIAL)
    seen: Seen = []
    consortium.tap = lambda *message: seen.append(message)
    again = consortium.federated(TRIAL)
    assert seen == []
    assert first.state.server is not None
    assert again.state.server is not None
    np.testing.assert_array_equal(again.state.server.parameters, first.state.server.parameters)
    assert {s: t.tobytes() for s, t in again.tables.items()} == {s: t.tobytes() for s, t in first.tables.items()}
    assert again.state.losses == first.state.losses
    # Another seed, arm or split is another run.
    for run in (consortium.pooled, lambda t: consortium.alone("site-1", t)):
        run(TRIAL)
        assert seen
        seen.clear()
    for trial in (Trial(seed=9), Trial(seed=2, resplit=True)):
        consortium.federated(trial)
        assert seen
        seen.clear()


@pytest.mark.parametrize("arm", ["federated", "pooled"])
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    make_consortium: MakeConsortium, plan: Plan, tmp_path: Path, arm: str, stop: int
) -> None:
    whole = getattr(make_consortium(plan, tmp_path / "whole"), arm)(TRIAL)
    rounds: list[int] = []
    stopped = make_consortium(
        plan,
        tmp_path / "stopped",
        watch=lambda key, aggregator: rounds.append(aggregator.state.round),
        interrupted=lambda: rounds[-1] == stop,
    )
    with pytest.raises(Interrupted, match="--resume"):
        getattr(stopped, arm)(TRIAL)
    assert rounds == list(range(1, stop + 1))
    resumed = getattr(make_consortium(plan, tmp_path / "stopped"), arm)(TRIAL)
    assert resumed.state.server.parameters.tobytes() == whole.state.server.parameters.tobytes()
    assert resumed.state.losses == whole.state.losses
    assert {s: t.tobytes() for s, t in resumed.tables.items()} == {s: t.tobytes() for s, t in whole.tables.items()}
    assert {r: t.tobytes() for r, t in resumed.state.validation.items()} == {
        r: t.tobytes() for r, t in whole.state.validation.items()
    }


def test_a_run_that_fails_says_why_and_is_not_kept(
    make_consortium: MakeConsortium, make_plan: MakePlan, tmp_path: Path
) -> None:
    consortium = make_consortium(make_plan(training__range=1e-6), tmp_path / "store")
    with pytest.raises(RemoteProtocolError, match=r"federated\.seed2: the run failed: .*training\.range"):
        consortium.federated(TRIAL)
    assert not (tmp_path / "store").exists()


# -- opening sites ----------------------------------------------------------------------------------------------------------


def test_a_folder_without_settings_is_read_by_the_studys(
    hospitals: Path, make_plan: MakePlan, plan: Plan, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(hospitals / "site-1", tmp_path / "mayo"))
    assert folder_settings(folder, plan).site.name == "site-1"
    (folder / "site.toml").unlink()
    with pytest.raises(ConfigError, match="oncofed-site init"):
        folder_settings(folder, plan)
    tables = {name: {"file": f"{name}.csv"} for name in ("clinical", "labels", "radiomics", "mutations")}
    site = {"tables": tables, "consent": {"column": "consent", "value": "yes", "table": "clinical"}}
    assert folder_settings(folder, make_plan(simulation__site=site)).site.name == "mayo"


def test_the_smallest_cohort_is_the_policys_or_what_the_command_says(hospitals: Path, plan: Plan) -> None:
    own = open_site(hospitals / "site-1", plan, state=None, minimum=None)
    assert own.minimum_cohort == folder_settings(hospitals / "site-1", plan).policy.minimum_cohort
    assert open_site(hospitals / "site-1", plan, state=None, minimum=3).minimum_cohort == 3
    assert own.plans == {plan.hash: plan}


def test_a_site_can_train_when_it_has_an_event_or_two_classes(hospitals: Path, make_plan: MakePlan) -> None:
    survival, response = make_plan(), make_plan(main_task="response")
    for plan in (survival, response):
        site = open_site(hospitals / "site-1", plan, state=None, minimum=None)
        assert could_train(plan, site, TRIAL)
        labels = site.source.cohort(plan).labels[plan.main_task]
        train = site.source.split(plan, site.source.cohort(plan), TRIAL) == 0
        if plan is survival:
            labels[train, 1] = 0
        else:
            labels[train] = np.where(labels[train] >= 0, 1, -1)
        assert not could_train(plan, site, TRIAL)


# -- tables -----------------------------------------------------------------------------------------------------------------

COUNTS = arrays(np.float64, 12, elements=st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.0, 0.25]))


@given(st.dictionaries(st.sampled_from("abc"), COUNTS), st.dictionaries(st.sampled_from("bcd"), COUNTS))
@settings(max_examples=40)
def test_sparse_tables_are_tables_and_add_up_by_site(
    one: dict[str, NDArray[np.float64]], two: dict[str, NDArray[np.float64]]
) -> None:
    tables = SparseTables(one)
    assert list(tables) == list(one)
    for site, vector in one.items():
        np.testing.assert_array_equal(tables[site], vector)
    total = tables + SparseTables(two)
    assert set(total) == {*one, *two}
    for site in total:
        np.testing.assert_array_equal(total[site], one.get(site, np.zeros(12)) + two.get(site, np.zeros(12)))
