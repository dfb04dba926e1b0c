"""A run through the doors of real sites: the same model as in a simulation, and a receipt for all that left."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from airlock_world import SITES, World, aggregator_of, run

from oncofed_client.door_memory import DOOR_FILE, waiting_replies
from oncofed_client.identity import public_half
from oncofed_client.receipts import RECEIPTS_FILE, read_receipts, verify_receipts
from oncofed_client.reply_tick import seconds_to_tick
from oncofed_server.aggregator import Phase
from oncofed_shared.messages import Describe, Description, Head, Refusal
from oncofed_simulations.consortium import open_site
from oncofed_simulations.loopback import FakeClock, drive


@pytest.fixture
def plan(make_plan):
    return make_plan(training__rounds=2)


@pytest.fixture
def world(tmp_path, plan, hospitals):
    made = World.make(tmp_path, plan, hospitals)
    yield made
    made.close()


def head_of(world, **changes):
    study = world.papers.study
    usual = {"session": study.session, "step": 1, "attempt": 0, "plan_hash": study.plan.hash, "trial": study.trial}
    return Head(**(usual | changes))


def test_the_model_is_the_one_that_a_simulation_gives(world, plan, hospitals):
    deployed = aggregator_of(world)
    run(world, deployed)
    assert deployed.state.phase is Phase.DONE
    simulated = aggregator_of(world)
    sites = {s: open_site(hospitals / s, plan, state=None, minimum=None) for s in SITES}
    drive(simulated, sites, clock=FakeClock())
    for name, array in simulated.parameters().items():
        np.testing.assert_array_equal(array, deployed.parameters()[name])


def test_everything_that_left_has_a_receipt(world):
    run(world, aggregator_of(world))
    for site, state in world.states.items():
        left = [content for direction, whose, content in world.wire if (direction, whose) == ("up", site)]
        found = read_receipts(state / RECEIPTS_FILE, public_half(state))
        assert [(r.sha256, r.size) for r in found] == [(hashlib.sha256(c).hexdigest(), len(c)) for c in left]
        assert {r.kind for r in found} == {"Description", "Summary", "Ready", "Update", "Tables"}
        waiting = waiting_replies(state / DOOR_FILE)
        assert waiting == (left[-1],)
        assert verify_receipts(state / RECEIPTS_FILE, public_half(state), ledger=None, waiting=waiting) == []


def test_asked_again_it_gives_the_same_bytes_also_after_a_restart(world, hospitals):
    content = world.seal("site-1", Describe(head=head_of(world)))
    first = world.hand("site-1", content)
    assert world.hand("site-1", content) == first
    world.open("site-1", hospitals)
    assert world.hand("site-1", content) == first
    assert len(read_receipts(world.states["site-1"] / RECEIPTS_FILE, public_half(world.states["site-1"]))) == 1


def test_replies_of_one_kind_have_one_length(world):
    """Sites have different numbers of patients, of different numbers of digits."""
    lengths: dict[str, set[int]] = {}
    kinds: dict[str, set[int]] = {}

    def after(site, content, reply):
        kind = type(world.opened(site, content, reply)[0]).__name__
        lengths.setdefault(kind, set()).add(len(reply))

    run(world, aggregator_of(world), after=after)
    kinds = {k: v for k, v in lengths.items() if len(v) > 1}
    assert kinds == {}


def test_a_refusal_is_sealed_and_has_a_code(world):
    reply = world.ask("site-1", Describe(head=head_of(world, session="another-session")))
    assert isinstance(reply, Refusal)
    assert reply.code == "other-run"


def test_it_says_what_it_has(world):
    reply = world.ask("site-1", Describe(head=head_of(world)))
    assert isinstance(reply, Description)
    assert reply.site == "site-1"
    assert dataclasses.replace(reply.head) == head_of(world)


@given(st.floats(0, 1e4), st.floats(0.01, 100))
def test_a_reply_leaves_on_a_tick(elapsed, tick):
    wait = seconds_to_tick(elapsed, tick)
    ticks = (elapsed + wait) / tick
    assert 0 <= wait <= tick * (1 + 1e-9)
    assert abs(ticks - round(ticks)) < 1e-6
    assert round(ticks) >= 1
    assert seconds_to_tick(elapsed, 0) == 0
