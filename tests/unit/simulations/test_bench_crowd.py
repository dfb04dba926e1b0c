"""The benchmark's crowd: real sites over real bytes, whose shared scratch network changes no number."""

from __future__ import annotations

import numpy as np

from oncofed_client.site import Site
from oncofed_server.aggregator import Aggregator
from oncofed_server.run_state import Roster
from oncofed_shared.messages import Trial
from oncofed_simulations.bench_crowd import Crowd, Invented, small_plan
from oncofed_simulations.loopback import FakeClock, drive


def test_a_crowd_trains_every_round_and_times_both() -> None:
    crowd = Crowd.of(small_plan(rounds=3), 4, patients=8)
    crowd.train(beside=True)
    assert len(crowd.rounds) == len(crowd.pure) == 3
    assert min(crowd.rounds) > 0
    assert len({id(s.sessions["crowd"].network) for s in crowd.sites.values()}) == 1


def test_sites_with_one_scratch_network_train_the_same_model_as_sites_with_their_own() -> None:
    plan = small_plan(rounds=3, model={"width": 4, "heads": 2, "layers": 1, "feedforward": 4})
    sources = [Invented.of(i, 8) for i in range(3)]
    own = {s.name: Site(s, {plan.hash: plan}, minimum_cohort=1) for s in sources}
    finals = []
    for sites in (own, Crowd.of(plan, 3, patients=8).sites):
        names = tuple(sites)
        aggregator = Aggregator(plan, Roster(trainers=names, evaluators=names), Trial(seed=0), session="s")
        drive(aggregator, sites, clock=FakeClock())
        assert aggregator.state.server is not None
        finals.append(aggregator.state.server.parameters)
    assert np.array_equal(*finals)
