"""Statistics before training under a budget: noised, charged, and what training then stands on."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from oncofed_client.budget import epsilon_of_charges
from oncofed_client.plan_charges import plan_charges, promised
from oncofed_client.source import keep_rows
from oncofed_server.run_state import Phase, Received, Start, Tick
from oncofed_shared.charged_statistics import (
    noised_sums,
    patient_counts,
    statistics_mechanism,
    statistics_size,
)
from oncofed_shared.errors import ConfigError, RemoteProtocolError
from oncofed_shared.features import column_sums, prepare
from oncofed_shared.messages import Contribute, Contribution, Open, Refusal, from_bytes
from oncofed_shared.plan import parse

NAMED = {f"v{i}": {"kind": "numeric", "range": [-6.0, 6.0]} for i in range(5)}
SCALED: dict[str, Any] = {
    "modalities": {"values": {"columns": NAMED}},
    "training__class_weights": "balanced",
    "privacy__statistics_epsilon": 4.0,
}


@pytest.fixture
def scaled(new_world):
    def make(**more):
        return new_world(**{**SCALED, **more})

    return make


def trained(world, trial):
    """Training patients of each site."""
    found = {}
    for name, site in world.sites.items():
        cohort = site.source.cohort(world.plan)
        found[name] = keep_rows(cohort, site.source.split(world.plan, cohort, trial) == 0)
    return found


def test_training_stands_on_the_noised_statistics_of_all_training_patients(scaled):
    world = scaled()
    aggregator = world.run()
    plan, state = world.plan, aggregator.state
    assert state.phase is Phase.DONE
    preparation = state.preparation
    mechanism = statistics_mechanism(plan, preparation.columns)
    exact = np.zeros(mechanism.cells)
    for own in trained(world, aggregator.trial).values():
        counts = patient_counts(plan, preparation.columns, own.values, own.columns, own.labels, unit=mechanism.unit)
        exact += counts / mechanism.unit
    assert exact[0] == 4 * 28
    noise = mechanism.noise_std(4)
    assert 0.2 * noise < (preparation.statistics - exact).std() < 3 * noise
    made = prepare(plan, preparation.columns, noised_sums(plan, preparation.columns, preparation.statistics))
    for name, array in made.arrays().items():
        np.testing.assert_array_equal(array, preparation.arrays()[name])
    assert 0.7 < preparation.class_weights["response"].mean() < 1.4


def test_it_is_charged_once_and_within_what_the_plan_promises(scaled):
    world = scaled()
    world.run()
    plan = world.plan
    assert promised(plan) == (7.0, 1e-4)
    for site in world.sites.values():
        (account,) = site.contributor.ledger.plans()
        assert account.used == [plan.training.rounds, 1, 1, 1]
        assert account.charges[1].sampling_rate == 1
        assert account.charges[1].part == "train"
    train = [c for c in account.charges if c.part == "train"]
    assert account.charges[1].steps == 1
    # Composed by loss distributions both cost less than the sum that is promised, and more than either of them.
    cost = epsilon_of_charges(train, delta=1e-4)
    assert 4.0 < cost < 7.0
    preview = plan_charges(plan, "alpha")
    assert [(c.part, c.steps) for c in preview] == [(c.part, c.steps) for c in account.charges]


def test_no_site_says_anything_of_its_training_patients_but_in_a_masked_share(scaled):
    world = scaled()
    world.run()
    kinds = {type(from_bytes(c)).__name__ for d, _, c in world.traffic if d == "up"}
    assert kinds == {"Description", "Exchanged", "Contribution", "Ready"}
    asked = [from_bytes(c) for d, s, c in world.traffic if d == "down" and s == "alpha"]
    (only,) = [m for m in asked if isinstance(m, Contribute) and m.kind == "statistics"]
    assert only.parameters == {}


def statistics_request(world):
    asked = [from_bytes(c) for d, s, c in world.traffic if d == "down" and s == "alpha"]
    (found,) = [m for m in asked if isinstance(m, Contribute) and m.kind == "statistics"]
    return found


def test_it_is_not_asked_twice(scaled):
    world = scaled()
    world.run()
    first = statistics_request(world)
    site = world.sites["alpha"]
    again = site.handle(first)
    before = [
        m for d, s, c in world.traffic if s == "alpha" and d == "up" and isinstance(m := from_bytes(c), Contribution)
    ]
    assert isinstance(again, Contribution)
    assert again.content == before[0].content
    for number in (1, 90):
        assert isinstance(site.handle(replace(first, number=number)), Refusal)
    assert isinstance(site.handle(replace(first, round=1)), Refusal)
    (account,) = site.contributor.ledger.plans()
    assert account.used[1] == 1


def test_a_plan_without_them_answers_no_request_for_them(new_world, scaled):
    first = scaled()
    first.run()
    asked = statistics_request(first)
    world = new_world(privacy__spare_steps=3)
    reply = world.sites["alpha"].handle(replace(asked, head=replace(asked.head, plan_hash=world.plan.hash)))
    assert isinstance(reply, Refusal)
    assert reply.code == "uncharged-statistics"


@pytest.mark.parametrize("spoil", ["center", "statistics", "no statistics"])
def test_a_preparation_that_does_not_follow_from_statistics_is_refused(scaled, spoil):
    world = scaled()
    world.run()
    asked = [from_bytes(c) for d, s, c in world.traffic if d == "down" and s == "alpha"]
    (opening,) = [m for m in asked if isinstance(m, Open)]
    arrays = dict(opening.arrays)
    if spoil == "no statistics":
        del arrays["statistics"]
    else:
        arrays[spoil] = arrays[spoil] + 1
    reply = world.sites["alpha"].handle(replace(opening, arrays=arrays))
    assert isinstance(reply, Refusal)


def test_a_lost_sum_of_statistics_ends_the_run(scaled, monkeypatch):
    world = scaled(privacy__drop=1, privacy__threshold=3)
    lost = world.aggregator()
    refuse = world.sites["alpha"].handle, world.sites["beta"].handle

    def saying_no(handle):
        def answered(request):
            if isinstance(request, Contribute):
                return Refusal(head=request.head, site=handle.__self__.name, code="data", text="")
            return handle(request)

        return answered

    for name, handle in zip(("alpha", "beta"), refuse, strict=True):
        monkeypatch.setattr(world.sites[name], "handle", saying_no(handle))
    world.run(lost)
    assert lost.state.phase is Phase.FAILED
    assert "statistics" in lost.state.why


@pytest.mark.parametrize("seed", range(20))
def test_one_patient_more_changes_it_by_no_more_than_is_noised_for(new_world, seed):
    rng = np.random.default_rng(seed)
    world = new_world(**{**SCALED, "modalities": {"values": {"columns": NAMED, "missing": "impute"}}})
    robust = new_world(**{**SCALED, "modalities": {"values": {"columns": NAMED, "scaling": "robust"}}})
    for plan in (world.plan, robust.plan):
        columns = {"values": tuple(NAMED)}
        values = rng.standard_normal((6, 5)) * 10.0 ** rng.integers(-3, 9, (6, 5))
        values[rng.random((6, 5)) < 0.2] = np.nan
        labels = {"response": rng.integers(-1, 2, 6)}
        mechanism = statistics_mechanism(plan, columns)

        def counted(first, world=(plan, columns, values, labels, mechanism.unit)):
            plan, columns, values, labels, unit = world
            chosen = {"response": labels["response"][first:]}
            return patient_counts(plan, columns, {"values": values[first:]}, columns, chosen, unit=unit)

        change = counted(0) - counted(1)
        assert (change**2).sum() <= mechanism.unit**2 * mechanism.entries


def test_few_patients_after_noise_are_nobody_and_leave_the_plans_constants(scaled):
    plan = scaled().plan
    columns = {"values": tuple(NAMED)}
    mechanism = statistics_mechanism(plan, columns)
    least = max(plan.evaluation.minimum_shown, 3 * mechanism.noise_std(4))
    released = np.full(statistics_size(plan, columns), 0.9 * least)
    made = prepare(plan, columns, noised_sums(plan, columns, released))
    np.testing.assert_allclose(made.center, 0)
    np.testing.assert_allclose(made.spread, 6 / np.sqrt(3))
    np.testing.assert_allclose(made.class_weights["response"], 1)
    for wrong in (released[:-1], released * np.nan):
        with pytest.raises(RemoteProtocolError):
            noised_sums(plan, columns, wrong)


def test_without_noise_they_would_be_those_of_the_pooled_patients(scaled):
    # Wide enough for all values, and so narrow that their variance is above what noise leaves of it.
    narrow = {name: {"kind": "numeric", "range": [-4.0, 4.0]} for name in NAMED}
    world = scaled(modalities={"values": {"columns": narrow}})
    plan, columns = world.plan, {"values": tuple(NAMED)}
    mechanism = statistics_mechanism(plan, columns)
    exact, sums = np.zeros(mechanism.cells), 0.0
    for site in world.sites.values():
        own = site.source.cohort(plan)
        parts = (own.values, own.columns, own.labels)
        exact += patient_counts(plan, columns, *parts, unit=1 << 40) / (1 << 40)
        sums = sums + column_sums(plan, columns, *parts)
    ours, pooled = prepare(plan, columns, noised_sums(plan, columns, exact)), prepare(plan, columns, sums)
    for name, array in pooled.arrays().items():
        np.testing.assert_allclose(ours.arrays()[name], array, atol=1e-6)


def test_a_site_that_is_silent_while_keys_are_dealt_leaves_the_run(scaled):
    world = scaled(privacy__drop=1, privacy__threshold=3)
    aggregator = world.aggregator()
    queue = aggregator.step(Start(now=0.0))
    while queue and aggregator.state.phase is not Phase.KEYS:
        outgoing = queue.pop(0)
        queue += aggregator.step(Received(now=0.0, reply=world.sites[outgoing.site].handle(outgoing.request)))
    assert aggregator.state.phase is Phase.KEYS
    for outgoing in queue:
        if outgoing.site != "delta":
            aggregator.step(Received(now=0.0, reply=world.sites[outgoing.site].handle(outgoing.request)))
    assert aggregator.state.pending == {"delta"}
    while aggregator.state.pending == {"delta"}:
        aggregator.step(Tick(now=aggregator.state.deadline))
    assert set(aggregator.state.excluded) == {"delta"}
    assert not aggregator.finished


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"modalities": {"values": {"patterns": ["v*"]}}}, r"modalities\.values\.range"),
        (
            {"modalities": {"values": {"columns": {**NAMED, "v0": {"kind": "numeric"}}}}},
            r"modalities\.values\.range: is missing of v0",
        ),
        (
            {"modalities": {"values": {"patterns": ["v*"], "scaling": "none"}}, "training__class_weights": "none"},
            r"privacy\.statistics_epsilon: nothing of this plan",
        ),
        ({"modalities": {"values": {"patterns": ["v*"], "scaling": "robust"}}}, "declared range"),
        ({"privacy__statistics_epsilon": 0.0}, r"privacy\.statistics_epsilon"),
    ],
)
def test_a_plan_whose_statistics_have_no_bound_or_no_use_is_refused(scaled, changes, where):
    with pytest.raises(ConfigError, match=where):
        scaled(**changes)


def test_a_plan_without_statistics_keeps_its_hash_and_its_mistakes(new_world):
    plain = new_world().plan
    assert b"statistics_epsilon" not in plain.canonical
    content = copy.deepcopy(plain.model_dump(mode="json", exclude_none=True))
    content["modalities"]["values"]["scaling"] = "zscore"
    with pytest.raises(ConfigError, match="'zscore' needs sums over patients"):
        parse(content)
    content["modalities"]["values"] |= {"scaling": "robust", "range": [-6.0, 6.0]}
    with pytest.raises(ConfigError, match="'robust' needs histograms over patients"):
        parse(content)
