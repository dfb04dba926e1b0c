"""A run under noise = "consortium", end to end: the model is that of the open sum, and nothing else leaves."""

from __future__ import annotations

import numpy as np
import pytest

from oncofed_client.integer_step import consortium_share
from oncofed_client.ledger import LEDGER_FILE, Ledger, verify
from oncofed_client.randomness import Randomness
from oncofed_client.session import training_set
from oncofed_client.settings import Policy
from oncofed_server.run_state import Phase, Received, Start, Tick
from oncofed_server.spending import spending
from oncofed_shared import secagg
from oncofed_shared.consortium import ConsortiumMechanism, TablesMechanism, server_gradient
from oncofed_shared.errors import ConfigError, Interrupted
from oncofed_shared.layout import Layout
from oncofed_shared.messages import Contribution, Evaluate, Head, Refusal, Summarise, Train, from_bytes
from oncofed_shared.network import build
from oncofed_shared.noised_tables import coarse_counts, coarse_entries, placed_grid


def open_sum(world):
    """The model that plain addition of the same shares and plain descent give, written without secure sums."""
    plan, sites = world.plan, world.sites
    columns = sites["alpha"].source.patients.columns
    network = build(plan, columns, seed=3)
    layout = Layout.of(network)
    mechanism = ConsortiumMechanism.for_plan(plan, parameters=layout.size)
    weights = layout.flatten({n: p.detach().numpy() for n, p in network.named_parameters()})
    (session,) = sites["alpha"].sessions.values()
    seed = plan.simulation.noise_seed
    for number in range(plan.training.rounds):
        total = np.zeros(layout.size, dtype=np.int64)
        for name, site in sites.items():
            rows = site.source.split(plan, site.source.patients, session.trial) == 0
            data = training_set(plan, session.preparation, site.source.patients, rows)
            random = Randomness.repeatable(f"{seed}|{name}|{session.trial}|train|{number + 1}|{number}")
            arrays = layout.arrays(weights, "float32")
            total += consortium_share(plan, network, layout, data, arrays, mechanism=mechanism, random=random)
        gradient = total * mechanism.grain / mechanism.expected_batch
        decayed = np.concatenate(
            [np.full(layout.sizes[i], 0.01 if name == "linear.weight" else 0.0) for i, name in enumerate(layout.shapes)]
        )
        penalty = decayed * weights + decayed * 0.1 * np.sign(weights)
        weights = weights - 0.5 * (gradient + penalty)
    return weights


def test_the_model_is_that_of_the_open_sum(new_world):
    world = new_world()
    aggregator = world.run()
    assert aggregator.state.phase is Phase.DONE
    np.testing.assert_allclose(aggregator.state.server.parameters, open_sum(world), rtol=1e-6, atol=1e-7)


def test_a_second_run_gives_the_same_model_and_another_masked_vector(new_world, tmp_path_factory):
    world = new_world()
    first = world.run().state.server.parameters
    uploads = [c for d, _, c in world.traffic if d == "up" and isinstance(from_bytes(c), Contribution)]
    again = type(world)(plan=world.plan, folder=tmp_path_factory.mktemp("again"))
    for name in world.sites:
        again.open(name)
    assert np.array_equal(first, again.run().state.server.parameters)
    others = [c for d, _, c in again.traffic if d == "up" and isinstance(from_bytes(c), Contribution)]
    assert len(uploads) == len(others)
    assert not set(uploads) & set(others)


def test_what_leaves_does_not_look_like_the_share(new_world):
    """Masked words are uniform: their correlation with the share, if they held it, would be 1."""
    world = new_world()
    world.run()
    masked = []
    for direction, _, content in world.traffic:
        message = from_bytes(content)
        if direction == "up" and isinstance(message, Contribution):
            masked.append(secagg.from_bytes(message.content).masked)
    words = np.concatenate([m.astype(np.float64) for m in masked]) / 2**32
    assert abs(words.mean() - 0.5) < 5 / np.sqrt(12 * len(words))


def test_scores_are_the_tables_of_the_test_patients_with_noise(new_world):
    world = new_world()
    aggregator = world.run()
    plan, state = world.plan, aggregator.state
    mechanism = TablesMechanism.for_plan(plan, cells=len(state.released), entries=coarse_entries(plan))
    grid = placed_grid(plan, state.histogram)
    head = Head(session="run", step=0, attempt=0, plan_hash=plan.hash, trial=aggregator.trial)
    exact = np.zeros(len(state.released))
    for site in world.sites.values():
        (session,) = site.sessions.values()
        predictions, labels, _ = site._predicted(session, head, aggregator.shared_parameters(), "test")
        exact += coarse_counts(plan, predictions, labels, grid)
    assert exact.sum() == 4 * 6
    assert np.abs(state.released - exact).max() < 6 * mechanism.noise_std(state.present)
    assert not np.array_equal(state.released, exact)


def test_every_ledger_says_what_the_report_says(new_world):
    world = new_world()
    world.run()
    plan = world.plan
    for name, site in world.sites.items():
        folder = world.folder / name
        assert verify(folder / LEDGER_FILE, site.contributor._key.public_key()) == []
        (account,) = site.contributor.ledger.plans()
        assert account.epsilon == 3
        assert account.used == [plan.training.rounds, 1, 1]
        # The plan's charges are those of the mechanism that the report reads.
        steps = plan.training.rounds + plan.privacy.spare_steps
        assert account.charges[0].steps == steps
        assert account.charges[0].noise_multiplier == pytest.approx(
            ConsortiumMechanism.for_plan(plan, parameters=6).noise_multiplier
        )
        assert spending(plan, name).epsilon <= 3


def test_a_site_refuses_first_and_the_study_goes_on_without_it(new_world):
    strict = {"gamma": Policy(minimum_cohort=1, epsilon_study=1.0)}
    world = new_world(policies=strict, privacy__drop=1)
    aggregator = world.run()
    assert aggregator.state.phase is Phase.DONE
    assert list(aggregator.state.excluded) == ["gamma"]
    assert aggregator.state.present == 3
    # Nothing of it was charged, because nothing of it left.
    assert not [
        c for d, s, c in world.traffic if s == "gamma" and d == "up" and isinstance(from_bytes(c), Contribution)
    ]
    assert world.sites["gamma"].contributor.ledger.plans() == ()


def test_a_study_that_cannot_spare_the_site_ends_and_says_why(new_world):
    strict = {"gamma": Policy(minimum_cohort=1, epsilon_study=1.0)}
    aggregator = new_world(policies=strict).run()
    assert aggregator.state.phase is Phase.FAILED
    assert "gamma" in aggregator.state.why
    assert "privacy.drop is 0" in aggregator.state.why


class Silent:
    """A site that answers until it does not."""

    def __init__(self, site, until):
        self.site, self.until, self.seen = site, until, 0

    def handle(self, request):
        self.seen += 1
        if self.seen > self.until:
            return Refusal(head=request.head, site=self.site.name, code="gone", text="gone")
        return self.site.handle(request)


@pytest.mark.parametrize("until", range(2, 16))
def test_a_site_may_leave_at_any_message(new_world, until):
    """Describe, Open, three of set-up, then Contribute and the opening of each sum."""
    world = new_world(privacy__drop=1)
    world.sites["beta"] = Silent(world.sites["beta"], until)
    aggregator = world.run()
    assert aggregator.state.phase is Phase.DONE, aggregator.state.why
    assert len(aggregator.state.losses) == world.plan.training.rounds
    for name, site in world.sites.items():
        own = site.site if name == "beta" else site
        for account in own.contributor.ledger.plans():
            released = sum(
                1
                for d, s, c in world.traffic
                if d == "up" and s == name and isinstance(m := from_bytes(c), Contribution) and m.head.session
            )
            assert sum(account.used) >= released


def test_two_sites_more_than_the_plan_can_spare_end_the_run(new_world):
    world = new_world(privacy__drop=1)
    for name in ("beta", "gamma"):
        world.sites[name] = Silent(world.sites[name], 6)
    aggregator = world.run()
    assert aggregator.state.phase is Phase.FAILED
    assert "privacy.drop" in aggregator.state.why or "spare_steps" in aggregator.state.why


@pytest.mark.parametrize("after", [3, 20, 27, 33, 41])
def test_a_restarted_site_goes_on(new_world, after):
    """Every site is opened anew from its state after some message, as a daemon that was killed."""
    world = new_world()
    undisturbed = new_world_model(world)
    seen = 0

    def restart(_):
        nonlocal seen
        seen += 1
        if seen == after:
            for name in list(world.sites):
                world.open(name)

    aggregator = world.run(after_step=restart)
    assert aggregator.state.phase is Phase.DONE, aggregator.state.why
    assert np.array_equal(aggregator.state.server.parameters, undisturbed)


def new_world_model(world):
    other = type(world)(plan=world.plan, folder=world.folder / "undisturbed")
    for name in world.sites:
        other.open(name)
    return other.run().state.server.parameters


def test_a_restarted_aggregator_goes_on_out_of_spare_steps(new_world):
    world = new_world()
    first = world.aggregator()

    def stop(aggregator):
        if len(aggregator.state.losses) == 1 and aggregator.state.phase is Phase.OPENING:
            raise Interrupted("killed")

    with pytest.raises(Interrupted):
        world.run(first, after_step=stop)
    second = world.run(world.aggregator(state=first.state))
    assert second.state.phase is Phase.DONE, second.state.why
    assert len(second.state.losses) == world.plan.training.rounds
    (account,) = world.sites["alpha"].contributor.ledger.plans()
    assert account.used[0] == world.plan.training.rounds + 1


def test_a_run_that_is_begun_too_often_is_refused_by_every_ledger(new_world):
    """Charged is never less than released: the plan's steps are all that there is."""
    world = new_world()
    for _ in range(2):
        world.run(world.aggregator())
    (account,) = world.sites["alpha"].contributor.ledger.plans()
    assert account.used[0] == world.plan.training.rounds + world.plan.privacy.spare_steps


@pytest.mark.parametrize("part", ["train", "validation", "test", "all"])
def test_nothing_leaves_unmasked(new_world, part):
    world = new_world()
    aggregator = world.run()
    head = Head(session="run", step=99, attempt=0, plan_hash=world.plan.hash, trial=aggregator.trial)
    parameters = aggregator.shared_parameters()
    site = world.sites["alpha"]
    for request in (
        Train(head=head, round=1, parameters=parameters),
        Evaluate(head=head, part=part, subgroups=False, parameters=parameters),
        Summarise(head=head, columns=site.source.patients.columns),
    ):
        assert isinstance(site.handle(request), Refusal)


def test_ledgers_carry_the_signatures_of_the_others(new_world):
    world = new_world()
    world.run()
    for own, site in world.sites.items():
        ledger = Ledger.open(world.folder / own / LEDGER_FILE, site=own, key=site.contributor._key)
        signers = {name for _, name, _, _, _ in ledger._chain.witnesses()}
        assert signers >= {"aggregator", *(set(world.sites) - {own})}


def test_an_identity_that_is_not_known_is_an_error_before_the_run(new_world):
    world = new_world()
    aggregator = world.aggregator()
    aggregator.roster = type(aggregator.roster)(
        trainers=tuple(world.sites), evaluators=tuple(world.sites), identities={}
    )
    with pytest.raises(ConfigError, match="identity key"):
        world.run(aggregator)


def test_the_step_is_the_servers_gradient(new_world):
    """Divided by the plan's expected batch, never by a count."""
    world = new_world()
    aggregator = world.run()
    mechanism = ConsortiumMechanism.for_plan(world.plan, parameters=aggregator.layout.size)
    one = np.zeros(aggregator.layout.size, dtype=np.int64)
    one[0] = mechanism.bound
    assert server_gradient(one, mechanism)[0] == pytest.approx(1.0 / (0.5 * 160))


def test_who_is_silent_once_in_every_phase_is_asked_again(new_world):
    world = new_world(training__attempts=2, training__rounds=1)
    aggregator, now = world.aggregator(), 0.0
    queue, silent = aggregator.step(Start(now=now)), set()
    while not aggregator.finished:
        if not queue:
            now = aggregator.state.deadline
            queue = aggregator.step(Tick(now=now))
            continue
        outgoing, phase = queue.pop(0), aggregator.state.phase
        if phase in silent:
            reply = world.sites[outgoing.site].handle(outgoing.request)
            queue += aggregator.step(Received(now=now, reply=reply))
        silent.add(phase)
    assert {Phase.KEYS, Phase.TRAIN, Phase.OPENING} <= silent
    assert aggregator.state.phase is Phase.DONE
    assert aggregator.state.excluded == {}
