"""A hospital's own location inside the budget: bounded, charged once, drawn once, kept at home, and what it is worth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from oncofed_client.budget import epsilon_of_charges
from oncofed_client.egress import check_reply
from oncofed_client.locations import LOCATIONS
from oncofed_client.plan_charges import plan_charges, promised
from oncofed_server.run_state import Phase
from oncofed_server.spending import spending
from oncofed_shared.charged_location import location_mechanism, location_size, location_sums, noised_locations
from oncofed_shared.charged_products import FINEST
from oncofed_shared.charged_statistics import patient_counts
from oncofed_shared.errors import ConfigError
from oncofed_shared.features import no_sums, prepare
from oncofed_shared.harmonise import Harmony
from oncofed_shared.messages import Describe, Open, Refusal, from_bytes
from oncofed_shared.storage import read_arrays

NAMED = {f"v{i}": {"kind": "numeric", "range": [-6.0, 6.0]} for i in range(5)}
COLUMNS = {"values": tuple(NAMED)}
COMBAT = {"kind": "combat", "minimum": 5}


def harmonising(**more: Any) -> dict[str, Any]:
    return {
        "modalities": {"values": {"columns": NAMED, "scaling": "none", "harmonise": COMBAT}},
        "privacy__harmonise_epsilon": 4.0,
        **more,
    }


STATISTICS = {
    "modalities": {"values": {"columns": NAMED, "harmonise": COMBAT}},
    "privacy__statistics_epsilon": 4.0,
}


@pytest.mark.parametrize("bound", [1.0, 0.5, 0.1])
def test_one_patient_moves_a_location_by_no_more_than_is_charged(new_world, bound: float) -> None:
    modality = {"columns": NAMED, "scaling": "none", "harmonise": {**COMBAT, "bound": bound}}
    plan = new_world(**harmonising(modalities={"values": modality})).plan
    mechanism = location_mechanism(plan, COLUMNS)
    assert mechanism.noise_multiplier == pytest.approx(mechanism.own_noise_multiplier, rel=1e-6)
    rng = np.random.default_rng(1)
    longest = 0.0
    for _ in range(10):
        table = rng.standard_normal((6, 5)) * 10.0 ** rng.integers(-2, 9, (6, 1))
        table[rng.random(table.shape) < 0.2] = np.nan
        whole = location_sums(plan, COLUMNS, table, unit=FINEST)
        assert whole.shape == (location_size(plan, COLUMNS),)
        for i in range(len(table)):
            change = whole - location_sums(plan, COLUMNS, np.delete(table, i, axis=0), unit=FINEST)
            np.testing.assert_array_equal(change, location_sums(plan, COLUMNS, table[i : i + 1], unit=FINEST))
            assert np.abs(change).max() <= FINEST
            longest = max(longest, float((change.astype(float) ** 2).sum()) / FINEST**2)
    assert 0.9 * mechanism.entries < longest <= mechanism.entries


@pytest.mark.parametrize("seed", range(5))
def test_given_the_location_one_patient_moves_nobody_elses_numbers(new_world, seed: int) -> None:
    """Adaptive composition: with the released value as a constant, statistics are bounded as without harmonisation."""
    plan = new_world(**harmonising(**STATISTICS)).plan
    rng = np.random.default_rng(seed)
    values, labels = rng.standard_normal((6, 5)) * 3, rng.integers(0, 2, 6)
    locations = noised_locations(plan, COLUMNS, np.r_[30.0, rng.standard_normal(5) * 9], noise=1.0)
    fixed = prepare(plan, COLUMNS, no_sums(plan, COLUMNS)).harmonisation

    def counted(rows: slice) -> np.ndarray[Any, Any]:
        own = values[rows]
        harmony = Harmony(fixed=fixed, locations=locations, hospital=np.zeros(len(own), dtype=np.int64))
        return patient_counts(
            plan, COLUMNS, {"values": own}, COLUMNS, {"response": labels[rows]}, unit=FINEST, harmony=harmony
        )

    np.testing.assert_array_equal(counted(slice(None)) - counted(slice(1, None)), counted(slice(0, 1)))


def test_shrinking_counts_the_noise_and_leaves_an_exact_location_as_it_is(new_world) -> None:
    plan = new_world(**harmonising()).plan
    shift = np.array([0.3, -0.1, 0.2, 0.0, -0.4])
    exact = np.r_[100.0, 100 * shift]
    np.testing.assert_allclose(noised_locations(plan, COLUMNS, exact, noise=0.0)["values"][0].shift, shift)
    rng = np.random.default_rng(0)
    plain, shrunk = [], []
    for _ in range(300):
        small = rng.standard_normal(5) * 0.05
        released = np.r_[100.0, 100 * small + 20 * rng.standard_normal(5)]
        found = noised_locations(plan, COLUMNS, released, noise=20.0)["values"][0]
        assert (found.scale == 1).all()
        plain.append(((released[1:] / 100 - small) ** 2).mean())
        shrunk.append(((found.shift - small) ** 2).mean())
    assert np.mean(shrunk) < 0.6 * np.mean(plain)
    few = noised_locations(plan, COLUMNS, np.r_[40.0, 100 * shift], noise=20.0)
    assert not few["values"][0].shift.any()


@pytest.fixture(scope="module", params=["constants", "statistics"])
def finished(request, new_world_at, tmp_path_factory):
    """A world after its run, and the aggregator."""
    changes = harmonising() if request.param == "constants" else harmonising(**STATISTICS)
    world = new_world_at(tmp_path_factory.mktemp(request.param), **changes)
    return world, world.run()


def test_a_run_charges_it_once_beside_its_steps_and_sends_it_nowhere(finished) -> None:
    world, aggregator = finished
    plan, (steps, *_) = world.plan, plan_charges(world.plan, "alpha")
    assert aggregator.state.phase is Phase.DONE, aggregator.state.why
    with_statistics = plan.privacy.statistics_epsilon is not None
    assert promised(plan) == (11.0 if with_statistics else 7.0, 1e-4)
    for name, site in world.sites.items():
        (account,) = site.contributor.ledger.plans()
        at = 2 if with_statistics else 1
        assert account.used[: at + 1] == [plan.training.rounds, *[1] * at]
        location = account.charges[at]
        assert (location.part, location.steps, location.sampling_rate) == ("train", 1, 1.0)
        assert location.own_noise_multiplier == pytest.approx(location.noise_multiplier)
        assert steps.noise_multiplier == pytest.approx(account.charges[0].noise_multiplier)
        train = [c for c in account.charges if c.part == "train"]
        assert epsilon_of_charges(train, delta=1e-4) <= promised(plan)[0]
        assert spending(plan, name).epsilon <= promised(plan)[0]
    asked = {(s, m.head): m for d, s, c in world.traffic if d == "down" for m in [from_bytes(c)]}
    for name, reply in [(s, from_bytes(c)) for d, s, c in world.traffic if d == "up"]:
        check_reply(plan, asked[name, reply.head], reply, site=name)
    kinds = {type(from_bytes(c)).__name__ for d, _, c in world.traffic if d == "up"}
    assert kinds == {"Description", "Exchanged", "Contribution", "Ready"}


def kept(world, name: str) -> np.ndarray[Any, Any]:
    """The location in a site's state folder."""
    (path,) = (world.folder / name / LOCATIONS).iterdir()
    return read_arrays(path)[0]["values.0.shift"]


def test_it_is_within_what_the_noise_explains_and_used_by_the_run(finished) -> None:
    world, _ = finished
    plan, mechanism = world.plan, location_mechanism(world.plan, COLUMNS)
    for name, site in world.sites.items():
        cohort = site.source.cohort(plan)
        rows = site.source.split(plan, cohort, world.aggregator().trial) == 0
        exact = location_sums(plan, COLUMNS, cohort.values["values"][rows], unit=FINEST) / FINEST
        error = mechanism.noise_std(1) / exact[0]
        assert np.abs(kept(world, name) - (exact[1:] / exact[0]).mean()).max() < 5 * error + 0.2
        (session,) = site.sessions.values()
        np.testing.assert_array_equal(session.locations["values"][0].shift, kept(world, name))


def test_however_often_it_is_asked_it_is_one_draw(finished) -> None:
    """A second opening, and a site that was started anew, have the first location and no new charge."""
    world, _ = finished
    before = kept(world, "alpha")
    found = [from_bytes(c) for d, s, c in world.traffic if d == "down" and s == "alpha"]
    opening = next(m for m in found if isinstance(m, Open))
    world.sites["alpha"].contributor.ledger.close()
    again = world.open("alpha")
    head = replace(opening.head, session="another session")
    assert type(again.handle(replace(opening, head=head))).__name__ == "Ready"
    np.testing.assert_array_equal(kept(world, "alpha"), before)
    (account,) = again.contributor.ledger.plans()
    assert account.used[2 if world.plan.privacy.statistics_epsilon else 1] == 1


def test_a_site_whose_location_cannot_be_charged_opens_nothing(finished, new_world) -> None:
    world, _ = finished
    found = [from_bytes(c) for d, s, c in world.traffic if d == "down" and s == "alpha"]
    opening = next(m for m in found if isinstance(m, Open))
    other = new_world(**harmonising(privacy__harmonise_epsilon=4.5))
    site = other.sites["alpha"]
    head = replace(opening.head, plan_hash=other.plan.hash)
    assert not isinstance(site.handle(Describe(head=head)), Refusal)
    site.contributor = None
    reply = site.handle(replace(opening, head=head))
    assert isinstance(reply, Refusal)
    assert reply.code in {"no-ledger", "preparation", "protocol"}


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        (
            harmonising(privacy__harmonise_epsilon=None),
            "no epsilon is charged for them; leave it out, or give privacy.harm",
        ),
        (
            harmonising(modalities={"values": {"columns": NAMED, "scaling": "none"}}),
            r"privacy\.harmonise_epsilon: nothing of this plan is harmonised",
        ),
        (
            harmonising(modalities={"values": {"patterns": ["v*"], "scaling": "none", "harmonise": COMBAT}}),
            "needs columns that the plan names",
        ),
        (
            harmonising(
                modalities={"values": {"columns": {"v0": {"kind": "numeric"}}, "scaling": "none", "harmonise": COMBAT}}
            ),
            "a noised location needs a declared range",
        ),
        (
            harmonising(
                modalities={
                    "values": {"columns": NAMED, "scaling": "none", "harmonise": {**COMBAT, "covariates": ["other.w"]}},
                    "other": {"columns": {"w": {"kind": "numeric"}}, "scaling": "none"},
                }
            ),
            r"harmonise\.covariates: cannot be used with privacy",
        ),
    ],
)
def test_a_harmonisation_that_cannot_be_charged_is_a_mistake_of_the_plan(new_world, changes, where) -> None:
    with pytest.raises(ConfigError, match=where):
        new_world(**changes)
